"""Networks: backbones in stem + branch form, growing heads, and the expert network made of them."""

from __future__ import annotations

from torch import nn

from incrlt.errors import UserError
from incrlt.models.heads import HEADS, CosineHead, GrowingHead, LinearHead
from incrlt.models.network import ExpertNetwork
from incrlt.models.resnet import Branch, Stem, blocks_of, initialise

__all__ = ["CosineHead", "ExpertNetwork", "GrowingHead", "LinearHead", "build"]


def build(
    name: str = "resnet32",
    *,
    num_experts: int = 1,
    head: str = "cosine",
    in_channels: int = 3,
    width: int = 16,
    last_relu: bool | None = None,
) -> ExpertNetwork:
    """Build a network that knows no class yet.

    Args:
        name: ``resnet8``, ``resnet14``, ``resnet20`` or ``resnet32``.
        num_experts: Number K of branches and heads.
        head: ``cosine`` or ``linear``.
        in_channels: Channels of the images.
        width: Channels of the first stage; features have four times as many.
        last_relu: Keep the ReLU before pooling; by default only for linear heads (LUCIR needs signed features).

    Raises:
        UserError: An unknown name or head.

    Example:
        >>> net = build("resnet8", head="linear", in_channels=1)
        >>> _ = net.grow([0, 1, 2])
        >>> net(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 3])
    """
    blocks = blocks_of(name)
    if head not in HEADS:
        raise UserError(f"model head {head!r} is not known; allowed: {', '.join(HEADS)}.")
    last_relu = head != "cosine" if last_relu is None else last_relu
    stem: nn.Module = Stem(in_channels, width, blocks)
    branches = [Branch(width, blocks, last_relu) for _ in range(num_experts)]
    heads = [HEADS[head](branch.num_features) for branch in branches]
    network = ExpertNetwork(stem, branches, heads)
    network.apply(initialise)
    return network
