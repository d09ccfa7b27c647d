"""ResNets for small images, cut in two: a stem that experts share and a branch that each owns.

He et al. 2016 (CIFAR form): a 3x3 convolution and three stages of basic blocks of 16, 32 and 64 channels. As in
LUCIR's code the shortcut of a shrinking block is a 1x1 convolution with batch norm, and the ReLU after the very
last addition can be left out, so that features carry a sign (cosine heads need it).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from incrlt.errors import UserError, did_you_mean

DEPTHS = {"resnet8": 1, "resnet14": 2, "resnet20": 3, "resnet32": 5}
"""Network name to basic blocks per stage (depth = 6 n + 2)."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: 2 halves height and width.
        last_relu: Apply the ReLU after the addition.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, last_relu: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.last_relu = last_relu

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in, H, W]`` to ``[B, out, H / stride, W / stride]``."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y)) + self.shortcut(x)
        return F.relu(y, inplace=True) if self.last_relu else y


def _stage(
    in_channels: int, out_channels: int, blocks: int, stride: int, last_relu: bool = True
) -> nn.Sequential:
    layers = [BasicBlock(in_channels, out_channels, stride, last_relu or blocks > 1)]
    layers += [
        BasicBlock(out_channels, out_channels, last_relu=last_relu or index < blocks - 2)
        for index in range(blocks - 1)
    ]
    return nn.Sequential(*layers)


class Stem(nn.Module):
    """First convolution and first stage: what all experts share.

    Args:
        in_channels: Channels of the images.
        width: Channels of the first stage.
        blocks: Basic blocks per stage.
    """

    def __init__(self, in_channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.stage1 = _stage(width, width, blocks, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[B, in, H, W]`` to maps ``[B, width, H, W]``."""
        return self.stage1(F.relu(self.bn(self.conv(x)), inplace=True))


class Branch(nn.Module):
    """Second and third stage and global average pooling: one expert's own part.

    Args:
        width: Channels of the stem; the branch doubles them twice.
        blocks: Basic blocks per stage.
        last_relu: Keep the last ReLU (features >= 0).
    """

    def __init__(self, width: int, blocks: int, last_relu: bool) -> None:
        super().__init__()
        self.stage2 = _stage(width, 2 * width, blocks, stride=2)
        self.stage3 = _stage(2 * width, 4 * width, blocks, stride=2, last_relu=last_relu)
        self.num_features = 4 * width

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, width, H, W]`` to features ``[B, 4 width]``."""
        return self.stage3(self.stage2(x)).mean(dim=(2, 3))


def initialise(module: nn.Module) -> None:
    """Draw convolution weights as He et al. 2015 (normal, fan-out) from the global random state; use with ``apply``."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def blocks_of(name: str) -> int:
    """Return the basic blocks per stage of a network name.

    Raises:
        UserError: The name is not in :data:`DEPTHS`.
    """
    if name not in DEPTHS:
        raise UserError(
            f"model name {name!r} is not known; allowed: {', '.join(DEPTHS)}.{did_you_mean(name, DEPTHS)}"
        )
    return DEPTHS[name]
