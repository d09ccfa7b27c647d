"""The parts that meet while an experience is trained, as they look to one another.

Avalanche's own objects, and those of users' scripts, have no types that could be named; these protocols say what incrlt
asks of them, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from incrlt.types import ModelOutput, Stage

State = dict[str, Any]
"""What a part remembers: tensors and plain data by name, saved and read back without running code."""

Criterion = Callable[[Tensor, Tensor], Tensor]
"""``criterion(logits, labels)``: a scalar loss."""


class Dataset(Sized, Protocol):
    """An Avalanche data set."""

    @property
    def targets(self) -> Sequence[int]:
        """Label ids ``[N]``."""

    def train(self) -> Dataset:
        """Return the same with training transforms."""

    def eval(self) -> Dataset:
        """Return the same with evaluation transforms."""

    def concat(self, other: Dataset) -> Dataset:
        """Return this and another one behind it."""

    def subset(self, indices: Sequence[int]) -> Dataset:
        """Return some pictures of it, in this order."""


class Loader(Protocol):
    """Batches of an epoch: images, labels, and task labels where there are any."""

    def __iter__(self) -> Iterator[Sequence[Tensor]]:
        """Begin an epoch."""

    def __len__(self) -> int:
        """Batches of an epoch."""


class Experience(Protocol):
    """A part of a stream: one arrival of classes."""

    @property
    def dataset(self) -> Dataset:
        """Its images."""


class Clock(Protocol):
    """Avalanche's counters."""

    train_iterations: int
    train_exp_counter: int
    train_exp_epochs: int
    train_exp_iterations: int
    total_iterations: int


class Memory(Sized, Protocol):
    """Exemplars, :class:`~incrlt.plugins.memory.ExemplarMemory`."""

    def update(self, strategy: Strategy, experience: Experience) -> None:
        """Choose exemplars of the experience's classes."""

    def dataset(self) -> Dataset:
        """Return the exemplars, in evaluation transforms."""

    def state_dict(self) -> State:
        """Return which pictures they are."""

    def load_state_dict(self, state: State, train_stream: Sequence[Experience]) -> None:
        """Find those pictures in a stream."""


class Rebalance(Protocol):
    """A stage after the first, :class:`~incrlt.stages.lws.LWS`."""

    def stages(self, strategy: Any, first: Stage) -> Sequence[Stage]:
        """Return the first stage, changed or not, and those that follow it."""


class RouterStage(Protocol):
    """The stage that teaches the router, :class:`~incrlt.stages.expert_assignment.ExpertAssignment`."""

    def attach(self, network: Any) -> None:
        """Give a network its router."""

    def stage(self) -> Stage:
        """Return the stage."""

    def read_out(self, router: Any, output: ModelOutput) -> tuple[Tensor, Tensor]:
        """Return the scores ``[B, C]`` of the experts that would have run, and how many ``[B]``."""


class Strategy(Protocol):
    """A strategy of Avalanche or of ours, as plugins see it; what only some have is asked for by ``getattr``."""

    model: Any
    device: torch.device
    optimizer: Optimizer
    experience: Any
    adapted_dataset: Any
    eval_mb_size: int
    train_epochs: int
    mb_x: Tensor
    mb_y: Tensor
    mb_output: Tensor
