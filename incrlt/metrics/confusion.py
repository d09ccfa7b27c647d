"""Who is taken for whom: old and new classes, rare and frequent ones, and each class's hardest negative.

After experience t the classes that arrived in t are new, all earlier ones old. Six rates split the test
images of the old and of the new classes by what they were predicted as; each set of three sums to 100.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from incrlt.metrics.groups import GROUPS, class_groups
from incrlt.metrics.numbers import known, mean_known, percent
from incrlt.metrics.record import Counts, StreamRecord

FLOWS = ("old_right", "old_to_other_old", "old_to_new", "new_right", "new_to_other_new", "new_to_old")


def old_new_confusion(record: StreamRecord) -> dict[str, list[float | None]]:
    """Return, per flow of :data:`FLOWS`, its share of the old (or new) classes' test images.

    Returns:
        T values per flow in percent, counted over images; all None after the first experience, which has no
        old classes to confuse.
    """
    steps = [
        _rates(counts, record.seen_after(t - 1)) if t else dict.fromkeys(FLOWS)
        for t, counts in enumerate(record.confusions)
    ]
    return {flow: [step[flow] for step in steps] for flow in FLOWS}


def _rates(counts: Counts, num_old: int) -> dict[str, float | None]:
    old, new = slice(0, num_old), slice(num_old, None)
    rates: dict[str, float | None] = {}
    for name, true, other, other_name in (("old", old, new, "new"), ("new", new, old, "old")):
        right = counts[true, true].trace()
        parts = [right, counts[true, true].sum() - right, counts[true, other].sum()]
        keys = (f"{name}_right", f"{name}_to_other_{name}", f"{name}_to_{other_name}")
        whole = counts[true].sum()
        rates.update(zip(keys, map(known, percent(parts, [whole] * 3)), strict=True))
    return rates


def group_confusion(record: StreamRecord) -> dict[str, dict[str, float | None]]:
    """Return, per group, what its test images are taken for after the last experience.

    Returns:
        Per group ``{"right", "many", "medium", "few"}``: right, or taken for another class of that group, in
        percent, every class of the group counting the same; None for a group without classes. Each group's four
        shares sum to 100.
    """
    counts = record.confusions[-1]
    groups = class_groups(record.images_of_class[: len(counts)])
    right, images = np.diag(counts), counts.sum(axis=1)
    wrong = counts - np.diag(right)
    parts = {"right": right, **{name: wrong[:, groups == name].sum(axis=1) for name in GROUPS}}
    shares = {name: percent(part, images) for name, part in parts.items()}
    return {
        group: {name: mean_known(share[groups == group]) for name, share in shares.items()}
        for group in GROUPS
    }


def negatives(record: StreamRecord, most: int) -> list[list[dict[str, Any]]]:
    """Return, per seen class, the wrong classes its test images are taken for after the last experience.

    Args:
        record: The counts.
        most: Wrong classes of a class at most.

    Returns:
        Per class ``{"class", "name", "group", "experience", "rate"}`` of each, the most frequent first and of equal
        ones the first to arrive; the rate is in percent of the class's test images. Empty where no image was taken for
        another.
    """
    counts = record.confusions[-1]
    groups = class_groups(record.images_of_class)
    wrong = counts - np.diag(np.diag(counts))
    found = []
    for row, images in zip(wrong, counts.sum(axis=1), strict=True):
        order = np.argsort(-row, kind="stable")[:most]
        taken = [index for index in order.tolist() if row[index]]
        found.append(
            [
                {
                    "class": index,
                    "name": record.name_of(index),
                    "group": str(groups[index]),
                    "experience": int(record.experience_of_class[index]),
                    "rate": float(100 * row[index] / images),
                }
                for index in taken
            ]
        )
    return found
