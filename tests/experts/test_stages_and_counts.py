"""What expert methods do over time: their stages, the counts they see, the teacher they may have."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
import toy

from incrlt.checkpoint import CheckpointFolder
from incrlt.errors import UserError
from incrlt.experts.ncl import NCL
from incrlt.experts.ride import RIDE
from incrlt.experts.shike import SHIKE
from incrlt.experts.single import Single
from incrlt.models import load
from incrlt.stages.lws import LWS
from incrlt.strategies import LUCIR, Finetune, Replay
from incrlt.types import LossContext


def trained(cls, experiences=2, watch=None, **options):
    """A strategy after some experiences of the digits; ``watch`` is called at each epoch's end."""
    strategy = toy.make(cls, **{"train_epochs": 2, **options})
    strategy.on_epoch_end = watch
    torch.manual_seed(1)
    toy.train(strategy, toy.stream(per_class=24).train_stream[:experiences])
    return strategy


# ---------------------------------------------------------------------------- SHIKE's classifier stage


def test_the_classifier_stage_moves_second_heads_alone():
    kept, moved = [], []

    def watch(strategy):
        if strategy.stage.name == "train" and strategy.stage_epoch + 1 == strategy.stage.epochs:
            kept[:] = [toy.weights(strategy.model)]
        if strategy.stage.name == "classifier" and strategy.stage_epoch + 1 == strategy.stage.epochs:
            moved.append(toy.changed(kept[0], toy.weights(strategy.model)))

    trained(LUCIR, experts=SHIKE(num_experts=2, classifier_epochs=2, classifier_warmup=0), watch=watch)
    assert moved == [{"second_heads.0.weight", "second_heads.1.weight"}] * 2


def test_the_published_classifier_stage_lets_batch_norm_drift():
    names, kept = set(), []

    def watch(strategy):
        if strategy.stage.name == "train":
            kept[:] = [toy.weights(strategy.model)]
        else:
            names.update(toy.changed(kept[0], toy.weights(strategy.model)))

    experts = SHIKE(num_experts=1, classifier_epochs=1, classifier_warmup=0, flavor="published")
    trained(Finetune, 1, watch, experts=experts, memory=0)
    assert any(name.startswith("stem.") and name.endswith("running_mean") for name in names)
    assert not any(name.startswith("heads.") or name.endswith("conv1.weight") for name in names)


def test_second_heads_start_at_the_first_and_keep_old_rows():
    """With a learning rate of almost nothing the stage leaves what it started from."""
    experts = SHIKE(num_experts=2, classifier_epochs=1, classifier_lr=1e-12, classifier_warmup=0)
    strategy = toy.make(LUCIR, experts=experts, train_epochs=2)
    torch.manual_seed(1)
    stream = toy.stream().train_stream
    strategy.train(stream[0])
    first = [head.weight[:4].detach().clone() for head in strategy.model.heads]
    second = [head.weight[:4].detach().clone() for head in strategy.model.second_heads]
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        for head in strategy.model.second_heads:
            head.weight[:4] += 1.0
    strategy.train(stream[1])
    for before, one, two in zip(second, strategy.model.heads, strategy.model.second_heads, strict=True):
        torch.testing.assert_close(two.weight[:4].detach(), before + 1.0)
        torch.testing.assert_close(two.weight[4:7], one.weight[4:7])


def test_evaluation_reads_second_heads():
    strategy = trained(
        Finetune, 1, experts=SHIKE(num_experts=2, classifier_epochs=1, classifier_warmup=0), memory=0
    )
    x = torch.rand(3, 1, 8, 8)
    strategy.model.eval()
    output = strategy.model.forward_all(x)
    features = strategy.model.extract(x)
    expected = torch.stack([h(f)[0] for h, f in zip(strategy.model.second_heads, features, strict=True)])
    torch.testing.assert_close(output.expert_logits, expected)


# ---------------------------------------------------------------------------- which counts a term sees


def counts_by_stage(cls, **options):
    """Counts that the loss saw, by (experience, stage)."""
    seen = {}

    def watch(strategy):
        context = strategy.loss_context()
        seen[strategy.experience_index, strategy.stage.name] = context.class_counts.tolist()

    trained(cls, watch=watch, **options)
    return seen


def test_the_first_stage_counts_new_images_and_exemplars():
    seen = counts_by_stage(Replay, memory=5, experts=Single(objective="balanced_softmax"))
    assert seen == {(0, "train"): [24] * 4, (1, "train"): [5] * 4 + [24] * 3}


def test_a_class_aware_stage_sees_equal_counts_and_one_on_exemplars_those_of_the_memory():
    options = {"rebalance": LWS(epochs=1), "class_balanced_finetune": 1, "memory": 5}
    seen = counts_by_stage(LUCIR, **options)
    assert len(set(seen[1, "lws"])) == 1
    assert seen[1, "class_balanced_finetune"] == [5] * 7
    assert seen[1, "train"] == [5] * 4 + [24] * 3


