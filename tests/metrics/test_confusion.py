from __future__ import annotations

import pytest

from incrlt.metrics import old_new_confusion
from incrlt.metrics.confusion import group_confusion, negatives


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


def test_groups_are_taken_for_groups(worked_example):
    # After 2: class 0 is many, 1 and 2 are medium, 3 is few. Class 1 (10 images): right 2, to many 2, to the other
    # medium class 1, to few 5; class 2: right 4, to many 1, to the other medium class 0, to few 5.
    assert group_confusion(worked_example) == {
        "many": {"right": 80, "many": 0, "medium": 10, "few": 10},
        "medium": {"right": 30, "many": 15, "medium": 5, "few": 50},
        "few": {"right": 60, "many": 20, "medium": 20, "few": 0},
    }


def test_group_without_classes_is_undefined(uneven_example):
    assert set(group_confusion(uneven_example)["medium"].values()) == {None}


def test_hardest_negatives_of_the_worked_example(worked_example):
    found = negatives(worked_example, 1)
    assert [(first["name"], first["rate"]) for (first,) in found] == [
        ("clock", 10), ("dolphin", 50), ("dolphin", 50), ("apple", 20),
    ]  # fmt: skip
    assert found[0] == [{"class": 2, "name": "clock", "group": "medium", "experience": 1, "rate": 10}]


def test_class_without_mistakes_has_no_hardest_negative(uneven_example):
    assert [[one["class"] for one in own] for own in negatives(uneven_example, 1)] == [[], [0]]


def test_all_negatives_and_the_right_answers_are_all_images(worked_example):
    counts = worked_example.confusions[-1]
    for row, own in zip(counts, negatives(worked_example, 99), strict=True):
        assert [one["rate"] for one in own] == sorted((one["rate"] for one in own), reverse=True)
        right = 100 * row[counts.tolist().index(row.tolist())] / row.sum()
        assert sum(one["rate"] for one in own) + right == pytest.approx(100)
