"""Competitors take turns, so that a busy machine is busy for all of them."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def alternate(
    turns: Mapping[str, Callable[[], object]], rounds: int, seconds: float = float("inf"), warm_up: int = 1
) -> dict[str, list[float]]:
    """Time every competitor once per round, each round in a new order.

    Args:
        turns: What to call, by name.
        rounds: Rounds to time.
        seconds: Start no round after this time; at least three are made.
        warm_up: Rounds before them that are not timed.

    Returns:
        Wall seconds by name, entry r of each from round r.
    """
    times: dict[str, list[float]] = {name: [] for name in turns}
    order, draw, end = list(turns), random.Random(0), time.perf_counter() + seconds
    for number in range(-warm_up, rounds):
        if number >= 3 and time.perf_counter() > end:
            break
        draw.shuffle(order)
        for name in order:
            begun = time.perf_counter()
            turns[name]()
            if number >= 0:
                times[name].append(time.perf_counter() - begun)
    return times


def spread(values: list[float]) -> dict[str, Any]:
    """Return number, median and quartiles; of a single value that value."""
    count = len(values)
    values = values if len(values) > 1 else 2 * values
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"n": count, "median": middle, "quartiles": [low, high]}


def ratio(times: Mapping[str, list[float]], of: str, over: str) -> dict[str, Any]:
    """Return the spread of ``of / over``, paired by round."""
    return spread([a / b for a, b in zip(times[of], times[over], strict=True)])
