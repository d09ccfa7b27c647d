"""Captured steps: the same bits as eager ones, captured as often as the loss changes, refused where they would lie.

Where there is no GPU a stand-in repeats the captured function on its fixed inputs; all around it is the real thing.
"""

from __future__ import annotations

import functools

import pytest
import torch
import toy
from avalanche.training.plugins import EWCPlugin

from incrlt.errors import UserError
from incrlt.experts import ExpertMethod
from incrlt.experts.ncl import NCL
from incrlt.experts.ride import RIDE
from incrlt.experts.shike import SHIKE
from incrlt.experts.single import Single
from incrlt.stages.expert_assignment import ExpertAssignment
from incrlt.stages.lws import LWS
from incrlt.strategies.finetune import Finetune
from incrlt.strategies.icarl import ICaRL
from incrlt.strategies.lucir import LUCIR
from incrlt.training.graph import Stepper

PARTS = {
    "lucir-ride-lws-router": lambda: (
        LUCIR,
        {"experts": RIDE(num_experts=2), "rebalance": LWS(epochs=2), "router": ExpertAssignment(epochs=2)},
    ),
    "lucir-ldam-clipped": lambda: (LUCIR, {"experts": Single(objective="ldam", scale=30.0), "grad_clip": 0.5}),
    "lucir-shike": lambda: (
        LUCIR, {"experts": SHIKE(num_experts=2, classifier_epochs=2, classifier_warmup=0)}
    ),
    "lucir-finetuned": lambda: (LUCIR, {"class_balanced_finetune": 2}),
    "icarl-ncl": lambda: (ICaRL, {"experts": NCL(num_experts=2)}),
    "finetune": lambda: (Finetune, {"memory": 0}),
}  # fmt: skip


@pytest.fixture
def repeated(monkeypatch):
    monkeypatch.setattr(Stepper, "make", toy.RepeatedCall)


def run(name, step, **options):
    cls, settings = PARTS[name]()
    torch.manual_seed(0)
    strategy = toy.make(cls, train_epochs=5, step=step, train_mb_size=16, **{**settings, **options})
    terms = []
    strategy.on_epoch_end = lambda strategy: terms.append(dict(strategy.epoch_terms))
    for experience in toy.stream().train_stream[:2]:
        strategy.train(experience)
    return strategy, terms


@functools.cache
def eagerly(name):
    """Weights and terms of eager steps, which several tests compare with; nothing was captured."""
    strategy, terms = run(name, "eager")
    assert strategy.stepper.captures == 0
    return toy.weights(strategy.model), terms


@pytest.mark.parametrize("name", PARTS)
def test_a_captured_step_trains_to_the_same_bits(repeated, name):
    weights, expected = eagerly(name)
    captured, terms = run(name, "graph")
    assert captured.stepper.captures > 0
    assert terms == expected
    assert toy.changed(weights, toy.weights(captured.model)) == set()


@pytest.mark.parametrize(
    ("name", "captures"),
    [
        ("finetune", 2),  # one per experience
        ("lucir-ldam-clipped", 4),  # re-weighting sets in at four of five epochs
        (
            "lucir-ride-lws-router",
            10,
        ),  # two phases of RIDE, LWS, both epochs of the router (it records in its last)
        ("icarl-ncl", 2),
    ],
)
def test_captures_are_as_many_as_losses(repeated, name, captures):
    assert run(name, "auto")[0].stepper.captures == captures


class Drifting(ExpertMethod):
    """Says nothing about its phase, and its loss follows the epoch."""

    name = "drifting"

    def loss(self, context, output, labels):
        terms = Single().loss(context, output, labels)
        return {"cross_entropy": terms["cross_entropy"] * (1 + context.epoch)}


def test_a_method_that_does_not_tell_its_phase_is_captured_every_epoch(repeated):
    eager, expected = run("finetune", "eager", experts=Drifting())
    captured, terms = run("finetune", "graph", experts=Drifting())
    assert captured.stepper.captures == 10
    assert terms == expected
    assert toy.changed(toy.weights(eager.model), toy.weights(captured.model)) == set()


def test_on_the_cpu_auto_is_eager_and_says_why():
    strategy = toy.make(LUCIR)
    assert strategy.stepper.name == "eager"
    assert "CUDA" in strategy.stepper.reason
    with pytest.raises(UserError, match="graphs need a CUDA device, this is cpu"):
        toy.make(LUCIR, step="graph")
    with pytest.raises(UserError, match="allowed: auto, eager, compile, graph"):
        toy.make(LUCIR, step="fast")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"plugins": [EWCPlugin(0.1)]}, "plugin EWCPlugin acts in before_backward"),
        ({"experts": NCL(num_experts=2, contrastive=1.0)}, "second view"),
    ],
)
def test_what_a_graph_would_miss(repeated, options, reason):
    strategy = toy.make(LUCIR, **options)
    assert strategy.stepper.name == "eager" and reason in strategy.stepper.reason
    if "plugins" not in options:
        with pytest.raises(UserError, match="second view"):
            toy.make(LUCIR, step="graph", **options)


