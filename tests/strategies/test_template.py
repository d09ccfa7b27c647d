"""What the template adds to Avalanche's: growth, stages, clipping, schedules, label ids, refusals."""

from __future__ import annotations

import copy
import dataclasses

import incrlt._compat  # noqa: F401  (before avalanche)

import pytest
import torch
import toy
from avalanche.benchmarks import nc_benchmark
from avalanche.training.plugins import SupervisedPlugin
from torch import nn
from torch.utils.data import TensorDataset

from incrlt.errors import UserError
from incrlt.experts.base import ExpertMethod
from incrlt.experts.ride import RIDE
from incrlt.experts.single import Single
from incrlt.losses import cross_entropy
from incrlt.models.layout import Layout
from incrlt.plugins import ExemplarMemory, multistep_with_warmup
from incrlt.stages.expert_assignment import ExpertAssignment
from incrlt.stages.lws import LWS
from incrlt.strategies import LUCIR, Finetune, ICaRL, Joint, Replay
from incrlt.training.graph import Stepper
from incrlt.types import Stage


class Spy(SupervisedPlugin):
    """Calls functions given by the callback's name."""

    def __init__(self, **callbacks):
        super().__init__()
        for name, function in callbacks.items():
            setattr(self, name, lambda strategy, function=function, **kwargs: function(strategy))


def test_adam_keeps_the_state_of_old_rows_when_capacity_runs_out():
    torch.manual_seed(0)
    labels = torch.arange(20).repeat_interleave(4)
    data = TensorDataset(torch.rand(80, 1, 8, 8), labels)
    data.targets = labels.tolist()
    benchmark = nc_benchmark(
        data, data, 2, task_labels=False, fixed_class_order=list(range(20)), per_exp_classes={0: 12, 1: 8}
    )
    starts = []
    strategy = toy.make(
        Finetune, memory=0, optimizer=lambda p: torch.optim.Adam(p, lr=1e-3), reset_optimizer=False, train_epochs=1,
        plugins=[Spy(before_training_epoch=lambda s: starts.append(
            {k: v.clone() for k, v in s.optimizer.state[s.model.heads[0].weight].items()}
            if s.optimizer.state else {}
        ))],
    )  # fmt: skip
    strategy.train(benchmark.train_stream[0])
    weight = strategy.model.heads[0].weight
    before = {key: value.clone() for key, value in strategy.optimizer.state[weight].items()}
    strategy.train(benchmark.train_stream[1])
    grown = strategy.model.heads[0].weight
    assert weight.shape[0] == 16
    assert grown.shape[0] == 32
    assert before["exp_avg"][:12].abs().sum() > 0
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(starts[1][key][:12], before[key][:12])
        assert not starts[1][key][12:].any()
    assert starts[1]["step"] == before["step"] > 0
    held = [p for group in strategy.optimizer.param_groups for p in group["params"]]
    assert any(p is grown for p in held)
    assert not any(p is weight for p in held)
    assert set(map(id, held)) == set(map(id, strategy.model.parameters()))
    assert strategy.optimizer.state[grown]["step"] > before["step"]


@pytest.mark.parametrize("fast_data", [True, False])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_place(fast_data):
    strategy = toy.make(Finetune, memory=0, fast_data=fast_data)
    experiences = toy.stream().train_stream
    strategy.train(experiences[0])
    for group in strategy.optimizer.param_groups:
        group["lr"] = float("inf")
    with pytest.raises(UserError) as caught:
        strategy.train(experiences[1])
    for part in (
        "'cross_entropy'",
        "nan",
        "experience 1",
        "stage 'train'",
        "epoch 1",
        "step 2",
        "training.lr",
    ):
        assert part in str(caught.value)


def test_the_first_experience_has_its_own_number_of_epochs():
    epochs = []
    strategy = toy.make(Finetune, memory=0, train_epochs=1, base_epochs=3)
    strategy.on_epoch_end = lambda s: epochs.append(s.experience_index)
    toy.train(strategy, toy.stream().train_stream)
    assert epochs == [0, 0, 0, 1, 2]


