"""ResNets for small images, cut in two: a stem that experts share and a branch that each owns.

He et al. 2016 (CIFAR form): a 3x3 convolution and three stages of basic blocks of 16, 32 and 64 channels. The
shortcut of a shrinking block is a 1x1 convolution with batch norm (as in LUCIR's code) or zero padding (as in RIDE's
and NCL's), and the ReLU after the very last addition can be left out, so that features carry a sign (cosine heads
need it). Where the cut lies is the method's doing: after the first stage (LUCIR, RIDE), after the second (SHIKE), or
before the first convolution (NCL).

Deviation: convolutions start as in LUCIR's code (fan-out); RIDE, NCL and SHIKE start them by fan-in, which differs
only where the number of channels changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from incrlt.files import Plain
from incrlt.models.layout import Layout
from incrlt.models.maps import Maps
from incrlt.models.parts import TellingChain, strided


@dataclass(frozen=True)
class ResNet:
    """The parts of a ResNet for small images; a :class:`~incrlt.models.backbone.Backbone`.

    Args:
        in_channels: Channels of the images.
        width: Channels of the first stage.
        last_relu: Keep the last ReLU.
        blocks: Basic blocks per stage (depth = 6 blocks + 2).
    """

    variants: ClassVar[Mapping[str, Plain]] = {
        "resnet8": {"blocks": 1},
        "resnet14": {"blocks": 2},
        "resnet20": {"blocks": 3},
        "resnet32": {"blocks": 5},
    }
    shares: ClassVar[tuple[str, ...]] = ("stem", "two_stages", "nothing")
    wishes: ClassVar[tuple[str, ...]] = ("width_factor", "shortcut", "fusion")

    in_channels: int
    width: int
    last_relu: bool
    blocks: int = 5

    def stem(self, layout: Layout) -> nn.Module:
        """Return what experts share: a stage, two stages, or nothing."""
        if layout.shared == "nothing":
            return nn.Identity()
        if layout.shared == "two_stages":
            return TwoStageStem(self.in_channels, self.width, self.blocks, layout.shortcut)
        return Stem(self.in_channels, self.width, self.blocks)

    def branch(self, layout: Layout, expert: int) -> Branch | LateBranch | TellingChain:
        """Return the own part of an expert, counted from 0."""
        factor, shortcut = layout.width_factor, layout.shortcut
        if layout.shared == "nothing":
            own = max(1, round(self.width * factor))
            branch = Branch(own, self.blocks, self.last_relu, 1.0, shortcut)
            return TellingChain(Stem(self.in_channels, own, self.blocks), branch)
        if layout.shared == "two_stages":
            source = expert % 2 if layout.fusion else None
            return LateBranch(self.width, self.blocks, self.last_relu, factor, shortcut, source)
        return Branch(self.width, self.blocks, self.last_relu, factor, shortcut)

    def initialise(self, module: nn.Module) -> None:
        """Draw the weights of a module; used with ``apply``."""
        initialise(module)


class PaddingShortcut(nn.Module):
    """Shortcut without weights (He et al. 2016, option A): skip pixels, add channels of zeros on both sides.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, not fewer; of an odd number of zeros the last side gets one more.
        stride: Every how many pixels one is kept.

    Attributes:
        groups: Runs of channels that are padded on their own; one per expert when experts run as one module.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        assert out_channels >= in_channels, "padding cannot lose channels"
        zeros = out_channels - in_channels
        self.pad = (zeros // 2, zeros - zeros // 2)
        self.stride = stride
        self.groups = 1

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in, H, W]`` to ``[B, out, H / stride, W / stride]``."""
        x = x[:, :, :: self.stride, :: self.stride].unflatten(1, (self.groups, -1))
        return F.pad(x, (0, 0, 0, 0, *self.pad)).flatten(1, 2)


def _shortcut(kind: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if kind == "padding":
        return PaddingShortcut(in_channels, out_channels, stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: 2 halves height and width.
        last_relu: Apply the ReLU after the addition.
        shortcut: ``projection`` or ``padding``, used where the shape changes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        last_relu: bool = True,
        shortcut: str = "projection",
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(shortcut, in_channels, out_channels, stride)
        self.last_relu = last_relu

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in, H, W]`` to ``[B, out, H / stride, W / stride]``."""
        y = self._sum(x)
        return F.relu(y, inplace=True) if self.last_relu else y

    def with_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the result, and the sum that it is the ReLU of."""
        y = self._sum(x)
        return F.relu(y) if self.last_relu else y, y  # not in place: the sum is asked for

    def _sum(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn2(self.conv2(y)) + self.shortcut(x)


def _stage(
    in_channels: int,
    out_channels: int,
    blocks: int,
    stride: int,
    last_relu: bool = True,
    shortcut: str = "projection",
) -> nn.Sequential:
    layers = [BasicBlock(in_channels, out_channels, stride, last_relu or blocks > 1, shortcut)]
    layers += [
        BasicBlock(out_channels, out_channels, last_relu=last_relu or index < blocks - 2)
        for index in range(blocks - 1)
    ]
    return nn.Sequential(*layers)


def _with_map(stage: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run a stage; return its result, and the map before its last ReLU."""
    *blocks, last = stage
    for block in blocks:
        x = block(x)
    result: tuple[Tensor, Tensor] = last.with_map(x)
    return result


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

    def with_maps(self, x: Tensor) -> tuple[Tensor, Maps]:
        """Do the same, and tell the map of the first stage before its ReLU."""
        out, before = _with_map(self.stage1, F.relu(self.bn(self.conv(x)), inplace=True))
        return out, (before,)


