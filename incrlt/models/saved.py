"""A trained network from the run folder it was trained in, without the experiment around it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from incrlt import manifest
from incrlt.checkpoint import CheckpointFolder, one_sentence
from incrlt.errors import UserError
from incrlt.files import read_json
from incrlt.metrics.record import CLASSES_FILE
from incrlt.models.building import build
from incrlt.models.facts import tensors_alone
from incrlt.models.layout import layout_of
from incrlt.models.network import KEPT, ExpertNetwork
from incrlt.models.router import Router
from incrlt.roles import State

LARGEST_NAMES = 100_000_000
"""Bytes of the largest file of class names that is read."""


def load(run_folder: str | Path) -> ExpertNetwork:
    """Return the network of a run as its newest checkpoint holds it, on the CPU, in evaluation mode.

    Images must be prepared as in the run's evaluation: scaled to [0, 1] and normalised. Where the run folder was made
    by ``python -m incrlt.run`` the network knows how: :meth:`~incrlt.models.ExpertNetwork.prepare`. There label ids are
    arrival positions, not the ids of the dataset: ``network.class_names`` says what each one is.

    Nothing in the folder is changed or deleted; a checkpoint that cannot be read is named in a warning, and the one
    before is taken.

    Args:
        run_folder: Folder that ``python -m incrlt.run`` named; finished or not.

    Raises:
        UserError: The folder holds no whole checkpoint, or one of another kind; or the network has a backbone or a
            combination of the user's own, whose module is not here.
    """
    run_folder = Path(run_folder)
    checkpoints = CheckpointFolder(run_folder / "checkpoints")
    state = checkpoints.newest()
    damaged = ", ".join(f"{name} ({reason})" for name, reason in list(checkpoints.damaged.items())[:3])
    if state is None:
        what = f"only damaged checkpoints: {damaged}" if damaged else "no checkpoint"
        raise UserError(f"{run_folder} holds {what}; give a folder that python -m incrlt.run has made.")
    if damaged:
        warnings.warn(f"damaged checkpoints in {run_folder} were passed over: {damaged}", stacklevel=2)
    _check_manifest(run_folder, state)
    with one_sentence(f"the checkpoint {checkpoints.chosen}", "Load it with the version that wrote it."):
        saved = state["strategy"]["model"]
        if not saved.get("architecture"):
            raise UserError(
                f"the checkpoint in {run_folder} does not say what network it holds; run it anew."
            )
        _check_sizes(saved)
        network = _built(saved)
    network.class_names = _class_names(run_folder / CLASSES_FILE)
    return network.eval()


def _check_manifest(folder: Path, state: Mapping[str, object]) -> None:
    """Warn of a file that this reads and that is not what was written; refuse a checkpoint of another run."""
    try:
        found = manifest.read(folder)
    except UserError as error:
        warnings.warn(f"{folder}: {error}", stacklevel=3)
        return
    if found is None:
        return
    for sentence in found.differences(folder, [CLASSES_FILE]):
        warnings.warn(f"{folder}: {sentence}", stacklevel=3)
    run = state.get("run")
    if isinstance(run, Mapping) and (run.get("config"), run.get("protocol")) != (
        found.config,
        found.protocol,
    ):
        raise UserError(f"the newest checkpoint in {folder} differs from its manifest: it is of another run.")


def _check_sizes(saved: State) -> None:
    """Refuse an architecture that its own tensors contradict, before a network of that size is made.

    No number that describes a network is larger than the numbers it holds, so none needs more time than they do.
    """
    told = {name: value for name, value in saved["tensors"].items() if isinstance(value, Tensor)}
    # what a method remembers has a size of its own
    tensors = {name: value for name, value in told.items() if not name.startswith(KEPT)}
    elements = sum(tensor.numel() for tensor in tensors.values())
    _check_numbers({"architecture": saved["architecture"], "router": saved.get("router")}, elements)
    if saved["architecture"]["layout"]["num_experts"] > len(tensors):
        raise ValueError("it has more experts than tensors")
    with torch.device("meta"), _NoDraws():
        wanted = tensors_alone(_grown(saved).state_dict())
        if saved.get("router") is not None:
            router = tensors_alone(Router(**saved["router"]).state_dict())
            wanted |= {f"router.{name}": value for name, value in router.items()}
    shapes = {name: value.shape for name, value in wanted.items() if isinstance(value, Tensor)}
    for name in {**shapes, **tensors}:
        if name not in shapes or name not in tensors or shapes[name] != tensors[name].shape:
            raise ValueError(f"{name[:100]} is not of the network that it describes")


class _NoDraws(TorchFunctionMode):
    """Leaves out drawing first weights: where there are no numbers, torch would load a compiler for it, for seconds."""

    def __torch_function__(
        self,
        func: object,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if getattr(func, "__name__", "").endswith(("normal_", "uniform_")):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _check_numbers(value: object, most: int, name: str = "it") -> None:
    """Raise where a number inside nested settings is larger than ``most``."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_numbers(inner, most, str(key)[:40])
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_numbers(inner, most, name)
    elif isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= most):
        raise ValueError(f"{name} is too large for the tensors that are there")


def _grown(saved: State) -> ExpertNetwork:
    """Return a network of the saved architecture with heads of the saved classes, its numbers yet to come."""
    settings = dict(saved["architecture"])
    network = build(layout=layout_of(settings.pop("layout")), **settings)
    network.class_ids = [int(label) for label in saved["class_ids"]]
    for head in network.all_heads:
        head.resize(network.num_classes)
    return network


def _built(saved: Mapping[str, object]) -> ExpertNetwork:
    with torch.random.fork_rng(devices=[]):  # first weights are thrown away: they must cost no random numbers
        network = _grown({**saved, "class_ids": []})
    network.load_state(dict(saved))
    return network


def _class_names(path: Path) -> dict[int, str] | None:
    """Return the names by arrival position; None where the file is missing or damaged: answers do not need it."""
    try:
        names = read_json(path, LARGEST_NAMES)["class_names"]
        return {position: str(name) for position, name in enumerate(names)}
    except (OSError, ValueError, KeyError, TypeError):
        return None
