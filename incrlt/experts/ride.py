"""RIDE: routing diverse distribution-aware experts.

Wang et al., ICLR 2021; official code frank-xwang/RIDE-LongTailRecognition. Experts of reduced width share the
stem, each trains with a margin that grows towards the tail (LDAM, re-weighted late), and a diversity term keeps
their answers apart. The router of the paper is a stage of its own (``router: {name: expert_assignment}``), since it
serves any method with two experts or more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from incrlt.experts.base import ExpertMethod, scaled
from incrlt.fields import Count, Fraction, NonNegative, Positive
from incrlt.losses import (
    balanced_softmax,
    class_balanced_weights,
    class_temperatures,
    cross_entropy,
    distribution_aware_diversity,
    ensemble_distillation,
    ldam,
    ldam_margins,
)
from incrlt.models import ExpertNetwork, load
from incrlt.models.layout import Layout
from incrlt.types import LossContext, LossTerms, ModelOutput


@dataclass(frozen=True)
class RIDE(ExpertMethod):
    """K narrow experts behind a shared stem, pushed apart; the answer is the mean of their logits.

    Counts: margins, weights, priors and temperatures take images per class as the sampler draws them.

    Deviations of the default flavor from the official code: terms are averaged over experts, not summed; the
    diversity term acts on new classes alone, since disagreement about old ones destroys what they keep; margins are
    normalised by a fixed number of images, so that they do not jump when classes arrive.
    """

    name = "ride"
    needs_cosine = True

    num_experts: Count = 3
    """Experts K; the paper has 2, 3 and 4, and 6 for a teacher."""
    objective: Literal["ldam", "balanced_softmax", "cross_entropy"] = "ldam"
    """Loss of each expert; ``ldam`` is the paper's, ``balanced_softmax`` adds the log prior instead of margins."""
    max_margin: NonNegative = 0.5
    """Margin of the rarest class, in cosine (LDAM)."""
    margin_images: Count = 5
    """Images of a class that gets ``max_margin``; the published flavor takes the rarest class of the stream."""
    reweight_after: Fraction = 0.8
    """Fraction of the epochs after which LDAM is re-weighted by effective numbers and temperatures set in
    (160 of 200)."""
    beta: Fraction = 0.9999
    """Base of the effective numbers (Cui et al. 2019)."""
    diversity: float = -0.45
    """Weight of the divergence from the mean; negative pushes experts apart. -0.45 on CIFAR, -0.2 on ImageNet-LT
    and iNaturalist; 0 switches it off."""
    diversity_classes: Literal["new", "all"] = "new"
    """Classes whose logits, and whose images, are to differ; in one task both are the same."""
    temperature_share: Fraction = 0.05
    """How far temperatures follow the class prior: 0.05 on CIFAR, 0.02 on ImageNet-LT, 0.015 on iNaturalist."""
    width_factor: Positive = 0.75
    """Channels of the experts' own stages relative to the plain network."""
    scale: Positive = 30.0
    """Scale of the cosine heads at the start."""
    learn_scale: bool = False
    """Let the scale train, as LUCIR does."""
    teacher: str | None = None
    """Run folder of a larger RIDE trained on the same classes; its mean answer is distilled."""
    distillation: NonNegative = 1.0
    """Weight of that distillation."""
    temperature: Positive = 1.5
    """Softens teacher and model in it."""
    flavor: Literal["sane", "published"] = "sane"
    """``published``: sums over experts, diversity on all classes, margins by the rarest class, and with
    ``diversity: 0`` the loss of the mean answer in place of each expert's, as the official code."""

    @property
    def layout(self) -> Layout:
        """Narrow branches with padding shortcuts behind a shared stem; heads on the unit sphere."""
        return Layout(
            num_experts=self.num_experts,
            width_factor=self.width_factor,
            shortcut="padding",
            scale=self.scale,
            learn_scale=self.learn_scale,
            unit_rows=True,
        )

    def guide(self) -> ExpertNetwork | None:
        """Load the larger teacher, where one is named."""
        return None if self.teacher is None else load(self.teacher)

    def loss(self, context: LossContext, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Return the experts' loss, the diversity term and the distillation."""
        late = context.epoch >= self.reweight_after * context.epochs
        terms: LossTerms = {self.objective: self._base(context, output, labels, late)}
        if self.diversity and self.num_experts > 1:
            terms["diversity"] = self.diversity * self._divergence(context, output, labels, late)
        if (
            self.flavor == "published"
        ):  # the code sums over experts, and with a teacher multiplies by K once more
            terms = scaled(terms, self.num_experts ** (1 if context.guide is None else 2))
        if context.guide is not None:
            distance = ensemble_distillation(output.expert_logits, context.guide().logits, self.temperature)
            weight = self.distillation * (self.num_experts if self.flavor == "published" else 1)
            terms["distillation"] = weight * distance
        return terms

    def _base(self, context: LossContext, output: ModelOutput, labels: Tensor, late: bool) -> Tensor:
        counts = context.class_counts
        if self.objective == "cross_entropy":
            return cross_entropy(output.expert_logits, labels)
        if self.objective == "balanced_softmax":
            return balanced_softmax(output.expert_logits, labels, counts)
        smallest = None if self.flavor == "published" else self.margin_images
        margins = ldam_margins(counts, self.max_margin, smallest)
        weights = class_balanced_weights(counts, self.beta) if late else None
        if self.flavor == "published" and not self.diversity:
            return ldam(output.logits, labels, margins, output.known_scales[0], weights)
        return ldam(output.expert_logits, labels, margins, output.scales, weights)

    def _divergence(self, context: LossContext, output: ModelOutput, labels: Tensor, late: bool) -> Tensor:
        temperatures = class_temperatures(context.class_counts, self.temperature_share if late else 0.0)
        first = 0 if self.flavor == "published" or self.diversity_classes == "all" else context.num_old
        divergence = distribution_aware_diversity(
            output.expert_logits, temperatures, first_class=first, images=labels >= first
        )
        return temperatures.mean().square() * divergence
