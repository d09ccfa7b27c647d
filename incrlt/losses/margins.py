"""Losses and weights that favour rare classes by their counts: LDAM and effective numbers. Axes: K, B, C as ever."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def never_zero(class_counts: Tensor) -> Tensor:
    """Return images per class as floating-point numbers, of which none is 0.

    Fractions stay as they are: a class that is drawn 0.3 times an epoch has that prior. A class without images (an old
    class without exemplars) would get an infinite margin, weight or prior; it counts as the rarest of the others, and
    as 1 where that is more.

    Args:
        class_counts: ``[C]``, >= 0; integers become the default floating-point type.

    Example:
        >>> never_zero(torch.tensor([0, 2, 5]))
        tensor([1., 2., 5.])
    """
    if not class_counts.is_floating_point():
        class_counts = class_counts.to(torch.get_default_dtype())
    drawn = class_counts > 0
    rarest = (
        class_counts.where(drawn, 1).amin().clamp(max=1)
        if class_counts.numel()
        else class_counts.new_ones(())
    )
    return class_counts.where(drawn, rarest)


def ldam_margins(class_counts: Tensor, max_margin: float = 0.5, smallest: float | None = None) -> Tensor:
    r"""Return a margin per class that grows towards the tail.

    .. math:: m_c = m_{max} \, (n_{min} / n_c)^{1/4}

    Args:
        class_counts: Images per class in the sampled stream, exemplars included ``[C]``; see :func:`never_zero`.
        max_margin: Margin of the rarest class, in cosine.
        smallest: Images ``n_min`` of a class that gets ``max_margin``; classes with fewer get it too. None takes the
            rarest class of the stream, as published, which changes every margin once a rarer class arrives.

    Returns:
        ``[C]``, in (0, ``max_margin``].

    Reference: Cao et al., LDAM, NeurIPS 2019, eq. 13; RIDE's code, ``max_m = 0.5``.

    Example:
        >>> ldam_margins(torch.tensor([16, 1]))
        tensor([0.2500, 0.5000])
    """
    images = never_zero(class_counts)
    rarest = images.min() if smallest is None else smallest
    return max_margin * (rarest / images).pow(0.25).clamp(max=1)


def ldam(
    expert_logits: Tensor,
    labels: Tensor,
    margins: Tensor,
    scales: Tensor | float | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    r"""Cross entropy after the label's logit was lowered by its margin (label-distribution-aware margin loss).

    .. math:: -w_y \log \frac{e^{z_y - s m_y}}{e^{z_y - s m_y} + \sum_{c \ne y} e^{z_c}} \; / \; \bar w

    Args:
        expert_logits: ``[K, B, C]`` (or ``[B, C]``), the scale of cosine heads already in them.
        labels: Class positions ``[B]``.
        margins: ``[C]`` in cosine, see :func:`ldam_margins`.
        scales: Scale s of the heads, one number or ``[K]``, detached here: a scale that trains must not shrink to
            escape the margin. None means 1, for linear heads.
        class_weights: ``[C]``, see :func:`class_balanced_weights`; None weighs all alike.

    Returns:
        Scalar, in nats: mean over the batch weighted by the labels' weights, mean over experts.

    Reference: Cao et al., LDAM, NeurIPS 2019; RIDE's code with ``s = 30``.
    Deviation: experts are averaged; times K it is the published sum.

    Example:
        >>> ldam(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([3.0, 1.0]).log())  # -log(1 / 4)
        tensor(1.3863)
    """
    if expert_logits.dim() == 2:
        expert_logits = expert_logits[None]
    num_experts, _, num_classes = expert_logits.shape
    classes = torch.arange(num_classes, device=labels.device)
    margin = margins.to(expert_logits) * (labels.unsqueeze(-1) == classes)
    if isinstance(scales, Tensor):
        scales = scales.detach().to(expert_logits).reshape(-1, 1, 1)
    shifted = expert_logits - (1.0 if scales is None else scales) * margin
    weights = None if class_weights is None else class_weights.to(expert_logits)
    return F.cross_entropy(shifted.reshape(-1, num_classes), labels.repeat(num_experts), weights)


def class_balanced_weights(class_counts: Tensor, beta: float = 0.9999) -> Tensor:
    r"""Return weights inverse to the effective number of images, with mean 1.

    .. math:: w_c \propto (1 - \beta) / (1 - \beta^{n_c}), \quad \sum_c w_c = C

    Args:
        class_counts: Images per class in the sampled stream ``[C]``; see :func:`never_zero`.
        beta: In [0, 1]; 0 weighs all classes alike, 1 by the inverse of their counts.

    Returns:
        ``[C]``.

    Reference: Cui et al., CVPR 2019, eq. 4. ``expm1`` in place of a difference close to 0: float32 is exact enough.

    Example:
        >>> class_balanced_weights(torch.tensor([1, 3]), beta=1.0)
        tensor([1.5000, 0.5000])
    """
    images = never_zero(class_counts)
    if beta <= 0:
        return torch.ones_like(images)
    effective = images if beta >= 1 else -torch.expm1(images * math.log(beta))
    weights = effective.reciprocal()
    return weights / weights.mean()
