from __future__ import annotations

import numpy as np
import pytest

from incrlt.metrics import (
    StreamRecord,
    accuracy_by_group,
    class_groups,
    forgetting_by_group,
    forgetting_by_group_and_age,
)


def test_group_bounds():
    assert class_groups([101, 100, 20, 19, 500, 1]).tolist() == [
        "many",
        "medium",
        "medium",
        "few",
        "many",
        "few",
    ]


def test_groups_agree_with_the_long_tail_module():
    longtail = pytest.importorskip("incrlt.benchmarks.longtail")
    images = np.arange(1, 501)
    assert class_groups(images).tolist() == list(longtail.groups(images))


def test_cifar100_lt_has_35_35_30_classes():
    images = [int(500 * 0.01 ** (index / 99)) for index in range(100)]
    names, counts = np.unique(class_groups(images), return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {"few": 30, "many": 35, "medium": 35}


def test_accuracy_by_group_of_the_worked_example(worked_example):
    # images 500, 100, 20, 5: class 0 is many, 1 and 2 medium, 3 few (arrives last).
    assert accuracy_by_group(worked_example) == {
        "many": pytest.approx([90, 70, 80]),
        "medium": pytest.approx([50, (50 + 80) / 2, (20 + 40) / 2]),
        "few": [None, None, pytest.approx(60)],
    }


def test_forgetting_by_group_of_the_worked_example(worked_example):
    assert forgetting_by_group(worked_example) == {
        "many": [None, pytest.approx(20), pytest.approx(10)],
        "medium": [None, pytest.approx(0), pytest.approx((30 + 40) / 2)],
        "few": [None, None, None],
    }


def test_forgetting_by_group_and_age_after_the_last_experience(worked_example):
    cells = forgetting_by_group_and_age(worked_example)
    assert cells["many"]["1-2"] == {"forgetting": pytest.approx(10), "num_classes": 1}  # age 2
    assert cells["medium"]["1-2"] == {"forgetting": pytest.approx(35), "num_classes": 2}  # ages 2 and 1
    assert cells["few"]["1-2"] == {"forgetting": None, "num_classes": 0}  # age 0: not old yet
    assert cells["many"]["3-5"] == {"forgetting": None, "num_classes": 0}


def test_forgetting_by_group_and_age_pooled_over_all_steps(worked_example):
    cells = forgetting_by_group_and_age(worked_example, all_steps=True)
    assert cells["many"]["1-2"] == {"forgetting": pytest.approx((20 + 10) / 2), "num_classes": 1}
    assert cells["medium"]["1-2"] == {"forgetting": pytest.approx((0 + 30 + 40) / 3), "num_classes": 2}


def test_ages_fall_into_their_buckets():
    """Twelve experiences of one class each; class e is right only on arrival, so each forgot 100."""
    confusions = []
    for t in range(12):
        counts = np.zeros((t + 1, t + 1), int)
        counts[:, t] = 1
        confusions.append(counts)
    cells = forgetting_by_group_and_age(StreamRecord(tuple(confusions), np.arange(12), np.full(12, 5)))
    sizes = {age: cell["num_classes"] for age, cell in cells["few"].items()}
    assert sizes == {"1-2": 2, "3-5": 3, "6-9": 4, "10+": 2}
    assert all(cell["forgetting"] == pytest.approx(100) for cell in cells["few"].values())


def test_empty_groups_are_none(uneven_example):
    record = uneven_example
    assert accuracy_by_group(record)["medium"] == [None]
    assert forgetting_by_group(record) == {"many": [None], "medium": [None], "few": [None]}
