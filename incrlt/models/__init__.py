"""Networks: backbones in stem + branch form, growing heads, and the expert network made of them."""

from __future__ import annotations

from incrlt.models.backbone import Backbone
from incrlt.models.building import build
from incrlt.models.contrast import MomentumContrast
from incrlt.models.heads import CosineHead, GrowingHead, LinearHead
from incrlt.models.layout import ContrastLayout, Layout
from incrlt.models.network import ExpertNetwork
from incrlt.models.saved import load

__all__ = [
    "Backbone",
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
