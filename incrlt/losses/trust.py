"""TCL: experts teach only where they are right, and calm down together where none is. Axes: K, B, C.

Zhou and Luo, CVPR 2026. No code is public; formulas are of summaries, and what they leave open is an argument here.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from incrlt.losses.classification import cross_entropy

SUPPRESSED = -30.0
"""What stands in the label's column on both sides of :func:`consensus_calibration`."""


def prior_strengths(num_experts: int, spread: float = 0.1) -> tuple[float, ...]:
    """Return evenly spaced strengths of the prior from ``1 - spread`` to ``1 + spread``; 1 of one expert."""
    if num_experts == 1:
        return (1.0,)
    return tuple(1 - spread + 2 * spread * k / (num_experts - 1) for k in range(num_experts))


def diverse_balanced_softmax(logits_KBC: Tensor, labels_B: Tensor, log_prior_KC: Tensor) -> Tensor:
    """Balanced softmax with another strength of the prior for each expert.

    Args:
        logits_KBC: ``[K, B, C]``.
        labels_B: Class positions ``[B]``.
        log_prior_KC: Strength of expert k times the log of the images per class ``[K, C]``.

    Returns:
        Scalar, in nats, averaged over batch and experts; times K it is the paper's sum.
    """
    return cross_entropy(logits_KBC + log_prior_KC.unsqueeze(1).to(logits_KBC), labels_B)


def compensation(accuracy_C: Tensor) -> Tensor:
    """Return class weights ``sqrt(1 - accuracy)``, scaled to mean 1 ``[C]``; all 1 where every class is perfect."""
    weights = (1 - accuracy_C).clamp(min=0).sqrt()
    mean = weights.mean(-1, keepdim=True)
    return torch.where(mean > 0, weights / mean.clamp(min=torch.finfo(weights.dtype).tiny), 1.0)


def running_accuracy(
    accuracy_C: Tensor, predictions_B: Tensor, labels_B: Tensor, momentum: float = 0.1
) -> Tensor:
    """Move the accuracy of each class in a batch towards what the batch shows; others keep theirs.

    Args:
        accuracy_C: ``[C]``, 0 at the start.
        predictions_B: Class positions ``[B]``.
        labels_B: Class positions ``[B]``.
        momentum: Share of the new batch. The summaries do not tell it: ours.

    Returns:
        ``[C]``. No host sync.
    """
    zeros = torch.zeros_like(accuracy_C)
    ones = torch.ones_like(labels_B, dtype=accuracy_C.dtype)
    images = zeros.index_add(0, labels_B, ones)
    right = zeros.index_add(0, labels_B, (predictions_B == labels_B).to(accuracy_C))
    moved = (1 - momentum) * accuracy_C + momentum * right / images.clamp(min=1)
    return torch.where(images > 0, moved, accuracy_C)


def trusted_distillation(
    logits_KBC: Tensor, labels_B: Tensor, class_weights_C: Tensor, *, detach: bool = True
) -> Tensor:
    r"""Let an expert teach the others on the images that it has right.

    .. math:: \frac{1}{K} \sum_{k \ne j} [\arg\max z^k = y] \, w_y \, \mathrm{KL}(p^k \| p^j)

    Args:
        logits_KBC: ``[K, B, C]``.
        labels_B: Class positions ``[B]``.
        class_weights_C: See :func:`compensation` ``[C]``.
        detach: The teaching expert takes no gradient. The summaries do not tell; ours is that it does not.

    Returns:
        Scalar, in nats: summed over the partners, averaged over batch and experts (times K the paper's sum); 0 of one.
    """
    num_experts = len(logits_KBC)
    log_p = F.log_softmax(logits_KBC, dim=-1)
    log_teacher = log_p.detach() if detach else log_p
    right = (logits_KBC.argmax(-1) == labels_B).to(log_p)
    others = log_p.sum(0) - log_p
    divergence = (log_teacher.exp() * ((num_experts - 1) * log_teacher - others)).sum(-1)
    return (right * class_weights_C.to(log_p)[labels_B] * divergence).mean()


def consensus_calibration(
    logits_KBC: Tensor,
    labels_B: Tensor,
    *,
    where: Literal["all_wrong", "any_negative"] = "all_wrong",
    suppress: Literal["mean", "minimum"] = "mean",
) -> Tensor:
    """Where no expert is right, lower the wrong classes that all lean to.

    The teacher is the mean of the experts, in which every class above the label falls to the mean of all logits; the
    label's own column is suppressed on both sides, so that only wrong classes are compared.

    Args:
        logits_KBC: ``[K, B, C]``.
        labels_B: Class positions ``[B]``.
        where: ``all_wrong``: images that no expert has right. ``any_negative``: images on which the mean has another
            class above the label. The summaries leave it open.
        suppress: To what the leaning classes fall; the minimum is the paper's ablation.

    Returns:
        Scalar, in nats, averaged over batch and experts (times K the paper's sum); 0 with two classes.
    """
    mean = logits_KBC.detach().mean(0)
    index = labels_B.unsqueeze(-1)
    leaning = mean > mean.gather(-1, index)
    level = mean.mean(-1, keepdim=True) if suppress == "mean" else mean.amin(-1, keepdim=True)
    teacher = torch.where(leaning, level, mean).scatter(-1, index, SUPPRESSED)
    student = logits_KBC.scatter(-1, index.expand(len(logits_KBC), -1, -1), SUPPRESSED)
    log_teacher = F.log_softmax(teacher, dim=-1)
    divergence = (log_teacher.exp() * (log_teacher - F.log_softmax(student, dim=-1))).sum(-1)
    all_wrong = (logits_KBC.argmax(-1) != labels_B).all(0)
    taken = all_wrong if where == "all_wrong" else leaning.any(-1)
    return (divergence * taken.to(divergence)).mean()
