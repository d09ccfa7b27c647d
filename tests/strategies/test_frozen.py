"""Stages that train heads alone: nothing is kept for a gradient of the backbone, and features may be stored."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import toy
from avalanche.benchmarks import nc_benchmark
from avalanche.core import SupervisedPlugin

from incrlt.data import augment
from incrlt.errors import UserError
from incrlt.experts.ncl import NCL
from incrlt.experts.shike import SHIKE
from incrlt.stages.expert_assignment import ExpertAssignment
from incrlt.stages.lws import LWS
from incrlt.strategies.finetune import Finetune
from incrlt.strategies.lucir import LUCIR
from incrlt.training.graph import Stepper

TWO = {"num_experts": 2, "classifier_epochs": 2, "classifier_warmup": 0}
STAGES = {
    "lws": lambda: (LUCIR, {"rebalance": LWS(epochs=2)}),
    "router": lambda: (
        LUCIR,
        {"experts": NCL(num_experts=2), "router": ExpertAssignment(epochs=2, batch_size=16)},
    ),
    "classifier": lambda: (LUCIR, {"experts": SHIKE(**TWO)}),
    "classifier, published": lambda: (Finetune, {"experts": SHIKE(**TWO, flavor="published"), "memory": 0}),
    "class_balanced_finetune": lambda: (LUCIR, {"class_balanced_finetune": 2}),
}
STORED = {
    "lws": lambda: (LUCIR, {"rebalance": LWS(epochs=2, cache_features=True)}),
    "router": lambda: (
        LUCIR,
        {
            "experts": NCL(num_experts=2),
            "router": ExpertAssignment(epochs=2, batch_size=16, cache_features=True),
        },
    ),
    "classifier": lambda: (LUCIR, {"experts": SHIKE(**TWO, cache_features=True)}),
}


def keeping_gradients(cls):
    """The strategy as it would be if every stage ran the backbone as training does."""

    class Keeping(cls):
        @contextlib.contextmanager
        def _enter(self, index, stage):
            with super()._enter(index, stage) as start:
                self.work.backbone_trains = True
                yield start

    return Keeping


def run(parts, change=lambda cls: cls, stream=toy.stream, **options):
    cls, settings = parts()
    torch.manual_seed(0)
    strategy = toy.make(change(cls), **{"train_epochs": 2, **settings, **options})
    terms = []
    strategy.on_epoch_end = lambda strategy: terms.append((strategy.stage.name, dict(strategy.epoch_terms)))
    for experience in stream().train_stream[:2]:
        strategy.train(experience)
    return strategy, terms


@pytest.mark.parametrize("name", STAGES)
def test_no_gradient_of_the_backbone_no_other_number(name):
    expected, expected_terms = run(STAGES[name], keeping_gradients)
    found, terms = run(STAGES[name])
    assert name.split(",")[0] in {stage for stage, _ in terms}
    assert terms == expected_terms
    assert toy.changed(toy.weights(expected.model), toy.weights(found.model)) == set()


class Saved(SupervisedPlugin):
    """Notes by stage whether maps of an image ``[B, C, H, W]`` are kept for a backward pass."""

    def __init__(self):
        super().__init__()
        self.maps = {}

    def before_forward(self, strategy, **kwargs):
        def pack(tensor):
            known = self.maps.get(strategy.stage.name, False)
            self.maps[strategy.stage.name] = known or tensor.dim() == 4
            return tensor

        self.hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        self.hooks.__enter__()

    def after_forward(self, strategy, **kwargs):
        self.hooks.__exit__(None, None, None)


@pytest.mark.parametrize("name", STAGES)
def test_no_activation_is_kept_where_heads_alone_train(name):
    seen = Saved()
    run(STAGES[name], plugins=[seen])
    assert seen.maps.pop("train")
    assert set(seen.maps.values()) <= {False} and name.split(",")[0] in seen.maps


# -------------------------------------------------------------------------------------------------- stored features


def still():
    """The digits without augmentation."""
    return nc_benchmark(
        toy.images(True),
        toy.images(False),
        n_experiences=3,
        task_labels=False,
        fixed_class_order=list(toy.ORDER),
        per_exp_classes=dict(enumerate(toy.SIZES)),
        class_ids_from_zero_from_first_exp=True,
        train_transform=augment.build("none", (1, 8, 8), (0.3,), (0.4,), train=True),
        eval_transform=augment.build("none", (1, 8, 8), (0.3,), (0.4,), train=False),
    )


@pytest.mark.parametrize("name", STORED)
def test_without_augmentation_stored_features_are_the_same_training(name):
    """Same images in the same order; batches of another size are summed in another order."""
    expected, expected_terms = run(STAGES[name], stream=still)
    found, terms = run(STORED[name], stream=still)
    assert [stage for stage, _ in terms] == [stage for stage, _ in expected_terms]
    for (_, ours), (_, theirs) in zip(terms, expected_terms, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for key, value in toy.weights(expected.model).items():
        own = found.model.state_dict()[key]
        torch.testing.assert_close(own, value, rtol=1e-3, atol=1e-4, equal_nan=True, msg=key)


@pytest.mark.parametrize("name", STORED)
def test_with_augmentation_the_stage_trains_on_other_features(name):
    _, expected = run(STAGES[name])
    _, terms = run(STORED[name])
    own = [values for stage, values in terms if stage == name]
    assert own[0] != next(values for stage, values in expected if stage == name)


def test_the_backbone_runs_once_per_image_and_stage(monkeypatch):
    cls, settings = STORED["lws"]()
    settings["rebalance"] = LWS(epochs=5, cache_features=True)
    strategy = toy.make(cls, train_epochs=1, memory=0, **settings)
    seen = {}
    plain = strategy.model.extract

    def counted(images):
        if strategy.is_training:
            stage = strategy.stage.name
            seen[stage] = seen.get(stage, 0) + len(images)
        return plain(images)

    monkeypatch.setattr(strategy.model, "extract", counted)
    strategy.train(toy.stream().train_stream[0])
    images = len(toy.stream().train_stream[0].dataset)
    assert seen == {"train": images, "lws": images}


@pytest.mark.parametrize("name", STORED)
def test_a_captured_step_on_stored_features_has_the_same_bits(name, monkeypatch):
    eager, expected = run(STORED[name], step="eager")
    monkeypatch.setattr(Stepper, "make", toy.RepeatedCall)
    captured, terms = run(STORED[name], step="graph")
    assert captured.stepper.captures > 0 and terms == expected
    assert toy.changed(toy.weights(eager.model), toy.weights(captured.model)) == set()


class InterruptedRunError(Exception):
    """Stands for the end of a process."""


def test_a_run_that_goes_on_inside_the_stage_ends_in_the_same_bits():
    expected, _ = run(STORED["lws"])
    cls, settings = STORED["lws"]()
    torch.manual_seed(0)
    first, saved = toy.make(cls, train_epochs=2, **settings), {}

    def stop(strategy):
        if (strategy.experience_index, strategy.stage.name, strategy.stage_epoch) == (1, "lws", 0):
            saved.update(copy.deepcopy(strategy.state_dict()))
            raise InterruptedRunError

    first.on_epoch_end = stop
    with pytest.raises(InterruptedRunError):
        toy.train(first, toy.stream().train_stream[:2])
    second = toy.make(cls, train_epochs=2, **settings)
    second.load_state_dict(saved, toy.stream().train_stream)
    toy.train(second, list(toy.stream().train_stream)[1:2])
    assert toy.changed(toy.weights(expected.model), toy.weights(second.model)) == set()


def test_refusals_before_any_work():
    with pytest.raises(
        UserError, match=r"rebalance.cache_features needs images as tensors .* fast_data is off"
    ):
        toy.make(LUCIR, rebalance=LWS(cache_features=True), fast_data=False)
    with pytest.raises(UserError, match="flavor 'published' with classifier_epochs 20 has none"):
        SHIKE(flavor="published", cache_features=True)
    with pytest.raises(UserError, match="flavor 'sane' with classifier_epochs 0 has none"):
        SHIKE(classifier_epochs=0, cache_features=True)


def test_a_loader_whose_images_are_not_tensors_is_named():
    stream = nc_benchmark(
        toy.images(True), toy.images(False), 1, task_labels=False, train_transform=lambda image: image.float()
    )
    strategy = toy.make(LUCIR, memory=0, rebalance=LWS(epochs=1, cache_features=True))
    strategy.on_epoch_end = lambda s: pytest.fail("it is known before the first epoch")
    with pytest.raises(UserError, match=r"stage 'lws' is to store features .* Set cache_features: false"):
        strategy.train(stream.train_stream[0])


def test_a_loader_of_the_stream_alone_does_not_keep_a_stage_from_storing_features():
    """The stage draws classes from the data set, whatever the loader of the stream is."""

    class OwnLoader(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            strategy.dataloader = list(strategy.dataloader)

    strategy = toy.make(
        LUCIR, train_epochs=1, rebalance=LWS(epochs=1, cache_features=True), plugins=[OwnLoader()]
    )
    with pytest.warns(UserWarning, match="a loader of its own"):
        strategy.train(toy.stream().train_stream[0])
    assert strategy.fallback_reason is not None
    assert list(strategy.epoch_terms) == ["cross_entropy"]
