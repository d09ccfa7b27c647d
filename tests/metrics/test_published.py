from __future__ import annotations

import pytest

from incrlt.metrics import published, summarise


def summary(**numbers):
    return {"numbers": {name.replace("__", "/"): value for name, value in numbers.items()}}


LUCIR = summary(average_incremental_accuracy__over_tasks=33.59, last_accuracy__over_tasks=33.0)


def test_rows_are_the_published_table():
    table = {(row.protocol, row.method): row for row in published.rows() if row.status == "ok"}
    assert table["lfh-shuffled-10", "LUCIR"].figures == {"average": 34.59, "last": 32.5}
    assert table["lfh-ordered-5", "PODNet+GPA"].figures == {"average": 49.2, "last": 32.5}
    assert table["offline", "RIDE-3"].figures == {"overall": 48.6, "many": 67.0, "medium": 49.9, "few": 25.7}
    assert {row.status for row in published.rows()} == {"ok", "unverified", "rerun"}


def test_distance_is_ours_minus_published_under_the_task_mean():
    line = published.distance("lfh-shuffled-10", "lucir", LUCIR)
    assert "average_incremental_accuracy/over_tasks 33.59 - 34.59 = -1.00" in line
    assert "last_accuracy/over_tasks 33.00 - 32.50 = +0.50" in line


def test_verified_row_is_preferred_to_a_rerun():
    assert "39.00" in published.distance("lfh-shuffled-10", "LUCIR + LWS", LUCIR)


def test_status_and_note_stand_in_the_line():
    assert "unverified" in published.distance("lfh-ordered-5", "DGR", LUCIR)
    assert "500 epochs" in published.distance("lfh-shuffled-5", "lucir+gvalign", LUCIR)


@pytest.mark.parametrize(("protocol", "method"), [("lfh-shuffled-10", "finetune"), ("lfs-10", "LUCIR")])
def test_nothing_published_is_none(protocol, method):
    assert published.distance(protocol, method, LUCIR) is None


def test_undefined_number_says_none():
    line = published.distance("lfs-20", "DGR", summary(average_incremental_accuracy__over_tasks=None))
    assert "none - 34.35" in line


def test_works_on_a_real_summary(worked_example):
    assert "63.33 - 34.59 = +28.74" in published.distance(
        "lfh-shuffled-10", "LUCIR", summarise(worked_example)
    )


def test_setting_that_differs_is_named():
    same = {"dataset": "CIFAR-100", "imbalance_ratio": 100.0, "memory": {"per_class": 20}}
    assert published.differing_setting(same) == []
    assert published.differing_setting({}) == []
    other = {"dataset": "digits", "imbalance_ratio": 50, "memory": {"per_class": 5}}
    assert published.differing_setting(other) == [
        "dataset digits instead of cifar100",
        "imbalance_ratio 50 instead of 100",
        "exemplars per class 5 instead of 20",
    ]
