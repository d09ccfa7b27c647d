"""Nearest mean of exemplars: one unit vector per class, and the scores they give."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from incrlt.plugins.features import features_of
from incrlt.roles import State
from incrlt.training.hooks import Hooks
from incrlt.types import ModelOutput


def normalised(features: Tensor) -> Tensor:
    """Normalise each expert's features ``[K, B, D]`` and put them side by side ``[B, K * D]``, at length 1.

    With several experts the inner product is the mean of the experts' cosine similarities.
    """
    return F.normalize(F.normalize(features, dim=-1).transpose(0, 1).flatten(1), dim=-1)


NO_EXEMPLARS = -2.0
"""Score of a class without exemplars: below every cosine, so that it never wins; finite, as tables want it."""


class ClassMeans:
    """Means of exemplars, in arrival order of the classes.

    Rebuffi et al. 2017 (iCaRL); Hou et al. 2019 average original and mirrored images on CIFAR, as here.

    Args:
        first: Whether ``nme`` is the read-out that metrics see first.
    """

    def __init__(self, first: bool) -> None:
        self.first = first
        self.means: Tensor | None = None

    def update(self, strategy: Hooks) -> None:
        """Compute the mean of each class's exemplars with the current model."""
        dataset = strategy.memory.dataset()
        features, labels = features_of(strategy, dataset, mirror=True)
        positions = strategy.model.positions(labels)
        means = features.new_zeros(strategy.model.num_classes, features.shape[1])
        means.index_add_(0, positions, features)
        self.means = F.normalize(means, dim=-1).to(strategy.device)

    def readouts(self, output: ModelOutput) -> dict[str, Tensor]:
        """Return scores ``[B, C]`` of the head and of the nearest mean; only the head's before the first update."""
        if self.means is None or self.means.shape[0] != output.logits.shape[1]:
            return {"cnn": output.logits}  # evaluation in the middle of an experience
        means = self.means.to(output.logits.device)
        cosines = normalised(output.known_features) @ means.T
        scores = {"cnn": output.logits, "nme": torch.where(means.any(dim=1), cosines, NO_EXEMPLARS)}
        return dict(reversed(scores.items())) if self.first else scores

    def state_dict(self) -> State:
        """Return the means."""
        return {"means": self.means}

    def load_state_dict(self, state: State) -> None:
        """Restore the means."""
        self.means = state["means"]