def test_warm_up_is_right_in_every_experience():
    rates = []
    strategy = toy.make(
        Finetune,
        memory=0,
        lr=0.1,
        train_epochs=4,
        schedule=multistep_with_warmup([0.75], 0.1, warmup_epochs=2),
    )
    strategy.on_epoch_end = lambda s: rates.append(s.epoch_lr)
    toy.train(strategy, toy.stream().train_stream[:2])
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.01] * 2)


def test_gradients_are_clipped_over_what_the_stage_trains():
    """In a second stage backbone and scale keep stale gradients, which must not count."""
    seen, limit = [], 0.05

    def norm(strategy):
        grads = [p.grad for g in strategy.optimizer.param_groups for p in g["params"] if p.grad is not None]
        return torch.stack([g.norm() for g in grads]).norm().item()

    before, after = Spy(), Spy()
    before.before_update = lambda s, **kwargs: seen.append([s.stage.name, norm(s)])
    after.after_update = lambda s, **kwargs: seen[-1].append(norm(s))
    strategy = toy.make(Finetune, memory=0, grad_clip=limit, rebalance=LWS(epochs=2), plugins=[before, after])
    toy.train(strategy, toy.stream().train_stream[:1])
    assert {name for name, _, _ in seen} == {"train", "lws"}
    assert any(norm_before > limit for _, norm_before, _ in seen)
    for _, norm_before, norm_after in seen:
        assert norm_after == pytest.approx(min(norm_before, limit), rel=1e-3)


@pytest.mark.parametrize("fast_data", [True, False])
def test_joint_sees_every_image_that_has_arrived(fast_data):
    images = []
    strategy = toy.make(Joint, memory=0, train_epochs=1, fast_data=fast_data)
    strategy.on_epoch_end = lambda s: images.append(s.epoch_images)
    toy.train(strategy, toy.stream().train_stream)
    assert images == [4 * 24, 7 * 24, 10 * 24]
    assert strategy.class_counts.tolist() == [24] * 10


@pytest.mark.parametrize("fast_data", [True, False])
def test_replay_trains_on_the_exemplars_and_the_experience(fast_data):
    labels = []
    spy = Spy(before_forward=lambda s: labels.append(s.mb_y.clone()))
    strategy = toy.make(Replay, memory=5, train_epochs=1, fast_data=fast_data, plugins=[spy])
    strategy.train(toy.stream().train_stream[0])
    labels.clear()
    strategy.train(toy.stream().train_stream[1])
    assert torch.cat(labels).bincount().tolist() == [5] * 4 + [24] * 3
    assert strategy.class_counts.tolist() == [5] * 4 + [24] * 3
    assert len(strategy.memory) == 7 * 5


def test_what_is_replayed_is_not_forgotten():
    kept = {}
    for cls, memory in ((Finetune, 0), (Replay, 10), (Joint, 0)):
        strategy = toy.make(cls, memory=memory, train_epochs=6)
        toy.train(strategy, toy.stream().train_stream)
        kept[cls.name] = toy.accuracy(strategy, toy.stream().test_stream[:1])
    assert kept["finetune"] + 0.3 < min(kept["replay"], kept["joint"])


def test_evaluating_classes_yet_to_come_works_and_leaves_the_head_alone():
    outputs = []
    spy = Spy(after_eval_iteration=lambda s: outputs.append(s.mb_output))
    strategy = toy.make(Finetune, memory=0, plugins=[spy])
    strategy.train(toy.stream().train_stream[0])
    head = strategy.model.heads[0]
    weight = head.weight
    found = strategy.eval(toy.stream().test_stream)
    assert head.num_classes == 4
    assert strategy.model.heads[0].weight is weight
    assert outputs[-1].shape[1] == 10
    assert all(output.isfinite().all() for output in outputs)
    assert {int(label) for output in outputs for label in output.argmax(1)} <= {0, 1, 2, 3}
    assert 0 < list(found.values())[-1] <= 0.4, "six of ten classes cannot be right"


SORTED_ORDER = [2, 4, 7, 9, 0, 1, 5, 3, 6, 8]
"""Ascending within each experience: then arrival order is the same with and without remapped labels."""


