"""Stages in which the backbone stands still: what need not be kept for a gradient, and features stored for a stage.

Without a gradient the forward pass through stem and branches keeps no activations; that changes no number, and happens
whenever the stage's optimizer holds none of their parameters. To store features and train on them epoch after epoch
saves nearly all the rest, but random augmentation is drawn once per epoch: stored features are of images as evaluation
sees them, the stage then trains without augmentation, and its numbers change. So that is asked for by name
(``cache_features`` of :class:`incrlt.types.Stage`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from incrlt.data.tensors import TensorBatches
from incrlt.training.checks import no_stored_features
from incrlt.training.optim import held_by

if TYPE_CHECKING:
    from incrlt.training.template import IncrTemplate


def backbone_trains(optimizer: Optimizer, model: Any) -> bool:
    """Say whether the optimizer holds a parameter of the stem or the branches of an expert network."""
    own = {id(p) for part in (model.stem, model.branches) for p in part.parameters()}
    return not own.isdisjoint(map(id, held_by(optimizer)))


def feature_batches(strategy: IncrTemplate, batches: Any) -> TensorBatches:
    """Return the loader of a stage with features ``[B, K, D]`` in the place of images.

    Order and labels are the loader's own. Features are of every image once, without random augmentation, and live on
    the device: N x K x D numbers in fp32.

    Args:
        strategy: Its backbone is in evaluation mode.
        batches: The stage's loader.

    Raises:
        UserError: The loader's images are not tensors on the device.
    """
    if not isinstance(batches, TensorBatches):
        raise no_stored_features(strategy, strategy.stage)
    model: nn.Module = strategy.model
    with torch.no_grad(), strategy.autocast():
        parts = [model.extract(images).float() for images, *_ in batches.in_order(strategy.eval_mb_size)]
    return batches.with_images(torch.cat(parts, dim=1).transpose(0, 1).contiguous())
