"""Losses that keep what a frozen teacher knew. Axes: K experts, B batch, D features, O old classes."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

SQUARED_NORM_EPS = 1e-12
"""Added to squared norms, as the cosine embedding loss of LUCIR's code does."""


def adaptive_weight(base: float, num_old: int, num_new: int) -> float:
    """Return LUCIR's less-forget weight ``base * sqrt(old classes / new classes)``.

    Args:
        base: 5 for CIFAR-100, 10 for ImageNet in the official code.
        num_old: Classes that arrived before this experience, >= 0.
        num_new: Classes of this experience, >= 1.

    Reference: Hou et al., CVPR 2019, section 3.3; the official code divides old by new.

    Example:
        >>> adaptive_weight(5.0, num_old=40, num_new=10)
        10.0
    """
    return base * math.sqrt(num_old / num_new)


def less_forget(features: Tensor, teacher_features: Tensor) -> Tensor:
    r"""Keep the direction of features: ``1 - cos(x, x*)``, averaged over batch and experts.

    Args:
        features: Features of the model that trains ``[K, B, D]`` (or ``[B, D]``).
        teacher_features: Features of the frozen previous model, same shape; detached here.

    Returns:
        Scalar in [0, 2], without the weight.

    Reference: Hou et al., CVPR 2019, eq. 6. Official: ``CosineEmbeddingLoss`` on all samples, old and new.
    Deviation: experts are averaged; with K = 1 none.

    Example:
        >>> less_forget(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))  # at a right angle
        tensor(1.)
    """
    teacher = teacher_features.detach()
    dot = (features * teacher).sum(-1)
    norms = (features.square().sum(-1) + SQUARED_NORM_EPS) * (teacher.square().sum(-1) + SQUARED_NORM_EPS)
    return (1 - dot / norms.sqrt()).mean()


def mimic_scores(cosines: Tensor, teacher_cosines: Tensor) -> Tensor:
    """Keep the cosines to old classes: squared differences, summed over old classes, averaged over the rest.

    Args:
        cosines: ``[K, B, C]`` (or ``[B, C]``), C >= O; columns beyond O are ignored.
        teacher_cosines: The teacher's ``[K, B, O]``; detached here.

    Returns:
        Scalar, without a weight.

    Reference: LUCIR's ablation row without less-forget ("CN"); official code, option ``mimic_score``.

    Example:
        >>> mimic_scores(torch.tensor([[0.5, 0.5, 0.9]]), torch.zeros(1, 2))  # 0.25 + 0.25
        tensor(0.5000)
    """
    num_old = teacher_cosines.shape[-1]
    return F.mse_loss(cosines[..., :num_old], teacher_cosines.detach()) * num_old


def knowledge_distillation(logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    r"""KL from the teacher's to the model's distribution over old classes, both softened.

    .. math:: T^2 \, \mathrm{KL}(\mathrm{softmax}(z^*/T) \,\|\, \mathrm{softmax}(z_{:O}/T))

    Args:
        logits: ``[K, B, C]`` (or ``[B, C]``); columns beyond the teacher's are ignored.
        teacher_logits: ``[K, B, O]``; detached here.
        temperature: T > 0.

    Returns:
        Scalar in nats, averaged over batch and experts.

    Reference: Hinton et al. 2015, with its factor T^2. LUCIR's iCaRL baseline has T = 2 and weight 1 on the KL itself:
    0.25 times this.
    """
    num_old = teacher_logits.shape[-1]
    student = F.log_softmax(logits[..., :num_old] / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=-1)
    return (teacher.exp() * (teacher - student)).sum(-1).mean() * temperature**2


def sigmoid_distillation(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
    """One binary cross entropy per class: the teacher's sigmoids for old classes, labels for the rest.

    Args:
        logits: ``[K, B, C]`` (or ``[B, C]``).
        labels: Class positions ``[B]``.
        teacher_logits: ``[K, B, O]`` or None in the first experience; detached here.

    Returns:
        Scalar: summed over classes, averaged over batch and experts.

    Reference: Rebuffi et al., iCaRL, CVPR 2017, algorithm 3.
    """
    targets = F.one_hot(labels, logits.shape[-1]).to(logits).expand_as(logits)
    if teacher_logits is not None:
        num_old = teacher_logits.shape[-1]
        targets = targets.clone()
        targets[..., :num_old] = teacher_logits.detach().sigmoid()
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1).mean()
