"""A training step never waits for the device: no number is read back, nothing is copied over, between two log lines.

On a CPU nothing would show it, so operators that make the host wait on a GPU raise here. Each epoch's first step may
compute what then stays for the stage (temperatures, class weights); the epoch's last words are one transfer of all
terms. The few places that compute otherwise on a CPU take the way they take on a GPU.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import traceback

import pytest
import torch
import toy
from avalanche.core import SupervisedPlugin
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from incrlt.data import augment, colour, pictures, policy, rand
from incrlt.data.tensors import TensorBatches
from incrlt.errors import UserError
from incrlt.experiment.methods import load_class, names
from incrlt.experts.ncl import NCL
from incrlt.experts.ride import RIDE
from incrlt.experts.shike import SHIKE
from incrlt.experts.single import Single
from incrlt.experts.tcl import TCL
from incrlt.kernels import closed_form, ops
from incrlt.plugins.quiet import quiet_evaluator
from incrlt.stages.expert_assignment import ExpertAssignment
from incrlt.stages.lws import LWS
from incrlt.strategies.lucir import LUCIR

aten = torch.ops.aten
READ_BACK = {"item", "cpu", "numpy", "tolist", "__bool__", "__int__", "__float__", "__index__", "__array__"}
"""Methods of a tensor that bring numbers to the host."""
WAITING = {
    aten._local_scalar_dense: "a number is read back",
    aten.nonzero: "its result is as large as the numbers say",
    aten.masked_select: "its result is as large as the numbers say",
    aten._unique2: "its result is as large as the numbers say",
    aten.unique_dim: "its result is as large as the numbers say",
    aten.unique_consecutive: "its result is as large as the numbers say",
    aten.bincount: "its result is as large as the numbers say",
    aten.equal: "its answer is the host's",
    aten.lift_fresh: "numbers of the host become a tensor, which is copied over",
}


def place():
    """The innermost line of ours that led here."""
    ours = [frame for frame in traceback.extract_stack() if f"{os.sep}incrlt{os.sep}" in frame.filename]
    return f" at {ours[-1].filename}:{ours[-1].lineno}: {ours[-1].line}" if ours else ""


class NoReading(TorchFunctionMode):
    """Note methods that bring numbers to the host."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in READ_BACK:
            self.found.append(f"Tensor.{function.__name__}{place()}")
        return function(*args, **(kwargs or {}))


class NoWaiting(TorchDispatchMode):
    """Note operators after which a GPU is waited for."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reason = self.reason(func, args, kwargs or {})
        if reason is not None:
            self.found.append(f"{func}: {reason}{place()}")
        return func(*args, **(kwargs or {}))

    def reason(self, func, args, kwargs):
        packet = func.overloadpacket
        by_mask = packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
        if by_mask and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            return "a mask: how many it picks, the device knows"
        if func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            return "its result is as large as the numbers say"
        return WAITING.get(packet)


@contextlib.contextmanager
def watched(found):
    """Note every wait inside."""
    with NoReading(found), NoWaiting(found):
        yield


class Watch(SupervisedPlugin):
    """Watches every step but an epoch's first, the making of its batch included."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.steps, self.batches, self.first, self.inside = 0, 0, True, False
        self.found, self.step = [], contextlib.ExitStack()
        plain = TensorBatches.batch

        def batch(loader, samples):
            if self.first or not self.inside:
                return plain(loader, samples)
            self.batches += 1
            with watched(self.found):
                return plain(loader, samples)

        monkeypatch.setattr(TensorBatches, "batch", batch)

    def before_training_epoch(self, strategy, **kwargs):
        self.first, self.inside = True, True

    def before_training_iteration(self, strategy, **kwargs):
        if not self.first:
            self.step.enter_context(watched(self.found))

    def after_training_iteration(self, strategy, **kwargs):
        self.steps += not self.first
        self.first = False
        self.step.close()

    def after_training_epoch(self, strategy, **kwargs):
        self.inside = False


