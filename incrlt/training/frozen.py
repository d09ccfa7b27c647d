"""Stages in which the backbone stands still: what need not be kept for a gradient, and features stored for a stage.

Without a gradient the forward pass through stem and branches keeps no activations; that changes no number, and happens
whenever the stage's optimizer holds none of their parameters. To store features and train on them epoch after epoch
saves nearly all the rest, but random augmentation is drawn once per epoch: stored features are of images as evaluation
sees them, the stage then trains without augmentation, and its numbers change. So that is asked for by name
(``cache_features`` of :class:`incrlt.types.Stage`).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from incrlt.data.tensors import TensorBatches
from incrlt.models.precision import at_least_float
from incrlt.training.compute import Compute
from incrlt.training.network import Network
from incrlt.training.optim import held_by


def backbone_trains(optimizer: Optimizer, model: nn.Module) -> bool:
    """Say whether the optimizer holds a parameter of stem or branches; of a foreign model nobody knows, so it does."""
    if not hasattr(model, "branches"):
        return True
    own = {id(p) for part in (model.stem, model.branches) for p in part.parameters() if p.requires_grad}
    return not own.isdisjoint(map(id, held_by(optimizer)))


def feature_batches(
    compute: Compute, network: Network, batches: TensorBatches, eval_batch_size: int
) -> TensorBatches:
    """Return the loader of a stage with features ``[B, K, D]`` in the place of images.

    Order and labels are the loader's own. Features are of every image once, without random augmentation, and live on
    the device: N x K x D numbers in fp32.

    Args:
        compute: How the network runs.
        network: Its backbone is in evaluation mode.
        batches: The stage's loader.
        eval_batch_size: Images per pass.
    """
    with torch.no_grad(), compute.autocast():
        parts = [
            at_least_float(compute.extract(network, images))
            for images, *_ in batches.in_order(eval_batch_size)
        ]
    return batches.with_images(torch.cat(parts, dim=1).transpose(0, 1).contiguous())
