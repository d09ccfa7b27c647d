"""What a sweep runs: a file or a command line turned into one checked list of runs, with a hash of what was asked.

A sweep file is a row, or a list of rows, most wanted first::

    experiment: ../experiments/quickstart.yaml   # relative to this file
    overrides: [benchmark.holdout=long-tailed-cil]
    seeds: 0..2
    grid: {experts.name: [single, shike]}
    search: {training.lr: "log(0.01, 0.3)"}
    trials: 20
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from incrlt.errors import UserError, cut, did_you_mean, shown
from incrlt.experiment import yamlfile
from incrlt.experiment.yamltext import dump, parse
from incrlt.sweep.asha import Asha, asha
from incrlt.sweep.spaces import Space, drawn, grid_values, space
from incrlt.sweep.task import Cell, Task

METRICS: Final = ("validation/average", "validation/last")
"""What settings may be chosen by: both are of training images that the protocol holds out, none of test images."""
LARGEST_SWEEP: Final = 10_000
"""Runs of a sweep."""
LONGEST: Final = 300
"""Characters of keys that a message shows."""
SEEDS: Final = "seeds."
"""Keys of this section tell runs of one setting apart."""
VALIDATION: Final = "output.validation=true"


@dataclass(frozen=True)
class Row:
    """One experiment with what varies about it."""

    experiment: Path
    overrides: tuple[str, ...] = ()
    grid: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Key -> values, all of which are run; keys of ``seeds`` among them."""
    search: Mapping[str, Space] = field(default_factory=dict)
    trials: int = 0
    search_seed: int = 0
    metric: str | None = None
    stop_early: Asha | None = None
    priority: int = 0
    """Rows of a higher one are run first."""

    def __post_init__(self) -> None:
        if self.trials < 0:
            raise UserError(f"a search of {self.experiment.name} has {self.trials} trials; give 1 or more.")
        if bool(self.search) != bool(self.trials):
            missing = "how many trials (trials: 20, --trials 20)" if self.search else "what is searched"
            raise UserError(f"a search of {self.experiment.name} needs {missing}.")
        if self.search and self.metric is None:
            object.__setattr__(self, "metric", METRICS[0])
        if self.metric is not None and self.metric not in METRICS:
            raise UserError(
                f"the metric {shown(self.metric)} is no figure to choose by; allowed: {', '.join(METRICS)}. Settings "
                "are chosen on held-out training images, never on test images."
            )
        if self.stop_early is not None and not self.search:
            raise UserError("stop_early compares the trials of a search; add one, or leave it out.")
        both = sorted(self.grid.keys() & self.search.keys())
        if both:
            raise UserError(
                f"{cut(', '.join(both), LONGEST)} stands in the grid and in the search; remove one of them."
            )

    @property
    def runs(self) -> int:
        """Number of runs."""
        number = max(1, self.trials)
        for values in self.grid.values():
            number *= len(values)
        return number

    @property
    def seeds(self) -> list[Cell]:
        """Every combination of the grid's seeds; an empty one where it has none."""
        return _cells({key: values for key, values in self.grid.items() if key.startswith(SEEDS)})

    @property
    def cells(self) -> list[Cell]:
        """Every place in the grid, seeds left out."""
        return _cells({key: values for key, values in self.grid.items() if not key.startswith(SEEDS)})

    def described(self) -> dict[str, object]:
        """Return what decides the runs and the choice, as plain data; the experiment with its content."""
        return {
            "experiment": yamlfile.read(self.experiment),
            "overrides": list(self.overrides),
            "grid": {key: list(values) for key, values in self.grid.items()},
            "search": {key: str(own) for key, own in self.search.items()},
            "trials": self.trials,
            "search_seed": self.search_seed,
            "metric": self.metric,
            "stop_early": None
            if self.stop_early is None
            else {"eta": self.stop_early.eta, "first": self.stop_early.first},
        }

    def written(self) -> dict[str, object]:
        """Return the row as a sweep file has it, with the experiment's whole path."""
        values = {**self.described(), "experiment": str(self.experiment.resolve()), "priority": self.priority}
        return {key: value for key, value in values.items() if value}