def stream_of(remap):
    return nc_benchmark(
        toy.floats(True), toy.floats(False), 3, task_labels=False, fixed_class_order=SORTED_ORDER,
        per_exp_classes={0: 4, 1: 3, 2: 3}, class_ids_from_zero_from_first_exp=remap,
    )  # fmt: skip


@pytest.mark.parametrize("cls", [Replay, ICaRL, LUCIR])
def test_label_ids_do_not_change_what_is_learned(cls):
    """Remapped to arrival order or not: the same bits."""
    results = []
    for remap in (True, False):
        strategy, benchmark = toy.make(cls), stream_of(remap)
        torch.manual_seed(1)
        found = [
            toy.train(strategy, [experience], benchmark.test_stream[: t + 1])
            for t, experience in enumerate(benchmark.train_stream)
        ]
        results.append((strategy, found))
    (mapped, accuracies), (raw, raw_accuracies) = results
    assert mapped.seen_classes == list(range(10))
    assert raw.seen_classes == SORTED_ORDER
    assert raw_accuracies == pytest.approx(accuracies)
    assert not toy.changed(toy.weights(mapped.model), toy.weights(raw.model))


@pytest.mark.parametrize("cls", [Replay, ICaRL, LUCIR])
def test_scattered_label_ids_are_answered_in_label_ids(cls):
    """class_incremental_benchmark does not remap: 7, 2, 9, 0 come first."""
    outputs = []
    spy = Spy(after_eval_iteration=lambda s: outputs.append(s.mb_output.argmax(1)))
    benchmark = toy.benchmark("class-incremental")
    strategy = toy.make(cls, plugins=[spy], train_epochs=6)
    accuracy = toy.train(strategy, benchmark.train_stream[:1], benchmark.test_stream[:1])
    assert set(torch.cat(outputs).tolist()) == {7, 2, 9, 0}
    assert accuracy > 0.6
    assert toy.train(strategy, benchmark.train_stream[1:], benchmark.test_stream) > 0.35
    logits = strategy.model.eval()(torch.rand(2, 1, 8, 8))
    assert logits.shape == (2, 10)


def test_a_model_of_the_user_trains_with_the_plain_criterion():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    sgd = torch.optim.SGD(model.parameters(), lr=0.5)
    strategy = Finetune(model=model, optimizer=sgd, train_mb_size=32, train_epochs=5, evaluator=toy.quiet())
    benchmark = toy.benchmark("nc")
    assert toy.train(strategy, benchmark.train_stream[:1], benchmark.test_stream[:1]) > 0.7
    assert list(strategy.epoch_terms) == ["criterion"]
    with pytest.raises(UserError, match=r"cannot|only strategies"):
        strategy.state_dict()


def test_bf16_features_and_logits_come_back_in_fp32():
    kinds = []
    spy = Spy(after_forward=lambda s: kinds.append((s.mb_out.features.dtype, s.mb_output.dtype)))
    strategy = toy.make(LUCIR, precision="bf16", train_epochs=1, plugins=[spy])
    toy.train(strategy, toy.stream().train_stream[:2])
    assert set(kinds) == {(torch.float32, torch.float32)}
    assert all(parameter.dtype == torch.float32 for parameter in strategy.model.parameters())


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: toy.make(Finetune, precision="fp16"), "fp16 needs a CUDA device"),
        (lambda: toy.make(Finetune, precision="fp8"), "allowed: fp32, bf16, fp16"),
        (lambda: toy.make(Replay, memory=0), "needs exemplars"),
        (lambda: toy.make(Joint, memory=5), "remove memory"),
        (lambda: toy.make(Finetune, memory=0, head="linear", experts=Single(objective="ldam")),
            "experts 'single' with objective ldam need cosine heads",),
        (lambda: toy.make(Finetune, memory=0, optimizer=lambda _: torch.optim.SGD(toy.network().parameters())),
            "holds no parameter of the model",),
        (lambda: Finetune(
                model=toy.network(), experts=RIDE(), optimizer=torch.optim.SGD([torch.zeros(1)], lr=0.1)
            ),
            "wants 3 branches",),
        (
            lambda: Replay(
                model=(m := nn.Linear(2, 2)), optimizer=torch.optim.SGD(m.parameters()),
                memory=ExemplarMemory(per_class=1), rebalance=LWS(),
            ),
            "incrlt.models.build",
        ),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused_at_once(build, words):
    with pytest.raises(UserError, match=words):
        build()


