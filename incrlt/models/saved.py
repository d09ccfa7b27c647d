"""A trained network from the run folder it was trained in, without the experiment around it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from incrlt.checkpoint import CheckpointFolder
from incrlt.errors import UserError
from incrlt.metrics.record import CLASSES_FILE
from incrlt.models.building import build
from incrlt.models.layout import layout_of
from incrlt.models.network import ExpertNetwork


def load(run_folder: str | Path) -> ExpertNetwork:
    """Return the network of a run as its newest checkpoint holds it, on the CPU, in evaluation mode.

    Images must be prepared as in the run's evaluation: scaled to [0, 1] and normalised. Where the run folder was made
    by ``python -m incrlt.run`` the network knows how: :meth:`~incrlt.models.ExpertNetwork.prepare`. There label ids are
    arrival positions, not the ids of the dataset: ``network.class_names`` says what each one is.

    Args:
        run_folder: Folder that ``python -m incrlt.run`` named; finished or not.

    Raises:
        UserError: The folder holds no whole checkpoint, or one of another kind; or the network has a backbone or a
            combination of the user's own, whose module is not here.
    """
    folder = Path(run_folder) / "checkpoints"
    checkpoints = CheckpointFolder(folder)
    state = checkpoints.newest() if folder.is_dir() else None
    if state is None:
        what = "only damaged checkpoints" if checkpoints.damaged else "no checkpoint"
        raise UserError(f"{run_folder} holds {what}; give a folder that python -m incrlt.run has made.")
    saved = state["strategy"]["model"]
    if not saved.get("architecture"):
        raise UserError(f"the checkpoint in {run_folder} does not say what network it holds; run it anew.")
    settings = dict(saved["architecture"])
    layout = layout_of(settings.pop("layout"))
    with torch.random.fork_rng(devices=[]):  # first weights are thrown away: they must cost no random numbers
        network = build(layout=layout, **settings)
    network.load_state(saved)
    network.class_names = _class_names(Path(run_folder) / CLASSES_FILE)
    return network.eval()


def _class_names(path: Path) -> dict[int, str] | None:
    """Return the names by arrival position; None where the file is missing or damaged: answers do not need it."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["class_names"]
        return {position: str(name) for position, name in enumerate(names)}
    except (OSError, ValueError, KeyError, TypeError):
        return None
