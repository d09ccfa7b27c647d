"""What a sweep has shown: its settings over their seeds, what each cost, and which one validation chooses.

A setting is chosen by its figure on held-out training images alone; the numbers on test images are put beside it
afterwards, and :func:`chosen` cannot see them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from incrlt.errors import UserError
from incrlt.report.reading import Run, number, read_run
from incrlt.report.seeds import estimate
from incrlt.sweep.table import Row
from incrlt.sweep.task import Cell, Task
from incrlt.sweep.work import DONE, STOPPED, Item

NUMBERS: Final = {
    "average_incremental_accuracy/over_tasks": "average",
    "last_accuracy/over_tasks": "last",
    "last_accuracy/few_over_classes": "last, few",
}
"""Numbers on test images that stand beside a setting, with their heads."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, by Student's t."""

    mean: float | None
    half: float | None
    """Half the interval's width; None for fewer than two values."""
    n: int


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of values and its 95 % interval.

    Example:
        >>> interval([1.0, 2.0, 3.0])  # s = 1, 4.303 / sqrt(3)
        Interval(mean=2.0, half=2.4843382..., n=3)
    """
    own = estimate(values)
    return Interval(own.mean, own.half, own.n)


@dataclass(frozen=True, eq=False)
class Setting:
    """One setting with its runs over seeds."""

    name: str
    group: str
    """The search that it belongs to, or itself."""
    row: int
    cell: Cell
    drawn: Cell
    items: tuple[Item, ...]
    metric: str | None
    apart: tuple[str, ...] = ()
    """Words that tell its row from others; none where the sweep has one row."""

    @property
    def state(self) -> str:
        """``done`` if all runs are, ``stopped`` if it was stopped early, else how many are done."""
        states = [item.state for item in self.items]
        if STOPPED in states:
            return STOPPED
        return DONE if set(states) == {DONE} else f"{states.count(DONE)} of {len(states)} done"

    @property
    def validation(self) -> Interval:
        """The figure on held-out images over the finished runs."""
        figures = [
            item.progress.figure(self.metric) for item in self.items if self.metric and item.state == DONE
        ]
        return interval([figure for figure in figures if figure is not None])

    @property
    def can_be_chosen(self) -> bool:
        """Whether every run has finished and has its figure."""
        return self.state == DONE and self.validation.n == len(self.items)

    @property
    def seconds(self) -> float:
        """Seconds of training that all its runs took, those of stopped and failed ones included."""
        return sum(item.progress.seconds for item in self.items)

    @property
    def epochs(self) -> int:
        """Epochs that all its runs took."""
        return sum(item.progress.epochs for item in self.items)

    @property
    def changed(self) -> str:
        """What makes the setting, for people: its row among several, then what varies within it."""
        own = (f"{key} {value}" for key, value in (*self.cell, *self.drawn))
        return ", ".join([*self.apart, *own]) or "as in the file"


def settings(items: Sequence[Item], rows: Sequence[Row]) -> list[Setting]:
    """Return the settings of a sweep, in the order of its runs."""
    members: dict[str, list[Item]] = {}
    for item in items:
        members.setdefault(item.task.setting, []).append(item)
    return [
        Setting(name, own[0].task.group, own[0].task.row, own[0].task.cell, own[0].task.drawn, tuple(own),
                rows[own[0].task.row].metric, own[0].task.apart if len(rows) > 1 else ())
        for name, own in members.items()
    ]  # fmt: skip


def chosen(found: Sequence[Setting]) -> dict[str, Setting]:
    """Return group -> the setting with the best mean figure on held-out images, the earlier one where two are equal."""
    best: dict[str, Setting] = {}
    for setting in found:
        rival = best.get(setting.group)
        if setting.can_be_chosen and (rival is None or _figure(setting) > _figure(rival)):
            best[setting.group] = setting
    return best


def _figure(setting: Setting) -> float:
    mean = setting.validation.mean
    assert mean is not None
    return mean


def on_test_images(setting: Setting, runs: Mapping[Task, Run]) -> dict[str, dict[str, float]]:
    """Return number -> seed -> value of the main read-out, over the finished runs."""
    found: dict[str, dict[str, float]] = {name: {} for name in NUMBERS}
    for item in setting.items:
        run = runs.get(item.task)
        summary = next(iter(run.summaries.values()), None) if run is not None and run.complete else None
        for name, values in found.items():
            value = number(summary["numbers"].get(name)) if summary is not None else None
            if value is not None:
                values[seed_of(item.task)] = value
    return found


def seed_of(task: Task) -> str:
    """Return what runs of different settings have in common when they are compared as pairs."""
    seeds = task.checked.seeds.filled()
    return ", ".join(f"{key} {value}" for key, value in seeds.items())


def paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Interval:
    """Return the mean of the differences, seed by seed, over the seeds both have."""
    return interval([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def finished_runs(items: Sequence[Item]) -> dict[Task, Run]:
    """Read the folders of the finished runs; one that cannot be read is left out."""
    found: dict[Task, Run] = {}
    for item in items:
        folder = item.task.folder()
        if item.state == DONE and folder is not None:
            try:
                found[item.task] = read_run(folder)
            except UserError:
                continue
    return found
