"""Counts, while an evaluation runs, what a router is held against: see :mod:`incrlt.metrics.yardsticks`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from incrlt.metrics.yardsticks import YardstickCounts, best_column, weight_grid
from incrlt.types import ModelOutput


class YardstickCounting:
    """Whole-number counts of an evaluation under way, on the device, without a host sync before its end.

    Cost: beside the answers that are there anyway a batch takes, per weight vector, at most K products and one arg max
    over its logits ``[B, C]``, one vector after the other, so that memory is that of a batch of one expert's logits.
    With K = 3 (67 vectors) that is 200 C multiply-adds an image: 20 thousand of 100 classes, where a ResNet-32 has
    70 million, and 1.6 million of iNaturalist's 8,142, where a ResNet-50 has 4,000 million. One processor thread takes
    about 3 ms for a batch of 128 at C = 100, 15 ms at 1,000 and 190 ms at 8,142: no classes or images are left out to
    save it. Counts are int64 ``[C, 5 + vectors]`` during the evaluation, ``[C, 7]`` after it.

    Args:
        num_classes: Classes seen C.
        num_experts: K.
    """

    def __init__(self, num_classes: int, num_experts: int) -> None:
        self._grid = weight_grid(num_experts)
        self._num_classes = num_classes
        self._right: Tensor | None = None

    def add(self, output: ModelOutput, stops: Tensor, used: Tensor, true: Tensor) -> None:
        """Count a batch.

        Args:
            output: Of all experts, as evaluation reads it.
            stops: Class that the first 1, 2, ... K experts answer ``[K, B]``.
            used: Experts after which the router stops ``[B]``, 1 to K.
            true: True class in arrival order ``[B]``; images of classes below 0 are left out.
        """
        experts = output.expert_logits
        right = [
            stops.gather(0, used[None] - 1)[0] == true,
            output.logits.argmax(1) == true,
            _summed_probabilities(experts).argmax(1) == true,
            (stops == true).any(0),
            (experts.argmax(-1) == true).any(0),
            *(weighted(experts, weights).argmax(1) == true for weights in self._grid),
        ]
        if self._right is None:  # the last row takes images of classes yet to come
            shape = (self._num_classes + 1, len(right))
            self._right = torch.zeros(shape, dtype=torch.long, device=true.device)
        row = torch.where(true >= 0, true, self._num_classes)
        self._right.index_add_(0, row, torch.stack(right, dim=1).long())

    def found(self, tested: Tensor) -> YardstickCounts:
        """Return the counts, and choose the best weights: here the labels of the test images are looked at.

        Args:
            tested: Test images of each class ``[C]``, of at least one class.
        """
        assert self._right is not None
        right = self._right[:-1].cpu().numpy()
        routed, together, probabilities, stop, oracle = right[:, :5].T
        fixed = right[:, 5:]
        best = best_column(fixed, tested.numpy())
        columns = [routed, together, fixed[:, 0], probabilities, fixed[:, best], stop, oracle]
        return YardstickCounts(np.stack(columns, axis=1), self._grid[best])


def weighted(expert_logits: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weighted mean of the experts' logits ``[B, C]``.

    Args:
        expert_logits: ``[K, B, C]``.
        weights: K numbers that sum to one. An expert of weight 0 has no say, were its logits infinite. Equal weights
            are the mean as the network takes it, to the bit.
    """
    if len(set(weights)) == 1:
        return expert_logits.mean(0)
    first, *others = [(logits, w) for logits, w in zip(expert_logits, weights, strict=True) if w]
    total = first[0] * first[1]
    for logits, weight in others:
        total.add_(logits, alpha=weight)
    return total


def _summed_probabilities(expert_logits: Tensor) -> Tensor:
    """Return K times the mean of the experts' probabilities ``[B, C]``, one expert after the other."""
    total = expert_logits[0].softmax(-1)
    for logits in expert_logits[1:]:
        total += logits.softmax(-1)
    return total
