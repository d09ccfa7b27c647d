"""NCL: networks that teach each other, on all classes and on each image's hard ones. Axes: K, B, C, N hard categories.

Li et al., CVPR 2022; official code Bazinga699/NCL.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from incrlt.losses.classification import cross_entropy
from incrlt.losses.flavor import Flavor
from incrlt.losses.margins import never_zero


def hard_columns(logits: Tensor, labels: Tensor, num_hard: int) -> Tensor:
    """Choose each image's hard categories: its label, then the other classes with the largest logits.

    Args:
        logits: ``[B, C]``; published: raw logits of the first network, which decides for all.
        labels: Class positions ``[B]``.
        num_hard: N, the label included; fewer where there are fewer classes, at least the label.

    Returns:
        Columns ``[B, min(N, C)]``, the label first, then from hard to easy; without gradient.
    """
    num_hard = min(max(num_hard, 1), logits.shape[-1])
    first = logits.detach().scatter(-1, labels.unsqueeze(-1), torch.inf)
    return first.topk(num_hard, dim=-1).indices


def hard_category_cross_entropy(
    expert_logits: Tensor, labels: Tensor, class_counts: Tensor, columns: Tensor, *, flavor: Flavor = "sane"
) -> Tensor:
    """Balanced softmax among the hard categories alone.

    Args:
        expert_logits: ``[K, B, C]``, without prior.
        labels: Class positions ``[B]``.
        class_counts: Images per class in the sampled stream ``[C]``; fractions are taken as they are.
        columns: Hard categories ``[B, N]``, the label first, see :func:`hard_columns`.
        flavor: ``published`` multiplies by a mask, so that the other categories stay in the softmax at logit 0
            instead of leaving it: with N = 1 the loss is then not 0.

    Returns:
        Scalar, in nats, averaged over batch and experts.

    Reference: Li et al., NCL, hard category mining of nested individual learning.
    Deviation: experts are averaged; times K it is the published sum.
    """
    logits = _among(_with_prior(expert_logits, class_counts), columns, flavor)
    return cross_entropy(logits, labels if flavor == "published" else torch.zeros_like(labels))


def online_distillation(
    expert_logits: Tensor,
    class_counts: Tensor,
    columns: Tensor | None = None,
    *,
    flavor: Flavor = "sane",
    floor: float = 0.0,
    detach: bool = False,
) -> Tensor:
    """Let every network learn the balanced answer of every other, on all classes or on the hard ones.

    Args:
        expert_logits: ``[K, B, C]``, without prior.
        class_counts: Images per class in the sampled stream ``[C]``; fractions are taken as they are.
        columns: Hard categories ``[B, N]`` (see :func:`hard_columns`), or None for all classes.
        flavor: As in :func:`hard_category_cross_entropy`; makes no difference without ``columns``.
        floor: As in :func:`pairwise_divergence`; published: 1e-9.
        detach: As in :func:`pairwise_divergence`.

    Returns:
        Scalar, in nats, averaged over batch and ordered pairs; 0 of one network.

    Reference: Li et al., NCL, nested balanced online distillation, T = 1.
    Deviation: pairs are averaged; times K and the factor 0.6 it is the published ``0.6 * sum over pairs / (K - 1)``.
    """
    logits = _with_prior(expert_logits, class_counts)
    if columns is not None:
        logits = _among(logits, columns, flavor)
    return pairwise_divergence(logits, floor=floor, detach=detach)


def pairwise_divergence(expert_logits: Tensor, *, floor: float = 0.0, detach: bool = False) -> Tensor:
    r"""Average ``KL(p_j || p_i)`` over the ordered pairs i != j of experts, in O(K).

    .. math:: \sum_{i \ne j} \mathrm{KL}(p_j \| p_i) = \sum_j \langle p_j, K \log p_j - \sum_i \log p_i \rangle

    Args:
        expert_logits: ``[K, B, C]``.
        floor: Added to the probability inside the second logarithm, as published in NCL. It biases whatever is less
            likely: by 5e-5 on ordinary logits, by 20 on logits of standard deviation 25.
        detach: Let each expert learn from the others as they are. Published: both sides take gradient.

    Returns:
        Scalar, in nats, averaged over batch and pairs; 0 of one expert.
    """
    num_experts = len(expert_logits)
    log_student = F.log_softmax(expert_logits, dim=-1)
    log_teacher = log_student.detach() if detach else log_student
    if floor:
        log_student = (log_student.exp() + floor).log()
    others = log_student.sum(0) - log_student
    divergence = (log_teacher.exp() * ((num_experts - 1) * log_teacher - others)).sum(-1)
    return divergence.mean() / max(num_experts - 1, 1)


def _with_prior(logits: Tensor, class_counts: Tensor) -> Tensor:
    return logits + never_zero(class_counts).to(logits).log()


def _among(logits: Tensor, columns: Tensor, flavor: Flavor) -> Tensor:
    """Keep the chosen columns: alone, the label first (sane), or in place, among zeros (published)."""
    index = columns.expand(len(logits), -1, -1)
    chosen = logits.gather(-1, index)
    return torch.zeros_like(logits).scatter(-1, index, chosen) if flavor == "published" else chosen
