"""One expert: a plain network with a classification loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from incrlt.experts.base import ExpertMethod
from incrlt.fields import Count, Fraction, NonNegative, Positive
from incrlt.losses import (
    balanced_softmax,
    class_balanced_weights,
    cross_entropy,
    ldam,
    ldam_margins,
    logit_adjusted,
)
from incrlt.models.layout import Layout
from incrlt.types import LossContext, LossTerms, ModelOutput


@dataclass(frozen=True)
class Single(ExpertMethod):
    """A single network, K = 1; with ``num_experts`` also the plain ensemble, which multi-expert methods must beat.

    Counts: priors, margins and weights take images per class as the sampler draws them.
    """

    name = "single"

    objective: Literal["cross_entropy", "balanced_softmax", "logit_adjustment", "ldam"] = "cross_entropy"
    """``balanced_softmax`` (Ren et al. 2020) adds the log prior of the training stream, exemplars included;
    ``logit_adjustment`` (Menon et al. 2021) ``tau`` times that; ``ldam`` (Cao et al. 2019) subtracts a margin that
    grows towards the tail, re-weighted late, and needs a cosine head."""
    num_experts: Count = 1
    """Branches K behind a shared stem, each with its own head and loss; the answer is the mean of their logits."""
    tau: NonNegative = 1.0
    """Strength of ``logit_adjustment``."""
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

    def loss(self, context: LossContext, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Return the classification term; see :class:`incrlt.experts.base.ExpertMethod`."""
        logits, counts = output.expert_logits, context.class_counts
        if self.objective == "balanced_softmax":
            return {"balanced_softmax": balanced_softmax(logits, labels, counts)}
        if self.objective == "logit_adjustment":
            return {"logit_adjustment": logit_adjusted(logits, labels, counts, self.tau)}
        if self.objective == "ldam":
            margins = ldam_margins(counts, self.max_margin, self.margin_images)
            late = context.epoch >= self.reweight_after * context.epochs
            weights = class_balanced_weights(counts, self.beta) if late else None
            return {"ldam": ldam(logits, labels, margins, output.scales, weights)}
        return {"cross_entropy": cross_entropy(logits, labels)}
