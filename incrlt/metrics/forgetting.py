r"""Forgetting and backward transfer, per experience and per class.

Forgetting of j after t is the best earlier accuracy minus today's,
:math:`\max_{l < t} a_{l,j} - a_{t,j}`; it is negative where j got better. It is undefined, not 0, after the
first experience, and so is every mean over nothing.

Reference: Chaudhry et al., "Riemannian Walk for Incremental Learning", ECCV 2018, eq. 3 (forgetting);
Lopez-Paz & Ranzato, "Gradient Episodic Memory", NeurIPS 2017 (backward transfer).
Deviation: the maximum runs over the experiences from j's arrival on, since accuracies before are undefined
here.
"""

from __future__ import annotations

import numpy as np

from incrlt.metrics.accuracy import accuracy_matrix, class_accuracy
from incrlt.metrics.numbers import Floats, mean_known
from incrlt.metrics.record import StreamRecord


def drop_from_best(accuracy: Floats) -> Floats:
    """Return, per row t, the best value of the earlier rows minus the value in row t.

    Args:
        accuracy: float [T, X]; NaN where undefined.

    Returns:
        float [T, X]; NaN in row 0 and where a column had no earlier value.
    """
    drop = np.full(accuracy.shape, np.nan)
    best = np.fmax.accumulate(accuracy, axis=0)
    drop[1:] = best[:-1] - accuracy[1:]
    return drop


def experience_forgetting(record: StreamRecord) -> Floats:
    """Return the forgetting of experience j after experience t: float [T, T], NaN for j >= t."""
    return drop_from_best(accuracy_matrix(record))


def class_forgetting(record: StreamRecord) -> Floats:
    """Return the forgetting of each class after experience t: float [T, C], NaN until a class is old."""
    return drop_from_best(class_accuracy(record))


def forgetting(record: StreamRecord) -> list[float | None]:
    """Return Chaudhry's forgetting after each experience, the mean over earlier experiences.

    Returns:
        T values in percentage points, may be negative; None after the first experience.
    """
    return [mean_known(row) for row in experience_forgetting(record)]


def backward_transfer(record: StreamRecord) -> list[float | None]:
    """Return the mean over earlier experiences j of a[t, j] - a[j, j], after each experience t.

    Returns:
        T values in percentage points; None after the first experience.
    """
    matrix = accuracy_matrix(record)
    change = matrix - np.diag(matrix)
    return [mean_known(change[t, :t]) for t in range(len(matrix))]
