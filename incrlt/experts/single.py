"""One expert: a plain network with a classification loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from incrlt.experiment.fields import Count, ExpertCount, Fraction, NonNegative, Positive
from incrlt.experts.base import ExpertMethod, fused, ldam_tensors, log_prior
from incrlt.kernels import TermSpec, TermTensors
from incrlt.losses.prior import prior_cross_entropy, running_prior, static_prior
from incrlt.models import ExpertNetwork
from incrlt.models.layout import Layout
from incrlt.types import LossContext, LossTerms, ModelOutput

RUNNING_PRIOR = "running_prior"
"""Under this name the network keeps its mean answer in training ``[C]``, NaN before the first batch."""


@dataclass(frozen=True)
class Single(ExpertMethod):
    r"""A single network, K = 1; with ``num_experts`` also the plain ensemble, which multi-expert methods must beat.

    .. math:: L = -\frac{1}{K} \sum_k \log \frac{e^{z_{k,y} + a_y}}{\sum_c e^{z_{k,c} + a_c}}

    with a = 0 (``cross_entropy``), :math:`\log n_c`, :math:`\tau \log n_c`, the log of the running prior, or a margin
    taken from the label's logit alone (``ldam``).

    Counts: priors, margins and weights take images per class as the sampler draws them.
    """

    name = "single"
    title = (
        ("balanced softmax", "objective == 'balanced_softmax'"),
        ("logit adjustment", "objective == 'logit_adjustment'"),
        ("running prior", "objective == 'running_prior'"),
        ("ldam", "objective == 'ldam'"),
        ("{num_experts} branches", "num_experts > 1"),
    )
    needs: ClassVar[dict[str, str]] = {"cosine": "objective == 'ldam'"}

    objective: Literal["cross_entropy", "balanced_softmax", "logit_adjustment", "running_prior", "ldam"] = (
        "cross_entropy"
    )
    """``balanced_softmax`` (Ren et al. 2020) adds the log prior of the training stream, exemplars included;
    ``logit_adjustment`` (Menon et al. 2021) ``tau`` times that; ``running_prior`` (AdaPrior 2026) the log of the
    network's own mean answer, which begins as that prior in each experience; ``ldam`` (Cao et al. 2019) subtracts a
    margin that grows towards the tail, re-weighted late, and needs a cosine head."""
    num_experts: ExpertCount = 1
    """Branches K behind a shared stem, each with its own head and loss; the answer is the mean of their logits."""
    tau: NonNegative = 1.0
    """Strength of ``logit_adjustment``."""
    prior_rate: Fraction = 0.05
    """Share of a new batch in ``running_prior``."""
    max_margin: NonNegative = 0.5
    """Margin of the rarest class, in cosine (``ldam``)."""
    margin_images: Count = 5
    """Images of a class that gets ``max_margin``."""
    reweight_after: Fraction = 0.8
    """Fraction of the epochs after which ``ldam`` is re-weighted by effective numbers."""
    beta: Fraction = 0.9999
    """Base of the effective numbers (Cui et al. 2019)."""
    scale: Positive = 1.0
    """Scale of a cosine head at the start: 1 in LUCIR, 30 for ``ldam``."""
    learn_scale: bool = True
    """Let the scale train."""

    @property
    def layout(self) -> Layout:
        """K branches of full width behind a shared stem."""
        return Layout(num_experts=self.num_experts, scale=self.scale, learn_scale=self.learn_scale)

    def phase(self, context: LossContext) -> bool:
        """LDAM re-weights late."""
        return self.objective == "ldam" and context.reached(self.reweight_after)

    def begin_experience(self, network: ExpertNetwork) -> None:
        """Let the running prior begin anew: it takes the counts when the first batch tells them."""
        if self.objective == "running_prior":
            network.remember(RUNNING_PRIOR, torch.full((network.num_classes,), torch.nan))

    def _running_prior(self, context: LossContext, output: ModelOutput) -> Tensor:
        """Return the prior after this batch ``[C]``; the network keeps it."""
        prior = None if context.network is None else context.network.recall(RUNNING_PRIOR)
        start = context.constant("static_prior", lambda: static_prior(context.class_counts))
        before = start if prior is None else torch.where(prior.isnan(), start, prior)
        after = running_prior(before, output.expert_logits, self.prior_rate)
        if prior is not None:
            prior.copy_(after)
        return after

    def loss(self, context: LossContext, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Return the classification term; see :class:`incrlt.experts.base.ExpertMethod`."""
        if self.objective == "running_prior":
            prior = self._running_prior(context, output)
            return {self.objective: prior_cross_entropy(output.expert_logits, labels, prior)}
        tensors = TermTensors()
        if self.objective == "balanced_softmax":
            tensors = TermTensors(prior=log_prior(context))
        elif self.objective == "logit_adjustment":
            tensors = TermTensors(prior=log_prior(context, self.tau))
        elif self.objective == "ldam":
            tensors = ldam_tensors(
                context, output, self.max_margin, self.margin_images, self.beta, self.phase(context)
            )
        return fused(
            context, output, labels, TermSpec(classification=1.0), tensors, classification=self.objective
        )
