"""What a network costs: numbers to store, multiplications to answer."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from incrlt.models.heads import CosineHead, GrowingHead, LinearHead
from incrlt.models.network import ExpertNetwork


def parameters(network: ExpertNetwork) -> int:
    """Count the numbers that answering takes: stem, branches, head rows in use, router.

    As papers count: rows that storage holds ready for later classes are left out, and so are class factors, batch-norm
    statistics, and the momentum encoder, which serves training alone. A learnable scale is one parameter; a fixed one
    is none.
    """
    parts = [network.stem, network.branches] + ([] if network.router is None else [network.router])
    backbone = sum(p.numel() for part in parts for p in part.parameters())
    return backbone + sum(_head_parameters(head) for head in network.all_heads)


def _head_parameters(head: GrowingHead) -> int:
    rows = head.num_classes * head.weight.shape[1]
    if isinstance(head, LinearHead):
        return rows + head.num_classes
    return rows + (isinstance(head, CosineHead) and isinstance(head.scale, nn.Parameter))


def macs(
    network: ExpertNetwork, image_shape: Sequence[int] = (3, 32, 32), experts: int | None = None
) -> float:
    """Count multiply-accumulates per image, of convolutions and linear layers.

    As in RIDE's account of what routing saves: normalisation, activation, pooling and the router are left out.

    Args:
        network: Left as it is; nothing is computed.
        image_shape: Channels, height and width of an image.
        experts: Number of experts that run, the first ones; all by default.

    Returns:
        Multiply-accumulates of one image in evaluation.
    """
    count = network.num_experts if experts is None else experts
    assert 1 <= count <= network.num_experts, f"{count} of {network.num_experts} experts"
    heads = network.heads if network.second_heads is None else network.second_heads
    stem = _shape_of(network.stem)
    experts_run = [(_shape_of(network.branches[k]), _shape_of(heads[k])) for k in range(count)]
    image = torch.empty(1, *image_shape, device="meta", dtype=next(network.parameters()).dtype)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        shared = stem(image)
        for branch, head in experts_run:
            head(branch(shared))
    return counter.get_total_flops() / 2  # a multiplication and an addition each


def head_macs(network: ExpertNetwork) -> int:
    """Count multiply-accumulates per image of the heads that answer: what a stage on stored features runs."""
    heads = [head for head in network.final_heads if isinstance(head, GrowingHead)]
    return sum(head.num_classes * head.weight.shape[1] for head in heads)


def macs_by_experts(network: ExpertNetwork, image_shape: Sequence[int]) -> list[float]:
    """Return :func:`macs` of an image with the first expert alone, the first two, and so on: K numbers."""
    return [macs(network, image_shape, count + 1) for count in range(network.num_experts)]


def _shape_of(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to("meta").eval()
