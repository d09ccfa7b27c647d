"""PODNet: keep what intermediate maps say on average, not pixel by pixel. Axes: B batch, c channels, H and W of a map.

Douillard et al., ECCV 2020; official code arthurdouillard/incremental_learning.pytorch. Its other half, POD-flat on the
final features, is :func:`~incrlt.losses.distillation.less_forget`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Pool = Literal["spatial", "height", "width", "channels", "gap"]
"""What is summed away: ``height`` the last axis, ``width`` the one before, ``spatial`` both side by side, ``channels``
the channels, ``gap`` averages over both axes of the image."""


def pooled(map_BcHW: Tensor, pool: Pool = "spatial") -> Tensor:
    """Pool the squares of a map ``[..., c, H, W]`` to one vector per image ``[..., P]``.

    Args:
        map_BcHW: Signed map, before any ReLU; any axes may lead.
        pool: P is ``c (H + W)`` for ``spatial``, ``c H``, ``c W``, ``H W`` or ``c`` for the others.
    """
    squares = map_BcHW.square()
    if pool == "spatial":
        return torch.cat([squares.sum(-1).flatten(-2), squares.sum(-2).flatten(-2)], dim=-1)
    if pool == "gap":
        return squares.mean((-2, -1))
    if pool == "channels":
        return squares.sum(-3).flatten(-2)
    return squares.sum(-1 if pool == "height" else -2).flatten(-2)


def pooled_outputs_distillation(
    maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    pool: Pool = "spatial",
    *,
    normalise: bool = True,
    rows_B: Tensor | None = None,
) -> Tensor:
    r"""Distance of the pooled maps of two models, averaged over images and maps.

    .. math:: \frac{1}{L} \sum_l \Big\| \frac{P(a_l^2)}{\|P(a_l^2)\|} - \frac{P(a_l^{*2})}{\|P(a_l^{*2})\|} \Big\|_2

    Args:
        maps: L maps of the model that trains ``[B, c, H, W]`` (or ``[K, B, c, H, W]``, averaged over experts).
        teacher_maps: Those of the frozen model of before, same shapes; detached here.
        pool: See :data:`Pool`.
        normalise: Bring each pooled vector to length 1, as published.
        rows_B: bool ``[B]``; only these images count (the code's option for exemplars), 0 if there is none.

    Returns:
        Scalar, without a weight (3 on CIFAR-100, times :func:`class_growth`). The norm is not squared; where both maps
        agree its gradient is 0. A map of size 1e-4 gets gradients of some hundreds: keep this in fp32.

    Reference: Douillard et al., eq. 4 and 5; official ``pod``.
    Deviation: experts are averaged; with K = 1 none.
    """
    distances = [
        _distance(one, other.detach(), pool, normalise) for one, other in zip(maps, teacher_maps, strict=True)
    ]
    if rows_B is None:
        return torch.stack([distance.mean() for distance in distances]).mean()
    weight = rows_B.to(distances[0])
    counted = weight.expand_as(distances[0]).sum().clamp(min=1)
    return torch.stack([(distance * weight).sum() / counted for distance in distances]).mean()


def class_growth(num_seen: int, num_new: int) -> float:
    """Return PODNet's factor of both distillation terms, ``sqrt(classes seen / new classes)``.

    Args:
        num_seen: Classes seen, the new ones included (LUCIR's factor leaves them out).
        num_new: Classes of this experience, >= 1.

    Reference: official code, ``scheduled_factor``.
    """
    return math.sqrt(num_seen / num_new)


def _distance(one: Tensor, other: Tensor, pool: Pool, normalise: bool) -> Tensor:
    """Return the distance per image ``[..., B]``."""
    a, b = pooled(one, pool), pooled(other, pool)
    if normalise:
        a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    distance: Tensor = torch.linalg.vector_norm(a - b, dim=-1)
    return distance
