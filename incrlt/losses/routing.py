"""What a router learns: which images another expert would help. Axes: K experts, B batch, C seen classes.

Wang et al., RIDE, ICLR 2021, section 3.3; official code frank-xwang/RIDE-LongTailRecognition. Decision k of K - 1 is
taken once experts 0 .. k have answered.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from incrlt.types import Combine


def running_means(expert_logits: Tensor, combine: Combine | None = None) -> Tensor:
    """Return the combined logits of the first one, two, ... K experts ``[K, B, C]``.

    Args:
        expert_logits: ``[K, B, C]``.
        combine: Makes one answer of the first experts' logits; None takes their mean.

    Example:
        >>> running_means(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])).squeeze(1)
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000]])
    """
    if combine is not None:
        return torch.stack([combine(expert_logits[: k + 1]) for k in range(len(expert_logits))])
    number = torch.arange(1, len(expert_logits) + 1, device=expert_logits.device).to(expert_logits)
    return expert_logits.cumsum(0) / number[:, None, None]


def routing_targets(expert_logits: Tensor, labels: Tensor, combine: Combine | None = None) -> Tensor:
    """Tell where more experts help: those so far are wrong, and some larger ensemble is right.

    Args:
        expert_logits: ``[K, B, C]``.
        labels: Class positions ``[B]``.
        combine: As in :func:`running_means`.

    Returns:
        bool ``[K - 1, B]``, without gradient; of one expert ``[0, B]``.

    Example:
        >>> routing_targets(torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]]), torch.tensor([1]))  # wrong, then right
        tensor([[True]])
    """
    right = running_means(expert_logits.detach(), combine).argmax(-1) == labels
    right_later = right.long().flip(0).cummax(0).values.flip(0)[1:].bool()
    return right_later & ~right[:-1]


def routing_loss(scores: Tensor, targets: Tensor, pos_weight: float = 100.0) -> Tensor:
    """Binary cross entropy of the decisions to go on, averaged over decisions and batch.

    Args:
        scores: Decisions before the sigmoid ``[K - 1, B]``.
        targets: 1 (or True) where to go on ``[K - 1, B]``.
        pos_weight: Weight of images that should go on. Few do on training images, which the experts have learned;
            100 in every official configuration. More of it buys accuracy for computation.

    Returns:
        Scalar, in nats; 0 where there is no decision. No host sync.

    Example:
        >>> routing_loss(torch.zeros(1, 1), torch.tensor([[True]]))  # 100 log 2
        tensor(69.3147)
    """
    if not scores.numel():
        return scores.sum()
    weight = scores.new_full((), pos_weight)  # a fill, where a tensor of a number would be a transfer
    return F.binary_cross_entropy_with_logits(scores, targets.to(scores), pos_weight=weight)
