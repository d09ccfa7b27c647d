"""What a strategy must remember to go on bit-exactly after its process was killed: the state of its parts.

A checkpoint is ``{part: part.state_dict()}``: tensors and plain data, complete because every part of a strategy that
changes has a state of its own. It is restored in two steps: network, teacher and memory before training is called
again, what moves from step to step when training has reached the place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from incrlt.errors import UserError
from incrlt.models.network import ExpertNetwork
from incrlt.roles import Clock, Experience, Memory, RouterStage, State
from incrlt.training.optim import replace_parameters
from incrlt.training.randomness import global_state, set_global_state

FORMAT = 1
"""Raised whenever a checkpoint of before can no longer be read."""

CLOCK = (
    "train_iterations",
    "train_exp_counter",
    "train_exp_epochs",
    "train_exp_iterations",
    "total_iterations",
)
"""Avalanche's counters that a checkpoint keeps."""


class Part(Protocol):
    """Something with a state of its own."""

    def state_dict(self) -> object:
        """Return tensors and plain data."""

    def load_state_dict(self, state: Any) -> object:
        """Restore them."""


class Randomness:
    """The global generators of torch, NumPy and Python as a part."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def state_dict(self) -> State:
        """Return the states."""
        return global_state(self._device)

    def load_state_dict(self, state: State) -> None:
        """Restore the states."""
        set_global_state(state, self._device)


class Counters:
    """Avalanche's clock as a part."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def state_dict(self) -> dict[str, int]:
        """Return its counters."""
        return {name: getattr(self._clock, name) for name in CLOCK}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore its counters."""
        for name, value in state.items():
            setattr(self._clock, name, value)


class Awaited:
    """A checkpoint that waits: what moves from step to step is restored when training has reached its place.

    There may be none; training then begins where it is.
    """

    def __init__(self) -> None:
        self._saved: State | None = None
        self._train_stream: Sequence[Experience] = ()

    def wait(self, saved: State, train_stream: Sequence[Experience]) -> None:
        """Keep a checkpoint, and the stream that its exemplars are looked up in."""
        self._saved, self._train_stream = saved, train_stream

    @property
    def inside(self) -> bool:
        """Whether training goes on inside an experience that another process began."""
        return self._saved is not None and not self._saved["progress"]["trained"]

    @property
    def stage(self) -> int:
        """The stage that training goes on with."""
        return 0 if self._saved is None else int(self._saved["progress"]["stage"])

    def restore_memory(self, memory: Memory) -> None:
        """Restore the exemplars as they were saved: a stage may have chosen some before the process was killed."""
        if self._saved is not None:
            memory.load_state_dict(self._saved["memory"], self._train_stream)

    def arrive(self, stage: int) -> State | None:
        """Wait no longer; return the checkpoint if it was saved in this stage."""
        saved, self._saved = self._saved, None
        return None if saved is None or saved["progress"]["stage"] != stage else saved

    def drop(self) -> None:
        """Wait no longer: an experience begins."""
        self._saved = None


def tensors_of(state: object) -> list[Tensor]:
    """Return the tensors of a nested state, in its order."""
    if isinstance(state, Tensor):
        return [state]
    items = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for item in items for tensor in tensors_of(item)]


def check(saved: State, name: str, has_memory: bool) -> None:
    """Refuse the checkpoint of another strategy or format.

    Args:
        saved: The checkpoint.
        name: The strategy that is to go on.
        has_memory: It keeps exemplars.

    Raises:
        UserError: What differs.
    """
    if saved.get("format") != FORMAT or saved["strategy"] != name:
        raise UserError(
            f"the checkpoint is of strategy {saved.get('strategy')!r}, format {saved.get('format')}; "
            f"this run wants {name!r}, format {FORMAT}. Start it anew with --restart."
        )
    if has_memory and saved["memory"] is None:
        raise UserError(
            "the checkpoint is of a run without exemplars, this run keeps some. Set memory: null, or start it anew "
            "with --restart."
        )


def load_network(
    network: ExpertNetwork, saved: State, optimizer: Optimizer, router: RouterStage | None
) -> None:
    """Restore the network that trains, and point the optimizer at what growth replaced.

    Args:
        network: Built as the saved one was, on its device.
        saved: Its state.
        optimizer: Holds its parameters.
        router: The strategy's, which attaches itself; or None.

    Raises:
        UserError: The checkpoint is of another network.
    """
    old = dict(network.named_parameters())
    try:
        network.load_state(saved)
    except RuntimeError as error:  # torch lists every tensor that is missing or has another shape
        differ = _differences(saved.get("architecture") or {}, network.architecture)
        raise UserError(
            f"the checkpoint is of another network: {differ or error}. Build the network it was saved with, or start "
            "the run anew with --restart."
        ) from error
    if router is not None:
        router.attach(network)  # the state may be of a run without one
    after = dict(network.named_parameters())
    replaced = [(old[k], after[k]) for k in after if k in old and old[k] is not after[k]]
    replace_parameters(optimizer, replaced)


def _differences(saved: State, built: State) -> str:
    """Say which settings of the saved network the built one does not have."""
    flat = [{**settings, **(settings.get("layout") or {})} for settings in (saved, built)]
    keys = [key for key in flat[0] if key != "layout" and flat[0][key] != flat[1].get(key)]
    return ", ".join(f"it has {key} {flat[0][key]!r}, this run {flat[1].get(key)!r}" for key in keys)
