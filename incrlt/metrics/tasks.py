"""What became of each experience: from what to what it fell, in which steps, and what its images are taken for now.

Everything is counted over test images, as the accuracy matrix is. *Best* is the highest accuracy before the last
experience and *drop* is best minus last (Chaudhry's forgetting of one experience), so both are undefined for the
newest classes. *Relative drop* is the drop in percent of the best: what was never learned cannot be forgotten, so it
is undefined where the best is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from incrlt.files import Plain
from incrlt.metrics.accuracy import accuracy_matrix, class_accuracy
from incrlt.metrics.counts import Counts, summed
from incrlt.metrics.forgetting import drop_from_best
from incrlt.metrics.groups import GROUPS, class_groups
from incrlt.metrics.numbers import Floats, known, mean_known, nested, percent
from incrlt.metrics.record import StreamRecord

HALF = 0.5
"""Share of a drop that the steps named for it make up together."""
NOTHING = 1e-9
"""Points: what rounding alone may leave of a difference that is none."""

Row = Plain


def task_rows(record: StreamRecord) -> list[Row]:
    """Return one row per experience j evaluated so far.

    Returns:
        ``experience``; ``classes``, their numbers in order of arrival; per group ``classes_by_group`` and
        ``images_by_group``; ``curve``, the accuracies after j, j + 1, ...; what :func:`fall` and :func:`taken_for`
        return.
    """
    matrix, groups = accuracy_matrix(record), class_groups(record.images_of_class)
    rows = []
    for j in range(record.num_experiences):
        own = np.flatnonzero(record.experience_of_class == j)
        found = fall(matrix[j:, j], j)
        rows.append(
            {
                "experience": j,
                "classes": own.tolist(),
                "classes_by_group": {name: int((groups[own] == name).sum()) for name in GROUPS},
                "images_by_group": {
                    name: int(record.images_of_class[own[groups[own] == name]].sum()) for name in GROUPS
                },
                "curve": nested(matrix[j:, j]),
                **found,
                **taken_for(record, own, found["best_at"] if (found["drop"] or 0) > NOTHING else None),
            }
        )
    return rows


def fall(curve: Floats, first: int) -> Row:
    """Return how an accuracy fell, in percent and percentage points.

    Args:
        curve: float [n], the values after experience ``first``, ``first`` + 1, ...; all NaN where nothing was tested.
        first: The experience of arrival.

    Returns:
        ``on_arrival``, ``best`` with ``best_at`` (the latest experience that had it), ``last``, ``drop``,
        ``relative``, ``worst_step`` (the experience with the largest fall since arrival, with ``worst_fall``; None
        where it never fell) and ``steps``: the fewest largest falls since the best that make at least half of the
        drop, as (experience, points) by experience.

    Example:
        >>> found = fall(np.array([60.0, 50.0, 52.0, 30.0]), 4)
        >>> found["best"], found["drop"], found["relative"], found["worst_step"], found["steps"]
        (60.0, 30.0, 50.0, 7, [(7, 22.0)])
    """
    empty: Row = {"drop": None, "relative": None, "worst_step": None, "worst_fall": None, "steps": []}
    ends = {"on_arrival": known(curve[0]), "last": known(curve[-1])}
    if len(curve) == 1 or np.isnan(curve).any():
        return {**ends, "best": ends["on_arrival"], "best_at": first, **empty}
    best = float(curve[:-1].max())
    at = int(np.flatnonzero(curve[:-1] == best)[-1])
    drop, falls = best - float(curve[-1]), -np.diff(curve)
    worst = int(falls.argmax())
    fell = falls[worst] > NOTHING
    return {
        **ends,
        "best": best,
        "best_at": first + at,
        "drop": drop,
        "relative": known(percent([drop], [best])[0]),
        "worst_step": first + worst + 1 if fell else None,
        "worst_fall": float(falls[worst]) if fell else None,
        "steps": _mostly(falls[at:], drop, first + at + 1),
    }


def _mostly(falls: Floats, drop: float, first: int) -> list[tuple[int, float]]:
    """Return the fewest of the falls, largest first, that make half of the drop; sorted by experience."""
    chosen: list[tuple[int, float]] = []
    for place in np.argsort(-falls, kind="stable"):
        if sum(points for _, points in chosen) >= HALF * drop - NOTHING or falls[place] <= NOTHING:
            break
        chosen.append((first + int(place), float(falls[place])))
    return sorted(chosen)


def taken_for(record: StreamRecord, own: npt.NDArray[np.intp], since: int | None) -> Row:
    """Return what the images of some classes are taken for now and were not then.

    Args:
        record: The counts.
        own: Numbers of the classes.
        since: The experience to compare the last with, when all of them had arrived; None compares nothing.

    Returns:
        ``to_experiences`` and ``to_classes``: (number, points) by falling points, those above 0 alone: how much larger
        the share of the images is that is taken, wrongly, for the classes of an experience, for a class. All changes
        together, negative ones too, are the drop.
    """
    gains = np.zeros(0)
    if since is not None:
        now, then = _wrong(record, -1, own), _wrong(record, since, own)
        gains = now
        gains[: len(then)] -= then
    arrived = record.experience_of_class[: len(gains)]
    to_experiences = np.zeros(int(arrived.max(initial=-1)) + 1)
    np.add.at(to_experiences, arrived, gains)
    return {"to_experiences": _largest(to_experiences), "to_classes": _largest(gains)}


def _wrong(record: StreamRecord, t: int, own: npt.NDArray[np.intp]) -> Floats:
    """Return the share of the images of ``own`` that is taken wrongly for each class, float [C_t] in percent."""
    hits, tested = record.hits_after(t), record.tested_after(t)
    ours = np.zeros(len(tested), dtype=bool)
    ours[own] = True
    wrong = ours[hits.true] & (hits.true != hits.predicted)
    found = summed(hits.predicted[wrong], hits.images[wrong], len(tested))
    return percent(found, np.full(len(found), tested[own].sum()))


def _largest(gains: npt.NDArray[Any]) -> list[tuple[int, float]]:
    order = np.argsort(-gains, kind="stable")
    return [(int(place), float(gains[place])) for place in order if gains[place] > NOTHING]


def lost_by_group(accuracy: Floats, images_of_class: npt.ArrayLike) -> dict[str, Row]:
    """Return what the old classes of each group had at best, and what of it is lost after the last experience.

    Args:
        accuracy: float [T, C] in percent, NaN where undefined, of a read-out or of an expert.
        images_of_class: Training images of the class in the full training set [at least C].

    Returns:
        For "over_classes" and each group ``best`` and ``forgetting``, means over its old classes (NaN ones left out),
        ``relative``, the second in percent of the first, and ``num_classes``. Values are None where there are none.
    """
    dropped = drop_from_best(accuracy)[-1]
    best = np.fmax.reduce(accuracy[:-1], axis=0) if len(accuracy) > 1 else np.full(accuracy.shape[1], np.nan)
    groups = class_groups(np.asarray(images_of_class)[: accuracy.shape[1]])
    old = ~np.isnan(dropped)
    return {
        name: _lost(best[which], dropped[which])
        for name in ("over_classes", *GROUPS)
        for which in (old & ((groups == name) | (name == "over_classes")),)
    }


def _lost(best: Floats, dropped: Floats) -> Row:
    had, lost = mean_known(best), mean_known(dropped)
    return {
        "best": had,
        "forgetting": lost,
        "relative": None if not had or lost is None else 100 * lost / had,
        "num_classes": len(best),
    }


def expert_class_accuracy(right: Mapping[int, Counts], record: StreamRecord, expert: int) -> Floats:
    """Return the accuracy of each class by one expert alone: float [T, C] in percent, NaN where not recorded.

    Args:
        right: Experience -> int [C_t, 2, K] of :mod:`incrlt.metrics.evaluation`.
        record: The counts of any read-out, for the test images of each class.
        expert: From 0.
    """
    accuracy = np.full((record.num_experiences, record.num_seen), np.nan)
    for t, counts in right.items():
        if t < record.num_experiences:
            accuracy[t, : len(counts)] = percent(counts[:, 0, expert], record.tested_after(t))
    return accuracy


def old_accuracy(record: StreamRecord) -> float | None:
    """Return the mean accuracy over the old classes after the last experience, in percent; None without any."""
    last = record.num_experiences - 1
    return mean_known(class_accuracy(record)[-1][record.experience_of_class < last])


def most_forgotten(rows: Sequence[Row]) -> Row | None:
    """Return the row with the largest drop, the first of equal ones; None where nothing fell below its best."""
    fell = [row for row in rows if (row["drop"] or 0) > NOTHING]
    return max(fell, key=lambda row: row["drop"], default=None)