def as_on_a_gpu(monkeypatch):
    """Take the other branch wherever the device decides how something is computed."""

    def on_chosen(images, chosen, change, *parameters):
        return torch.where(chosen[:, None, None, None], change(images, *parameters), images)

    def nth_largest(values, number):
        return values.topk(number, dim=-1).values[:, -1:]

    def histograms(levels):
        counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.int32)
        return counts.scatter_add_(2, levels, torch.ones_like(levels, dtype=torch.int32))

    monkeypatch.setattr(colour, "_histograms", histograms)
    monkeypatch.setattr(ops, "_cannot_ask", lambda logits, backend: True)
    monkeypatch.setattr(closed_form, "_nth_largest", nth_largest)
    for module in (pictures, policy, rand):
        monkeypatch.setattr(module, "on_chosen", on_chosen)


def train(monkeypatch, cls, **options):
    as_on_a_gpu(monkeypatch)
    watch = Watch(monkeypatch)
    options = {"train_epochs": 2, "evaluator": quiet_evaluator(), "plugins": [watch], **options}
    try:
        strategy = toy.make(cls, **options)
    except UserError:
        strategy = toy.make(cls, memory=0, **options)
    with watch.step:  # whatever a step raises, nothing goes on being watched
        toy.train(strategy, toy.stream().train_stream[:2])
    assert not watch.found, "\n".join(sorted(set(watch.found)))
    return watch


EXPERTS = {
    "single": Single(objective="ldam", scale=30.0),
    "ncl": NCL(num_experts=2),
    "ride": RIDE(num_experts=2),
    "shike": SHIKE(num_experts=2, classifier_epochs=2, classifier_warmup=0),
    "tcl": TCL(num_experts=2),
}


def test_every_expert_method_is_here():
    assert set(EXPERTS) == set(names("experts"))


def pairs():
    """Every strategy with every expert method; two methods each, and each method several times, before the soak.

    A strategy meets expert methods by its template alone, so that a wait of a pair is one of the two.
    """
    for (row, strategy), (column, experts) in itertools.product(
        enumerate(names("strategy")), enumerate(EXPERTS)
    ):
        always = (column - 2 * row) % len(EXPERTS) < 2
        yield pytest.param(strategy, experts, marks=() if always else pytest.mark.soak)


@pytest.mark.parametrize(("strategy", "experts"), pairs())
def test_no_step_waits(monkeypatch, strategy, experts):
    watch = train(monkeypatch, load_class("strategy", strategy), experts=EXPERTS[experts])
    assert watch.batches >= watch.steps >= 2 * 2 * 2


@pytest.mark.parametrize(
    "options",
    [
        {"rebalance": LWS(epochs=2)},
        {"rebalance": LWS(epochs=2, cache_features=True)},
        {"experts": NCL(num_experts=2), "router": ExpertAssignment(epochs=2, batch_size=32)},
        {"experts": NCL(num_experts=2, contrastive=1.0, queue=16)},
        {"experts": NCL(num_experts=2, flavor="published")},
        {"experts": RIDE(num_experts=2, flavor="published")},
        {"experts": SHIKE(num_experts=2, classifier_epochs=2, classifier_warmup=0, flavor="published")},
        {"class_balanced_finetune": 2, "mimic_scores": 1.0, "negatives": "all"},
        {"grad_clip": 1.0},
        {"precision": "bf16", "channels_last": True},
    ],
    ids=lambda options: " ".join(options) + " " + " ".join(str(value)[:40] for value in options.values()),
)
def test_no_step_of_other_settings_waits(monkeypatch, options):
    assert train(monkeypatch, LUCIR, **options).steps > 0


@pytest.mark.parametrize("name", augment.NAMED)
def test_no_augmentation_waits(monkeypatch, name):
    as_on_a_gpu(monkeypatch)
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    augmentation = augment.build(name, (3, 32, 32), (0.5,) * 3, (0.25,) * 3, train=True)
    loader, found = TensorBatches(images, torch.arange(8), batch_size=4, augmentation=augmentation), []
    loader.batch(torch.arange(4))  # tables are made once
    with watched(found):
        loader.batch(torch.arange(4, 8))
    assert not found, "\n".join(sorted(set(found)))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.index_put((x > 0,), torch.ones(2)),
        lambda x: x.nonzero(),
        lambda x: torch.tensor([1.0]),
        lambda x: torch.equal(x, x),
        lambda x: x.masked_select(x > 0),
        lambda x: x.long().bincount(),
    ],
)
def test_a_wait_is_noticed(wait):
    x, found = torch.tensor([1.0, 2.0]), []
    with watched(found):
        wait(x)
    assert found
    none = []
    with watched(none):
        x.clamp(min=0).sum().add_(1)
    assert not none