def test_a_router_changes_nothing_but_itself():
    """Its stage draws from generators of its own: later experiences train as without it."""
    found = []
    for router in (None, ExpertAssignment(epochs=2, batch_size=16)):
        strategy = toy.make(LUCIR, experts=RIDE(num_experts=2), router=router)
        torch.manual_seed(1)
        toy.train(strategy, toy.stream().train_stream)
        found.append({k: v for k, v in toy.weights(strategy.model).items() if not k.startswith("router")})
    assert not toy.changed(*found)


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_killed_in_the_router_stage_goes_on_to_the_same_bits(epoch):
    def make():
        return toy.make(LUCIR, experts=RIDE(num_experts=2), router=ExpertAssignment(epochs=2, batch_size=16))

    whole, first, saved = make(), make(), {}
    torch.manual_seed(1)
    toy.train(whole, toy.stream().train_stream)

    def stop(strategy):
        if (strategy.experience_index, strategy.stage.name, strategy.stage_epoch) == (1, "router", epoch):
            saved.update(copy.deepcopy(strategy.state_dict()))
            raise KeyboardInterrupt

    first.on_epoch_end = stop
    torch.manual_seed(1)
    with pytest.raises(KeyboardInterrupt):
        toy.train(first, toy.stream().train_stream)
    second = make()
    second.load_state_dict(saved, toy.stream().train_stream)
    toy.train(second, list(toy.stream().train_stream)[1:])
    before, after = toy.weights(whole.model), toy.weights(second.model)
    assert {n for n in before if not torch.equal(before[n].nan_to_num(), after[n].nan_to_num())} == set()


def test_a_checkpoint_without_router_serves_a_strategy_with_one_and_the_other_way_round():
    plain = toy.make(LUCIR, experts=RIDE(num_experts=2))
    routed = toy.make(LUCIR, experts=RIDE(num_experts=2), router=ExpertAssignment(epochs=1, batch_size=16))
    for strategy in (plain, routed):
        strategy.train(toy.stream().train_stream[0])
    for source, router in ((plain, ExpertAssignment(epochs=1, batch_size=16)), (routed, None)):
        strategy = toy.make(LUCIR, experts=RIDE(num_experts=2), router=router)
        strategy.load_state_dict(source.state_dict(trained=True), toy.stream().train_stream)
        strategy.train(toy.stream().train_stream[1])
        strategy.eval(toy.stream().test_stream[:2])
        assert strategy.seen_classes == list(range(7))


def test_a_network_of_another_layout_is_refused():
    model = toy.network(layout=Layout(num_experts=3))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UserError, match=r"width_factor 1.0 for 0.75.*scale 1.0 for 30.0"):
        Finetune(model=model, optimizer=sgd, experts=RIDE(num_experts=3))


def test_an_optimizer_of_a_part_of_the_model_is_allowed():
    model = toy.network()
    heads = torch.optim.SGD([head.weight for head in model.heads], lr=0.1)
    strategy = Finetune(model=model, optimizer=heads, evaluator=toy.quiet())
    before = toy.weights(model)
    strategy.train(toy.stream().train_stream[0])
    assert "stem.conv.weight" not in toy.changed(before, toy.weights(model))
    assert "heads.0.weight" in toy.changed(before, toy.weights(model))


def test_a_state_that_does_not_fit_says_what_differs():
    stream = toy.stream().train_stream
    two = toy.make(Finetune, memory=0, experts=Single(num_experts=2), train_epochs=1)
    two.train(stream[0])
    saved = two.state_dict(trained=True)
    with pytest.raises(UserError, match="it has num_experts 2, this run 1"):
        toy.make(Finetune, memory=0).load_state_dict(saved, stream)
    with pytest.raises(UserError, match="a run without exemplars, this run keeps some"):
        toy.make(Finetune, memory=5, experts=Single(num_experts=2)).load_state_dict(saved, stream)


