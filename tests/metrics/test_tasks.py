"""What became of each experience, against cases worked out by hand and against plain loops over the counts."""

from __future__ import annotations

import numpy as np
import pytest

from incrlt.metrics import StreamRecord, accuracy_matrix, class_accuracy, summarise
from incrlt.metrics.tasks import (
    expert_class_accuracy,
    fall,
    lost_by_group,
    most_forgotten,
    old_accuracy,
    task_rows,
)

ANT_BEE_CAT = (
    np.array([[8, 2], [4, 6]]),
    np.array([[5, 0, 5], [2, 6, 2], [3, 0, 27]]),
)


@pytest.fixture
def record():
    """The worked example of docs/metrics.md: ant and bee first, cat later."""
    return StreamRecord(ANT_BEE_CAT, np.array([0, 0, 1]), np.array([200, 50, 10]), ("ant", "bee", "cat"))


def test_rows_of_the_worked_example(record):
    """14 of 20 right, then 11: 70 to 55. Seven images go to cat, none before; two fewer are taken for bee by mistake,
    two fewer for ant: +35 - 10 - 10 = 15 points, the drop."""
    first, second = task_rows(record)
    assert (first["on_arrival"], first["best"], first["last"], first["drop"]) == (70, 70, 55, 15)
    assert first["relative"] == pytest.approx(100 * 15 / 70)
    assert (first["worst_step"], first["worst_fall"], first["steps"]) == (1, 15, [(1, 15)])
    assert first["to_experiences"] == [(1, 35)] and first["to_classes"] == [(2, 35)]
    assert first["images_by_group"] == {"many": 200, "medium": 50, "few": 0}
    assert first["classes_by_group"] == {"many": 1, "medium": 1, "few": 0}
    assert (second["on_arrival"], second["best"], second["last"]) == (90, 90, 90)
    assert second["drop"] is second["relative"] is second["worst_step"] is None
    assert second["to_experiences"] == second["to_classes"] == second["steps"] == []


def test_what_groups_lost_in_the_worked_example(record):
    """Ant, many: 80 to 50. Bee, medium: 60 and 60. No few class is old."""
    lost = lost_by_group(class_accuracy(record), record.images_of_class)
    assert lost["many"] == {"best": 80, "forgetting": 30, "relative": 37.5, "num_classes": 1}
    assert lost["medium"] == {"best": 60, "forgetting": 0, "relative": 0, "num_classes": 1}
    assert lost["few"] == {"best": None, "forgetting": None, "relative": None, "num_classes": 0}
    assert lost["over_classes"] == {
        "best": 70, "forgetting": 15, "relative": pytest.approx(100 * 15 / 70), "num_classes": 2,
    }  # fmt: skip
    assert old_accuracy(record) == 55


@pytest.mark.parametrize(
    ("curve", "best", "at", "drop", "worst", "steps"),
    [
        ([60, 50, 52, 30], 60, 4, 30, 7, [(7, 22)]),
        ([60, 50, 40, 30], 60, 4, 30, 5, [(5, 10), (6, 10)]),
        ([40, 60, 60, 50], 60, 6, 10, 7, [(7, 10)]),  # the latest that had the best
        ([10, 5, 40, 38], 40, 6, 2, 5, [(7, 2)]),  # the worst step may lie before the best
        ([10, 20, 30, 40], 30, 6, -10, None, []),
        ([10, 10, 10, 10], 10, 6, 0, None, []),
        ([0, 0, 0, 0], 0, 6, 0, None, []),
    ],
)
def test_falls(curve, best, at, drop, worst, steps):
    found = fall(np.array(curve, dtype=float), 4)
    assert (found["best"], found["best_at"], found["drop"]) == (best, at, drop)
    assert (found["worst_step"], found["steps"]) == (worst, steps)
    assert found["relative"] == (None if best == 0 else pytest.approx(100 * drop / best))


def test_nothing_tested_is_undefined():
    found = fall(np.array([np.nan, np.nan]), 0)
    assert all(found[key] is None for key in ("on_arrival", "best", "last", "drop", "relative", "worst_step"))


def random_record(seed: int, sizes=(4, 3, 3, 2)) -> StreamRecord:
    generator = np.random.default_rng(seed)
    seen = np.cumsum(sizes)
    counts = tuple(generator.integers(0, 9, (n, n)) + 9 * np.eye(n, dtype=int) for n in seen)
    images = generator.choice([300, 60, 5], seen[-1])
    return StreamRecord(counts, np.repeat(np.arange(len(sizes)), sizes), images)


@pytest.mark.parametrize("seed", range(20))
def test_rows_fit_the_other_metrics(seed):
    record = random_record(seed)
    rows, matrix, numbers = task_rows(record), accuracy_matrix(record), summarise(record)["numbers"]
    drops = [row["drop"] for row in rows[:-1]]
    assert np.mean(drops) == pytest.approx(numbers["forgetting/chaudhry_over_tasks"])
    assert max(drops) == pytest.approx((most_forgotten(rows) or {"drop": max(drops)})["drop"])
    for j, row in enumerate(rows):
        assert row["curve"] == pytest.approx(matrix[j:, j])
    lost = lost_by_group(class_accuracy(record), record.images_of_class)
    for group in ("many", "medium", "few"):
        assert lost[group]["forgetting"] == pytest.approx(numbers[f"forgetting/{group}_over_classes"])


def test_an_experts_accuracy_is_its_share_of_right_answers(record):
    right = {0: np.array([[[8, 4], [8, 8]], [[6, 3], [6, 6]]]), 1: np.array([[[5, 1], [5, 5]]] * 3)}
    found = expert_class_accuracy(right, record, 1)
    np.testing.assert_allclose(found, [[40, 30, np.nan], [10, 10, 100 / 30]])
    late = expert_class_accuracy({1: right[1]}, record, 0)  # evaluations may begin late
    assert np.isnan(late[0]).all()
    assert lost_by_group(late, record.images_of_class)["over_classes"]["best"] is None
