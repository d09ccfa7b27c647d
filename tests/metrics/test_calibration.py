from __future__ import annotations

import numpy as np
import pytest

from incrlt.metrics.calibration import reliability, reliability_by_group

MANY = [[10, 0], [9, 0], [8_000_000, 0]]  # 80 % sure, 90 % right
FEW = [[0, 10], [0, 5], [0, 9_000_000]]  # 90 % sure, 50 % right


def test_error_and_direction_by_group():
    found = reliability_by_group(np.array([MANY, FEW]), [500, 5, 50])  # the third class is yet to come
    assert (found["many"].error, found["many"].overconfidence) == pytest.approx((10, -10))
    assert (found["few"].error, found["few"].overconfidence) == pytest.approx((40, 40))
    assert (found["medium"].error, found["medium"].overconfidence) == (None, None)
    assert (found["all"].error, found["all"].overconfidence) == pytest.approx((25, 15))


def test_bins_of_classes_are_pooled_before_they_are_compared():
    too_sure, too_modest = [[10], [3], [5_000_000]], [[10], [7], [5_000_000]]
    assert reliability([too_sure, too_modest]).error == pytest.approx(0)
    assert reliability([too_sure]).error == pytest.approx(20)


def test_empty_bins_are_undefined():
    found = reliability([MANY])
    assert found.accuracy[0] == 90
    assert np.isnan(found.accuracy[1]) and np.isnan(found.confidence[1])
