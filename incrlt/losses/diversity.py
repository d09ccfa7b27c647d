"""RIDE: experts that differ, more on frequent classes. Axes: K experts, B batch, C seen classes.

Wang et al., ICLR 2021; official code frank-xwang/RIDE-LongTailRecognition.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from incrlt.losses.distillation import knowledge_distillation
from incrlt.losses.margins import never_zero


def class_temperatures(class_counts: Tensor, rho: float) -> Tensor:
    r"""Return a temperature per class that follows the prior: 1 for the most frequent, less for the rest.

    .. math:: \tau_c = v_c / \max_{c'} v_{c'}, \quad v_c = \rho \, C \pi_c + 1 - \rho

    Args:
        class_counts: Images per class in the sampled stream, ``[C]``, fractions as they are.
        rho: Share of the prior in [0, 1]; 0 gives 1 for all, as before re-weighting sets in. 0.05 on CIFAR, 0.02 on
            ImageNet-LT, 0.015 on iNaturalist.

    Returns:
        ``[C]``, in (0, 1]. The diversity term's weight holds the square of their mean.

    Reference: Wang et al., RIDE, eq. 4, as its code has it: divided by the maximum, not shifted below it.

    Example:
        >>> class_temperatures(torch.tensor([3, 1]), rho=0.5)  # 1.25 and 0.75, divided by 1.25
        tensor([1.0000, 0.6000])
    """
    images = never_zero(class_counts)
    values = rho * images / images.mean() + (1 - rho)
    return values / values.max()


def distribution_aware_diversity(
    expert_logits: Tensor,
    temperatures: Tensor,
    *,
    first_class: int = 0,
    images: Tensor | None = None,
    cap: float | None = None,
) -> Tensor:
    r"""Divergence of each expert from the mean of all, which takes no gradient; weighted negatively, experts differ.

    .. math:: \mathrm{KL}(\mathrm{softmax}(\bar z / \tau) \,\|\, \mathrm{softmax}(z_k / \tau))

    Args:
        expert_logits: ``[K, B, C]``.
        temperatures: One per logit column ``[C]``, see :func:`class_temperatures`.
        first_class: Only columns from here on take part. With the number of old classes experts may differ about
            new classes alone: disagreement about old ones would destroy what they keep.
        images: Images that take part, bool ``[B]``; others count as 0. With ``first_class`` leave out images of old
            classes: without the column of its label nothing ties the answers about an image, and they drift apart.
        cap: Divergences of one image above this count as this and give no gradient. For linear heads, whose term has
            no bound when maximised; scaled cosines are bounded by themselves. None is published.

    Returns:
        Scalar >= 0, in nats, averaged over batch and experts; 0 of one expert or of fewer than two columns.

    Reference: Wang et al., RIDE, section 3.2, as its code has it: divergence from the mean, not pairwise.
    Deviation: experts are averaged; times K, ``mean(temperatures)**2`` and the factor -0.45 it is the published sum.

    Example:
        >>> odds = torch.tensor([[[1.0, 1.0]], [[1.0, 9.0]]])  # their mean answers (1/4, 3/4)
        >>> distribution_aware_diversity(odds.log(), torch.ones(2))
        tensor(0.1116)
    """
    logits = expert_logits[..., first_class:] / temperatures[first_class:].to(expert_logits)
    log_mean = F.log_softmax(logits.mean(0), dim=-1).detach()
    divergence = (log_mean.exp() * (log_mean - F.log_softmax(logits, dim=-1))).sum(-1)
    if cap is not None:
        divergence = divergence.clamp(max=cap)
    return (divergence if images is None else divergence * images).mean()


def ensemble_distillation(expert_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.5) -> Tensor:
    r"""KL from a larger ensemble's mean answer to that of the experts, both softened, times T squared.

    Args:
        expert_logits: ``[K, B, C]``.
        teacher_logits: The teacher's combined logits ``[B, O]``, O <= C; detached here.
        temperature: T > 0.

    Returns:
        Scalar, in nats, averaged over the batch.

    Reference: RIDE's code, option with a teacher of 6 experts. Published total: K times (sum of the experts' losses +
    this term); the factor K over both comes from a loop that never uses its expert.
    """
    return knowledge_distillation(expert_logits.mean(0), teacher_logits, temperature)
