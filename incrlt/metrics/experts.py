"""What the experts of an ensemble know by themselves, together, and how often they differ.

Within a group every class counts the same (``over_classes``). Disagreement of two experts is the share of test
images for which they name different classes, averaged over pairs; it is the share that RIDE's diversity term
wants up and that an ensemble lives on.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from incrlt.metrics.counts import Counts
from incrlt.metrics.groups import GROUPS, class_groups
from incrlt.metrics.numbers import Floats, mean_known, percent

Values = dict[str, float | None]


def expert_accuracy(
    right: Counts, tested: npt.ArrayLike, images_of_class: npt.ArrayLike
) -> tuple[list[Values], list[Values]]:
    """Return the accuracy of each expert alone, and of the first 1, 2, ... K experts together.

    Args:
        right: int [C_t, 2, K] of :mod:`incrlt.metrics.evaluation`.
        tested: Test images of each class [C_t].
        images_of_class: Training images of the class in the full training set [at least C_t].

    Returns:
        Two lists of K, each ``{"over_classes", "many", "medium", "few"}`` in percent, None for an empty group.
    """
    whole = np.broadcast_to(np.asarray(tested)[:, None, None], right.shape)
    rates = percent(right, whole)
    alone, together = (
        [over_groups(rates[:, row, k], images_of_class) for k in range(right.shape[2])] for row in (0, 1)
    )
    return alone, together


def disagreement(differ: Counts, tested: npt.ArrayLike, images_of_class: npt.ArrayLike) -> Values:
    """Return the mean pairwise disagreement, over classes and by group, in percent of images.

    Args:
        differ: int [C_t, K, K] of :mod:`incrlt.metrics.evaluation`, K at least 2.
        tested: Test images of each class [C_t].
        images_of_class: Training images of the class in the full training set [at least C_t].
    """
    first, second = np.triu_indices(differ.shape[1], 1)
    pairs = differ[:, first, second].mean(axis=1)
    return over_groups(percent(pairs, tested), images_of_class)


def over_groups(per_class: Floats, images_of_class: npt.ArrayLike) -> Values:
    """Return the mean over all classes and over those of each group; None where there are none."""
    groups = class_groups(np.asarray(images_of_class)[: len(per_class)])
    means = {name: mean_known(per_class[groups == name]) for name in GROUPS}
    return {"over_classes": mean_known(per_class), **means}
