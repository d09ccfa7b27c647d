"""Accuracy after each experience under the three conventions of the literature, and the accuracy matrix.

The conventions differ by up to four points on the same run (base experience of 50 classes, increments of 5),
which is more than most papers' gains, so none of them is called just "accuracy":

- ``over_tasks``: every experience's test accuracy counts the same (FACIL, Long-Tailed-CIL, DGR, GVAlign);
- ``over_classes``: every class counts the same;
- ``over_seen_images``: every test image of the seen classes counts the same (PyCIL, PILOT, UCIR's code).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from incrlt.metrics.numbers import Floats, mean_known, percent
from incrlt.metrics.record import StreamRecord

Convention = Literal["over_tasks", "over_classes", "over_seen_images"]
CONVENTION_NAMES: tuple[Convention, ...] = get_args(Convention)


def class_accuracy(record: StreamRecord) -> Floats:
    """Return the accuracy of each class after each experience.

    Returns:
        float [T, C] in percent; NaN where the class has not arrived or has no test images.
    """
    accuracy = np.full((record.num_experiences, record.experience_of_class.size), np.nan)
    for t in range(record.num_experiences):
        accuracy[t, : record.seen_after(t)] = percent(record.right_after(t), record.tested_after(t))
    return accuracy


def accuracy_matrix(record: StreamRecord) -> Floats:
    """Return a[t, j]: after experience t, the accuracy on the test images of experience j's classes.

    All seen classes compete (there are no task labels).

    Returns:
        float [T, T] in percent; NaN for j > t and where experience j has no test images.
    """
    size = record.num_experiences
    matrix = np.full((size, size), np.nan)
    for t in range(size):
        experience = record.experience_of_class[: record.seen_after(t)]
        right = np.bincount(experience, weights=record.right_after(t), minlength=t + 1)
        images = np.bincount(experience, weights=record.tested_after(t), minlength=t + 1)
        matrix[t, : t + 1] = percent(right, images)
    return matrix


def seen_accuracy(record: StreamRecord, convention: Convention) -> list[float | None]:
    """Return the accuracy on all classes seen after each experience.

    Args:
        record: The counts.
        convention: What is averaged with equal weights: see the module's head.

    Returns:
        T values in percent; None where there are no test images.
    """
    if convention == "over_tasks":
        return [mean_known(row) for row in accuracy_matrix(record)]
    if convention == "over_classes":
        return [mean_known(row) for row in class_accuracy(record)]
    return [
        mean_known(percent([record.right_after(t).sum()], [record.tested_after(t).sum()]))
        for t in range(record.num_experiences)
    ]


def average_incremental_accuracy(record: StreamRecord, convention: Convention) -> float | None:
    """Return the mean over experiences of :func:`seen_accuracy`; the first experience counts as one.

    Returns:
        Percent, or None for an empty record.
    """
    values = seen_accuracy(record, convention)
    return mean_known([value for value in values if value is not None])
