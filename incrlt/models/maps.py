"""Maps between the stages of a backbone, for losses that look deeper than features (pooled distillation, PODNet).

A part of a backbone that tells its maps has ``with_maps(x)``: what its forward pass returns, the same to the bit, and
the map of each of its stages before the ReLU ``[B, c, h, w]``. Nobody calls it unless a method needs maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from incrlt.errors import UserError

Maps = tuple[Tensor, ...]
"""One map per stage, first stage first."""


def with_maps(part: nn.Module, x: object) -> tuple[Any, Maps]:
    """Run a stem or a branch and return its result and its maps.

    Raises:
        UserError: It tells none.
    """
    if isinstance(part, nn.Identity):  # the stem of experts that share nothing
        return x, ()
    tell = getattr(part, "with_maps", None)
    if tell is None:
        raise UserError(
            f"a method needs the maps between stages, and {type(part).__name__} does not tell any; give it a method "
            "with_maps(x) that returns its result and a tuple of maps, or choose another model."
        )
    result, maps = tell(x)
    return result, tuple(maps)


def of_experts(common: Maps, own: Sequence[Maps]) -> Maps:
    """Put the maps of all experts together ``[K, B, c, h, w]``, stage by stage.

    Args:
        common: Of the stages that all share, each ``[B, c, h, w]``; repeated without a copy.
        own: Of each expert's own stages.

    Raises:
        UserError: Experts tell maps of different number or shape.
    """
    shapes = [[tuple(level.shape) for level in maps] for maps in own]
    if any(other != shapes[0] for other in shapes):
        raise UserError(f"experts tell maps of different shapes: {shapes}; their branches must be equal.")
    shared = tuple(level.expand(len(own), *level.shape) for level in common)
    if len(own) == 1:
        return shared + tuple(level[None] for level in own[0])
    return shared + tuple(torch.stack(levels) for levels in zip(*own, strict=True))
