"""Who is taken for whom: old and new classes after each experience.

After experience t the classes that arrived in t are new, all earlier ones old. Six rates split the test
images of the old and of the new classes by what they were predicted as; each set of three sums to 100.
"""

from __future__ import annotations

from incrlt.metrics.numbers import known, percent
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