@dataclass(frozen=True)
class Sweep:
    """Rows to work off, most wanted first."""

    name: str
    rows: tuple[Row, ...]

    @cached_property
    def hash(self) -> str:
        """Sixty-four hex characters over everything that decides the runs and the choice, experiments included.

        As the files are when it is first asked for.
        """
        content = [row.described() for row in self.rows]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def yaml(self) -> str:
        """Return the sweep as a file that :func:`read` reads back."""
        rows = [row.written() for row in self.rows]
        return f"# sweep {self.hash[:12]}\n" + dump(rows if len(rows) > 1 else rows[0])

    def tasks(self, out: Path, data: str | None = None, threads: int | None = 1) -> list[Task]:
        """Return the runs in the order in which they are wanted, each once.

        Args:
            out: Folder of the run folders.
            data: Folder of the datasets.
            threads: ``training.threads`` of every run; None leaves it to the experiment.

        Raises:
            UserError: A file, an override or a drawn value is wrong, or there are too many runs.
        """
        number = sum(row.runs for row in self.rows)
        if number > LARGEST_SWEEP:
            told = number if number < 10**9 else "more than a thousand million"
            raise UserError(
                f"the sweep has {told} runs; at most {LARGEST_SWEEP} are allowed. Make it smaller."
            )
        places = sorted(range(len(self.rows)), key=lambda place: -self.rows[place].priority)
        more = () if threads is None else (f"training.threads={threads}",)
        found: dict[str, Task] = {}
        words = apart(self.rows)
        for place in places:
            for task in _tasks(self.rows[place], place, more, out, data, words[place]):
                found.setdefault(task.key, task)
                _ = task.epochs  # a plan that cannot be made is said before the first run
        return list(found.values())


