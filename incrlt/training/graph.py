"""How a training step runs: eagerly, with a compiled backbone, or as a CUDA graph that is captured once and replayed.

A small network on a fast GPU waits for its launches: a ResNet-32 makes hundreds of them per step, and several experts
with their losses a thousand. A graph makes them one. What is captured is forward, loss and backward of a full batch;
the optimizer steps as ever, so that any optimizer, schedule and plugin of the update work unchanged. Heads, teacher
and counts change only between experiences and stages, the loss of a method now and then within: the step is captured
anew then.

Where ``auto`` chose the graph, each captured step is replayed once beside the eager one before it is used: a graph that
lies, cannot be captured or finds no memory gives way to eager steps, with one warning that names what to report.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Protocol

import incrlt._compat  # noqa: F401  (must come before avalanche)

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins.evaluation import EvaluationPlugin
from torch import Tensor, nn

from incrlt.errors import UserError, short
from incrlt.experts.base import ExpertMethod
from incrlt.training.compute import Compute
from incrlt.training.network import ForeignNetwork, Network
from incrlt.types import LossTerms, ModelOutput

STEPS = ("auto", "eager", "compile", "graph")
"""Names that ``step`` may take; ``auto`` is a graph where that is safe, else eager."""

HOOKS = ("before_forward", "after_forward", "before_backward")
"""Hooks between which a captured step runs as one piece: a plugin that has one could change what was captured."""

WARM_UPS = 3
"""Eager runs before a capture: libraries choose algorithms and allocate in them."""

SAME = {"fp32": 1e-3, "bf16": 5e-2}
"""How far a captured step's numbers may be from an eager step's, by precision; ours.

