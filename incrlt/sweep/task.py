"""One run of a sweep: its words on the command line, its folder, and how far it is, read from the folder alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from incrlt.errors import UserError, cut
from incrlt.experiment import schema
from incrlt.experiment.plan import plan
from incrlt.experiment.sections import Experiment
from incrlt.files import LARGEST_LOG, event_of, read_text

Cell = tuple[tuple[str, object], ...]
"""Keys with the values that they have here."""
LONGEST: Final = 300
"""Characters of a run's label in a message."""
PAUSE: Final = 60.0
"""Seconds beyond three times an epoch's own that part two sessions of a run, not two epochs."""


@dataclass(frozen=True, eq=False)
class Task:
    """One run: an experiment, what is changed about it, and where it writes."""

    experiment: Path
    overrides: tuple[str, ...]
    out: Path
    data: str | None = None
    row: int = 0
    """Row of the sweep."""
    cell: Cell = ()
    """Where in the grid, seeds left out."""
    trial: int | None = None
    """Number of the draw; None without a search."""
    drawn: Cell = ()
    """What was drawn."""
    seed: Cell = ()
    """Its seeds, as far as the grid has them."""
    apart: tuple[str, ...] = ()
    """Words that tell its row from the others of the sweep: the experiment first, then overrides that they lack."""

    @property
    def words(self) -> list[str]:
        """The arguments of ``python -m incrlt.run``."""
        data = ["--data", self.data] if self.data else []
        return [str(self.experiment), *self.overrides, "--out", str(self.out), *data]

    @cached_property
    def checked(self) -> Experiment:
        """The experiment, read and checked without data.

        Raises:
            UserError: The file or an override is wrong.
        """
        try:
            return schema.load(self.experiment, self.overrides)
        except UserError as error:
            raise UserError(f"{cut(self.label, LONGEST)}: {error}") from error

    @cached_property
    def key(self) -> str:
        """What names the run among all that write to its folder: experiment, hash, seed."""
        return f"{self.checked.name}/{self.checked.hash()[:8]}-s{self.checked.seeds.all}"

    @cached_property
    def epochs(self) -> int:
        """Epochs of the whole run; stages that are skipped are planned as well."""
        return sum(row["epochs"] + row["later_epochs"] for row in plan(self.checked))

    @property
    def group(self) -> str:
        """What the trials of one search share: the row and the place in the grid."""
        return _label(self.row, self.cell)

    @property
    def setting(self) -> str:
        """What the runs of one setting share, whatever their seeds."""
        return self.group if self.trial is None else f"{self.group}, trial {self.trial + 1}"

    @property
    def label(self) -> str:
        """What tells the run from its neighbours, for people."""
        changed = [*self.cell, *self.drawn, *self.seed]
        name = self.apart or (self.experiment.stem,)
        return shlex.join([*name, *(f"{key}={value}" for key, value in changed)])

    def folder(self) -> Path | None:
        """Return this run's folder, if there is one: the protocol's hash stands first in its name."""
        name, _, run = self.key.partition("/")
        return next(iter(sorted((self.out / name).glob(f"*-{run}"))), None)

    def is_done(self) -> bool:
        """Say whether the run has finished."""
        folder = self.folder()
        return folder is not None and (folder / "DONE").is_file()

    def is_taken(self) -> bool:
        """Say whether some process, perhaps of another sweep, is running it now."""
        folder = self.folder()
        if folder is None or not (folder / ".lock").exists():
            return False
        try:
            with FileLock(folder / ".lock", timeout=0):
                return False
        except (Timeout, OSError):
            return True


def _label(row: int, cell: Cell) -> str:
    changed = ", ".join(f"{key} {value}" for key, value in cell)
    return f"row {row + 1}" + (f": {changed}" if changed else "")


@dataclass
class Progress:
    """How far a run is."""

    epochs: int = 0
    seconds_per_epoch: float | None = None
    """Measured, pauses left out."""
    seconds: float = 0.0
    """Spent so far, as the log has it."""
    figures: list[Mapping[str, float | None]] = field(default_factory=list)
    """After each epoch, by metric: the mean over the experiences so far of the accuracy on held-out images, the present
    one with its last epoch's, and that alone; None where there is none."""
    by_experience: dict[int, float | None] = field(default_factory=dict)
    """The last accuracy on held-out images of each experience."""
    finished: bool = False

    def figure(self, metric: str) -> float | None:
        """Return what a setting is chosen by, of a run that has finished; None where it was not written.

        Args:
            metric: ``validation/average`` over experiences, or ``validation/last``.
        """
        return _figures(list(self.by_experience.values())).get(metric)

    def at(self, shares: tuple[float, ...], epochs: int, metric: str) -> dict[float, float]:
        """Return share -> figure after that share of the run's epochs, as far as it has come."""
        found: dict[float, float] = {}
        for share in shares:
            place = max(1, round(share * epochs)) - 1
            figure = self.figures[place].get(metric) if place < len(self.figures) else None
            if figure is not None:
                found[share] = figure
        return found


def progress(task: Task) -> Progress:
    """Read how far a run is; nothing of its test images is looked at."""
    folder = task.folder()
    found = Progress()
    if folder is None:
        return found
    try:
        text = read_text(folder / "log.jsonl", LARGEST_LOG, "replace")
    except (OSError, ValueError):
        return found
    spent: list[float] = []
    before: float | None = None
    for line in text.splitlines():
        event = event_of(line) or {}
        kind = event.get("event")
        if kind in ("epoch", "experience"):
            found.by_experience[event["experience"]] = _accuracy(event)
        if kind == "epoch":
            spent.append(_lasted(event, before))
            found.figures.append(_figures(list(found.by_experience.values())))
        before = event.get("time", before)
    found.epochs, found.seconds = len(spent), sum(spent)
    found.seconds_per_epoch = found.seconds / len(spent) if spent else None
    found.finished = (folder / "DONE").is_file()
    return found


def _accuracy(event: Mapping[str, Any]) -> float | None:
    value = (event.get("validation") or {}).get("accuracy")
    return float(value) if isinstance(value, int | float) else None


def _lasted(event: Mapping[str, Any], before: float | None) -> float:
    """Return an epoch's seconds, with what came between it and the event before, unless the run was cut there."""
    own = float(event.get("seconds", 0.0))
    passed = own if before is None else float(event.get("time", before)) - before
    return passed if own <= passed < 3 * own + PAUSE else own


def _figures(values: list[float | None]) -> dict[str, float | None]:
    """Return the metrics of the accuracies of the experiences so far."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return {}
    return {"validation/average": sum(known) / len(known), "validation/last": known[-1]}
