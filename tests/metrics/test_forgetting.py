from __future__ import annotations

import numpy as np
import pytest

from incrlt.metrics import StreamRecord, backward_transfer, class_forgetting, forgetting

NONE = np.nan


def test_forgetting_of_the_worked_example(worked_example):
    # after 1: experience 0 fell 70 -> 60. after 2: max(70, 60) - 50 = 20 and 80 - 40 = 40.
    assert forgetting(worked_example) == [None, pytest.approx(10.0), pytest.approx(30.0)]


def test_backward_transfer_of_the_worked_example(worked_example):
    # after 1: 60 - 70. after 2: 50 - 70 and 40 - 80.
    assert backward_transfer(worked_example) == [None, pytest.approx(-10.0), pytest.approx(-30.0)]


def test_class_forgetting_of_the_worked_example(worked_example):
    # class 0 rose again from 70 to 80, yet its best is 90.
    expected = [[NONE] * 4, [20, 0, NONE, NONE], [10, 30, 40, NONE]]
    np.testing.assert_allclose(class_forgetting(worked_example), expected)


def test_forgetting_is_negative_where_old_classes_got_better():
    record = StreamRecord(([[5, 5], [5, 5]], [[9, 0, 1], [0, 9, 1], [0, 0, 10]]), [0, 0, 1], [50, 50, 50])
    assert forgetting(record) == [None, pytest.approx(-40.0)]
    assert backward_transfer(record) == [None, pytest.approx(40.0)]


def test_best_is_taken_over_all_earlier_experiences_not_the_first():
    """0 -> 100 -> 50: forgetting 50, while backward transfer (against arrival) is +50."""
    after_2 = [[2, 0, 0, 2], [0, 2, 0, 2], [0, 0, 4, 0], [0, 0, 0, 4]]
    record = StreamRecord(([[0, 4], [4, 0]], 4 * np.eye(3, dtype=int), after_2), [0, 0, 1, 2], [9] * 4)
    assert forgetting(record)[-1] == pytest.approx((50 + 0) / 2)
    assert backward_transfer(record)[-1] == pytest.approx((50 + 0) / 2)


def test_single_experience_has_no_forgetting_and_says_none(uneven_example):
    assert forgetting(uneven_example) == [None]
    assert backward_transfer(uneven_example) == [None]
