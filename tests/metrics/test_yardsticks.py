"""The grid of weights, the choice in hindsight, and the columns of ``routing.csv``, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from incrlt.metrics.routing import routing_rows
from incrlt.metrics.yardsticks import (
    YARDSTICKS,
    YardstickCounts,
    best_column,
    in_words,
    weight_grid,
    yardstick_columns,
)

IMAGES = [500, 50, 5, 5]  # many, medium, few, few
TESTED = [10, 4, 2, 0]
RIGHT = np.array(  # routed, all, uniform, probabilities, best weights, stop, oracle
    [[5, 6, 6, 7, 7, 8, 9], [2, 1, 1, 1, 2, 3, 4], [0, 1, 1, 0, 1, 2, 2], [0, 0, 0, 0, 0, 0, 0]]
)
FOUND = YardstickCounts(RIGHT, (0.5, 0.3, 0.2))


@pytest.mark.parametrize(
    ("experts", "step", "vectors"), [(2, 0.1, 11), (3, 0.1, 66), (4, 1 / 6, 84), (8, 1 / 2, 36)]
)
def test_the_grid_is_every_vector_of_its_steps_beside_the_even_one(experts, step, vectors):
    grid = weight_grid(experts)
    assert grid[0] == (1 / experts,) * experts
    on_grid = {
        tuple(round(weight / step) for weight in weights) for weights in (grid if experts == 2 else grid[1:])
    }
    assert len(on_grid) == vectors and {sum(parts) for parts in on_grid} == {round(1 / step)}
    assert len(set(grid)) == len(grid) == vectors + (experts != 2)  # of two, (0.5, 0.5) is on the grid
    for weights in grid:
        assert min(weights) >= 0 and sum(weights) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("experts", [1, 2, 3, 5, 7, 13, 20])
def test_every_expert_alone_is_tried_and_even_weights_come_first(experts):
    grid = weight_grid(experts)
    assert {tuple(row) for row in np.eye(experts).tolist()} <= set(grid)
    assert len(grid) <= 101
    spread = [sum(weight**2 for weight in weights) for weights in grid]
    assert np.diff(spread).min(initial=0) > -1e-12


def test_classes_count_the_same_when_weights_are_chosen():
    right = [
        [90, 60, 60],
        [0, 1, 1],
        [0, 0, 0],
    ]  # 90 of 101 images against 61, but 45 % against 80 % over classes
    assert best_column(right, [100, 1, 0]) == 1, (
        "of equal ones the first, and a class without images has no say"
    )
    assert best_column([[90, 60, 61], [0, 1, 1], [0, 0, 0]], [100, 1, 0]) == 2


def test_columns_by_hand():
    columns = yardstick_columns(FOUND, TESTED, IMAGES, 3)
    assert columns["routed/over_classes"] == pytest.approx((50 + 50 + 0) / 3)
    assert columns["all_experts/over_classes"] == pytest.approx((60 + 25 + 50) / 3)
    assert columns["probability_mean/over_classes"] == pytest.approx((70 + 25 + 0) / 3)
    assert columns["best_weights_ceiling/over_classes"] == pytest.approx((70 + 50 + 50) / 3)
    groups = [columns[f"stop_ceiling/{group}_over_classes"] for group in ("many", "medium", "few")]
    assert groups == pytest.approx([80, 75, 100]), "the second few class has no test image"
    assert columns["oracle_ceiling/many_over_classes"] == pytest.approx(90)
    assert [columns[f"best_weights_ceiling/weight_of_expert_{k}"] for k in range(3)] == [0.5, 0.3, 0.2]
    assert len(columns) == 4 * len(YARDSTICKS) + 3
    assert yardstick_columns(FOUND, TESTED, [500] * 4, 3)["routed/few_over_classes"] is None


def test_what_an_older_version_recorded_has_the_columns_and_no_numbers():
    used = [[[3, 7], [4, 0]], [[3, 7], [4, 0]]]
    found = YardstickCounts(RIGHT[:2], (0.5, 0.5))
    older, newer = routing_rows(used, [0, 0], IMAGES, [[1, 2]] * 2, [None, found])
    assert list(older) == list(newer)
    new = yardstick_columns(found, TESTED[:2], IMAGES, 2)
    assert {older[name] for name in new} == {None}
    assert {name: newer[name] for name in new} == new
    assert older["mean_experts"] == newer["mean_experts"] == 1.5
    assert routing_rows(used, [0, 0], IMAGES, [[1, 2]] * 2) == [older, {**older, "experience": 1}]


def test_the_line_names_ceilings_as_such_and_the_mean_where_it_is_another():
    assert in_words(FOUND, TESTED) == (
        "over classes 33.3 % right (all experts 45.0, mean of probabilities 31.7; ceilings, in hindsight: best fixed "
        "weights 56.7, best stop 85.0, any expert 96.7)"
    )
    own = RIGHT.copy()
    own[0, 1] = 9  # a combination of the method's own
    said = in_words(YardstickCounts(own, (0.5, 0.5)), TESTED)
    assert "(all experts 55.0, mean of logits 45.0, mean of probabilities 31.7;" in said
