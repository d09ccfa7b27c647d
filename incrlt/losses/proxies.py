"""PODNet's classifier: several proxies per class and a loss on their soft maximum. Axes: B batch, C classes, P proxies.

Douillard et al., ECCV 2020, section 3.3; official code arthurdouillard/incremental_learning.pytorch. Rows of class c
are c P .. c P + P - 1. The formula has K for the proxies; here K is experts.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

NCAFlavor = Literal["published", "ltcil", "paper"]
"""``published`` is PODNet's code, ``ltcil`` that of Long-Tailed-CIL, ``paper`` the formula; see :func:`nca`."""
Merging = Literal["softmax", "mean", "max", "min"]


def proxy_similarities(features_BD: Tensor, rows_RD: Tensor, *, distance: bool = False) -> Tensor:
    """Compare features with all proxies.

    Args:
        features_BD: ``[..., B, D]``; normalised here.
        rows_RD: Proxies of all classes ``[C P, D]``; normalised here.
        distance: False: cosines, as in Long-Tailed-CIL. True: minus the squared distance of the unit vectors,
            ``2 cos - 2``, as in PODNet's code.

    Returns:
        ``[..., B, C P]``.
    """
    cosines = F.linear(F.normalize(features_BD, dim=-1), F.normalize(rows_RD, dim=-1))
    return torch.clamp(2 * cosines - 2, max=0) if distance else cosines


def local_similarity(
    similarities_BR: Tensor, num_proxies: int, gamma: float = 1.0, merging: Merging = "softmax"
) -> Tensor:
    r"""Reduce the similarities of a class's proxies to one.

    .. math:: y_c = \sum_k \mathrm{softmax}_k(\gamma s_{ck}) \, s_{ck}

    Args:
        similarities_BR: ``[..., B, C P]``, proxies of a class side by side.
        num_proxies: P >= 1; with 1 nothing changes.
        gamma: Sharpness of the attention (``softmax`` alone), through which gradients flow.
        merging: The soft maximum of the paper, or one of the code's ablations.

    Returns:
        ``[..., B, C]``.

    Reference: Douillard et al., eq. 6.
    """
    s = similarities_BR.unflatten(-1, (-1, num_proxies))
    if merging == "softmax":
        return torch.sum((gamma * s).softmax(-1) * s, dim=-1)
    if merging == "mean":
        return torch.mean(s, dim=-1)
    return torch.amax(s, -1) if merging == "max" else torch.amin(s, -1)


def nca(
    similarities_BC: Tensor,
    labels_B: Tensor,
    scale: Tensor | float = 1.0,
    *,
    margin: float = 0.6,
    flavor: NCAFlavor = "paper",
    hinge: bool = True,
    class_weights_C: Tensor | None = None,
) -> Tensor:
    r"""Pull an image to its class and away from the others.

    .. math:: \Big[ -\log \frac{e^{\eta (y_t - \delta)}}{\sum_{i \ne t} e^{\eta y_i}} \Big]_+

    Args:
        similarities_BC: Reduced similarities y ``[B, C]``, unscaled.
        labels_B: Class positions ``[B]``.
        scale: :math:`\eta`, learned in PODNet.
        margin: :math:`\delta`; ``paper`` alone, the other flavors cancel it (see below).
        flavor: ``paper``: the formula. ``published``: the code subtracts the margin from every column, so that it has
            no effect, and leaves a 1 in the denominator where it means to leave the target out. ``ltcil``: the same
            code with its option off, which is cross entropy on the scaled similarities.
        hinge: Cut the loss of an image at 0 (``paper`` and ``published``; PODNet's configuration has it off).
        class_weights_C: ``[C]``; as in the code a plain mean of weighted losses, for ``ltcil`` divided by the weights.

    Returns:
        Scalar, in nats, averaged over the batch.

    Reference: Douillard et al., eq. 7; the author confirms the margin's fault in issue 59 of the official code.
    """
    u = scale * similarities_BC
    if flavor == "ltcil":
        return F.cross_entropy(u, labels_B, weight=class_weights_C)
    index = labels_B.unsqueeze(-1)
    target = u.gather(-1, index).squeeze(-1)
    others = u.scatter(-1, index, -torch.inf)
    if flavor == "published":
        top = u.amax(-1)  # e^0 stays in the sum, relative to the largest column
        loss = top - target + torch.cat([others, top.unsqueeze(-1)], -1).logsumexp(-1) - top
    else:
        loss = others.logsumexp(-1) - (target - scale * margin)
    if hinge:
        loss = loss.clamp(min=0)
    return loss.mean() if class_weights_C is None else (class_weights_C[labels_B] * loss).mean()
