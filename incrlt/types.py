"""Small values that travel between the rooms of the package, and the legend of axis letters.

B batch, C seen classes, D features, K experts. A plain network is K = 1: no output changes its type with a flag.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

LossTerms = dict[str, Tensor]
"""Named scalar loss terms; the template sums them, logs each, and names the one that is not finite."""

Schedule = Callable[[Optimizer, int], LRScheduler]
"""``schedule(optimizer, epochs)`` builds a fresh learning-rate scheduler, stepped once per epoch."""


@dataclass(frozen=True)
class ModelOutput:
    """What a network says about a batch, in arrival order of the classes.

    Attributes:
        logits: Combined logits ``[B, C]``.
        expert_logits: Logits of each expert ``[K, B, C]``.
        features: Input of each expert's head ``[K, B, D]``; None for a network that does not tell.
        cosines: Cosines before the scale ``[K, B, C]``; None for a head that is not a cosine head.
    """

    logits: Tensor
    expert_logits: Tensor
    features: Tensor | None = None
    cosines: Tensor | None = None

    @property
    def known_features(self) -> Tensor:
        """Features ``[K, B, D]`` of a network that tells them."""
        assert self.features is not None, "only expert networks tell features"
        return self.features

    @property
    def known_cosines(self) -> Tensor:
        """Cosines ``[K, B, C]`` of a network with cosine heads."""
        assert self.cosines is not None, "only cosine heads have cosines"
        return self.cosines


@dataclass(frozen=True)
class LossContext:
    """What an expert method may know beside the batch.

    Attributes:
        class_counts: Images per class in the stream that is being sampled, exemplars included ``[C]``.
        num_old: Number of classes that arrived before this experience.
        epoch: Epoch within the stage, from 0.
        epochs: Epochs of the stage.
    """

    class_counts: Tensor
    num_old: int
    epoch: int
    epochs: int


@dataclass(frozen=True)
class Stage:
    """A part of an experience's training, as data.

    Attributes:
        name: Shown in logs.
        epochs: Number of epochs; 0 skips the stage.
        lr: Learning rate of the stage's own optimizer; None trains with the strategy's optimizer.
        parameters: Param groups of the stage's own optimizer, from the model; only these train.
        schedule: Builds the stage's scheduler.
        sampler: ``shuffle`` draws images uniformly, ``class_aware`` draws classes uniformly.
        data: ``stream`` is the experience with its exemplars; ``exemplars`` is the memory alone, new classes included.
        frozen_backbone: Stem and branches stay in evaluation mode and get no gradient.
        freeze_old: Head rows of old classes stay as they are.
        loss: ``full`` is the strategy's loss, ``classification`` plain cross entropy.
        rebalanced: Multiply the logits by the learnable class scales.
    """

    name: str
    epochs: int
    lr: float | None = None
    parameters: Callable[[nn.Module], list[dict[str, object]]] | None = None
    schedule: Schedule | None = None
    sampler: Literal["shuffle", "class_aware"] = "shuffle"
    data: Literal["stream", "exemplars"] = "stream"
    frozen_backbone: bool = False
    freeze_old: bool = True
    loss: Literal["full", "classification"] = "full"
    rebalanced: bool = False


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Count images per class.

    Args:
        labels: Class positions ``[N]``.
        num_classes: Length of the result.

    Returns:
        int64 counts ``[num_classes]``.
    """
    return torch.bincount(labels.long(), minlength=num_classes)
