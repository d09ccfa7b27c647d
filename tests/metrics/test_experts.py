from __future__ import annotations

import numpy as np
import pytest

from incrlt.metrics.experts import disagreement, expert_accuracy

IMAGES, TESTED = [500, 5, 50], [10, 20]  # a class of many images, one of few; the third is yet to come


def test_experts_alone_and_together():
    right = np.array([[[8, 6], [8, 9]], [[5, 10], [5, 12]]])
    alone, together = expert_accuracy(right, TESTED, IMAGES)
    assert alone == [
        {"over_classes": 52.5, "many": 80, "medium": None, "few": 25},
        {"over_classes": 55, "many": 60, "medium": None, "few": 50},
    ]
    assert together == [
        {"over_classes": 52.5, "many": 80, "medium": None, "few": 25},
        {"over_classes": 75, "many": 90, "medium": None, "few": 60},
    ]


def test_disagreement_is_the_mean_over_pairs():
    many = [[0, 1, 2], [1, 0, 3], [2, 3, 0]]  # pairs differ on 1, 2 and 3 of 10 images
    few = [[0, 20, 20], [20, 0, 20], [20, 20, 0]]
    found = disagreement(np.array([many, few]), TESTED, IMAGES)
    assert found == {
        "over_classes": pytest.approx(60), "many": pytest.approx(20), "medium": None, "few": pytest.approx(100),
    }  # fmt: skip
