"""Small values that travel between the rooms of the package, and the legend of axis letters.

B batch, C seen classes, D features, K experts. A plain network is K = 1: no output changes its type with a flag.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

T = TypeVar("T")

LossTerms = dict[str, Tensor]
"""Named scalar loss terms; the template sums them, logs each, and names the one that is not finite."""

Schedule = Callable[[Optimizer, int], LRScheduler]
"""``schedule(optimizer, epochs)`` builds a fresh learning-rate scheduler, stepped once per epoch."""


Combine = Callable[[Tensor], Tensor]
"""``combine(expert_logits)``: one answer ``[B, C]`` of the logits of the first k experts ``[k, B, C]``, for any k."""


@dataclass(frozen=True)
class ModelOutput:
    """What a network says about a batch, in arrival order of the classes.

    Attributes:
        logits: Combined logits ``[B, C]``.
        expert_logits: Logits of each expert ``[K, B, C]``.
        features: Input of each expert's head ``[K, B, D]``; None for a network that does not tell.
        cosines: Cosines before the scale ``[K, B, C]``; None for a head that is not a cosine head.
        scales: Scale of each head ``[K]``, without gradient; None where there are no cosines.
        combine: How ``logits`` were made of ``expert_logits``; None is the mean. Early exit and recorders ask it for
            the answer of the first experts alone.
        maps: What each expert's stages gave, before the ReLU ``[K, B, c, h, w]`` each, first stage first; None unless
            they were asked for. A stage that experts share stands there K times, without a copy.
    """

    logits: Tensor
    expert_logits: Tensor
    features: Tensor | None = None
    cosines: Tensor | None = None
    scales: Tensor | None = None
    combine: Combine | None = None
    maps: tuple[Tensor, ...] | None = None

    @property
    def known_maps(self) -> tuple[Tensor, ...]:
        """Maps ``[K, B, c, h, w]`` of each stage, where they were asked for."""
        assert self.maps is not None, "maps were not asked for: needs_maps is False"
        return self.maps

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

    @property
    def known_scales(self) -> Tensor:
        """Scales ``[K]`` of a network with cosine heads."""
        assert self.scales is not None, "only cosine heads have a scale"
        return self.scales


@dataclass(frozen=True)
class LossContext:
    """What an expert method may know beside the batch.

    Attributes:
        class_counts: Images per class as the sampler draws them ``[C]``: the stream with its exemplars; the
            exemplars alone in a stage on exemplars; equal numbers under a class-aware sampler. Fractions where a class
            is drawn less than once, or not a whole number of times, in an epoch on average.
        num_old: Number of classes that arrived before this experience.
        epoch: Epoch within the stage, from 0.
        epochs: Epochs of the stage.
        network: The expert network that trains; None where only losses of outputs are asked for.
        second_view: ``second_view(name)`` augments the images of this batch once more, by a named augmentation
            ``[B, c, H, W]``; None where the loader cannot.
        autocast: Context in which networks run.
        guide: ``guide()`` runs a larger network, trained before, on this batch; None where the method has none.
        kernels: Backend of the fused losses, see :data:`~incrlt.kernels.backends.BACKENDS`.
        constants: What :meth:`constant` has computed in this stage.
        expert_scale: What a term that is a mean over experts is multiplied with, to have the scale of the terms of the
            expert method: 1, or K where those are sums (:attr:`~incrlt.experts.base.ExpertMethod.averaged`).
    """

    class_counts: Tensor
    num_old: int
    epoch: int
    epochs: int
    network: Any = None
    second_view: Callable[[str], Tensor] | None = None
    autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    guide: Callable[[], ModelOutput] | None = None
    kernels: str = "auto"
    constants: dict[object, Any] = field(default_factory=dict)
    expert_scale: int = 1

    def constant(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return what depends on the counts alone: computed when first asked for, then kept for the stage.

        Args:
            key: Tells it from others, settings included.
            compute: Computes it, from ``class_counts``.
        """
        if key not in self.constants:
            self.constants[key] = compute()
        value: T = self.constants[key]
        return value


StageLoss = Callable[[LossContext, ModelOutput, Tensor], LossTerms]
"""``loss(context, output, labels)`` of a stage that does not train with the strategy's loss."""


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
        cache_features: Compute the frozen backbone's features once, of images without random augmentation, and train
            on those: each epoch costs next to nothing, and is another one than with augmentation. The stage's loss
            sees features in the place of images, so that it must not ask for second views or the teacher.
        freeze_old: Head rows of old classes stay as they are.
        loss: The stage's own loss; None trains with the strategy's.
        steady: ``loss`` is the same function in every epoch, so that a captured step serves all of them.
        rebalanced: Read the logits as in evaluation: second heads where there are any, times the class scales.
        batch_size: Images per step; None takes the strategy's.
        aside: Draw from random generators of its own, so that later experiences train as they would without it.
        prepare: ``prepare(network, num_old)`` is called before the first epoch, not when a run goes on inside.
    """

    name: str
    epochs: int
    lr: float | None = None
    parameters: Callable[[nn.Module], list[dict[str, object]]] | None = None
    schedule: Schedule | None = None
    sampler: Literal["shuffle", "class_aware"] = "shuffle"
    data: Literal["stream", "exemplars"] = "stream"
    frozen_backbone: bool = False
    cache_features: bool = False
    freeze_old: bool = True
    loss: StageLoss | None = None
    steady: bool = False
    rebalanced: bool = False
    batch_size: int | None = None
    aside: bool = False
    prepare: Callable[[Any, int], None] | None = None

    def __post_init__(self) -> None:
        assert not self.cache_features or (self.frozen_backbone and self.loss is not None), (
            f"stage {self.name}: only a stage with a frozen backbone and a loss of its own can store features"
        )


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Count images per class.

    Args:
        labels: Class positions ``[N]``.
        num_classes: Length of the result.

    Returns:
        int64 counts ``[num_classes]``.
    """
    return torch.bincount(labels.long(), minlength=num_classes)