def test_a_stage_aside_leaves_the_generators_of_the_stream_alone():
    class Aside:
        def stages(self, strategy, first):
            return first, Stage("aside", 1, lr=0.1, aside=True)

    def after(rebalance):
        strategy = toy.make(Finetune, memory=0, train_epochs=1, rebalance=rebalance)
        strategy.train(toy.stream().train_stream[0])
        return strategy.feed.order.get_state(), strategy.feed.augmentation.get_state()

    for alone, beside in zip(after(None), after(Aside()), strict=True):
        assert torch.equal(alone, beside)


def test_what_is_given_twice_counts_once():
    first = toy.stream().train_stream[0]
    joint = toy.make(Joint, memory=0, train_epochs=1)
    toy.train(joint, [first, first])
    assert joint.class_counts.tolist() == [24] * 4
    model, memory = toy.network(), ExemplarMemory(per_class=5)
    replay = Replay(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), memory=memory, plugins=[memory],
        train_mb_size=32, evaluator=toy.quiet(),
    )  # fmt: skip
    toy.train(replay, toy.stream().train_stream[:2])
    assert replay.class_counts.tolist() == [5] * 4 + [24] * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experts": "shike"}, "subclass of incrlt.experts.ExpertMethod"),
        ({"rebalance": "lws"}, "a method stages"),
        ({"router": "expert_assignment"}, "a method stage"),
    ],
)
def test_names_in_place_of_objects_are_refused(options, words):
    model = toy.network()
    with pytest.raises(UserError, match=words):
        Finetune(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **options)


def test_a_loss_without_names_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Unnamed(ExpertMethod):
        name = "unnamed"

        def loss(self, context, output, labels):
            return output.logits.sum()

    with pytest.raises(UserError, match="return named terms"):
        toy.make(Finetune, experts=Unnamed()).train(toy.stream().train_stream[0])


# ---------------------------------------------------------------------------- several experts, one pace


class Gradients(SupervisedPlugin):
    """Keeps the gradients of the first batch."""

    def __init__(self):
        super().__init__()
        self.found = None

    def before_update(self, strategy, **kwargs):
        if self.found is None:
            self.found = {
                name: p.grad.clone() for name, p in strategy.model.named_parameters() if p.grad is not None
            }


def _gradients_of_first_batch(experts, **options):
    plugin = Gradients()
    strategy = toy.make(Finetune, memory=0, experts=experts, plugins=[plugin], train_epochs=1, **options)
    strategy.train(toy.stream().train_stream[0])
    return plugin.found


@pytest.mark.parametrize("step", ["eager", "graph"])
def test_each_expert_learns_from_its_own_loss_and_the_stem_from_the_mean(monkeypatch, step):
    """Against losses of one expert at a time, by hand."""
    monkeypatch.setattr(Stepper, "make", toy.RepeatedCall)

    @dataclasses.dataclass(frozen=True)
    class One(Single):
        """The loss of expert ``only`` in place of the mean."""

        only: int = 0

        def loss(self, context, output, labels):
            return {"cross_entropy": cross_entropy(output.expert_logits[self.only], labels)}

        @property
        def averaged(self):
            return False

    found = _gradients_of_first_batch(Single(num_experts=2), step=step)
    alone = [_gradients_of_first_batch(One(num_experts=2, only=k), step="eager") for k in (0, 1)]
    for name, gradient in found.items():
        part, _, rest = name.partition(".")
        own = part in ("branches", "heads")
        expected = alone[int(rest[0])][name] if own else (alone[0][name] + alone[1][name]) / 2
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6, msg=name)
    assert any(name.startswith("stem") for name in found)


def test_published_sums_stay_as_they_are():
    sums = _gradients_of_first_batch(
        RIDE(num_experts=2, flavor="published", objective="cross_entropy", diversity=-0.2)
    )
    means = _gradients_of_first_batch(RIDE(num_experts=2, objective="cross_entropy", diversity=-0.2))
    for name, gradient in sums.items():
        factor = 2 if name.startswith("stem") else 1
        torch.testing.assert_close(gradient, factor * means[name], rtol=1e-4, atol=1e-6, msg=name)
