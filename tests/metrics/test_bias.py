from __future__ import annotations

import pytest

from incrlt.errors import UserError
from incrlt.metrics.bias import bias_and_variance

PREDICTED = [
    [0, 1, 1, 0],  # one row per training, one column per image
    [0, 1, 0, 0],
    [0, 0, 1, 2],
]
LABELS, IMAGES = [0, 0, 1, 1], [500, 5, 50]


def test_worked_example():
    # image 0: all right. 1: main answer 1 is wrong, one of three differs, two wrong. 2: main answer right, one
    # differs and is wrong. 3: main answer 0 is wrong, one differs, and all are wrong.
    found = bias_and_variance(PREDICTED, LABELS, IMAGES)
    third = pytest.approx(100 / 3)
    assert found["bias"] == {"over_classes": 50, "many": 50, "medium": None, "few": 50}
    assert found["variance"] == {
        "over_classes": pytest.approx(25), "many": pytest.approx(100 / 6), "medium": None, "few": third,
    }  # fmt: skip
    assert found["error"] == {
        "over_classes": pytest.approx(50), "many": third, "medium": None, "few": pytest.approx(200 / 3),
    }  # fmt: skip


def test_trainings_that_agree_have_bias_alone():
    found = bias_and_variance([[1, 1]] * 3, [0, 1], [500, 5])
    assert (found["bias"]["many"], found["bias"]["few"]) == (100, 0)
    assert found["variance"]["over_classes"] == 0
    assert found["error"] == found["bias"]


@pytest.mark.parametrize("predicted", [[[0, 1]], [[0, 1], [1, 1]], [[0], [1], [1]], [0, 1]])
def test_two_trainings_or_other_images_are_refused(predicted):
    """Of two that differ neither answer is the main one: the bias would be that of the rule for ties."""
    with pytest.raises(UserError, match="at least 3 trainings to the same images"):
        bias_and_variance(predicted, [0, 1], [500, 5])
