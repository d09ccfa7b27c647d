"""RIDE: routing diverse distribution-aware experts.

Wang et al., ICLR 2021; official code frank-xwang/RIDE-LongTailRecognition. Experts of reduced width share the
stem, each trains with a margin that grows towards the tail (LDAM, re-weighted late), and a diversity term keeps
their answers apart. The router of the paper is a stage of its own (``router: {name: expert_assignment}``), since it
serves any method with two experts or more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from incrlt.experiment.fields import Count, ExpertCount, Fraction, NonNegative, PathText, Positive
from incrlt.experts.base import ExpertMethod, drawn, fused, ldam_tensors, log_prior, scaled
from incrlt.kernels import TermSpec, TermTensors
from incrlt.losses import class_temperatures, distribution_aware_diversity, ensemble_distillation, ldam
from incrlt.models import ExpertNetwork, load
from incrlt.models.layout import Layout
from incrlt.types import LossContext, LossTerms, ModelOutput


@dataclass(frozen=True)
class RIDE(ExpertMethod):
    r"""K narrow experts behind a shared stem, pushed apart; the answer is the mean of their logits.

    .. math:: L = \frac{1}{K} \sum_k \Big[ L_{LDAM}(z_k, y) + \lambda \, \bar\tau^2 \, \mathrm{KL}\big(
        \mathrm{softmax}(\bar z / \tau) \,\|\, \mathrm{softmax}(z_k / \tau) \big) \Big]

    :math:`\lambda` is ``diversity`` (negative), :math:`\tau` a temperature per class, :math:`\bar z` the mean of the
    experts' logits, which takes no gradient in that term.

    Counts: margins, weights, priors and temperatures take images per class as the sampler draws them.

    Deviations of the default flavor from the official code: terms are averaged over experts, not summed; the
    diversity term acts on new classes alone, since disagreement about old ones destroys what they keep; margins are
    normalised by a fixed number of images, so that they do not jump when classes arrive.
    """

    name = "ride"
    title = "RIDE"
    offline_title = (("RIDE-{num_experts}", "True"), ("distill", "teacher"))
    needs_cosine = True
    clashes: ClassVar[dict[str, str]] = {
        "teacher and training.step == 'graph'": (
            "training.step 'graph' does not capture the answers of experts.teacher. Set training.step: auto."
        )
    }

    num_experts: ExpertCount = 3
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
    width_factor: Annotated[float, Field(ge=0.5, le=16)] = 0.75
    """Channels of the experts' own stages relative to the plain network; below a half, padding would lose channels."""
    scale: Positive = 30.0
    """Scale of the cosine heads at the start."""
    learn_scale: bool = False
    """Let the scale train, as LUCIR does."""
    teacher: PathText | None = None
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

    @property
    def expert_scale(self) -> int:
        """Sums in the published flavor; with a teacher its code multiplies by K once more."""
        return 1 if self.averaged else self.num_experts ** (1 if self.teacher is None else 2)

    def guide(self) -> ExpertNetwork | None:
        """Load the larger teacher, where one is named."""
        return None if self.teacher is None else load(self.teacher)

    def phase(self, context: LossContext) -> bool:
        """Re-weighting and temperatures set in late."""
        return context.reached(self.reweight_after)

    def loss(self, context: LossContext, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Return the experts' loss, the diversity term and the distillation."""
        published = self.flavor == "published"
        terms = (self._published if published else self._distribution_aware)(context, output, labels)
        if context.guide is not None:
            distance = ensemble_distillation(output.expert_logits, context.guide().logits, self.temperature)
            terms["distillation"] = self.distillation * (self.num_experts if published else 1) * distance
        return terms

    def _distribution_aware(self, context: LossContext, output: ModelOutput, labels: Tensor) -> LossTerms:
        temperatures_C, factor = self._temperatures(context)
        spec = TermSpec(
            classification=1.0,
            diversity=self.diversity * factor if self.num_experts > 1 else 0.0,
            first_class=0 if self.diversity_classes == "all" else context.num_old,
        )
        tensors = replace(
            self._base_tensors(context, output, self.margin_images), temperatures=temperatures_C
        )
        return fused(context, output, labels, spec, tensors, classification=self.objective)

    def _base_tensors(self, context: LossContext, output: ModelOutput, smallest: float | None) -> TermTensors:
        if self.objective == "cross_entropy":
            return TermTensors()
        if self.objective == "balanced_softmax":
            return TermTensors(prior=log_prior(context))
        return ldam_tensors(context, output, self.max_margin, smallest, self.beta, self.phase(context))

    def _temperatures(self, context: LossContext) -> tuple[Tensor, float]:
        """Return class temperatures ``[C]`` and the square of their mean; both change once, late in the stage."""
        share = self.temperature_share if self.phase(context) else 0.0

        def compute() -> tuple[Tensor, float]:
            temperatures_C = class_temperatures(drawn(context), share)
            return temperatures_C, float(temperatures_C.mean().square())

        return context.constant(("temperatures", share), compute)

    def _published(self, context: LossContext, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Return the terms of the official code; without diversity it trains the mean answer alone."""
        tensors = self._base_tensors(context, output, None)
        if tensors.margins is not None and not self.diversity:
            scale = output.known_scales[0]
            base = {"ldam": ldam(output.logits, labels, tensors.margins, scale, tensors.class_weights)}
        else:
            trained = output if self.diversity else replace(output, expert_logits=output.logits[None])
            spec = TermSpec(classification=1.0)
            base = fused(context, trained, labels, spec, tensors, classification=self.objective)
        if self.diversity and self.num_experts > 1:
            temperatures_C, factor = self._temperatures(context)
            divergence = distribution_aware_diversity(output.expert_logits, temperatures_C)
            base["diversity"] = self.diversity * factor * divergence
        # the code sums over experts, and with a teacher multiplies by K once more
        return scaled(base, self.num_experts ** (1 if context.guide is None else 2))
