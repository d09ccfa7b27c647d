"""Long-tail view: many, medium and few classes over time, and forgetting by group and age.

Groups are those of the long-tail literature (Liu et al., "Large-Scale Long-Tailed Recognition in an Open
World", CVPR 2019): a class is *many* with more than 100 training images, *few* with fewer than 20, else
*medium*, counted in the full training set of the run. Within a group every class counts the same
(``over_classes``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from incrlt.metrics.accuracy import class_accuracy
from incrlt.metrics.forgetting import class_forgetting
from incrlt.metrics.numbers import Floats, mean_known
from incrlt.metrics.record import StreamRecord

GROUPS = ("many", "medium", "few")
MOST_MEDIUM = 100
LEAST_MEDIUM = 20
AGE_BUCKETS: tuple[tuple[int, int | None], ...] = ((1, 2), (3, 5), (6, 9), (10, None))
"""Age of a class: experiences since it arrived. Bounds inclusive."""


def class_groups(images_of_class: npt.ArrayLike) -> npt.NDArray[np.str_]:
    """Return the group of each class, "many", "medium" or "few".

    Example:
        >>> class_groups([101, 100, 20, 19]).tolist()
        ['many', 'medium', 'medium', 'few']
    """
    images = np.asarray(images_of_class)
    return np.where(images > MOST_MEDIUM, "many", np.where(images < LEAST_MEDIUM, "few", "medium"))


def age_name(bucket: tuple[int, int | None]) -> str:
    """Return "1-2" or "10+"."""
    youngest, oldest = bucket
    return f"{youngest}+" if oldest is None else f"{youngest}-{oldest}"


def accuracy_by_group(record: StreamRecord) -> dict[str, list[float | None]]:
    """Return per group the mean accuracy of its seen classes after each experience.

    Returns:
        T values per group in percent; None where no class of the group has been seen.
    """
    return _by_group(class_accuracy(record), record)


def forgetting_by_group(record: StreamRecord) -> dict[str, list[float | None]]:
    """Return per group the mean forgetting of its old classes after each experience.

    Returns:
        T values per group in percentage points, may be negative; None where the group has no old class.
    """
    return _by_group(class_forgetting(record), record)


def _by_group(values_TC: Floats, record: StreamRecord) -> dict[str, list[float | None]]:
    groups = class_groups(record.images_of_class)
    return {name: [mean_known(row) for row in values_TC[:, groups == name]] for name in GROUPS}


def forgetting_by_group_and_age(
    record: StreamRecord, *, all_steps: bool = False
) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Return the mean forgetting of classes by group and age.

    Args:
        record: The counts.
        all_steps: Pool every (class, experience) pair of the stream; by default only the last experience
        counts.

    Returns:
        Per group and age ("1-2", ...) ``{"forgetting": points or None, "num_classes": distinct classes}``.
    """
    forgotten = class_forgetting(record)
    if not all_steps:
        forgotten = forgotten[-1:]
    steps = np.arange(record.num_experiences)[-len(forgotten) :]
    age = steps[:, None] - record.experience_of_class[None, :]
    groups = class_groups(record.images_of_class)
    return {
        group: {
            age_name(bucket): _cell(forgotten, (groups == group) & _in_bucket(age, bucket))
            for bucket in AGE_BUCKETS
        }
        for group in GROUPS
    }


def _in_bucket(age: npt.NDArray[np.int64], bucket: tuple[int, int | None]) -> npt.NDArray[np.bool_]:
    youngest, oldest = bucket
    return (age >= youngest) & (age <= (np.inf if oldest is None else oldest))


def _cell(forgotten: Floats, where: npt.NDArray[np.bool_]) -> dict[str, float | int | None]:
    where = where & ~np.isnan(forgotten)
    return {"forgetting": mean_known(forgotten[where]), "num_classes": int(where.any(axis=0).sum())}
