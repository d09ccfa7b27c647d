"""How a training step runs: eagerly, with a compiled backbone, or as a CUDA graph that is captured once and replayed.

A small network on a fast GPU waits for its launches: a ResNet-32 makes hundreds of them per step, and several experts
with their losses a thousand. A graph makes them one. What is captured is forward, loss and backward of a full batch;
the optimizer steps as ever, so that any optimizer, schedule and plugin of the update work unchanged. Heads, teacher
and counts change only between experiences and stages, the loss of a method now and then within: the step is captured
anew then.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from incrlt.errors import UserError
from incrlt.types import ModelOutput

if TYPE_CHECKING:
    from incrlt.training.template import IncrTemplate

STEPS = ("auto", "eager", "compile", "graph")
"""Names that ``step`` may take; ``auto`` is a graph where that is safe, else eager."""

HOOKS = ("before_forward", "after_forward", "before_backward")
"""Hooks between which a captured step runs as one piece: a plugin that has one could change what was captured."""

WARM_UPS = 3
"""Eager runs before a capture: libraries choose algorithms and allocate in them."""

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


class CapturedStep:
    """Forward, loss and backward of one batch size as a graph, with the tensors that go in and come out.

    Args:
        strategy: In training, at its first batch of this kind; the batch is the warm-up's.
        make: Makes the graph.

    Attributes:
        names: Names of the loss terms.
        terms: Their values ``[T]``, written by each replay.
        output: What the network said, written by each replay.
    """

    def __init__(self, strategy: IncrTemplate, make: Callable[[], Graph]) -> None:
        self._x, self._y = strategy.mb_x.clone(memory_format=torch.preserve_format), strategy.mb_y.clone()
        self._parameters = [p for p in strategy.model.parameters() if p.requires_grad]
        self.names: list[str] = []
        self.output: ModelOutput | None = None
        self._with_gradient: list[nn.Parameter] = []
        self._graph = make()
        buffers = [buffer.clone() for buffer in strategy.model.buffers()]
        with strategy.on_batch(self._x, self._y):
            results = self._graph.capture(lambda: self._run(strategy))
        self.terms, self._gradients = results[0], results[1:]
        with torch.no_grad():  # what warm-ups and capture did to running means
            for buffer, value in zip(strategy.model.buffers(), buffers, strict=True):
                buffer.copy_(value)

    def _run(self, strategy: IncrTemplate) -> Captured:
        self.output, named = strategy.terms_of_batch()
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

    def give_gradients(self) -> None:
        """Put the gradients where the optimizer finds them."""
        for parameter, gradient in zip(self._with_gradient, self._gradients, strict=True):
            parameter.grad = gradient


class Stepper:
    """Chooses how each training batch is computed, and keeps the captured step.

    Args:
        strategy: Complete, its plugins attached.
        name: One of :data:`STEPS`.

    Attributes:
        name: The choice: ``eager``, ``compile`` or ``graph``.
        reason: Why ``auto`` did not choose the graph, None where it did.
        captures: Graphs made so far.

    Raises:
        UserError: A name that does not exist, or ``graph`` where it cannot be.
    """

    make: Callable[[], Graph] = CudaGraph

    def __init__(self, strategy: IncrTemplate, name: str) -> None:
        if name not in STEPS:
            raise UserError(f"step is {name!r}; allowed: {', '.join(STEPS)}.")
        self.asked, self.name = name, "graph" if name == "auto" else name
        self.reason: str | None = None
        self._check(strategy)
        self.captures = 0
        self._step: CapturedStep | None = None
        self._key: Hashable = None
        self._shape: tuple[int, ...] | None = None
        self._compiled: Callable[[Tensor], Tensor] | None = None

    def _check(self, strategy: IncrTemplate) -> None:
        """Give up the graph where something speaks against it; plugins may have come since the last time."""
        if self.name != "graph":
            return
        self.reason = obstacle(strategy)
        if self.reason and self.asked == "graph":
            raise UserError(
                f"step 'graph' cannot be used here: {self.reason}. Set step: auto, which then runs eagerly, or "
                "take the reason away."
            )
        self.name = "eager" if self.reason else "graph"

    def forget(self) -> None:
        """Drop the captured step and its memory; called when a stage begins or ends."""
        self._step, self._key, self._shape = None, None, None

    def take(self, strategy: IncrTemplate) -> CapturedStep | None:
        """Compute the batch by a replay, or return None: the batch is to run eagerly.

        Batches of another size than the stage's first run eagerly: the last of an epoch is not worth a capture.
        """
        if self.name != "graph":
            return None
        key = (tuple(strategy.mb_x.shape), strategy.mb_x.dtype, strategy.phase())
        if self._shape not in (None, key[0]):
            return None
        if self._step is None or key != self._key:
            self.forget()
            self._check(strategy)
            if self.name != "graph":
                return None
            self._step, self._key, self._shape = CapturedStep(strategy, self.make), key, key[0]
            self.captures += 1
        self._step.replay(strategy.mb_x, strategy.mb_y)
        return self._step

    def extract(self, network: Any, images: Tensor) -> Tensor:
        """Return the features of a training batch, by the compiled backbone where it was asked for."""
        if self.name != "compile":
            features: Tensor = network.extract(images)
            return features
        if self._compiled is None:
            self._compiled = torch.compile(network.extract)
        return self._compiled(images)


def obstacle(strategy: IncrTemplate) -> str | None:
    """Return why a step of this strategy cannot be captured, None if it can."""
    if strategy.device.type != "cuda" and Stepper.make is CudaGraph:
        return f"graphs need a CUDA device, this is {strategy.device.type}"
    if not strategy.is_expert_network:
        return "the model is not an expert network"
    if strategy.scaler.is_enabled():
        return "fp16 scales the loss by a number that changes; bf16 does not"
    if strategy.experts.layout.contrast is not None:
        return "the contrastive term draws a second view in each step"
    if strategy.guide is not None:
        return "the guide's answers are not captured"
    return strategy.plugin_between(HOOKS)
