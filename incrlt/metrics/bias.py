r"""Bias and variance of a method's answers over several trainings: other seeds, or resampled training sets.

Of each test image the *main* answer is the one most trainings give. Its bias is 1 where the main answer is wrong;
its variance is the share of trainings that answer otherwise. A long tail raises both, and an ensemble of experts
should lower the second: this is how RIDE argues for its diversity.

Reference: Domingos, "A Unified Bias-Variance Decomposition", ICML 2000 (0-1 loss); used by group of classes in
Wang et al., "Long-tailed Recognition by Routing Diverse Distribution-Aware Experts" (RIDE), ICLR 2021.
Deviation: ties of the main answer go to the class that arrived first. Of two trainings that differ each answer would be
such a tie, so that the bias would measure the rule: three are the fewest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from incrlt.errors import UserError
from incrlt.metrics.counts import Counts
from incrlt.metrics.experts import Values, over_groups
from incrlt.metrics.numbers import percent

FEWEST = 3
"""Trainings."""


def main_answer(predicted: Counts) -> Counts:
    """Return the answer most trainings give to each image, int [N].

    Args:
        predicted: int [R, N], the classes that R trainings name.

    Example:
        >>> main_answer(np.array([[3, 1, 2], [3, 0, 1], [0, 0, 0]])).tolist()  # a tie goes to the first class
        [3, 0, 0]
    """
    num_classes = int(predicted.max(initial=0)) + 1
    images = predicted.shape[1]
    place = np.arange(images) * num_classes + predicted
    votes = np.bincount(place.ravel(), minlength=images * num_classes).reshape(images, num_classes)
    main: Counts = votes.argmax(axis=1)
    return main


def bias_and_variance(
    predicted: npt.ArrayLike, labels: npt.ArrayLike, images_of_class: npt.ArrayLike
) -> dict[str, Values]:
    """Return bias, variance and error, over classes and by group.

    Args:
        predicted: int [R, N], R >= 3 trainings, in arrival space.
        labels: int [N], the same test images in the same order.
        images_of_class: Training images of the class in the full training set [at least C].

    Returns:
        ``{"bias", "variance", "error"}``, each ``{"over_classes", "many", "medium", "few"}`` in percent. Bias and
        variance do not add up to the error: where the main answer is wrong, variance can only help.

    Raises:
        UserError: Fewer than three trainings, or other images.
    """
    answers, true = np.asarray(predicted, dtype=np.int64), np.asarray(labels, dtype=np.int64)
    if answers.ndim != 2 or len(answers) < FEWEST or answers.shape[1:] != true.shape:
        raise UserError(
            f"bias and variance need the answers [R, N] of at least {FEWEST} trainings to the same images [N]; "
            f"got {answers.shape} and {true.shape}. Train with another seed."
        )
    main = main_answer(answers)
    parts = {
        "bias": main != true,
        "variance": (answers != main).mean(axis=0),
        "error": (answers != true).mean(axis=0),
    }
    size = len(np.asarray(images_of_class))
    tested = np.bincount(true, minlength=size)
    return {
        name: over_groups(percent(np.bincount(true, weights=part, minlength=size), tested), images_of_class)
        for name, part in parts.items()
    }
