"""Runs that differ in nothing but their seeds, taken together: mean ± standard error, and paired differences."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from incrlt.errors import UserError
from incrlt.experiment.yamlfile import leaves
from incrlt.files import Plain
from incrlt.metrics.bias import FEWEST, bias_and_variance
from incrlt.metrics.experts import Values
from incrlt.report.reading import Run, number

T_975: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
)  # fmt: skip
"""97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom (any statistics table); then 1.96."""
_NOT_THE_METHOD = ("seeds", "seed", "output", "data", "device")
"""Sections of a configuration that may differ between runs of one method."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float | None
    error: float | None
    """Standard error of the mean, s / sqrt(n) with n - 1 degrees of freedom; None for fewer than two values."""
    n: int
    """Runs for which the number is defined."""

    @property
    def half(self) -> float | None:
        """Half of the 95 % interval by Student's t, the error times its quantile; None where there is no error."""
        return None if self.error is None else t_quantile(self.n) * self.error


@dataclass(frozen=True, eq=False)
class Line:
    """One read-out of one method over its seeds."""

    label: str
    experiment: str
    readout: str
    seeds: tuple[str, ...]
    options: Mapping[str, str]
    """The configuration but for seeds and places: ``section.key`` -> value."""
    values: Mapping[str, Mapping[str, float]]
    """Name of the number -> seed -> value; seeds for which it is undefined are left out."""
    own: bool = True
    """Whether the runs answer with this read-out."""

    def estimate(self, name: str) -> Estimate:
        """Return the mean over seeds of a number."""
        return estimate(list(self.values[name].values()))

    def minus(self, other: Line, name: str) -> Estimate:
        """Return the mean of the differences, seed by seed, over the seeds both have."""
        ours, theirs = self.values[name], other.values[name]
        return estimate([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def t_quantile(n: int) -> float:
    """Return the 97.5 % quantile of Student's t for the mean of n >= 2 values.

    Example:
        >>> t_quantile(3), t_quantile(1000)
        (4.303, 1.96)
    """
    return T_975[n - 2] if n - 2 < len(T_975) else 1.96


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean and standard error.

    Example:
        >>> estimate([1.0, 2.0, 3.0])  # s = 1
        Estimate(mean=2.0, error=0.5773502691896258, n=3)
    """
    if not values:
        return Estimate(None, None, 0)
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return Estimate(float(np.mean(values)), error, len(values))


def seed_of(run: Run) -> str:
    """Return what tells a run from the others of its method: all its seeds, shortly where they are one."""
    seeds = run.config.get("seeds", run.config.get("seed"))
    if not isinstance(seeds, Mapping):
        return str(seeds)
    others = {key: value for key, value in seeds.items() if key != "all" and value is not None}
    return ", ".join([str(seeds.get("all")), *(f"{key} {value}" for key, value in others.items())])


def setting(run: Run) -> str:
    """Return the configuration but for seeds and places, as a key; a run without one has a setting of its own."""
    return json.dumps([run.experiment, options(run) or str(run.folder)], sort_keys=True)


def options(run: Run) -> dict[str, str]:
    """Return the configuration but for seeds and places, flat: ``{"training.epochs": "160", ...}``."""
    sections = {key: value for key, value in run.config.items() if key not in _NOT_THE_METHOD}
    return {name: str(value) for name, value in leaves(sections)}


def by_setting(runs: Sequence[Run]) -> list[list[Run]]:
    """Return finished runs without gaps by setting, in order of first appearance, each seed once."""
    members: dict[str, dict[tuple[str, str | None], Run]] = {}
    for run in _usable(runs):
        members.setdefault(setting(run), {}).setdefault((seed_of(run), run.protocol_hash), run)
    return [list(seeds.values()) for seeds in members.values()]


def repeats(runs: Sequence[Run]) -> int:
    """Return how many runs :func:`by_setting` leaves out since an earlier one has their setting and seed."""
    return len(_usable(runs)) - sum(map(len, by_setting(runs)))


def _usable(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.complete and run.summaries]


def lines(runs: Sequence[Run], names: Sequence[str]) -> list[Line]:
    """Return one line per setting and read-out; incomplete runs are left out, their averages are over less.

    Args:
        runs: Of one protocol hash.
        names: Numbers of a summary.
    """
    return [_line(own, readout, names) for own in by_setting(runs) for readout in common_readouts(own)]


def common_readouts(runs: Sequence[Run]) -> list[str]:
    """Return the read-outs that all of the runs have."""
    return [name for name in runs[0].summaries if all(name in run.summaries for run in runs)]


def _line(runs: Sequence[Run], readout: str, names: Sequence[str]) -> Line:
    values: dict[str, dict[str, float]] = {}
    for name in names:
        found = {seed_of(run): number(run.summaries[readout]["numbers"].get(name)) for run in runs}
        values[name] = {seed: value for seed, value in found.items() if value is not None}
    seeds = tuple(sorted((seed_of(run) for run in runs), key=_by_number))
    own = all(run.readout == readout for run in runs)
    return Line(runs[0].method, runs[0].experiment, readout, seeds, options(runs[0]), values, own)


def _by_number(seed: str) -> tuple[int, str]:
    return (int(seed) if seed.isascii() and seed.isdigit() else sys.maxsize, seed)


def reference_of(one: Line, others: Sequence[Line]) -> Line | None:
    """Return the line that differences are taken from: the first of the table with the same read-out."""
    first = next((other for other in others if other.readout == one.readout), None)
    return None if first is one else first


def trained_alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the settings with enough runs that answered the same test images, whatever their training set.

    The protocol's hash may differ in the kept images alone: training sets that are drawn anew are the other way
    to ask for variance. Class order, class sizes and test images must be the same.
    """
    groups: dict[str, list[Run]] = {}
    for own in by_setting(runs):
        for run in own:
            if "labels" in run.evaluations.answers and run.records:
                groups.setdefault(_task(run), []).append(run)
    return [group for group in groups.values() if len(group) >= FEWEST]


def _task(run: Run) -> str:
    record = next(iter(run.records.values()))
    parts: list[Any] = [setting(run), run.protocol.get("dataset"), run.protocol.get("class_order")]
    parts += [record.experience_of_class.tolist(), record.images_of_class.tolist()]
    return json.dumps([*parts, run.evaluations.answers["labels"].tolist()], default=str)


def bias_rows(runs: Sequence[Run]) -> list[Plain]:
    """Return bias, variance and error per setting and read-out, over the last answers of its runs."""
    rows = []
    for own in trained_alike(runs):
        record = next(iter(own[0].records.values()))
        for readout in common_readouts(own):
            found = _bias(own, readout, record.images_of_class)
            if found is not None:
                drawn = len({run.protocol_hash for run in own})
                rows.append(
                    {"label": own[0].method, "experiment": own[0].experiment, "readout": readout,
                     "runs": len(own), "training_sets": drawn, "parts": found}
                )  # fmt: skip
    return rows


def _bias(runs: Sequence[Run], readout: str, images_of_class: Any) -> dict[str, Values] | None:
    answers = [run.evaluations.answers.get(f"predicted_{readout}") for run in runs]
    labels = runs[0].evaluations.answers["labels"]
    known = [answer for answer in answers if answer is not None and answer.shape == labels.shape]
    try:
        return bias_and_variance(np.stack(known), labels, images_of_class) if len(known) >= FEWEST else None
    except (UserError, ValueError, IndexError):  # a damaged file with plausible shapes
        return None
