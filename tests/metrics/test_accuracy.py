from __future__ import annotations

import numpy as np
import pytest

from incrlt.metrics import (
    StreamRecord,
    accuracy_matrix,
    average_incremental_accuracy,
    class_accuracy,
    seen_accuracy,
)

NONE = np.nan


def test_class_accuracy_of_the_worked_example(worked_example):
    expected = [[90, 50, NONE, NONE], [70, 50, 80, NONE], [80, 20, 40, 60]]
    np.testing.assert_allclose(class_accuracy(worked_example), expected)


def test_accuracy_matrix_of_the_worked_example(worked_example):
    expected = [[70, NONE, NONE], [60, 80, NONE], [50, 40, 60]]
    np.testing.assert_allclose(accuracy_matrix(worked_example), expected)


@pytest.mark.parametrize(
    ("convention", "after_each", "average"),
    [
        ("over_tasks", [70, (60 + 80) / 2, (50 + 40 + 60) / 3], (70 + 70 + 50) / 3),
        ("over_classes", [70, (70 + 50 + 80) / 3, 50], (70 + 200 / 3 + 50) / 3),
        ("over_seen_images", [100 * 14 / 20, 100 * 20 / 30, 100 * 20 / 40], (70 + 200 / 3 + 50) / 3),
    ],
)
def test_conventions_of_the_worked_example(worked_example, convention, after_each, average):
    record = worked_example
    assert seen_accuracy(record, convention) == pytest.approx(after_each)
    assert average_incremental_accuracy(record, convention) == pytest.approx(average)


def test_conventions_part_on_uneven_test_sets(uneven_example):
    record = uneven_example
    assert seen_accuracy(record, "over_tasks") == pytest.approx([25.0])  # 10 of 40 images, one experience
    assert seen_accuracy(record, "over_classes") == pytest.approx([50.0])
    assert seen_accuracy(record, "over_seen_images") == pytest.approx([25.0])


def test_base_experience_counts_as_one_only_over_tasks():
    """50 base classes at 100 %, then 5 classes at 0 %: the conventions differ by 41 points."""
    counts = np.zeros((55, 55), int)
    counts[np.arange(50), np.arange(50)] = 10
    counts[50:, 0] = 10
    record = StreamRecord((counts[:50, :50], counts), np.repeat([0, 1], [50, 5]), np.full(55, 30))
    assert seen_accuracy(record, "over_tasks")[-1] == pytest.approx(50.0)
    assert seen_accuracy(record, "over_classes")[-1] == pytest.approx(100 * 50 / 55)


def test_no_test_images_is_none_never_nan():
    record = StreamRecord((np.zeros((2, 2), int),), [0, 0], [5, 5])
    for convention in ("over_tasks", "over_classes", "over_seen_images"):
        assert seen_accuracy(record, convention) == [None]
        assert average_incremental_accuracy(record, convention) is None


def test_class_without_test_images_is_left_out_of_the_mean():
    record = StreamRecord(([[4, 0], [0, 0]],), [0, 0], [5, 5])
    assert seen_accuracy(record, "over_classes") == [100.0]
