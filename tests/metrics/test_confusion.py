from __future__ import annotations

import pytest

from incrlt.metrics import old_new_confusion


def test_flows_of_the_worked_example(worked_example):
    flows = old_new_confusion(worked_example)
    # after 1, old classes 0-1 (20 images): right 7 + 5, other old 1 + 2, new 2 + 3; new: right 8, old 2.
    # after 2, old classes 0-2 (30 images): right 8 + 2 + 4, other old (0 1)(2 1)(1 0), new 1 + 5 + 5.
    assert flows == {
        "old_right": [None, pytest.approx(60), pytest.approx(100 * 14 / 30)],
        "old_to_other_old": [None, pytest.approx(15), pytest.approx(100 * 5 / 30)],
        "old_to_new": [None, pytest.approx(25), pytest.approx(100 * 11 / 30)],
        "new_right": [None, pytest.approx(80), pytest.approx(60)],
        "new_to_other_new": [None, pytest.approx(0), pytest.approx(0)],
        "new_to_old": [None, pytest.approx(20), pytest.approx(40)],
    }


def test_each_side_sums_to_100(random_stream):
    import numpy as np

    flows = old_new_confusion(random_stream(np.random.default_rng(0), [3, 2, 4]))
    for side in ("old", "new"):
        parts = [values for name, values in flows.items() if name.startswith(f"{side}_")]
        assert [sum(step) for step in list(zip(*parts, strict=True))[1:]] == pytest.approx([100, 100])
