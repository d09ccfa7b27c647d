"""What a hyper-parameter may be: the values of a grid, written out, and the spaces that a search draws from."""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from typing import Final

from incrlt.errors import UserError, shown
from incrlt.experiment.yamltext import parse

DIGITS: Final = 4
"""Digits of a drawn number: enough for any search, and the same text wherever it is written."""
LARGEST_RANGE: Final = 10_000
"""Values of ``0..N``; more are a slip of the finger."""

_RANGE: Final = re.compile(r"\s*(-?\d{1,9})\.\.(-?\d{1,9})\s*")
_SPACE: Final = re.compile(r"\s*(log|linear|choice)\((.*)\)\s*", re.DOTALL)


def grid_values(key: str, given: object) -> tuple[object, ...]:
    """Return the values of a grid's key, in order, each once.

    Args:
        key: For errors.
        given: A list of values, or text: values with commas between them, ``0..4`` for 0 to 4.

    Raises:
        UserError: There are none, or the text is no YAML.

    Example:
        >>> grid_values("seeds.all", "0..2, 7"), grid_values("experts.name", "single,shike")
        ((0, 1, 2, 7), ('single', 'shike'))
    """
    items = given if isinstance(given, list) else _listed(key, str(given))
    kept: list[object] = []
    seen: set[object] = set()
    for value in (value for item in items for value in _expanded(key, item)):
        if not _known(value, seen, kept):
            kept.append(value)
        if len(kept) > LARGEST_RANGE:
            raise UserError(
                f"the grid of {shown(key)} has more than {LARGEST_RANGE} values. Make it smaller."
            )
    if not kept:
        raise UserError(f"the grid of {key} has no values; give some, such as {key}=1,2 or {key}=0..4.")
    return tuple(kept)


def _listed(key: str, text: str) -> list[object]:
    found = parse(f"[{text}]", f"the grid of {key}")
    return found if isinstance(found, list) else [found]


def _expanded(key: str, item: object) -> list[object]:
    match = _RANGE.fullmatch(item) if isinstance(item, str) else None
    if match is None:
        return [item]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < LARGEST_RANGE:
        raise UserError(f"the range {item} of {shown(key)} must rise, over at most {LARGEST_RANGE} numbers.")
    return list(range(first, last + 1))


def _known(value: object, seen: set[object], kept: list[object]) -> bool:
    """Tell whether a value was among the former, and take note of it; 1, 1.0 and true are three."""
    if isinstance(value, list | dict):
        return any(type(value) is type(other) and value == other for other in kept)
    known = (type(value), value) in seen
    seen.add((type(value), value))
    return known


@dataclass(frozen=True)
class Space:
    """What a search draws a hyper-parameter from.

    ``log(low, high)`` and ``linear(low, high)`` draw evenly over the logarithm and over the value; where both bounds
    are written as whole numbers, a linear draw is a whole number too. ``choice(a, b, ...)`` takes one of its values.
    """

    kind: str
    values: tuple[object, ...]
    """Low and high, or the values to choose from."""

    def draw(self, generator: random.Random) -> object:
        """Return a value; the generator decides."""
        if self.kind == "choice":
            return self.values[generator.randrange(len(self.values))]
        low, high = self.values
        assert isinstance(low, int | float) and isinstance(high, int | float)
        if self.kind == "linear" and isinstance(low, int) and isinstance(high, int):
            return generator.randint(low, high)
        if self.kind == "linear":
            return _rounded(generator.uniform(low, high))
        return _rounded(math.exp(generator.uniform(math.log(low), math.log(high))))

    def __str__(self) -> str:
        """Return the text it was read from, spelled evenly."""
        return f"{self.kind}({', '.join(map(str, self.values))})"


def space(key: str, given: object) -> Space:
    """Read a space.

    Args:
        key: For errors.
        given: Text such as ``log(0.01, 0.3)``; a list is a choice.

    Raises:
        UserError: It is none.

    Example:
        >>> space("training.lr", "log(0.01,0.3)")
        Space(kind='log', values=(0.01, 0.3))
    """
    if isinstance(given, list):
        return Space("choice", grid_values(key, given))
    match = _SPACE.fullmatch(given) if isinstance(given, str) else None
    if match is None:
        raise UserError(
            f"the search space of {key} is {shown(given)}; write log(0.01, 0.3), linear(0.1, 0.9) or choice(1, 2, 4)."
        )
    kind, values = match[1], grid_values(key, match[2])
    return Space(kind, values) if kind == "choice" else _bounded(key, kind, values)


def _bounded(key: str, kind: str, values: tuple[object, ...]) -> Space:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) != 2 or len(values) != 2 or not all(map(math.isfinite, numbers)):
        raise UserError(f"{kind} of {key} takes two numbers, low and high; got {shown(values)}.")
    low, high = numbers
    if not low < high or (kind == "log" and low <= 0):
        above = " above 0" if kind == "log" else ""
        raise UserError(f"{kind} of {key} needs low < high{above}; got {low} and {high}.")
    return Space(kind, (low, high))


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def drawn(spaces: dict[str, Space], seed: int, trial: int) -> dict[str, object]:
    """Return the values of a trial.

    Each key of each trial has a generator of its own, so that more trials, or one key more, leave the others as they
    were.

    Args:
        spaces: By key.
        seed: Seed of the search.
        trial: Number of the trial, from 0.
    """
    return {key: own.draw(random.Random(f"{seed} {trial} {key}")) for key, own in spaces.items()}
