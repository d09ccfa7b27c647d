"""The queue: what is done is skipped, what was cut goes on, what was lost is started again, what is poor is stopped."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from incrlt.endings import BAD_INPUT
from incrlt.files import Plain, read_json, write_atomic
from incrlt.sweep.asha import goes_on
from incrlt.sweep.engines import Engine, Job, stop_all
from incrlt.sweep.table import Row
from incrlt.sweep.task import Progress, Task, progress

TRIES: Final = 3
"""Starts in a row that may end without one more epoch, before a run counts as failed."""
WAITING, RUNNING, ELSEWHERE, DONE, STOPPED, FAILED = (
    "waiting", "running", "elsewhere", "done", "stopped", "failed",
)  # fmt: skip
OPEN: Final = frozenset({WAITING, RUNNING, ELSEWHERE})


class Judge:
    """Decides which trials are stopped early, and remembers it in the sweep's folder.

    Trials are compared with those of the same search (row and place in the grid) by their first seed: one that is
    stopped is stopped with all its seeds, one that is not runs them all.

    Args:
        rows: Of the sweep.
        path: File of what was decided; read if it is there.
    """

    def __init__(self, rows: Sequence[Row], path: Path) -> None:
        self._rows, self._path = rows, path
        known = _known(path)
        self.stopped: dict[str, float] = known["stopped"]
        """Setting -> figure when it was stopped."""
        self._seen: dict[str, dict[str, dict[str, float]]] = known["seen"]
        """Search -> rung -> setting -> figure."""

    def keeps(self, task: Task, found: Progress) -> bool:
        """Look at a run's validation figures; say whether it goes on."""
        row = self._rows[task.row]
        rule, metric = row.stop_early, row.metric
        if rule is None or metric is None or task.seed != row.seeds[0] or task.setting in self.stopped:
            return task.setting not in self.stopped
        seen = self._seen.setdefault(task.group, {})
        figures = found.at(rule.rungs, task.epochs, metric)
        before = json.dumps(seen)
        good = goes_on(rule, seen, task.setting, figures)
        if not good:
            self.stopped[task.setting] = list(figures.values())[-1]
        if not good or json.dumps(seen) != before:
            content = {"stopped": self.stopped, "seen": self._seen}
            write_atomic(self._path, json.dumps(content, indent=1) + "\n")
        return good


def _known(path: Path) -> Plain:
    """Return what was decided; nothing where the file is missing or damaged, since every decision can be taken anew."""
    try:
        content = read_json(path)
        return {"stopped": dict(content["stopped"]), "seen": dict(content["seen"])}
    except (OSError, ValueError, LookupError, TypeError):
        return {"stopped": {}, "seen": {}}


@dataclass(eq=False)
class Item:
    """A run in the queue."""

    task: Task
    state: str = WAITING
    progress: Progress = field(default_factory=Progress)
    job: Job | None = None
    began_at: int = 0
    """Epochs when it was started last."""
    tries: int = 0
    """Starts in a row that came no further."""

    @property
    def left(self) -> int:
        """Epochs that are still to come."""
        return max(0, self.task.epochs - self.progress.epochs) if self.state in OPEN else 0


