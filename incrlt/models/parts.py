"""Parts that backbones of every family are put together from."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from incrlt.models.maps import Maps


class Chain(nn.Module):
    """Stem and branch in one: an expert that shares nothing (NCL), or the stem of experts that share all.

    Args:
        stem: Maps images to what the branch takes.
        branch: Maps that to features, and tells their width as ``num_features``.
    """

    def __init__(self, stem: nn.Module, branch: Any) -> None:
        super().__init__()
        self.stem = stem
        self.branch = branch
        self.num_features: int = branch.num_features

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[B, c, H, W]`` to features ``[B, D]``."""
        features: Tensor = self.branch(self.stem(x))
        return features


class TellingChain(Chain):
    """A chain whose parts tell maps."""

    def with_maps(self, x: Tensor) -> tuple[Tensor, Maps]:
        """Do the same, and tell the maps of all stages before their activations."""
        shared, first = self.stem.with_maps(x)  # type: ignore[operator]
        features, later = self.branch.with_maps(shared)
        return features, first + later


def strided(in_channels: int, out_channels: int, steps: int, active: int) -> nn.Sequential:
    """Halve a map ``steps`` times by 3x3 convolutions that double the channels (SHIKE's fusion).

    Args:
        in_channels: Of the map.
        out_channels: Of the last convolution, in place of the double.
        steps: Convolutions.
        active: After how many of the first ones a ReLU follows: official codes differ.
    """
    layers: list[nn.Module] = []
    for step in range(steps):
        width = out_channels if step == steps - 1 else 2 * in_channels
        layers += [
            nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True) if step < active else nn.Identity(),
        ]
        in_channels = width
    return nn.Sequential(*layers)
