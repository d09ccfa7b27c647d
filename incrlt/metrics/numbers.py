"""Means over what is defined, and the one place where undefined (NaN in arrays) becomes None (in results)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def known(value: float | np.floating[Any]) -> float | None:
    """Return a plain float, or None for NaN."""
    return None if np.isnan(value) else float(value)


def mean_known(values: npt.ArrayLike) -> float | None:
    """Return the mean of the values that are not NaN, or None where there are none."""
    array = np.asarray(values, dtype=np.float64)
    array = array[~np.isnan(array)]
    return float(array.mean()) if array.size else None


def percent(part: npt.ArrayLike, whole: npt.ArrayLike) -> Floats:
    """Return ``100 * part / whole``, NaN where ``whole`` is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    rate: Floats = np.divide(100.0 * part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return rate


def nested(array: npt.NDArray[Any]) -> list[Any]:
    """Return an array as nested lists with None in place of NaN, ready for JSON."""
    if array.ndim == 1:
        return [known(value) for value in array]
    return [nested(row) for row in array]
