"""Priors of classes, and answers freed from them. Axes: K experts, B batch, C seen classes.

Menon et al., Long-tail learning via logit adjustment, ICLR 2021 (static prior); AdaPrior, CVPR 2026 (a running estimate
of the model's own prior). No code of AdaPrior is public: what its summaries leave open is said below.
"""

from __future__ import annotations

from torch import Tensor

from incrlt.losses.classification import cross_entropy
from incrlt.losses.margins import never_zero

SMALLEST_PRIOR = 1e-12
"""Floor of a probability before its logarithm; the official logit adjustment adds as much."""


def static_prior(class_counts_C: Tensor) -> Tensor:
    """Return the share of each class in the training stream, exemplars included ``[C]``; none is 0."""
    counts = never_zero(class_counts_C)
    return counts / counts.sum()


def running_prior(prior_C: Tensor, logits_BC: Tensor, gamma: float = 0.05) -> Tensor:
    """Move the prior towards the mean answer to a batch: ``(1 - gamma) P + gamma mean_b softmax(z_b)``.

    Args:
        prior_C: P ``[C]``; starts as :func:`static_prior`.
        logits_BC: Unadjusted logits ``[B, C]`` (or ``[K, B, C]``, averaged over experts); detached here.
        gamma: In [0, 1]; 0.05 in AdaPrior.

    Returns:
        The new P ``[C]``, without gradient.

    Reference: AdaPrior. Whether a step's loss sees P before or after the step is not told by what could be read; ours
    is the caller's choice.
    """
    answer = logits_BC.detach().softmax(-1).flatten(0, -2).mean(0)
    return (1 - gamma) * prior_C.detach() + gamma * answer.to(prior_C)


def prior_adjusted(logits_BC: Tensor, prior_C: Tensor, strength: float = 1.0) -> Tensor:
    r"""Take a prior out of answers after training: ``z - strength log P``.

    Args:
        logits_BC: ``[..., B, C]``.
        prior_C: P ``[C]``: :func:`static_prior`, or the mean answer to the training data (AdaPrior).
        strength: :math:`\alpha`; 1 for a static prior, 0.6 to 0.7 in AdaPrior. Not on top of a loss that adds log P.

    Returns:
        Scores like ``logits_BC``.
    """
    return logits_BC - strength * prior_C.to(logits_BC).clamp(min=SMALLEST_PRIOR).log()


def logit_adjustment(logits_BC: Tensor, class_counts_C: Tensor, tau: float = 1.0) -> Tensor:
    r"""Take the prior of the training stream out of answers: :math:`z - \log(\pi^\tau + 10^{-12})`.

    Args:
        logits_BC: ``[..., B, C]``, of a model trained with plain cross entropy.
        class_counts_C: Images per class, exemplars included ``[C]``; at least one is assumed.
        tau: Strength; 0 changes no answer.

    Reference: Menon et al., eq. 9; official code google-research/logit_adjustment.
    """
    prior = static_prior(class_counts_C).to(logits_BC)
    return logits_BC - (prior.pow(tau) + SMALLEST_PRIOR).log()


def prior_cross_entropy(logits_BC: Tensor, labels_B: Tensor, prior_C: Tensor) -> Tensor:
    """Cross entropy on ``z + log P``: AdaPrior's loss, whose uniform target prior is a constant.

    Args:
        logits_BC: ``[K, B, C]`` or ``[B, C]``, unadjusted.
        labels_B: Class positions ``[B]``.
        prior_C: P ``[C]``, detached here.

    Returns:
        Scalar, in nats, averaged over batch and experts. With P of the class frequencies it is balanced softmax.
    """
    log_prior = prior_C.detach().to(logits_BC).clamp(min=SMALLEST_PRIOR).log()
    return cross_entropy(logits_BC + log_prior, labels_B)
