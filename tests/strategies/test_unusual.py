"""Streams, optimizers and plugins that are not the usual ones: what stages, counts and boundaries make of them."""

from __future__ import annotations

import incrlt._compat  # noqa: F401  (before avalanche)

import pytest
import torch
import toy
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    ReplayPlugin,
    SupervisedPlugin,
    SynapticIntelligencePlugin,
)
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from incrlt.errors import UserError
from incrlt.experts.ride import RIDE
from incrlt.experts.single import Single
from incrlt.plugins.features import features_of
from incrlt.stages.expert_assignment import ExpertAssignment
from incrlt.stages.lws import LWS
from incrlt.strategies import LUCIR, Finetune, ICaRL, Replay
from incrlt.training.optim import replace_parameters


class Watch(SupervisedPlugin):
    """Keeps the stage of each epoch, and the labels drawn in it."""

    def __init__(self, **callbacks):
        super().__init__()
        self.epochs: list[tuple[int, str]] = []
        self.labels: list[list[int]] = []
        self._epoch = None
        for name, function in callbacks.items():
            setattr(self, name, lambda strategy, function=function, **kwargs: function(strategy))

    def before_training_iteration(self, strategy, **kwargs):
        epoch = (strategy.experience_index, strategy.stage.name, strategy.stage_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self.epochs.append(epoch[:2])
            self.labels.append([])
        self.labels[-1] += strategy.mb_y.tolist()

    def drawn(self, place):
        """Labels drawn in the first epoch of a stage."""
        return torch.tensor(self.labels[self.epochs.index(place)])


def recurring(*parts):
    """A benchmark whose classes may come again."""
    return benchmark_from_datasets(
        train=[as_classification_dataset(toy.floats(True, labels=part)) for part in parts],
        test=[as_classification_dataset(toy.floats(False, labels=part)) for part in parts],
    )


# --- optimizers of later stages ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.NAdam, torch.optim.Adagrad]
)
def test_later_stages_train_with_any_optimizer_of_torch(kind):
    strategy = toy.make(Finetune, memory=0, optimizer=lambda p: kind(p, lr=1e-3), rebalance=LWS(epochs=1))
    strategy.train(toy.stream().train_stream[0])
    scales = strategy.model.heads[0].class_scale[: toy.SIZES[0]]
    assert (scales != 1).any()


def test_weight_decay_goes_on_in_later_stages():
    found = []
    watch = Watch(before_training_epoch=lambda s: found.append(s.optimizer.defaults["weight_decay"]))
    strategy = toy.make(
        Finetune, memory=0, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.3),
        rebalance=LWS(epochs=1), plugins=[watch],
    )  # fmt: skip
    strategy.train(toy.stream().train_stream[0])
    assert found == [0.3, 0.3, 0.3]


class WithPartner(torch.optim.SGD):
    """Cannot be built from parameters and defaults."""

    def __init__(self, params, partner, **options):
        super().__init__(params, **options)
        self.partner = partner


def test_an_optimizer_that_no_stage_can_build_is_refused_at_once():
    make = lambda p: WithPartner(p, object(), lr=0.1)  # noqa: E731
    toy.make(Finetune, memory=0, optimizer=make)
    for options in ({"rebalance": LWS(epochs=1)}, {"experts": RIDE(), "router": ExpertAssignment()}):
        with pytest.raises(UserError, match="WithPartner cannot be built"):
            toy.make(Finetune, memory=0, optimizer=make, **options)


DENSE = [
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
]


@pytest.mark.parametrize("name", DENSE)
def test_every_optimizer_of_torch_goes_on_over_a_growing_head(name):
    """Before: Adafactor's factored moments had the sizes of the old head, and the first step raised."""
    network, images = toy.network("linear"), torch.randn(8, 1, 8, 8)
    network.grow(range(4))
    optimizer = getattr(torch.optim, name)(network.parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad()
        network(images).square().sum().backward()
        optimizer.step()

    step()
    old = network.heads[0].weight
    kept = {key: value.clone() for key, value in optimizer.state[old].items() if value.dim()}
    replace_parameters(optimizer, network.grow(range(4, 20)))
    new = network.heads[0].weight
    assert len(old) == 16 and len(new) == 32 and {"Adafactor": "row_var"}.get(name, "") in {*kept, ""}
    for key, value in kept.items():
        grown = optimizer.state[new][key]
        torch.testing.assert_close(grown[: len(value)], value, rtol=0, atol=0)
        assert (grown[len(value) :] == (1e-3 if key == "step_size" else 0)).all()
        assert len(grown) == (1 if key == "col_var" else 32)
    before = new.detach().clone()
    step()
    assert new.isfinite().all() and (new[:20] != before[:20]).any(1).all()


def state_after_growth(states, rows=2, more=3):
    old, new = (torch.nn.Parameter(torch.ones(n, 4)) for n in (rows, more))
    optimizer = torch.optim.SGD([old], lr=0.1)
    optimizer.state[old] = states
    replace_parameters(optimizer, [(old, new)])
    assert optimizer.param_groups[0]["params"][0] is new
    return optimizer.state.get(new)


def test_a_state_whose_rows_cannot_be_told_starts_anew():
    factored = {"row_var": torch.ones(2, 1), "col_var": torch.ones(1, 4), "step": torch.tensor(3.0)}
    found = state_after_growth(factored)
    assert (
        found["row_var"].tolist() == [[1], [1], [0]]
        and found["col_var"].shape == (1, 4)
        and found["step"] == 3
    )
    assert state_after_growth({"of rows": torch.ones(2), "of columns": torch.ones(4)}) is None
    assert state_after_growth({"row_var": torch.ones(1, 1), "col_var": torch.ones(1, 4)}, rows=1) is None
    assert state_after_growth({"basis": torch.ones(4, 4)}) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [("LBFGS", "LBFGS, which computes the loss several times"), ("SparseAdam", "sparse gradients")],
)
def test_an_optimizer_that_cannot_step_is_refused_at_once(name, words):
    with pytest.raises(UserError, match=words):
        toy.make(Finetune, memory=0, optimizer=lambda p: getattr(torch.optim, name)(p, lr=1e-3))


