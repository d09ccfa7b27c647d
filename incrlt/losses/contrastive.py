"""Contrast with a momentum encoder. Axes: K experts, B batch, P projected features, Q queued keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def momentum_contrast(
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor,
    valid: Tensor | None = None,
    temperature: float = 0.2,
) -> Tensor:
    r"""Find the key of the same image among those of others (InfoNCE).

    .. math:: -\log \frac{e^{q \cdot k^+ / T}}{e^{q \cdot k^+ / T} + \sum_{k^-} e^{q \cdot k^- / T}}

    Args:
        queries: Unit vectors of one view ``[K, B, P]``.
        keys: Unit vectors of another view by the momentum encoder ``[K, B, P]``; detached here.
        negatives: Unit keys of earlier batches in columns ``[K, P, Q]``; detached here.
        valid: Columns that hold keys, bool ``[Q]``; None takes all. Others do not take part, whatever they hold.
        temperature: T > 0.

    Returns:
        Scalar, in nats, averaged over batch and experts; 0 while no negative is valid.

    Reference: He et al., MoCo, CVPR 2020, eq. 1; Li et al., NCL, T = 0.2.
    Deviation: experts are averaged; times K it is NCL's published sum.
    """
    positive = (queries * keys.detach()).sum(-1, keepdim=True)
    negatives = negatives.detach()
    if valid is None:
        others = queries @ negatives
    else:  # cleared first: a product with an undefined column would leave undefined gradients behind its mask
        others = (queries @ negatives.masked_fill(~valid, 0)).masked_fill(~valid, -torch.inf)
    similarities = torch.cat([positive, others], dim=-1) / temperature
    return -F.log_softmax(similarities, dim=-1)[..., 0].mean()