def test_a_plugin_that_comes_later_is_seen(repeated):
    strategy = toy.make(LUCIR)
    assert strategy.stepper.name == "graph"
    strategy.plugins.append(EWCPlugin(0.1))
    strategy.train(toy.stream().train_stream[0])
    assert strategy.stepper.name == "eager" and "EWCPlugin" in strategy.stepper.reason
    assert strategy.stepper.captures == 0


def test_a_compiled_backbone_trains_alike(monkeypatch):
    compiled = []

    def fake_compile(function):
        compiled.append(function)
        return torch._dynamo.optimize("eager")(function)

    monkeypatch.setattr(torch, "compile", fake_compile)
    expected, _ = eagerly("lucir-finetuned")
    found = toy.weights(run("lucir-finetuned", "compile")[0].model)
    assert len(compiled) == 1, "growing heads do not concern the backbone"
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_recorders_of_a_run_do_not_stand_in_the_way(repeated):
    from incrlt.plugins import ConfusionRecorder, RoutingRecorder

    strategy = toy.make(LUCIR, plugins=[ConfusionRecorder(), RoutingRecorder()])
    assert strategy.stepper.name == "graph", strategy.stepper.reason


# ------------------------------------------------------------------------------------ a step that auto chose


class Lying(toy.RepeatedCall):
    """A graph whose replay writes something else."""

    change = staticmethod(lambda results: None)

    def replay(self):
        super().replay()
        self.change(self._results)


class Raising(toy.RepeatedCall):
    """A graph that fails: there is no memory, or a call that cannot be captured."""

    error = None

    def capture(self, function):
        function()  # a warm-up that moves running means
        raise self.error


def stale(results):
    results[-1].zero_()


FAILURES = {
    "a term": (Lying, lambda results: results[0].mul_(1.1), "its term cross_entropy is off by 1"),
    "a NaN": (Lying, lambda results: results[0].fill_(torch.nan), "its term cross_entropy is off by nan"),
    "a gradient": (Lying, lambda results: results[2].mul_(1.1), "its gradients are off by "),
    "a gradient left out": (Lying, stale, "its gradients are off by"),
    "no memory": (Raising, torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
    "a call": (
        Raising,
        RuntimeError("operation not permitted when stream is capturing\nmore"),
        "RuntimeError: operation not permitted when stream is capturing;",
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", FAILURES)
def test_a_captured_step_that_auto_chose_and_that_fails_gives_way_to_eager_ones(monkeypatch, which):
    weights, expected = eagerly("finetune")
    kind, what, reason = FAILURES[which]
    key = "change" if kind is Lying else "error"
    monkeypatch.setattr(kind, key, staticmethod(what) if kind is Lying else what)
    monkeypatch.setattr(Stepper, "make", kind)
    with pytest.warns(UserWarning, match="step: the captured step is not used") as said:
        captured, terms = run("finetune", "auto")
    (text,) = {str(w.message) for w in said if str(w.message).startswith("step: ")}
    assert reason in text and "Set training.step: eager, and report this with the output" in text
    assert captured.stepper.name == "eager" and captured.stepper.captures == 0
    assert reason.rstrip(";") in captured.stepper.reason
    assert terms == expected
    assert toy.changed(weights, toy.weights(captured.model)) == set()


def test_a_captured_step_that_was_asked_for_raises(monkeypatch):
    monkeypatch.setattr(Raising, "error", RuntimeError("operation not permitted"))
    monkeypatch.setattr(Stepper, "make", Raising)
    with pytest.raises(RuntimeError, match="operation not permitted"):
        run("finetune", "graph")


def test_a_compiler_that_fails_is_one_sentence(monkeypatch):
    failed = type("BackendCompilerFailed", (RuntimeError,), {"__module__": "torch._dynamo.exc"})

    def fake_compile(function):
        def call(*_):
            raise failed("backend='inductor' raised:\nCppCompileError: no g++")

        return call

    monkeypatch.setattr(torch, "compile", fake_compile)
    with pytest.raises(UserError, match=r"torch.compile fails here \(BackendCompilerFailed.*step: eager"):
        run("finetune", "compile")
