r"""Calibration: is a class that the network calls 70 % sure right in 70 % of the images?

Images are binned by the probability of the winning class. The expected calibration error is
:math:`\sum_b \frac{n_b}{N} |\mathrm{acc}_b - \mathrm{conf}_b|`; confidence minus accuracy tells its direction.

Reference: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3.
Deviation: none; within a group of classes the images are pooled, since bins of single classes are nearly empty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from incrlt.metrics.counts import Counts
from incrlt.metrics.evaluation import MILLION
from incrlt.metrics.groups import GROUPS, class_groups
from incrlt.metrics.numbers import Floats, known, percent


@dataclass(frozen=True, eq=False)
class Reliability:
    """One reliability diagram."""

    images: Counts
    """int [BINS]."""
    confidence: Floats
    """Mean confidence per bin in percent [BINS]; NaN in an empty bin."""
    accuracy: Floats
    """Accuracy per bin in percent [BINS]; NaN in an empty bin."""

    @property
    def error(self) -> float | None:
        """Expected calibration error in percentage points, >= 0; None without images."""
        return self._mean(np.abs(self.confidence - self.accuracy))

    @property
    def overconfidence(self) -> float | None:
        """Mean confidence minus accuracy in percentage points; None without images."""
        return self._mean(self.confidence - self.accuracy)

    def _mean(self, gaps: Floats) -> float | None:
        total = self.images.sum()
        return known((np.nan_to_num(gaps) @ self.images) / total) if total else None


def reliability(counted: npt.ArrayLike) -> Reliability:
    """Return the reliability diagram of the classes counted together.

    Args:
        counted: int [C, 3, BINS], ``confidence_<readout>`` of :mod:`incrlt.metrics.evaluation`.

    Example:
        >>> found = reliability([[[4, 10], [2, 9], [2_400_000, 9_500_000]]])  # two bins
        >>> found.confidence.tolist(), found.accuracy.tolist(), round(found.error, 3)
        ([60.0, 95.0], [50.0, 90.0], 6.429)
    """
    images, right, millionths = np.asarray(counted, dtype=np.int64).sum(axis=0)
    return Reliability(images, percent(millionths / MILLION, images), percent(right, images))


def reliability_by_group(counted: Counts, images_of_class: npt.ArrayLike) -> dict[str, Reliability]:
    """Return the diagram of all classes, and of the many, medium and few classes.

    Args:
        counted: int [C_t, 3, BINS].
        images_of_class: Training images of the class in the full training set [at least C_t].
    """
    groups = class_groups(np.asarray(images_of_class)[: len(counted)])
    return {"all": reliability(counted), **{name: reliability(counted[groups == name]) for name in GROUPS}}