Of a term relative to its size or 1, of a gradient relative to the tensor's largest number and a thousandth of the
network's. Sums of floats in another order leave a tenth of it; a wrong stride or a stale tensor much more.
"""

Captured = list[Tensor]
"""Tensors that a replay writes anew."""


class Graph(Protocol):
    """Records a function of fixed inputs and runs it again."""

    def capture(self, function: Callable[[], Captured]) -> Captured:
        """Run the function, and return its results; a replay writes them anew, in place."""

    def replay(self) -> None:
        """Run what was captured."""


class CudaGraph:
    """The real one."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, function: Callable[[], Captured]) -> Captured:
        """Warm up on a stream of its own, as capturing demands, then capture."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self._graph):
            return function()

    def replay(self) -> None:
        """Launch the graph."""
        self._graph.replay()


Terms = Callable[[Tensor, Tensor], tuple[ModelOutput, LossTerms]]
"""``terms(x, y)`` returns output and loss terms of a batch, without callbacks: what a captured step consists of."""


class CapturedStep:
    """Forward, loss and backward of one batch size as a graph, with the tensors that go in and come out.

    Args:
        module: What trains.
        terms: Computes a batch.
        x: Images of the first batch of this kind; the warm-up runs on it.
        y: Its labels.
        make: Makes the graph.

    Attributes:
        names: Names of the loss terms.
        terms: Their values ``[T]``, written by each replay.
        output: What the network said, written by each replay.
    """

    output: ModelOutput

    def __init__(
        self, module: nn.Module, terms: Terms, x: Tensor, y: Tensor, make: Callable[[], Graph]
    ) -> None:
        self._x, self._y = x.clone(memory_format=torch.preserve_format), y.clone()
        self._compute = terms
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self.names: list[str] = []
        self._with_gradient: list[nn.Parameter] = []
        self._graph = make()
        with buffers_kept(module):  # warm-ups and capture move running means
            results = self._graph.capture(self._run)
        self.terms, self._gradients = results[0], results[1:]

    def _run(self) -> Captured:
        self.output, named = self._compute(self._x, self._y)
        terms = torch.stack(list(named.values()))
        found = torch.autograd.grad(terms.sum(), self._parameters, allow_unused=True)
        pairs = [(p, g) for p, g in zip(self._parameters, found, strict=True) if g is not None]
        self.names, self._with_gradient = list(named), [p for p, _ in pairs]
        return [terms.detach(), *(g for _, g in pairs)]

    def replay(self, x: Tensor, y: Tensor) -> None:
        """Compute the step of a batch of the captured size."""
        self._x.copy_(x)
        self._y.copy_(y)
        self._graph.replay()

    def difference(self, module: nn.Module, allowed: float) -> str | None:
        """Return how a replay differs from the eager step of the batch it was captured with, None if it does not.

        Args:
            module: What trains; its buffers and all random states stay as they are.
            allowed: As in :data:`SAME`.
        """
        devices = [self._x.device] if self._x.is_cuda else []
        kept = self.output, self.names, self._with_gradient
        try:
            with buffers_kept(module), torch.random.fork_rng(devices):
                terms, *gradients = (result.clone() for result in self._run())
            names, with_gradient = self.names, self._with_gradient
        finally:
            self.output, self.names, self._with_gradient = kept
        if names != self.names or [id(p) for p in with_gradient] != [id(p) for p in self._with_gradient]:
            return "it has other terms or gradients than the eager step"
        with buffers_kept(module), torch.random.fork_rng(devices):
            self._graph.replay()
        if not terms.isfinite().all():
            return None  # the run has diverged, and will be stopped
        far = (self.terms - terms).abs() / terms.abs().clamp(min=1.0)
        for name, value in zip(names, far.tolist(), strict=True):
            if not value <= allowed:
                return f"its term {name} is off by {value:.1e}"
        return self._gradients_off(gradients, allowed)

    def _gradients_off(self, right: Sequence[Tensor], allowed: float) -> str | None:
        """Return how far the gradients of the last replay are from the right ones, None if near enough."""
        if not right:
            return None
        sizes = torch.stack([gradient.abs().max().float() for gradient in right])
        pairs = zip(self._gradients, right, strict=True)
        far = torch.stack([(found - exact).abs().max().float() for found, exact in pairs])
        value = float((far / (sizes + 1e-3 * sizes.max()).clamp(min=1e-12)).max())
        return (
            None
            if value <= allowed or not sizes.isfinite().all()
            else f"its gradients are off by {value:.1e}"
        )

    def give_gradients(self) -> None:
        """Put the gradients where the optimizer finds them."""
        for parameter, gradient in zip(self._with_gradient, self._gradients, strict=True):
            parameter.grad = gradient


@contextlib.contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Put the buffers of a module back at the end."""
    values = [buffer.clone() for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(module.buffers(), values, strict=True):
                buffer.copy_(value)


class Stepper:
    """Chooses how each training batch is computed, and keeps the captured step.

    Args:
        name: One of :data:`STEPS`.
        compute: How networks run; learns whether a backbone is compiled and whether casts may be kept.
        network: What trains.
        obstacle: Says why a step cannot be captured, None if it can; asked again before each capture, since plugins may
            come.

    Attributes:
        name: The choice: ``eager``, ``compile`` or ``graph``.
        reason: Why ``auto`` did not choose the graph, None where it did.
        captures: Graphs made so far.
        taken: The captured step that computed the batch; None where it runs eagerly.

    Raises:
        UserError: A name that does not exist, or ``graph`` where it cannot be.
    """

    make: Callable[[], Graph] = CudaGraph

    def __init__(
        self, name: str, compute: Compute, network: Network, obstacle: Callable[[], str | None]
    ) -> None:
        if name not in STEPS:
            raise UserError(f"step is {name!r}; allowed: {', '.join(STEPS)}.")
        self.asked, self.name = name, "graph" if name == "auto" else name
        self.reason: str | None = None
        self.captures = 0
        self.taken: CapturedStep | None = None
        self._compute, self._obstacle = compute, obstacle
        self._step: CapturedStep | None = None
        self._key: Hashable = None
        self._shape: tuple[int, ...] | None = None
        self._check()
        if name == "compile":
            compute.compile(network)

    def _check(self) -> None:
        """Give up the graph where something speaks against it."""
        if self.name == "graph":
            self.reason = self._obstacle()
        if self.reason and self.asked == "graph":
            raise UserError(
                f"step 'graph' cannot be used here: {self.reason}. Set step: auto, which then runs eagerly, or "
                "take the reason away."
            )
        if self.reason:
            self.name = "eager"
        self._compute.cast_cache = self.name != "graph"

    def forget(self) -> None:
        """Drop the captured step and its memory; called when a stage ends."""
        self._step, self._key, self._shape, self.taken = None, None, None, None

    def take(
        self, module: nn.Module, terms: Terms, x: Tensor, y: Tensor, phase: Callable[[], Hashable]
    ) -> CapturedStep | None:
        """Compute the batch by a replay, or return None: the batch is to run eagerly.

        Batches of another size than the stage's first run eagerly: the last of an epoch is not worth a capture.

        Args:
            module: What trains.
            terms: Computes a batch.
            x: Images of the batch.
            y: Its labels.
            phase: Tells what the loss depends on beside the batch; a captured step is renewed when it changes.
        """
        self.taken = None
        if self.name != "graph" or self._shape not in (None, tuple(x.shape)):
            return None
        key = (tuple(x.shape), x.dtype, phase())
        if self._step is None or key != self._key:
            self.forget()
            self._check()
            if self.name != "graph":
                return None
            self._step = self._captured(module, terms, x, y)
            if self._step is None:
                return None
            self._key, self._shape = key, key[0]
            self.captures += 1
        self._step.replay(x, y)
        self.taken = self._step
        return self._step

    def _captured(self, module: nn.Module, terms: Terms, x: Tensor, y: Tensor) -> CapturedStep | None:
        """Capture a step; None where ``auto`` chose to and it cannot be believed: steps run eagerly from then on."""
        if self.asked != "auto":
            return CapturedStep(module, terms, x, y, self.make)
        try:
            step = CapturedStep(module, terms, x, y, self.make)
            wrong = step.difference(module, SAME[self._compute.precision])
        except UserError:
            raise
        except Exception as error:  # out of memory, a call that cannot be captured, a driver
            wrong = f"{type(error).__name__}: {short(error)}"
        if wrong is None:
            return step
        self.name, self.reason, self._compute.cast_cache = "eager", f"the captured step failed: {wrong}", True
        warnings.warn(
            f"step: the captured step is not used, {wrong}; steps run eagerly. Set training.step: eager, and report "
            "this with the output of python -m incrlt.doctor --json.",
            stacklevel=2,
        )
        return None


def obstacle(
    compute: Compute,
    network: Network,
    experts: ExpertMethod,
    has_guide: bool,
    plugins: Iterable[object],
) -> str | None:
    """Return why a step cannot be captured, None if it can."""
    if compute.device.type != "cuda" and Stepper.make is CudaGraph:
        return f"graphs need a CUDA device, this is {compute.device.type}"
    if isinstance(network, ForeignNetwork):
        return "the model is not an expert network"
    if getattr(network, "kept_features", None) is not None:
        return "features that are kept are looked up outside of the device"
    if compute.world.size > 1:
        return "what processes exchange is not captured"
    if compute.scaler.is_enabled():
        return "fp16 scales the loss by a number that changes; bf16 does not"
    if experts.layout.contrast is not None:
        return "the contrastive term draws a second view in each step"
    if has_guide:
        return "the guide's answers are not captured"
    return plugin_between(plugins, HOOKS)


def plugin_between(plugins: Iterable[object], hooks: Sequence[str]) -> str | None:
    """Return which plugin acts in one of these callbacks, None if none does; evaluation only watches."""
    for plugin in plugins:
        for hook in () if isinstance(plugin, EvaluationPlugin) else hooks:
            found = getattr(type(plugin), hook, None)
            if found is not None and found is not getattr(SupervisedPlugin, hook, None):
                return f"plugin {type(plugin).__name__} acts in {hook}"
    return None
