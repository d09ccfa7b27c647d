"""Experts used by class, group and age, and the curve of accuracy over computation, against loops and by hand."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from incrlt.errors import UserError
from incrlt.metrics.routing import (
    RoutingTable,
    computation,
    count_experts_used,
    experts_by_age,
    experts_by_group,
    mean_experts,
    routing_rows,
    sweep,
    write_routing,
)

USED = [[8, 2, 0], [5, 0, 5], [0, 0, 0], [0, 0, 10]]  # means 1.2, 2.0, none, 3.0
IMAGES = [500, 100, 20, 5]  # many, medium, medium, few
ARRIVED = [0, 0, 1, 3]
MACS = [10e6, 20e6, 40e6]


def test_counts_by_loop():
    rng = np.random.default_rng(0)
    labels, used = rng.integers(0, 5, 200), rng.integers(1, 4, 200)
    expected = np.zeros((7, 3), dtype=int)
    for label, number in zip(labels, used, strict=True):
        expected[label, number - 1] += 1
    counts = count_experts_used(labels, used, 7, 3)
    assert counts.tolist() == expected.tolist()
    halves = count_experts_used(labels[:90], used[:90], 7, 3) + count_experts_used(
        labels[90:], used[90:], 7, 3
    )
    assert halves.tolist() == counts.tolist()
    assert count_experts_used([], [], 2, 3).tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize(("labels", "used"), [([4], [1]), ([-1], [1]), ([0], [0]), ([0], [4])])
def test_counts_refuse_what_cannot_be(labels, used):
    with pytest.raises(UserError, match="must lie between"):
        count_experts_used(labels, used, 4, 3)


def test_means_by_class_group_and_age():
    np.testing.assert_allclose(mean_experts(USED), [1.2, 2.0, np.nan, 3.0])
    assert experts_by_group(USED, IMAGES) == pytest.approx({"many": 1.2, "medium": 2.0, "few": 3.0})
    ages = experts_by_age(USED, ARRIVED)
    assert ages == {"new": 3.0, "1-2": None, "3-5": pytest.approx(1.6), "6-9": None, "10+": None}


def test_bounds_of_ages_are_inclusive():
    used = np.eye(12, dtype=int)[::-1]  # class c, in experience c, uses 12 - c experts; ages 11 .. 0
    ages = experts_by_age(used, range(12))
    assert ages == {"new": 1, "1-2": 2.5, "3-5": 5, "6-9": 8.5, "10+": 11.5}


def test_a_class_counts_the_same_however_many_test_images_it_has():
    used = [[90, 0, 0], [0, 0, 10]]
    assert experts_by_group(used, [200, 200])["many"] == 2.0
    assert experts_by_group(used, [200, 200])["few"] is None


def test_computation_by_hand():
    cost = computation(USED, MACS)  # 13, 2 and 15 of 30 images
    assert cost["mean_experts"] == pytest.approx((13 + 4 + 45) / 30)
    assert cost["mean_mmacs"] == pytest.approx((13 * 10 + 2 * 20 + 15 * 40) / 30)
    assert cost["macs_saved"] == pytest.approx(100 * (1 - cost["mean_mmacs"] / 40))
    shares = [cost[f"stopped_after_{k}"] for k in (1, 2, 3)]
    assert shares == pytest.approx([100 * 13 / 30, 100 * 2 / 30, 50])


def test_the_papers_own_example():
    """RIDE-3 on CIFAR-100: exits 40.99 / 9.47 / 49.54 %, 24.04 M shared and 25.44 M per expert."""
    macs = [24.04e6 + k * 25.44e6 for k in (1, 2, 3)]
    cost = computation([[4099, 947, 4954]], macs)
    assert cost["mean_mmacs"] == pytest.approx(77.1, abs=0.1)
    assert cost["macs_saved"] == pytest.approx(100 * (1 - 77.1 / 100.4), abs=0.15)


def test_nothing_tested_is_none_not_nan():
    assert set(computation([[0, 0, 0]], MACS).values()) == {None}
    assert set(experts_by_group([[0, 0, 0]], [7]).values()) == {None}


def test_one_cost_per_expert():
    with pytest.raises(UserError, match="one cost"):
        computation(USED, MACS[:2])


def test_rows_per_experience():
    first, last = routing_rows([USED[:2], USED], ARRIVED, IMAGES, [MACS, MACS])
    assert first["experience"] == 0
    assert first["experts/age_new_over_classes"] == pytest.approx(1.6)
    assert first["experts/few_over_classes"] is None
    assert first["mean_experts"] == pytest.approx((13 + 4 + 15) / 20)
    assert last["experts/few_over_classes"] == 3.0
    assert list(first) == list(last)


# ---------------------------------------------------------------------- the curve


def _table(images=60, experts=4, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(experts - 1, images)).round(2)
    return RoutingTable(scores, rng.integers(0, classes, (experts, images)), rng.integers(0, classes, images))


def _loops(table, threshold):
    used = []
    for n in range(len(table.labels)):
        number = 1
        while number <= len(table.scores) and table.scores[number - 1, n] > threshold:
            number += 1
        used.append(number)
    return used


@pytest.mark.parametrize("threshold", [-9.0, -0.5, 0.0, 0.4, 9.0])
def test_a_point_by_loops(threshold):
    table = _table()
    used = _loops(table, threshold)
    (row,) = sweep(table, [1e6, 2e6, 3e6, 5e6], [500, 50, 50, 5, 5], [threshold])
    right = [table.predictions[u - 1, n] == table.labels[n] for n, u in enumerate(used)]
    of_class = [np.mean([r for r, y in zip(right, table.labels, strict=True) if y == c]) for c in range(5)]
    assert row["threshold"] == threshold
    assert row["mean_experts"] == pytest.approx(np.mean(used))
    assert row["mean_mmacs"] == pytest.approx(np.mean([(1, 2, 3, 5)[u - 1] for u in used]))
    assert row["accuracy/over_images"] == pytest.approx(100 * np.mean(right))
    assert row["accuracy/over_classes"] == pytest.approx(100 * np.mean(of_class))
    assert row["accuracy/many_over_classes"] == pytest.approx(100 * of_class[0])
    assert row["accuracy/medium_over_classes"] == pytest.approx(100 * np.mean(of_class[1:3]))
    assert row["accuracy/few_over_classes"] == pytest.approx(100 * np.mean(of_class[3:]))


def test_the_curve_runs_from_one_expert_to_all_in_even_steps():
    table = _table(images=1000)
    rows = sweep(table, [1e6, 2e6, 3e6, 4e6], [10] * 5)
    mean = [row["mean_experts"] for row in rows]
    assert mean[0] == 1
    assert mean[-1] == 4
    assert mean == sorted(mean)
    assert len(rows) == 21
    assert np.diff(mean).max() < 0.25
    assert all(np.isfinite(row["threshold"]) for row in rows)
    first = 100 * np.mean(table.predictions[0] == table.labels)
    assert rows[0]["accuracy/over_images"] == pytest.approx(first)
    assert rows[0]["macs_saved"] == pytest.approx(75)
    assert rows[-1]["macs_saved"] == 0


def test_equal_scores_and_single_experts_give_short_curves():
    same = RoutingTable(np.zeros((1, 4)), np.zeros((2, 4)), np.zeros(4))
    assert [row["mean_experts"] for row in sweep(same, [1, 2], [1])] == [1, 2]
    single = RoutingTable(np.zeros((0, 3)), [[0, 1, 1]], [0, 1, 0])
    (row,) = sweep(single, [7e6], [1, 1])
    assert row["mean_experts"] == 1
    assert row["accuracy/over_images"] == pytest.approx(200 / 3)
    assert row["accuracy/over_classes"] == pytest.approx(75)


def test_a_class_without_test_images_counts_nowhere():
    table = RoutingTable(np.zeros((1, 2)), [[0, 0], [0, 0]], [0, 0])
    (row,) = sweep(table, [1, 2], [500, 400, 3], [0.0])
    assert row["accuracy/over_classes"] == 100
    assert row["accuracy/many_over_classes"] == 100
    assert row["accuracy/few_over_classes"] is None


@pytest.mark.parametrize(
    ("scores", "predictions", "labels"),
    [((2, 5), (2, 5), 5), ((1, 5), (2, 4), 5), ((1, 5), (2, 5), 4), ((1, 5), (5,), 5)],
)
def test_shapes_that_do_not_fit_are_refused(scores, predictions, labels):
    with pytest.raises(UserError, match="do not fit"):
        RoutingTable(np.zeros(scores), np.zeros(predictions), np.zeros(labels))


def test_files(tmp_path):
    rows = routing_rows([USED], ARRIVED, IMAGES, [MACS])
    write_routing(tmp_path, rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["routing.csv"]
    write_routing(tmp_path, rows, sweep(_table(), [1, 2, 3, 4], [1] * 5, [0.0, 1.0]))
    with open(tmp_path / "routing.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["mean_experts"]) == rows[0]["mean_experts"]
    assert row["experts/age_1-2_over_classes"] == "", "None is an empty cell"
    with open(tmp_path / "routing_sweep.csv", newline="") as file:
        assert [float(line["threshold"]) for line in csv.DictReader(file)] == [0.0, 1.0]