class Twice(torch.optim.SGD):
    """Looks at the loss a second time, as SAM does."""

    def step(self, closure=None):
        assert closure is not None, "the closure does a full forward and backward pass"
        return super().step(closure)


class Demanding(torch.optim.SGD):
    """Has to be given a closure."""

    def step(self, closure):
        return super().step(closure)


@pytest.mark.parametrize("kind", [Twice, Demanding])
def test_an_optimizer_of_ones_own_that_needs_a_closure_is_one_sentence(kind):
    """One that takes a closure if there is any shows it at its first step. Before: its own AssertionError."""
    with pytest.raises(
        UserError, match=rf"optimizer.* {kind.__name__}, which computes|{kind.__name__} cannot step without a"
    ):
        strategy = toy.make(Finetune, memory=0, optimizer=lambda p: kind(p, lr=1e-3))
        strategy.train(toy.stream().train_stream[0])


class Pooled(torch.nn.Module):
    """Normalises over the batch after pooling."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = torch.nn.BatchNorm1d(1), torch.nn.Linear(1, 10)

    def forward(self, x):
        return self.head(self.norm(x.mean((2, 3))))


def test_one_image_before_a_norm_over_the_batch_is_one_sentence():
    """96 images in batches of 19: the last batch has one. Before: PyTorch's own error."""

    def made(size):
        model = Pooled()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Finetune(model=model, optimizer=optimizer, train_mb_size=size, evaluator=toy.quiet())

    words = r"stage 'train' has 96 images, in batches of 19 the last one holds a single image.* to 18, for example"
    with pytest.raises(UserError, match=words):
        made(19).train(toy.stream().train_stream[0])
    made(18).train(toy.stream().train_stream[0])


# --- classes that come again -------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [LUCIR, ICaRL, Replay])
def test_classes_may_come_again(cls):
    boundaries = []
    watch = Watch(before_training_epoch=lambda s: boundaries.append((s.num_old, s.num_new)))
    strategy = toy.make(cls, train_epochs=1, plugins=[watch])
    toy.train(strategy, recurring([0, 1], [1, 2], [0, 2], [3, 1]).train_stream)
    assert boundaries == [(0, 2), (2, 1), (3, 0), (3, 1)]


def test_only_new_classes_are_imprinted():
    rows = []
    watch = Watch(before_training_exp=lambda s: rows.append(s.model.heads[0].weight.detach().clone()))
    strategy = toy.make(LUCIR, train_epochs=1, lr=0.0, plugins=[watch])
    experiences = recurring([0, 1], [1, 2]).train_stream
    strategy.train(experiences[0])
    learned = strategy.model.heads[0].weight[:2].detach().clone()
    features, labels = features_of(strategy, experiences[1].dataset)
    strategy.train(experiences[1])
    head = strategy.model.heads[0].weight.detach()
    assert torch.equal(head[:2], learned)
    mean = normalize(features[labels == 2].sum(0), dim=0)
    torch.testing.assert_close(normalize(head[2], dim=0), mean, rtol=1e-4, atol=1e-5)


def test_an_experience_trained_twice_goes_on_from_what_was_learned():
    starts = []
    watch = Watch(before_training_epoch=lambda s: starts.append(s.model.heads[0].weight[:7].detach().clone()))
    strategy = toy.make(LUCIR, train_epochs=1, plugins=[watch])
    experiences = toy.stream().train_stream
    toy.train(strategy, experiences[:2])
    learned = strategy.model.heads[0].weight[:7].detach().clone()
    strategy.train(experiences[1])
    assert torch.equal(starts[-1], learned)
    assert (strategy.num_old, strategy.num_new) == (7, 0)


def test_sigmoid_icarl_refuses_labels_it_would_not_look_at():
    strategy = toy.make(ICaRL, train_epochs=1, objective="sigmoid")
    experiences = recurring([0, 1], [1, 2]).train_stream
    strategy.train(experiences[0])
    with pytest.raises(UserError, match=r"classes \[1\] come again"):
        strategy.train(experiences[1])


# --- gradients ---------------------------------------------------------------------------------------------


