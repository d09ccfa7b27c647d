"""Who is taken for whom: old and new classes, rare and frequent ones, and each class's hardest negative.

After experience t the classes that arrived in t are new, all earlier ones old. Six rates split the test
images of the old and of the new classes by what they were predicted as; each set of three sums to 100.
"""

from __future__ import annotations

import numpy as np

from incrlt.files import Plain
from incrlt.metrics.counts import Hits, summed
from incrlt.metrics.groups import GROUPS, class_groups
from incrlt.metrics.numbers import known, mean_known, percent
from incrlt.metrics.record import StreamRecord

FLOWS = ("old_right", "old_to_other_old", "old_to_new", "new_right", "new_to_other_new", "new_to_old")


def old_new_confusion(record: StreamRecord) -> dict[str, list[float | None]]:
    """Return, per flow of :data:`FLOWS`, its share of the old (or new) classes' test images.

    Returns:
        T values per flow in percent, counted over images; all None after the first experience, which has no
        old classes to confuse.
    """
    steps = [
        _rates(record.hits_after(t), record.seen_after(t - 1)) if t else dict.fromkeys(FLOWS)
        for t in range(record.num_experiences)
    ]
    return {flow: [step[flow] for step in steps] for flow in FLOWS}


def _rates(hits: Hits, num_old: int) -> dict[str, float | None]:
    old, taken_for_old, right = hits.true < num_old, hits.predicted < num_old, hits.true == hits.predicted
    rates: dict[str, float | None] = {}
    for name, true, same, other_name in (
        ("old", old, taken_for_old, "new"),
        ("new", ~old, ~taken_for_old, "old"),
    ):
        parts = [hits.images[true & which].sum() for which in (right, same & ~right, ~same)]
        keys = (f"{name}_right", f"{name}_to_other_{name}", f"{name}_to_{other_name}")
        whole = hits.images[true].sum()
        rates.update(zip(keys, map(known, percent(parts, [whole] * 3)), strict=True))
    return rates


def group_confusion(record: StreamRecord) -> dict[str, dict[str, float | None]]:
    """Return, per group, what its test images are taken for after the last experience.

    Returns:
        Per group ``{"right", "many", "medium", "few"}``: right, or taken for another class of that group, in
        percent, every class of the group counting the same; None for a group without classes. Each group's four
        shares sum to 100.
    """
    groups = class_groups(record.images_of_class[: record.num_seen])
    right, images, hits = record.right_after(-1), record.tested_after(-1), record.hits_after(-1)
    parts = {"right": right}
    for name in GROUPS:
        taken = (groups[hits.predicted] == name) & (hits.true != hits.predicted)
        parts[name] = summed(hits.true[taken], hits.images[taken], len(groups))
    shares = {name: percent(part, images) for name, part in parts.items()}
    return {
        group: {name: mean_known(share[groups == group]) for name, share in shares.items()}
        for group in GROUPS
    }


def negatives(record: StreamRecord, most: int) -> list[list[Plain]]:
    """Return, per seen class, the wrong classes its test images are taken for after the last experience.

    Args:
        record: The counts.
        most: Wrong classes of a class at most.

    Returns:
        Per class ``{"class", "name", "group", "experience", "rate"}`` of each, the most frequent first and of equal
        ones the first to arrive; the rate is in percent of the class's test images. Empty where no image was taken for
        another.
    """
    groups = class_groups(record.images_of_class)
    found = []
    for number, (row, images) in enumerate(zip(record.tables.rows(-1), record.tested_after(-1), strict=True)):
        wrong = np.flatnonzero(row)  # those alone are put in order
        wrong = wrong[wrong != number]
        taken = wrong[np.argsort(-row[wrong], kind="stable")][:most].tolist()
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