def test_the_classifier_stage_counts_the_whole_stream():
    seen = counts_by_stage(
        Replay, memory=5, experts=SHIKE(num_experts=1, classifier_epochs=1, classifier_warmup=0)
    )
    assert seen[1, "classifier"] == [5] * 4 + [24] * 3


# ---------------------------------------------------------------------------- NCL's hard categories and queue


@pytest.mark.parametrize(("classes", "hard"), [(1, 1), (2, 2), (4, 2), (10, 3), (100, 30), (1000, 300)])
def test_hard_categories_grow_with_the_classes(classes, hard):
    assert NCL().num_hard(classes) == hard


def test_the_queue_is_emptied_and_the_encoder_copied_when_classes_arrive():
    experts = NCL(num_experts=2, contrastive=1.0, queue=64, projection=8)
    filled, distances = [], []

    def watch(strategy):
        contrast = strategy.model.contrast
        _, valid = contrast.negatives()
        filled.append((strategy.experience_index, int(valid.sum())))
        own = dict(strategy.model.branches[0].named_parameters())
        distances.append(max(
            float((own[name] - value).detach().abs().max())
            for name, value in contrast.key_branches[0].named_parameters()
        ))  # fmt: skip

    strategy = trained(Replay, watch=watch, experts=experts, head="linear", train_epochs=1)
    assert filled == [(0, 64), (1, 64)], "96 and 92 images fill a queue of 64"
    assert all(0 < distance < 1 for distance in distances), "it follows, slowly"
    assert {"contrastive", "balanced_softmax"} <= set(strategy.epoch_terms)


def test_a_second_view_needs_images_that_can_be_augmented():
    options = {"memory": 0, "experts": NCL(contrastive=1.0, num_experts=1), "head": "linear"}
    with pytest.raises(UserError, match=r"second view of each image.*fast_data is off"):
        toy.make(Finetune, fast_data=False, **options)
    finished = toy.make(Finetune, **options)
    with pytest.raises(UserError, match=r"second view of each image.*finished"):
        finished.train(toy.benchmark("nc").train_stream[0])  # floats
    assert finished.clock.train_iterations == 0


# ---------------------------------------------------------------------------- RIDE's larger teacher


def saved(strategy, folder):
    CheckpointFolder(folder / "checkpoints").save({"strategy": strategy.state_dict(trained=True)})
    return str(folder)


def test_a_network_comes_back_from_its_run_folder(tmp_path):
    strategy = trained(LUCIR, experts=SHIKE(num_experts=2, classifier_epochs=1, classifier_warmup=0))
    network = load(saved(strategy, tmp_path))
    x = torch.rand(5, 1, 8, 8)
    strategy.model.eval()
    assert torch.equal(network(x), strategy.model(x))
    assert network.class_ids == strategy.seen_classes
    assert network.class_names is None, "a folder without the names still loads"


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ('{"class_names": ["road", "palm"]}', {0: "road", 1: "palm"}),
        ('{"class_names": null}', None),
        ("{", None),
    ],
)
def test_a_loaded_network_names_its_classes(tmp_path, content, names):
    folder = saved(trained(Finetune, 1, memory=0), tmp_path)
    (tmp_path / "classes.json").write_text(content)
    assert load(folder).class_names == names


def test_a_larger_teacher_is_distilled_and_one_of_other_classes_refused(tmp_path):
    teacher = saved(trained(Finetune, 1, experts=RIDE(num_experts=3), memory=0), tmp_path)
    student = toy.make(Finetune, memory=0, experts=RIDE(num_experts=2, teacher=teacher), train_epochs=2)
    torch.manual_seed(1)
    student.train(toy.stream().train_stream[0])
    assert student.epoch_terms["distillation"] > 0
    with pytest.raises(UserError, match="knows 4 classes"):
        student.train(toy.stream().train_stream[1])


def test_a_teacher_without_checkpoint_is_refused_before_any_work(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        toy.make(Finetune, memory=0, experts=RIDE(teacher=str(tmp_path)))


def test_a_fraction_of_the_epochs_is_reached_in_the_epoch_that_it_names():
    """Before: 0.7 of 10 epochs was reached in epoch 8, because 0.7 * 10 is 7.000000000000001."""

    def first(fraction, epochs):
        contexts = (LossContext(torch.ones(2), 0, epoch, epochs) for epoch in range(epochs + 1))
        return next(context.epoch for context in contexts if context.reached(fraction))

    for epochs in (1, 3, 7, 10, 40, 160, 1000):
        for part in range(0, 101):
            assert first(part / 100, epochs) == math.ceil(Fraction(part, 100) * epochs), (part, epochs)
    assert [first(part / 6, 6) for part in range(7)] == list(range(7))
    assert [first(0.8, epochs) for epochs in (5, 40, 100, 160)] == [4, 32, 80, 128], "published runs stay"


@pytest.mark.parametrize("method", [Single(objective="ldam", reweight_after=0.7), RIDE(reweight_after=0.7)])
def test_reweighting_begins_in_the_epoch_that_is_asked_for(method):
    phases = [method.phase(LossContext(torch.ones(2), 0, epoch, 10)) for epoch in range(10)]
    assert phases == [False] * 7 + [True] * 3
