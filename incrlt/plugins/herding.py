"""Herding: choose images whose running feature mean stays near the class mean, for all classes at once.

Two published greedy rules are here. Both keep a direction ``w`` that starts at the class mean ``m``, take the
image whose feature has the largest product with ``w``, and then add ``m`` minus that feature to ``w``. They
differ in one point, which changes the list: LUCIR's code may take an image again and then only steps on, the
Long-Tailed-CIL code never repeats one.

Papers: Welling, ICML 2009; Rebuffi et al. (iCaRL), CVPR 2017; Hou et al. (LUCIR), CVPR 2019; Liu et al.
(Long-Tailed-CIL), ECCV 2022.
Deviations: see :func:`herding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from incrlt.errors import UserError, did_you_mean

Flavor = Literal["lucir", "long-tailed-cil"]

REPEAT_STEPS = 1000
"""Steps after which LUCIR's rule gives up on finding a new image (its code's loop cap)."""

TIE = 1e-10
"""Scores nearer than this (relative, at least absolute) count as equal; the lowest index wins.

Ties are structural, not rare: both images of a two-image class are equally near to their mean, and rounding
would choose between them differently from machine to machine.
"""


def check_flavor(flavor: str) -> None:
    """Raise a sentence with the allowed names unless ``flavor`` is one of them.

    Raises:
        UserError: Unknown name.
    """
    allowed = get_args(Flavor)
    if flavor not in allowed:
        raise UserError(
            f"herding flavor {flavor!r} is not known; allowed: {', '.join(allowed)}."
            + did_you_mean(flavor, allowed)
        )


def herding(features: Sequence[Tensor], k: int | Sequence[int], flavor: Flavor = "lucir") -> list[Tensor]:
    """Rank the images of each class by herding on L2-normalised features, in float64.

    Classes of similar size run as one padded batch, so that the loop runs over picks and not over classes.
    The order is that of the official codes (checked against arrays they produced).

    Args:
        features: Per class the features ``[n_c, d]`` of its images, any float type, normalised or not.
        k: Images wanted, one number or one per class. A class with fewer images gives all of them.
        flavor: ``"lucir"`` or ``"long-tailed-cil"``.

    Returns:
        Per class an int64 tensor ``[min(k_c, n_c)]`` of distinct image indices, best first. The first j of
        them are the ranking for a budget of j.

    Raises:
        UserError: Unknown flavor, or a negative ``k``.

    Example:
        >>> herding([torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])], 2)[0].tolist()
        [1, 2]

    Reference: LUCIR ``class_incremental_cosine_cifar100.py`` (herding block); Long-Tailed-CIL
    ``datasets/exemplars_selection.py`` ``HerdingExemplarsSelector``.
    Deviation: equal scores go to the lowest index (:data:`TIE`). When LUCIR's rule reaches its cap with
    images missing, the rest is ranked without repeats; the official code stores fewer than it could.
    """
    check_flavor(flavor)
    wanted = [k] * len(features) if isinstance(k, int) else list(k)
    if len(wanted) != len(features) or any(number < 0 for number in wanted):
        raise UserError(
            f"herding needs k >= 0, one number or one per class ({len(features)} classes); got {k}."
        )
    takes = [min(number, len(images)) for number, images in zip(wanted, features, strict=True)]
    orders = [torch.empty(0, dtype=torch.int64)] * len(features)
    for members in _similar_sizes([len(images) for images in features]):
        batch = [normalize(features[index].double(), dim=1, eps=1e-12) for index in members]
        picks = _greedy(batch, [takes[index] for index in members], repeats=flavor == "lucir")
        for index, order in zip(members, picks, strict=True):
            orders[index] = order[: takes[index]].cpu()
    return orders


def _similar_sizes(sizes: Sequence[int]) -> list[list[int]]:
    """Group indices by the power of two above their size: padding then at most doubles the work."""
    groups: dict[int, list[int]] = {}
    for index, size in enumerate(sizes):
        if size:
            groups.setdefault((size - 1).bit_length(), []).append(index)
    return list(groups.values())


def _greedy(batch: Sequence[Tensor], takes: Sequence[int], *, repeats: bool) -> Tensor:
    """Run the greedy loop for a batch of classes.

    Args:
        batch: Per class the normalised features ``[n_g, d]``, float64.
        takes: Per class how many images to pick, at most ``n_g``.
        repeats: Let an image be taken again for the first :data:`REPEAT_STEPS` steps (LUCIR).

    Returns:
        int64 ``[G, max takes]``; row g is filled up to ``takes[g]``.
    """
    features = pad_sequence(list(batch), batch_first=True)  # [G, n, d]
    device = features.device
    sizes = torch.tensor([len(images) for images in batch], device=device)
    take = torch.tensor(list(takes), device=device)
    order = torch.zeros(len(batch), max(takes), dtype=torch.int64, device=device)
    found = torch.zeros_like(take)
    rows = torch.arange(len(batch), device=device)  # classes still in the running tensors

    mean = features.sum(1) / sizes[:, None]
    direction = mean.clone()
    taken = torch.zeros(features.shape[:2], dtype=torch.bool, device=device)
    # The nearest running mean minimises |f|^2 - 2<w, f>, where |f| is 1 (or 0); LUCIR looks at <w, f> alone.
    offset = torch.zeros_like(features[..., 0]) if repeats else -0.5 * features.square().sum(-1)
    offset.masked_fill_(torch.arange(features.shape[1], device=device) >= sizes[:, None], -torch.inf)

    for step in range(REPEAT_STEPS + max(takes)):
        open_rows = found[rows] < take[rows]
        if not open_rows.any():
            break
        if 2 * int(open_rows.sum()) <= len(rows):  # stop paying for classes that are complete
            rows, features, mean, direction, taken, offset = (
                tensor[open_rows] for tensor in (rows, features, mean, direction, taken, offset)
            )
            open_rows = open_rows[open_rows]
        score = torch.baddbmm(offset[..., None], features, direction[..., None])[..., 0]
        if not repeats or step >= REPEAT_STEPS:
            score.masked_fill_(taken, -torch.inf)
        best = _first_largest(score)
        line = torch.arange(len(rows), device=device)
        new = open_rows & ~taken[line, best]
        order[rows[new], found[rows[new]]] = best[new]
        found[rows[new]] += 1
        taken[line, best] = True
        direction += mean - features[line, best]
    return order


def _first_largest(score: Tensor) -> Tensor:
    """Return per row of ``score[G, n]`` the lowest index whose score is the largest up to :data:`TIE`."""
    largest = score.amax(1, keepdim=True)
    near = score >= largest - TIE * largest.abs().clamp(min=1)
    index = torch.arange(score.shape[1], device=score.device)
    return torch.where(near, index, score.shape[1]).amin(1)