class TwoStageStem(nn.Module):
    """First convolution and the first two stages, both of which branches see (SHIKE).

    Args:
        in_channels: Channels of the images.
        width: Channels of the first stage; the second one has twice as many.
        blocks: Basic blocks per stage.
        shortcut: ``projection`` or ``padding``.
    """

    def __init__(self, in_channels: int, width: int, blocks: int, shortcut: str) -> None:
        super().__init__()
        self.first = Stem(in_channels, width, blocks)
        self.stage2 = _stage(width, 2 * width, blocks, stride=2, shortcut=shortcut)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images ``[B, in, H, W]`` to maps ``[B, width, H, W]`` and ``[B, 2 width, H / 2, W / 2]``."""
        first = self.first(x)
        return first, self.stage2(first)

    def with_maps(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], Maps]:
        """Do the same, and tell the maps of both stages before their ReLUs."""
        first, maps = self.first.with_maps(x)
        second, before = _with_map(self.stage2, first)
        return (first, second), (*maps, before)


class Branch(nn.Module):
    """Second and third stage and global average pooling: one expert's own part.

    Args:
        width: Channels of the stem; the branch doubles them twice.
        blocks: Basic blocks per stage.
        last_relu: Keep the last ReLU (features >= 0).
        width_factor: Channels of both stages relative to the doubling; RIDE's experts take 0.75.
        shortcut: ``projection`` or ``padding``.
    """

    def __init__(
        self,
        width: int,
        blocks: int,
        last_relu: bool,
        width_factor: float = 1.0,
        shortcut: str = "projection",
    ) -> None:
        super().__init__()
        second, third = (max(1, round(times * width * width_factor)) for times in (2, 4))
        self.stage2 = _stage(width, second, blocks, stride=2, shortcut=shortcut)
        self.stage3 = _stage(second, third, blocks, stride=2, last_relu=last_relu, shortcut=shortcut)
        self.num_features = third

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, width, H, W]`` to features ``[B, 4 width width_factor]``."""
        return self.stage3(self.stage2(x)).mean(dim=(2, 3))

    def with_maps(self, x: Tensor) -> tuple[Tensor, Maps]:
        """Do the same, and tell the maps of both stages before their ReLUs."""
        second, second_map = _with_map(self.stage2, x)
        third, third_map = _with_map(self.stage3, second)
        return third.mean(dim=(2, 3)), (second_map, third_map)


class LateBranch(nn.Module):
    """Third stage and pooling, after two shared stages; with SHIKE's fusion of a shallower map where wanted.

    Jin et al. 2023: expert k brings the map of shared stage k mod 2 to the shape of its own by strided convolutions
    and multiplies the two, so that experts differ in depth.

    Args:
        width: Channels of the first shared stage.
        blocks: Basic blocks per stage.
        last_relu: Keep the last ReLU of the third stage. Where fused it is always kept: the shallow map gives the
            signs, and the product of two signed maps nearly vanishes when it is averaged over the image.
        width_factor: Channels of the third stage, relative to ``4 width``.
        shortcut: ``projection`` or ``padding``.
        source: Number of the shared stage to fuse with, 0 or 1; None fuses with none.
    """

    def __init__(
        self,
        width: int,
        blocks: int,
        last_relu: bool,
        width_factor: float = 1.0,
        shortcut: str = "projection",
        source: int | None = None,
    ) -> None:
        super().__init__()
        self.num_features = max(1, round(4 * width * width_factor))
        keep = last_relu or source is not None
        self.stage3 = _stage(
            2 * width, self.num_features, blocks, stride=2, last_relu=keep, shortcut=shortcut
        )
        self.source = source
        self.shallow: nn.Module | None = None
        if source is not None:
            # as in the official code only the first of the convolutions has a ReLU
            self.shallow = strided((1 + source) * width, self.num_features, steps=2 - source, active=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map both shared maps, ``[B, width, H, W]`` and ``[B, 2 width, H / 2, W / 2]``, to features ``[B, D]``."""
        return self.fuse(self.stage3(maps[-1]), maps)

    def with_maps(self, maps: Sequence[Tensor]) -> tuple[Tensor, Maps]:
        """Do the same, and tell the map of the third stage before its ReLU, as it is before a fusion."""
        third, before = _with_map(self.stage3, maps[-1])
        return self.fuse(third, maps), (before,)

    def fuse(self, deep: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Multiply the third stage's map ``[B, D, H / 4, W / 4]`` by the shallow one, and pool to ``[B, D]``."""
        if self.shallow is not None and self.source is not None:
            deep = deep * self.shallow(maps[self.source])
        return deep.mean(dim=(2, 3))


def initialise(module: nn.Module) -> None:
    """Draw convolution weights as He et al. 2015 (normal, fan-out) from the global random state; use with ``apply``."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
