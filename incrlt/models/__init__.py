"""Networks: backbones in stem + branch form, growing heads, and the expert network made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from torch import nn

from incrlt.errors import UserError
from incrlt.models.contrast import MomentumContrast
from incrlt.models.heads import HEADS, CosineHead, GrowingHead, LinearHead, make_head
from incrlt.models.layout import ContrastLayout, Layout
from incrlt.models.network import ExpertNetwork
from incrlt.models.resnet import (
    Branch,
    LateBranch,
    Stem,
    TwoStageStem,
    WholeNetwork,
    blocks_of,
    initialise,
)
from incrlt.models.saved import load

__all__ = [
    "ContrastLayout",
    "CosineHead",
    "ExpertNetwork",
    "GrowingHead",
    "Layout",
    "LinearHead",
    "MomentumContrast",
    "build",
    "load",
]


def build(
    name: str = "resnet32",
    *,
    layout: Layout | None = None,
    num_experts: int = 1,
    head: str = "cosine",
    in_channels: int = 3,
    width: int = 16,
    last_relu: bool | None = None,
) -> ExpertNetwork:
    """Build a network that knows no class yet.

    Args:
        name: ``resnet8``, ``resnet14``, ``resnet20`` or ``resnet32``.
        layout: What an expert method asks for: what experts share, their width, which heads they have.
        num_experts: Short for ``layout=Layout(num_experts=...)``.
        head: ``cosine`` or ``linear``.
        in_channels: Channels of the images.
        width: Channels of the first stage; features have four times as many (times the layout's width factor).
        last_relu: Keep the ReLU before pooling; by default only for linear heads (LUCIR needs signed features).
            RIDE, NCL and SHIKE keep it whatever the head.

    Raises:
        UserError: An unknown name or head, or both ``layout`` and ``num_experts``.

    Example:
        >>> net = build("resnet8", head="linear", in_channels=1)
        >>> _ = net.grow([0, 1, 2])
        >>> net(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 3])
    """
    if layout is not None and num_experts != 1:
        raise UserError("num_experts is short for a layout; give one of the two.")
    layout = Layout(num_experts=num_experts) if layout is None else layout
    blocks = blocks_of(name)
    if head not in HEADS:
        raise UserError(f"model head {head!r} is not known; allowed: {', '.join(HEADS)}.")
    last_relu = head != "cosine" if last_relu is None else last_relu
    stem, branches = _backbone(layout, in_channels, width, blocks, last_relu)
    features = branches[0].num_features
    heads = [make_head(head, features, layout) for _ in branches]
    second_heads = [make_head(head, features, layout) for _ in branches] if layout.second_heads else None
    for part in (stem, *branches):
        part.apply(initialise)
    contrast = None
    if layout.contrast is not None:  # last, because it copies the branches
        contrast = MomentumContrast(branches, features, layout.contrast, initialise)
    network = ExpertNetwork(stem, branches, heads, second_heads, contrast)
    network.architecture = {
        "name": name,
        "layout": asdict(layout),
        "head": head,
        "in_channels": in_channels,
        "width": width,
        "last_relu": last_relu,
    }
    return network


def _backbone(
    layout: Layout, in_channels: int, width: int, blocks: int, last_relu: bool
) -> tuple[nn.Module, Sequence[Branch | LateBranch | WholeNetwork]]:
    experts, factor, shortcut = range(layout.num_experts), layout.width_factor, layout.shortcut
    if layout.shared == "nothing":
        own = max(1, round(width * factor))
        return nn.Identity(), [
            WholeNetwork(Stem(in_channels, own, blocks), Branch(own, blocks, last_relu, 1.0, shortcut))
            for _ in experts
        ]
    if layout.shared == "two_stages":
        return TwoStageStem(in_channels, width, blocks, shortcut), [
            LateBranch(width, blocks, last_relu, factor, shortcut, k % 2 if layout.fusion else None)
            for k in experts
        ]
    return Stem(in_channels, width, blocks), [
        Branch(width, blocks, last_relu, factor, shortcut) for _ in experts
    ]
