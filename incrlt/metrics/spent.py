"""Where a run's time went: device-seconds, images, multiply-adds and memory of each stage, from the lines of its log.

The log is cut back to the checkpoint when a run goes on, so an epoch that was lost and done again is counted once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

from incrlt.files import Plain

FILE: Final = "cost.json"
BETWEEN, EVALUATION = "between the stages", "evaluation"
"""Rows beside the stages: herding, set-up and checkpoints; evaluation after every experience."""


def spent(events: Iterable[Mapping[str, object]]) -> list[Plain]:
    """Return one row per stage, in the order they first ran, then what lies between them, then evaluation.

    Args:
        events: Lines of ``log.jsonl``. Of older versions images are speed times seconds, and what was not noted is
            None.

    Returns:
        Rows of plain data: ``stage``; ``epochs``; ``device_seconds``, seconds times processes; ``images`` that went
        through; ``multiply_adds`` of one forward pass of the network for each of them (a backward pass takes about
        twice that; teachers, second views and momentum encoders are not counted; a stage on stored features runs heads
        alone); ``peak_bytes`` of the device's memory, without GPU that of the first process up to then. None: unknown.
    """
    lines = list(events)
    ends = {event.get("experience"): event for event in lines if event.get("event") == "experience"}
    rows: dict[str, Plain] = {}
    for event in lines:
        if event.get("event") == "epoch":
            row = rows.setdefault(str(event.get("stage")), _empty(str(event.get("stage"))))
            own = ends.get(event.get("experience"), {})
            row["epochs"] += 1
            _add(row, event, "seconds", _images(event), "head_macs" if event.get("stored") else "macs", own)
    between, evaluation = _empty(BETWEEN), _empty(EVALUATION)
    for event in ends.values():
        between["device_seconds"] += _seconds(event, "between_seconds")
        _add(evaluation, event, "eval_seconds", _number(event.get("test_images")), "macs", event)
    between |= {"images": None, "multiply_adds": None, "peak_bytes": None}
    return [*rows.values(), *(row for row in (between, evaluation) if row["device_seconds"] > 0)]


def _empty(stage: str) -> Plain:
    zeros = {"epochs": 0, "device_seconds": 0.0, "images": 0, "multiply_adds": 0, "peak_bytes": None}
    return {"stage": stage, **zeros}


def _add(
    row: Plain,
    event: Mapping[str, object],
    seconds: str,
    images: float | None,
    macs: str,
    end: Mapping[str, object],
) -> None:
    """Add a line to a row; what one line does not know, the row does not."""
    row["device_seconds"] += _seconds(event, seconds)
    each, peak = _number(end.get(macs)), _number(event.get("peak_bytes"))
    row["images"] = None if images is None or row["images"] is None else row["images"] + round(images)
    if images is None or each is None or row["multiply_adds"] is None:
        row["multiply_adds"] = None
    else:
        row["multiply_adds"] += round(images) * each
    row["peak_bytes"] = peak if row["peak_bytes"] is None else max(row["peak_bytes"], peak or 0)


def _images(event: Mapping[str, object]) -> float | None:
    images, speed = _number(event.get("images")), _number(event.get("images_per_second"))
    if images is None and speed is not None:
        return speed * _seconds(event, "seconds") / (_number(event.get("processes")) or 1)
    return images


def _seconds(event: Mapping[str, object], name: str) -> float:
    return (_number(event.get(name)) or 0.0) * (_number(event.get("processes")) or 1)


def _number(value: object) -> float | None:
    """Return a finite number that is not negative, None for everything else that a file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) and value >= 0 else None
