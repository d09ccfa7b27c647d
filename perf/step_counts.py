"""Operators of a whole training step: launches on a GPU. The part of :mod:`perf.counts` that needs Avalanche."""

from __future__ import annotations

from typing import Any

import incrlt._compat  # noqa: F401  (before avalanche)

import torch
from avalanche.core import SupervisedPlugin

from perf.bench_steps import METHODS, strategy_of, stream
from perf.counts import Passes


class StepCounter(SupervisedPlugin):
    """Counts the operators of each training step."""

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Begin."""
        self.passes = Passes()
        self.passes.__enter__()

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """End."""
        self.passes.__exit__(None, None, None)


def of_steps(side: int = 8) -> dict[str, dict[str, float]]:
    """Count operators of one eager step of ResNet-32 with a teacher, optimizer included.

    Args:
        side: Of the images, in pixels; the count does not depend on it.
    """
    found = {}
    for name, experts in METHODS.items():
        benchmark, counter = stream(2, side), StepCounter()
        strategy = strategy_of(experts, "eager", "closed_form", torch.device("cpu"), 1, "resnet32", "fp32")
        strategy.plugins.append(counter)
        for experience in benchmark.train_stream:
            strategy.train(experience)
        found[name] = {"operators": counter.passes.operators}
    return found
