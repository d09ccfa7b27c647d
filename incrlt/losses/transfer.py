"""SHIKE: experts that teach each other what an image is not. Axes: K experts, B batch, C seen classes.

Jin et al., CVPR 2023; official code jinyan-06/SHIKE.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from incrlt.losses.flavor import Flavor
from incrlt.losses.mutual import pairwise_divergence

PUBLISHED_STUDENT_TARGET = -30.0
"""What SHIKE's code puts in the student's label column: the smallest logit of a cosine head of scale 30."""
PUBLISHED_TEACHER_TARGET = 0.0
"""What it leaves in the teacher's label column."""


def dynamic_knowledge_transfer(
    expert_logits: Tensor, labels: Tensor, *, flavor: Flavor = "sane", detach: bool = False
) -> Tensor:
    """Pull each expert's answer about the wrong classes to a teacher that all experts form.

    The teacher believes, of every wrong class, the expert with the largest logit; of the hardest (the one with the
    largest mean logit) only the mean. Experts so learn to trust the hardest negative less than the others.

    Args:
        expert_logits: ``[K, B, C]``.
        labels: Class positions ``[B]``.
        flavor: ``sane`` leaves the label's column out of both softmaxes. ``published`` leaves it in with logit 0 in
            the teacher and -30 in the student: the teacher keeps mass where the student cannot follow, up to 30 nats
            per image where all negatives are small, as with few classes and early in training.
        detach: The teacher takes no gradient. Published: it does, through maxima and means.

    Returns:
        Scalar, in nats, averaged over batch and experts; sane: 0 with fewer than three classes (a single negative
        has nothing to compare with) and of one expert.

    Reference: Jin et al., SHIKE, section 3.3.
    Deviation: averages over batch and experts where the code averages over the B C entries of each expert; times
    ``10 * K / C`` it is the published sum with its weight 10 (per expert and image 0.1 at C = 100).
    """
    num_classes = expert_logits.shape[-1]
    if flavor == "published":
        is_target = labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)
        students = expert_logits.masked_fill(is_target, PUBLISHED_STUDENT_TARGET)
        teacher = non_target_teacher(students).masked_fill(is_target, PUBLISHED_TEACHER_TARGET)
    elif num_classes < 3:
        return expert_logits.sum() * 0.0
    else:
        students = _without_target(expert_logits, labels)
        teacher = non_target_teacher(students)
    log_teacher = F.log_softmax(teacher.detach() if detach else teacher, dim=-1)
    divergence = log_teacher.exp() * (log_teacher - F.log_softmax(students, dim=-1))
    return divergence.sum(-1).mean()


def non_target_teacher(logits: Tensor) -> Tensor:
    """Return the largest logit of any expert, and of the class with the largest mean the mean.

    Args:
        logits: ``[K, B, C']``, C' >= 1; the label's column is left out or far below.

    Returns:
        ``[B, C']``, with gradient.
    """
    mean = logits.mean(0)
    hardest = mean.argmax(-1, keepdim=True)
    return logits.amax(0).scatter(-1, hardest, mean.gather(-1, hardest))


def mutual_distillation(expert_logits: Tensor, *, detach: bool = False) -> Tensor:
    """Let every expert learn the answer of every other: sum over its partners of ``KL(p_j || p_i)``.

    Args:
        expert_logits: ``[K, B, C]``.
        detach: Partners take no gradient. Published: they do.

    Returns:
        Scalar, in nats: summed over the K - 1 partners, averaged over batch and experts; 0 of one expert.

    Reference: Jin et al., SHIKE; code with T = 1.
    Deviation: averages over batch and experts where the code averages over the B C entries of each pair; times
    ``K / C`` it is the published sum over ordered pairs (per pair and image 0.01 at C = 100).
    """
    return (len(expert_logits) - 1) * pairwise_divergence(expert_logits, detach=detach)


def _without_target(logits: Tensor, labels: Tensor) -> Tensor:
    """Drop the label's column ``[K, B, C] -> [K, B, C - 1]``; what is not there needs no sentinel."""
    columns = torch.arange(logits.shape[-1] - 1, device=labels.device)
    columns = columns + (columns >= labels.unsqueeze(-1))
    return logits.gather(-1, columns.expand(len(logits), -1, -1))
