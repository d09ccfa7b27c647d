"""A backbone as a user writes it, in a module of its own: any torch modules, cut at one place."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from incrlt.errors import UserError


class Front(nn.Module):
    """Two strided convolutions."""

    def __init__(self, in_channels, width):
        super().__init__()
        self.first = nn.Conv2d(in_channels, width, 3, 2, 1)
        self.second = nn.Conv2d(width, 2 * width, 3, 2, 1)

    def forward(self, x):
        return F.gelu(self.second(F.gelu(self.first(x))))

    def with_maps(self, x):
        before = self.second(F.gelu(self.first(x)))
        return F.gelu(before), (before,)


class Back(nn.Module):
    """A convolution and a linear layer; no batch norm anywhere."""

    def __init__(self, width, last_relu):
        super().__init__()
        self.num_features = 4 * width
        self.conv = nn.Conv2d(2 * width, 3 * width, 3, 1, 1)
        self.norm = nn.GroupNorm(1, 3 * width)
        self.linear = nn.Linear(3 * width, self.num_features)
        self.last_relu = last_relu

    def forward(self, x):
        return self.with_maps(x)[0]

    def with_maps(self, x):
        before = self.norm(self.conv(x))
        features = self.linear(F.gelu(before).mean(dim=(2, 3)))
        return (F.relu(features) if self.last_relu else features), (before,)


class MyNet:
    """What ``incrlt.models.build("own_backbone:MyNet")`` finds."""

    shares = ("stem", "nothing")
    wishes = ("width_factor", "shortcut")

    def __init__(self, *, in_channels, width, last_relu):
        self.in_channels, self.width, self.last_relu = in_channels, width, last_relu

    def stem(self, layout):
        return nn.Identity() if layout.shared == "nothing" else Front(self.in_channels, self.width)

    def branch(self, layout, expert):
        if layout.width_factor != 1:
            raise UserError("MyNet has experts of full width only; set experts.width_factor: 1.")
        back = Back(self.width, self.last_relu)
        return Whole(Front(self.in_channels, self.width), back) if layout.shared == "nothing" else back


class Whole(nn.Module):
    """Both parts, for experts that share nothing; it tells no maps."""

    def __init__(self, front, back):
        super().__init__()
        self.front, self.back = front, back
        self.num_features = back.num_features

    def forward(self, x):
        return self.back(self.front(x))
