"""Small values that travel between the rooms of the package, and the legend of axis letters.

B batch, C seen classes, D features, K experts. A plain network is K = 1: no output changes its type with a flag.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Final, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from incrlt.errors import UserError, did_you_mean

T = TypeVar("T")

LossTerms = dict[str, Tensor]
"""Named scalar loss terms; the template sums them, logs each, and names the one that is not finite."""

Schedule = Callable[[Optimizer, int], LRScheduler]
"""``schedule(optimizer, epochs)`` builds a fresh learning-rate scheduler, stepped once per epoch."""


ROUNDING: Final = 1e-12
"""Of fractions of epochs: far below an epoch of any run, and far above what their products are off."""

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
        return _told(
            self.maps,
            "maps between stages, which are told where they are asked for, and never in a stage's own loss",
            "needs_maps = True",
        )

    @property
    def known_features(self) -> Tensor:
        """Features ``[K, B, D]`` of a network that tells them."""
        return _told(self.features, "features, which only expert networks tell", "needs_network = True")

    @property
    def known_cosines(self) -> Tensor:
        """Cosines ``[K, B, C]`` of a network with cosine heads."""
        return _told(self.cosines, "cosines, which only cosine heads have", "needs_cosine = True")

    @property
    def known_scales(self) -> Tensor:
        """Scales ``[K]`` of a network with cosine heads."""
        return _told(self.scales, "scales, which only cosine heads have", "needs_cosine = True")


def _told(part: T | None, what: str, need: str) -> T:
    """Return a part of an output; without it, say to the author of the loss which need the class is to tell.

    Raises:
        UserError: The network does not tell it.
    """
    if part is None:
        raise UserError(f"a loss reads {what}. Write {need} in the class of the strategy or expert method.")
    return part


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

    def reached(self, fraction: float) -> bool:
        """Say whether this fraction of the epochs is over.

        Products of fractions are not exact (0.7 of 10 epochs is 7.000000000000001), and an epoch is a whole one.
        """
        return self.epoch >= (fraction - ROUNDING) * self.epochs

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


SAMPLERS, SOURCES = ("shuffle", "class_aware"), ("stream", "exemplars")
"""What a stage may say of its sampler and its data."""

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

    Raises:
        UserError: A sampler or data of another name, epochs that are no number of times, or features to store where
            they are not the stage's alone.
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
        for wish, allowed in (("sampler", SAMPLERS), ("data", SOURCES)):
            given = getattr(self, wish)
            if given not in allowed:
                raise UserError(
                    f"stage '{self.name}' has {wish} {given!r}; allowed: {', '.join(allowed)}."
                    f"{did_you_mean(given, allowed)}"
                )
        if not isinstance(self.epochs, Integral) or self.epochs < 0:
            raise UserError(
                f"stage '{self.name}' has {self.epochs!r} epochs; give a whole number, 0 skips it."
            )
        if self.cache_features and not (self.frozen_backbone and self.loss is not None):
            raise UserError(
                f"stage '{self.name}' is to store features, and only one with frozen_backbone=True and a loss of its "
                "own can; give it both, or cache_features=False."
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
