"""Herding of 100 classes x 500 images, 64 features, 20 kept."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest
import torch

from incrlt.plugins.herding import herding
from perf.alternate import alternate, spread

FLAVORS = ("lucir", "long-tailed-cil")
GOAL_SECONDS = 0.5


def features(classes: int = 100, images: int = 500, width: int = 64) -> list[torch.Tensor]:
    """Return clustered features, as a trained network gives them: ``[images, width]`` per class."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, 1, width, generator=draw)
    return list(centres + torch.randn(classes, images, width, generator=draw))


def measure(rounds: int = 15, threads: int = 1) -> dict[str, Any]:
    """Return the spread of wall seconds by flavor."""
    torch.set_num_threads(threads)
    data = features()
    turns = {flavor: (lambda flavor=flavor: herding(data, 20, flavor)) for flavor in FLAVORS}
    return {flavor: spread(values) for flavor, values in alternate(turns, rounds).items()}


@pytest.mark.parametrize("flavor", FLAVORS)
def test_herding(benchmark, flavor):
    torch.set_num_threads(1)  # as in measure(); the goal is for one core
    data = features()
    seconds = []

    def once() -> list[torch.Tensor]:
        begun = time.perf_counter()
        orders = herding(data, 20, flavor)
        seconds.append(time.perf_counter() - begun)
        return orders

    orders = benchmark.pedantic(once, rounds=10, warmup_rounds=1)
    assert [len(order) for order in orders] == [20] * 100
    assert statistics.median(seconds) < GOAL_SECONDS