def apart(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return for each row the words that tell it from the others: its experiment, and overrides not all have.

    An experiment of the same file name in another folder is named with its folder; an override that all rows of an
    experiment share tells nothing and is left out.
    """
    paths = {row.experiment: row.experiment.resolve() for row in rows}
    folders: dict[str, set[Path]] = {}
    shared: dict[str, set[str]] = {}
    for row in rows:
        stem = row.experiment.stem
        folders.setdefault(stem, set()).add(paths[row.experiment])
        shared[stem] = shared.get(stem, set(row.overrides)) & set(row.overrides)
    found = []
    for row in rows:
        stem, path = row.experiment.stem, paths[row.experiment]
        name = path.stem if len(folders[stem]) == 1 else f"{path.parent.name}/{path.stem}"
        found.append((name, *(word for word in row.overrides if word not in shared[stem])))
    return found


def _tasks(
    row: Row, place: int, more: tuple[str, ...], out: Path, data: str | None, words: tuple[str, ...]
) -> Iterator[Task]:
    """Yield the runs of a row: all settings with the first seed, then all with the second, ..."""
    asked = (VALIDATION,) if row.metric else ()
    for seed, cell, trial in itertools.product(row.seeds, row.cells, range(max(1, row.trials))):
        values = drawn(dict(row.search), row.search_seed, trial)
        changes = (*cell, *values.items(), *seed)
        written = tuple(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes)
        yield Task(
            row.experiment,
            (*row.overrides, *more, *written, *asked),
            out,
            data,
            row=place,
            cell=cell,
            trial=trial if row.search else None,
            drawn=tuple(values.items()),
            seed=seed,
            apart=words,
        )


def _cells(grid: Mapping[str, tuple[object, ...]]) -> list[Cell]:
    """Return every combination of a grid's values."""
    return [tuple(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


KEYS: Final = (
    "experiment", "overrides", "seeds", "grid", "search", "trials", "search_seed", "metric", "stop_early", "priority",
)  # fmt: skip


def is_sweep(content: object) -> bool:
    """Tell a sweep file's content from that of an experiment file."""
    return isinstance(content, list) or (isinstance(content, dict) and "experiment" in content)


def read(path: Path) -> object:
    """Return the content of a YAML file.

    Raises:
        UserError: It cannot be read.
    """
    return parse(yamlfile.text_of(path), str(path))


def from_file(path: Path, content: object) -> Sweep:
    """Return the sweep of a file.

    Args:
        path: Its path; experiments are relative to it.
        content: What it holds.

    Raises:
        UserError: What is wrong with it.
    """
    given: list[Any] = content if isinstance(content, list) else [content]
    if not given or not all(
        isinstance(row, dict) and isinstance(row.get("experiment"), str) for row in given
    ):
        raise UserError(
            f"{path} must be a row, or a list of rows, such as {{experiment: quickstart.yaml, seeds: [0, 1]}}."
        )
    lost = [row["experiment"] for row in given if not yamlfile.is_path(row["experiment"])]
    if lost:
        raise UserError(f"{path}: no file can be called {shown(lost[0])}; give the path of an experiment.")
    return Sweep(path.stem, tuple(_row(path, row) for row in given))


def _row(path: Path, given: Mapping[str, object]) -> Row:
    unknown = sorted(map(str, given.keys() - set(KEYS)))
    if unknown:
        hint, told = did_you_mean(unknown[0][:LONGEST], KEYS), cut(", ".join(unknown), LONGEST)
        raise UserError(f"{path} has {told}; a row takes {', '.join(KEYS)}.{hint}")
    grid = {key: grid_values(key, values) for key, values in _mapping(path, given, "grid").items()}
    if "seeds" in given:
        grid["seeds.all"] = grid_values("seeds.all", given["seeds"])
    overrides = given.get("overrides", [])
    if not isinstance(overrides, list):
        raise UserError(f"{path}: overrides is {shown(overrides)}; give a list such as [training.epochs=30].")
    return Row(
        path.parent / str(given["experiment"]),
        tuple(map(str, overrides)),
        grid,
        {key: space(key, own) for key, own in _mapping(path, given, "search").items()},
        whole(path, "trials", given.get("trials", 0)),
        whole(path, "search_seed", given.get("search_seed", 0)),
        _text(path, given.get("metric")),
        asha(given.get("stop_early")),
        whole(path, "priority", given.get("priority", 0)),
    )


def _mapping(path: Path, given: Mapping[str, object], name: str) -> dict[str, object]:
    found = given.get(name, {})
    if not isinstance(found, dict):
        raise UserError(
            f"{path}: {name} is {shown(found)}; give a mapping such as {{training.lr: [0.1, 0.05]}}."
        )
    return {str(key): value for key, value in found.items()}


def whole(where: object, name: str, value: object) -> int:
    """Return a whole number.

    Raises:
        UserError: It is something else.
    """
    if type(value) is not int:
        raise UserError(f"{where}: {name} is {shown(value)}; give a whole number.")
    return value


def _text(path: Path, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise UserError(f"{path}: metric is {shown(value)}; allowed: {', '.join(METRICS)}.")
    return value


def from_words(path: Path, overrides: Sequence[str], grid: Sequence[str], search: Sequence[str]) -> Row:
    """Return the row of an experiment file and a command line's options; what else it has is put in by the caller.

    Args:
        path: The experiment.
        overrides: ``section.key=value``.
        grid: ``section.key=values`` each.
        search: ``section.key=space`` each.

    Raises:
        UserError: An option is not of that form.
    """
    pairs = [_pair("--grid", text) for text in grid]
    spaces = {key: space(key, value) for key, value in (_pair("--search", text) for text in search)}
    return Row(
        path,
        tuple(overrides),
        {key: grid_values(key, value) for key, value in pairs},
        spaces,
        trials=1 if spaces else 0,
    )


def _pair(option: str, text: str) -> tuple[str, str]:
    match = yamlfile.OVERRIDE.fullmatch(text)
    if match is None:
        raise UserError(
            f"{option} {shown(text)} is not of the form section.key=values, such as seeds.all=0..4."
        )
    return match["path"], match["value"]
