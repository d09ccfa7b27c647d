"""Losses that classify: cross entropy and its long-tailed relatives. Axes: K experts, B batch, C seen classes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from incrlt.losses.margins import never_zero


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Average the cross entropy over the batch and over the experts.

    Args:
        logits: ``[K, B, C]`` or ``[B, C]``.
        labels: Class positions ``[B]``.

    Returns:
        Scalar, in nats.

    Deviation: official multi-expert codes sum over experts; the mean keeps the weight of other terms meaningful.

    Example:
        >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2]))  # log 4
        tensor(1.3863)
    """
    if logits.dim() == 2:
        logits = logits[None]
    num_experts, _, num_classes = logits.shape
    return F.cross_entropy(logits.reshape(-1, num_classes), labels.repeat(num_experts))


def balanced_softmax(logits: Tensor, labels: Tensor, class_counts: Tensor) -> Tensor:
    r"""Cross entropy on logits shifted by the log prior of the training stream.

    .. math:: -\log \frac{n_y e^{z_y}}{\sum_c n_c e^{z_c}}

    Args:
        logits: ``[K, B, C]`` or ``[B, C]``, unshifted.
        labels: Class positions ``[B]``.
        class_counts: Images per class in the sampled stream, exemplars included ``[C]``, fractions as well; a
            class without images counts as the rarest of the others, so that no logit becomes infinite.

    Returns:
        Scalar, in nats, averaged over batch and experts.

    Reference: Ren et al., Balanced Meta-Softmax, NeurIPS 2020, eq. 3.

    Example:
        >>> balanced_softmax(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([9, 1]))  # -log(1 / 10)
        tensor(2.3026)
    """
    return cross_entropy(logits + never_zero(class_counts).to(logits).log(), labels)


def logit_adjusted(expert_logits: Tensor, labels: Tensor, class_counts: Tensor, tau: float = 1.0) -> Tensor:
    r"""Cross entropy on logits shifted by ``tau`` times the log prior of the training stream.

    .. math:: -\log \frac{n_y^\tau e^{z_y}}{\sum_c n_c^\tau e^{z_c}}

    Args:
        expert_logits: ``[K, B, C]`` or ``[B, C]``, unshifted.
        labels: Class positions ``[B]``.
        class_counts: Images per class in the sampled stream, ``[C]``, as in :func:`balanced_softmax`.
        tau: Strength of the shift; 0 is the cross entropy, 1 is :func:`balanced_softmax`.

    Returns:
        Scalar, in nats, averaged over batch and experts.

    Reference: Menon et al., ICLR 2021, eq. 10. Counts stand for the prior, which differs by a constant.

    Example:
        >>> logit_adjusted(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([9, 1]), tau=0.5)  # -log(1 / 4)
        tensor(1.3863)
    """
    prior = never_zero(class_counts).to(expert_logits).log()
    return cross_entropy(expert_logits + tau * prior, labels)
