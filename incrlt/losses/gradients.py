"""DGR: gradients of a classifier re-weighted by what its classes have received. Axes: K, B, C, O old classes, D.

J. He, CVPR 2024 (Gradient Reweighting); official code JiangpengHe/imbalanced_cil. Classes whose rows have gathered
large gradients are slowed down, within old and new classes and between them; distillation pulls hardest at the classes
that lost most images.

Deviations, where the official code divides by zero: no class that lost images, a single old class, rows without any
gradient, a student that equals its teacher. Each function says its guard.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

REMOVAL_EPS = 0.001
"""Added to the images lost before their entropy is taken, as published."""
LARGEST_RATIO = 100.0
"""Cap of :func:`distillation_ratio`; ours. The official code has none and reaches 1e15 on rounding noise."""


def distillation_factor(images_seen: float, images_new: float, base: float = 0.7) -> float:
    """Return the weight of the distillation, ``base * sqrt(images seen / new images)``.

    Args:
        images_seen: Images that the old classes had when they arrived (images, not classes).
        images_new: Images of the new classes, >= 1.
        base: 0.7 in the official code.
    """
    return base * math.sqrt(images_seen / max(images_new, 1))


def attenuation(images_seen: float, images_new: float) -> float:
    """Return ``exp(-seen / (seen + new))``: how much new classes are slowed beside old ones; arguments as above."""
    return math.exp(-images_seen / max(images_seen + images_new, 1))


def removal_entropy(removed_O: Tensor) -> Tensor:
    """Return the normalised entropy of the images lost per class, 1 if all lost alike.

    Args:
        removed_O: Images of each old class that are no longer there ``[O]``.

    Returns:
        Scalar in [0, 1]. Guard: 1 for a single old class (published: 0 / 0).
    """
    if len(removed_O) < 2:
        return torch.ones((), dtype=_float(removed_O), device=removed_O.device)
    share = removed_O.to(_float(removed_O)) + REMOVAL_EPS
    share = share / share.sum()
    return -(share * share.log()).sum() / math.log(len(removed_O))


def removal_mix(removed_O: Tensor) -> Tensor:
    """Return the images lost per class, brought to length 1 ``[O]``.

    Guard: all zero where no class lost an image (published: 0 / 0).
    """
    return F.normalize(removed_O.to(_float(removed_O)), dim=0)


def distribution_aware_distillation(
    logits_KBC: Tensor, teacher_logits_KBO: Tensor, removed_O: Tensor, temperature: float = 2.0
) -> Tensor:
    r"""Distil, and pull harder at classes that lost more images.

    .. math:: -\sum_c q_c \big[ h \log \mathrm{softmax}(p / T)_c
        + (1 - h) \log \mathrm{softmax}((m p + (1 - m) q_0) / T)_c \big], \quad q = \mathrm{softmax}(q_0 / T)

    h is :func:`removal_entropy`, m :func:`removal_mix`. If all classes lost alike h is 1: ordinary distillation.

    Args:
        logits_KBC: ``[K, B, C]`` (or ``[B, C]``); columns beyond the teacher's are ignored.
        teacher_logits_KBO: :math:`q_0` ``[K, B, O]``; detached here.
        removed_O: Images of each old class that are no longer there ``[O]``, >= 0.
        temperature: T > 0.

    Returns:
        Scalar, in nats, averaged over batch and experts: a cross entropy, not 0 on the teacher's own answer. The method
        multiplies it by ``T^2`` and :func:`distillation_factor`.

    Reference: He, DAKD; official ``_DAKD``.
    Deviation: experts are averaged; with K = 1 none.
    """
    teacher = teacher_logits_KBO.detach()
    student = logits_KBC[..., : teacher.shape[-1]]
    entropy, mix = removal_entropy(removed_O).to(student), removal_mix(removed_O).to(student)
    mixed = mix * student + (1 - mix) * teacher
    log_p = entropy * F.log_softmax(student / temperature, dim=-1)
    log_p = log_p + (1 - entropy) * F.log_softmax(mixed / temperature, dim=-1)
    return -((teacher / temperature).softmax(-1) * log_p).sum(-1).mean()


def gradient_weights(gathered_C: Tensor, num_old: int, attenuation: float = 1.0) -> Tensor:
    r"""Weight each class by how little gradient it has gathered, within its group and between old and new.

    .. math:: w_c = \frac{\min_{G \ni c} \Phi}{\Phi_c} \cdot
        \begin{cases} \min(1, R) & c \text{ old} \\ \min(1, g R) & c \text{ new} \end{cases},
        \quad R = \frac{\mathrm{mean}_{new} \Phi}{\mathrm{mean}_{old} \Phi}

    Args:
        gathered_C: :math:`\Phi`, norms of the rows' gradients summed over the steps of this experience, the present one
            included ``[C]`` (or ``[K, C]``); best in float64.
        num_old: Old classes stand first; 0 or all makes one group without R.
        attenuation: g, see :func:`attenuation`.

    Returns:
        ``[C]`` in (0, 1], without gradient. Guard: a row without any gradient counts neither in the minimum nor is it
        slowed (published: 0 / 0, and 0 for all others).
    """
    gathered = gathered_C.detach()
    groups = [gathered[..., :num_old], gathered[..., num_old:]]
    groups = [group for group in groups if group.shape[-1]]
    within = [_smallest_over(group) for group in groups]
    if len(groups) == 1:
        return within[0]
    old, new = (group.mean(-1, keepdim=True) for group in groups)
    ratio = torch.where((old > 0) & (new > 0), new / old, 1.0)
    return torch.cat([within[0] * ratio.clamp(max=1), within[1] * (attenuation * ratio).clamp(max=1)], -1)


def distillation_ratio(
    row_norms_C: Tensor, weights_C: Tensor, distilled_norms_O: Tensor, largest: float = LARGEST_RATIO
) -> Tensor:
    r"""Return how much the distillation's gradient is stretched, to the length of the re-weighted one.

    .. math:: \rho = \| (w_c u_c)_c \| \, / \, \| (v_c)_c \|

    Args:
        row_norms_C: u, norms of the rows of the classification's gradient in this step ``[C]`` (or ``[K, C]``).
        weights_C: See :func:`gradient_weights`.
        distilled_norms_O: v, norms of the rows of the distillation's gradient ``[O]``.
        largest: Cap. Guard: a student equal to its teacher gives rounding noise for v, or 0 (published: no cap).

    Returns:
        Scalar (or ``[K]``), in [0, ``largest``].
    """
    length = torch.linalg.vector_norm(weights_C * row_norms_C, dim=-1)
    distilled = torch.linalg.vector_norm(distilled_norms_O.to(length), dim=-1)
    smallest = torch.finfo(length.dtype).tiny
    ratio: Tensor = length / distilled.clamp(min=smallest)
    return ratio.clamp(max=largest)


def rewritten(
    gradient: Tensor, distilled: Tensor | None, weights_C: Tensor, ratio: Tensor | float = 1.0
) -> Tensor:
    """Return the gradient that the classifier gets: rows by their weights, and the stretched distillation's.

    Args:
        gradient: Of the classification, with respect to rows ``[C, D]`` or biases ``[C]``.
        distilled: Of the distillation term, with its weight ``[C, D]`` or ``[C]``; None without a teacher.
        weights_C: See :func:`gradient_weights`.
        ratio: See :func:`distillation_ratio`.
    """
    weights = weights_C.to(gradient)
    weighted = gradient * (weights if gradient.dim() == 1 else weights.unsqueeze(-1))
    return weighted if distilled is None else weighted + ratio * distilled


def _smallest_over(group: Tensor) -> Tensor:
    positive = group > 0
    smallest = torch.where(positive, group, torch.inf).amin(-1, keepdim=True)
    return torch.where(positive, smallest / group, 1.0)


def _float(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.is_floating_point() else torch.get_default_dtype()
