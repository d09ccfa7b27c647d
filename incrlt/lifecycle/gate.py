"""What a new version must show before answers come from it: measures, and rules such as ``old_drop<=2, few>=30``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from incrlt.benchmarks.longtail import GROUPS, groups
from incrlt.errors import UserError, did_you_mean

DEFAULT: Final = "many_drop<=5, medium_drop<=5, few_drop<=5"
"""No group of known classes loses more than five points."""
NONE: Final = "none"
"""Accepts whatever comes."""
NAMES: Final = ("all", "old", "new", "old_drop", *GROUPS, *(f"{group}_drop" for group in GROUPS))
"""What a rule may ask for, all in percent or points, every class counting the same."""
SIGNS: Final[dict[str, Callable[[float, float], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION: Final = re.compile(r"\s*([a-z_]+)\s*(<=|>=|<|>)\s*(-?[0-9]+(?:\.[0-9]+)?)\s*")

Counts = npt.NDArray[np.int64]
Measures = Mapping[str, float | None]


@dataclass(frozen=True)
class Condition:
    """One condition of a rule."""

    name: str
    sign: str
    limit: float

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.limit:g}"


def rule(text: str) -> tuple[Condition, ...]:
    """Read a rule.

    Raises:
        UserError: It is none.

    Example:
        >>> [str(condition) for condition in rule("old_drop <= 2, few>=30")], rule("none")
        (['old_drop<=2', 'few>=30'], ())
    """
    if text.strip() == NONE:
        return ()
    conditions = []
    for part in text.split(","):
        match = _CONDITION.fullmatch(part)
        if match is None:
            raise UserError(
                f"{part.strip()!r} in --accept is no condition; write conditions such as 'old_drop<=2, few>=30', or "
                "none."
            )
        if match[1] not in NAMES:
            hint = did_you_mean(match[1], NAMES)
            raise UserError(f"{match[1]!r} in --accept is not known; allowed: {', '.join(NAMES)}.{hint}")
        conditions.append(Condition(match[1], match[2], float(match[3])))
    return tuple(conditions)


def measures(before: object, after: object, seen: Sequence[int]) -> dict[str, float | None]:
    """Return what a rule may ask for, from the answers of two versions to the same test pictures.

    Args:
        before: int ``[C0, C0]``, rows are true classes, of the parent.
        after: int ``[C, C]`` of the new version; the first C0 classes are those of the parent.
        seen: Pictures of each class ever trained on ``[C]``; they decide what is many, medium and few.

    Returns:
        Percent, mean over classes, and in ``..._drop`` the points that known classes lost; None where no class has test
        pictures. ``old_before`` is the parent's accuracy, ``many_before`` and so on that of known classes which are now
        of that group.
    """
    then, now = _accuracy(before), _accuracy(after)
    known = np.arange(len(now)) < len(then)
    group_of = np.array(groups(seen))
    found: dict[str, float | None] = {
        "all": _mean(now),
        "old": _mean(now[known]),
        "new": _mean(now[~known]),
        "old_before": _mean(then),
        "old_drop": _drop(then, now[known]),
    }
    for group in GROUPS:
        own = group_of == group
        found[group] = _mean(now[own])
        found[f"{group}_before"] = _mean(then[own[: len(then)]])
        found[f"{group}_drop"] = _drop(then[own[: len(then)]], now[own & known])
    return found


def _accuracy(counts: object) -> npt.NDArray[np.float64]:
    matrix = np.asarray(counts, dtype=np.int64)
    total = matrix.sum(1)
    return np.where(total > 0, 100.0 * np.diag(matrix) / np.maximum(total, 1), np.nan)


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    return round(float(known.mean()), 6) if known.size else None


def _drop(then: npt.NDArray[np.float64], now: npt.NDArray[np.float64]) -> float | None:
    first, second = _mean(then), _mean(now)
    return None if first is None or second is None else round(first - second, 6)


def judge(conditions: Sequence[Condition], found: Measures) -> tuple[bool, tuple[str, ...]]:
    """Hold measures to a rule.

    Returns:
        Whether it holds, and a phrase for each condition that does not, or that nothing could be said of.
    """
    accepted, told = True, []
    for condition in conditions:
        value = found.get(condition.name)
        if value is None:
            told.append(f"{condition} could not be judged: no such class has test pictures")
        elif not SIGNS[condition.sign](value, condition.limit):
            accepted = False
            told.append(f"{condition.name} is {value:.1f}, and must be {condition.sign} {condition.limit:g}")
    return accepted, tuple(told)