def test_no_stage_leaves_gradients_that_grow_or_stay():
    largest = []
    watch = Watch(
        after_backward=lambda s: largest.append(
            max(float(p.grad.abs().max()) for p in s.model.parameters() if p.grad is not None)
        )
    )
    strategy = toy.make(
        Finetune, memory=0, experts=RIDE(), rebalance=LWS(epochs=5), router=ExpertAssignment(epochs=1),
        train_mb_size=4, train_epochs=1, plugins=[watch],
    )  # fmt: skip
    strategy.train(toy.stream().train_stream[0])
    assert len(largest) > 100
    assert max(largest) < 1e3  # three times as much in each step would be beyond any number
    assert all(p.grad is None for p in strategy.model.parameters())


def test_plugins_that_read_gradients_work_with_experts_and_later_stages():
    strategy = toy.make(
        Finetune, memory=0, experts=RIDE(), rebalance=LWS(epochs=3), train_mb_size=4, train_epochs=1, lr=0.01,
        plugins=[SynapticIntelligencePlugin(0.1)],
    )  # fmt: skip
    toy.train(strategy, toy.stream().train_stream[:2])
    assert all(p.isfinite().all() for p in strategy.model.parameters())


# --- plugins that change the stream or the end of a stage --------------------------------------------------


def test_counts_and_later_stages_see_what_a_replay_plugin_adds():
    counts = {}
    watch = Watch(before_training_epoch=lambda s: counts.update({s.stage.name: s.stage_counts.clone()}))
    strategy = toy.make(
        Finetune, memory=0, experts=Single(objective="balanced_softmax"), rebalance=LWS(epochs=1),
        plugins=[ReplayPlugin(mem_size=20, batch_size=32, batch_size_mem=16), watch],
    )  # fmt: skip
    toy.train(strategy, toy.benchmark("nc").train_stream[:2])
    position = {label: index for index, label in enumerate(strategy.seen_classes)}
    drawn = torch.bincount(torch.tensor([position[int(y)] for y in watch.drawn((1, "train"))]), minlength=7)
    assert (drawn[:4] > 0).all()
    # half a pass more or less over five exemplars of a class is luck, the sum over the old is not
    assert counts["train"][4:].tolist() == drawn[4:].tolist()
    assert counts["train"][:4].sum().item() == pytest.approx(drawn[:4].sum().item(), abs=8)
    later = {position[int(y)] for y in watch.drawn((1, "lws"))}
    assert later == set(range(7))


def test_a_loader_that_cannot_be_read_is_kept_with_a_warning():
    class Own(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            data = strategy.adapted_dataset
            strategy.dataloader = DataLoader(
                data, 16, sampler=list(range(len(data))), collate_fn=data.collate_fn
            )

    strategy = toy.make(Finetune, memory=0, plugins=[Own()])
    with pytest.warns(UserWarning, match="a plugin put a loader of its own in place"):
        strategy.train(toy.stream().train_stream[0])
    assert strategy.class_counts.tolist() == [24] * 4


def test_early_stopping_ends_a_stage_and_not_those_after_it():
    watch = Watch()
    stop = EarlyStoppingPlugin(patience=2, val_stream_name="train_stream", metric_name="Top1_Acc_Stream")
    strategy = toy.make(
        Replay, train_epochs=6, lr=0.0, rebalance=LWS(epochs=3, lr=1e-12), eval_every=1, plugins=[stop, watch]
    )
    experience = toy.stream().train_stream[0]
    strategy.train(experience, eval_streams=[toy.stream().train_stream])
    stages = [stage for _, stage in watch.epochs]
    assert stages.count("train") < 6
    assert stages.count("lws") >= 1


def test_a_stop_in_the_last_epoch_of_a_stage_is_no_stop_of_the_next():
    def stop(strategy):
        if strategy.stage_index == 0 and strategy.stage_epoch == 1:
            strategy.stop_training()

    watch = Watch(after_training_iteration=stop)
    strategy = toy.make(Finetune, memory=0, rebalance=LWS(epochs=3), plugins=[watch])
    strategy.train(toy.stream().train_stream[0])
    assert [stage for _, stage in watch.epochs].count("lws") == 3


# --- a larger teacher --------------------------------------------------------------------------------------


@pytest.mark.parametrize("same", [True, False])
def test_a_teacher_must_know_the_classes_in_the_same_order(monkeypatch, same):
    names = ("cat", "dog", "cow", "owl")
    guide = toy.network(layout=RIDE().layout)
    guide.grow(range(4))
    guide.class_names = dict(enumerate(names if same else names[::-1]))
    monkeypatch.setattr(RIDE, "guide", lambda self: guide)
    benchmark = toy.stream()
    monkeypatch.setattr(benchmark, "class_names", names, raising=False)
    strategy = toy.make(Finetune, memory=0, experts=RIDE(), train_epochs=1)
    if same:
        strategy.train(benchmark.train_stream[0])
        assert strategy.epoch_terms["distillation"] > 0
    else:
        with pytest.raises(UserError, match=r"class 0 is 'owl' to experts\.teacher and 'cat' here"):
            strategy.train(benchmark.train_stream[0])