class Queue:
    """Works tasks off, so many at a time, in their order.

    Args:
        tasks: All of them, checked.
        engine: Runs them.
        lanes: How many at a time.
        judge: Stops what is poor.
        logs: Folder of the runs' output.
        tell: Called with an item whenever its state changes.
        show: Called with all items at every look.
        wait: Seconds between two looks.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        engine: Engine,
        lanes: int,
        judge: Judge,
        logs: Path,
        tell: Callable[[Item], None] = lambda item: None,
        show: Callable[[Sequence[Item]], None] = lambda items: None,
        wait: float = 2.0,
    ) -> None:
        self.items = look(tasks, judge)
        self._engine, self._lanes, self._judge, self._logs = engine, lanes, judge, logs
        self._tell, self._show, self._wait = tell, show, wait

    def work(self) -> None:
        """Run what is not done. Ctrl-C and SIGTERM stop the jobs; the same call then goes on with them."""
        try:
            while any(item.state in OPEN for item in self.items):
                self._fill()
                self._show(self.items)
                time.sleep(self._wait)
                for item in self.items:
                    self._look(item)
        finally:
            try:
                stop_all([item.job for item in self.items if item.job is not None])
            finally:  # also when Ctrl-C comes a second time
                self._engine.close()
        self._show(self.items)

    def _fill(self) -> None:
        busy = sum(item.state == RUNNING for item in self.items)
        for item in self.items:
            if busy >= self._lanes:
                return
            if item.state == WAITING:
                self._begin(item)
                busy += item.state == RUNNING

    def _begin(self, item: Item) -> None:
        if item.task.is_taken():  # by another sweep, or by what a killed one has left running
            self._enter(item, ELSEWHERE)
            return
        item.progress = progress(item.task)
        item.began_at = item.progress.epochs
        item.job = self._engine.start(item.task.words, self.log_of(item.task))
        self._enter(item, RUNNING)

    def log_of(self, task: Task) -> Path:
        """Return the file that has what the run printed."""
        return self._logs / f"{task.key.replace('/', '-')}.log"

    def _look(self, item: Item) -> None:
        if item.state == ELSEWHERE and not item.task.is_taken():
            self._enter(item, DONE if item.task.is_done() else WAITING)
        elif item.state in (RUNNING, ELSEWHERE, WAITING):
            self._look_at_open(item)

    def _look_at_open(self, item: Item) -> None:
        code = item.job.code() if item.job is not None else None
        if item.state != WAITING:
            item.progress = progress(item.task)
        if code is not None:
            self._ended(item, code)
        elif not item.progress.finished and not self._judge.keeps(item.task, item.progress):
            if item.job is not None:
                stop_all([item.job])
                item.job = None
            self._enter(item, STOPPED)

    def _ended(self, item: Item, code: int) -> None:
        item.job = None
        further = item.progress.epochs > item.began_at
        item.tries = 0 if further else item.tries + 1
        if code == 0 and item.task.is_done():
            self._judge.keeps(item.task, item.progress)  # others are compared with it
            self._enter(item, DONE)
        elif code == BAD_INPUT or item.tries >= TRIES:
            self._enter(item, FAILED)
        else:  # killed, its node gone, its time over: on from the last epoch it has saved
            self._enter(item, WAITING)

    def _enter(self, item: Item, state: str) -> None:
        if item.state != state:
            item.state = state
            self._tell(item)


def look(tasks: Sequence[Task], judge: Judge) -> list[Item]:
    """Return where every run stands before anything is started."""
    items = [Item(task, progress=progress(task)) for task in tasks]
    for item in items:
        if item.progress.finished:
            item.state = DONE
            judge.keeps(item.task, item.progress)
        elif item.task.setting in judge.stopped:
            item.state = STOPPED
    return items


def seconds_left(items: Sequence[Item], lanes: int) -> float | None:
    """Return the seconds until all is done, at the measured seconds per epoch; None while nothing is measured.

    A run that has no epoch yet is taken at the mean of its row's runs, else of all.
    """
    known = [item for item in items if item.progress.seconds_per_epoch is not None]
    needed = [item.left * rate for item in items if item.left and (rate := _rate(item, known)) is not None]
    if not needed:
        return None
    return max(sum(needed) / max(1, min(lanes, len(needed))), max(needed))


def _rate(item: Item, known: Sequence[Item]) -> float | None:
    if item.progress.seconds_per_epoch is not None:
        return item.progress.seconds_per_epoch
    like = [other for other in known if other.task.row == item.task.row] or known
    rates = [rate for other in like if (rate := other.progress.seconds_per_epoch) is not None]
    return sum(rates) / len(rates) if rates else None


def counts(items: Sequence[Item]) -> dict[str, int]:
    """Return how many runs are in each state, those that are none left out."""
    found = Counter(item.state for item in items)
    return {
        state: found[state] for state in (DONE, RUNNING, ELSEWHERE, WAITING, STOPPED, FAILED) if found[state]
    }
