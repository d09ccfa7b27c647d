"""NCL: nested collaborative learning.

Li et al., CVPR 2022; official code Bazinga699/NCL. K whole networks learn side by side, on all classes and, nested
inside, on each image's hardest ones; they teach each other on both, and a momentum encoder adds a contrastive term.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from incrlt.data.augment import CONTRASTIVE
from incrlt.experiment.fields import ExpertCount, Fraction, NonNegative, Positive, Size
from incrlt.experts.base import ExpertMethod, drawn, fused, log_prior, scaled
from incrlt.kernels import TermSpec, TermTensors
from incrlt.losses import (
    balanced_softmax,
    hard_category_cross_entropy,
    hard_columns,
    momentum_contrast,
    online_distillation,
)
from incrlt.models import ExpertNetwork
from incrlt.models.layout import ContrastLayout, Layout
from incrlt.models.precision import at_least_float
from incrlt.types import LossContext, LossTerms, ModelOutput

FLOOR = 1e-9
"""What the official code adds to a probability inside a logarithm."""

NAMES = {
    "classification": "balanced_softmax",
    "hard_classification": "hard_categories",
    "mutual": "distillation",
    "hard_mutual": "hard_distillation",
}
"""The paper's terms by their names in the fused op."""


@dataclass(frozen=True)
class NCL(ExpertMethod):
    r"""K separate networks with balanced softmax, hard categories and mutual distillation; mean of the logits.

    .. math:: L = \frac{1}{K} \sum_k \big[ B(z_k) + \lambda_h B_H(z_k) \big] + \frac{1}{K (K - 1)} \sum_{i \ne j} \big[
        \lambda_d \, \mathrm{KL}(p_j \| p_i) + \lambda_{hd} \, \mathrm{KL}(p_j^H \| p_i^H) \big] + \lambda_c L_c

    B is balanced softmax and p its probabilities, over all classes or over the hardest ones H of the image,
    :math:`L_c` the contrastive term; weights are ``hard``, ``distillation``, ``hard_distillation`` and ``contrastive``.

    Counts: the log prior in every term takes images per class as the sampler draws them.

    Deviations of the default flavor from the official code: terms are averaged over experts; unselected categories
    leave the softmax of the hard terms (the code leaves them in at logit 0); hard categories are those of the mean
    answer, not of the first network; ``log_softmax`` in place of ``log(p + 1e-9)``; the momentum encoder starts as a
    copy, includes the projection, and its queue is emptied when classes arrive. In no flavor: the official cosine heads
    (ImageNet-LT, iNaturalist, Places-LT) add a learnable bias to the scaled cosines, ours do not.
    """

    name = "ncl"
    title = "NCL"
    offline_title = "NCL-{num_experts}"
    needs: ClassVar[dict[str, str]] = {"tensors": "contrastive"}  # a second view of each image
    clashes: ClassVar[dict[str, str]] = {
        "contrastive and training.step == 'graph'": (
            "training.step 'graph' cannot draw the second views of experts.contrastive. Set training.step: auto, or "
            "contrastive: 0."
        )
    }

    num_experts: ExpertCount = 3
    """Networks K."""
    hard_share: Fraction = 0.3
    """Hard categories of an image, as a share of the classes seen (30 of 100, 300 of 1000); at least 2."""
    hard: NonNegative = 1.0
    """Weight of the cross entropy over hard categories."""
    distillation: NonNegative = 0.6
    """Weight of mutual distillation over all classes."""
    hard_distillation: NonNegative = 0.6
    """Weight of mutual distillation over hard categories."""
    contrastive: NonNegative = 0.0
    """Weight of the contrastive term, which costs a second forward pass; the paper's setting with it has 1."""
    contrastive_temperature: Positive = 0.2
    """Softens its similarities."""
    projection: Size = 64
    """Width of the projections (CIFAR 64, Places 1024)."""
    queue: Size = 1024
    """Keys to tell apart from (CIFAR 1024, Places 65536)."""
    momentum: Fraction = 0.999
    """Share of the momentum encoder that stays at each step."""
    scale: Positive = 16.0
    """Scale of cosine heads at the start (16 on ImageNet-LT, 32 on iNaturalist; linear heads have none)."""
    learn_scale: bool = False
    """Let that scale train; the official one is fixed. Learnt, it falls below 8 early on and the networks underfit."""
    flavor: Literal["sane", "published"] = "sane"
    """``published``: the official code, accidents included."""

    @property
    def layout(self) -> Layout:
        """K whole networks."""
        contrast = None
        if self.contrastive:
            contrast = ContrastLayout(
                dim=self.projection,
                queue_size=self.queue,
                momentum=self.momentum,
                published=self.flavor == "published",
            )
        return Layout(
            num_experts=self.num_experts,
            shared="nothing",
            shortcut="padding",
            scale=self.scale,
            learn_scale=self.learn_scale,
            contrast=contrast,
        )

    def num_hard(self, num_classes: int) -> int:
        """Return the number of hard categories among the classes seen, the label included."""
        return min(num_classes, max(2, round(self.hard_share * num_classes)))

    def phase(self, context: LossContext) -> Hashable:
        """The loss stays the same."""
        return None

    def loss(self, context: LossContext, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Return the nested individual, the mutual and the contrastive terms."""
        published = self.flavor == "published"
        terms = (self._published if published else self._nested)(context, output, labels)
        if self.contrastive:
            terms["contrastive"] = self.contrastive * self._contrast(context, output)
        return scaled(terms, self.num_experts if published else 1)

    def _nested(self, context: LossContext, output: ModelOutput, labels: Tensor) -> LossTerms:
        several = self.num_experts > 1
        spec = TermSpec(
            classification=1.0,
            hard_classification=self.hard,
            mutual=self.distillation if several else 0.0,
            hard_mutual=self.hard_distillation if several else 0.0,
            num_hard=self.num_hard(output.expert_logits.shape[-1]),
        )
        tensors = TermTensors(prior=log_prior(context))
        return fused(context, output, labels, spec, tensors, **NAMES)

    def _published(self, context: LossContext, output: ModelOutput, labels: Tensor) -> LossTerms:
        counts_C, logits_KBC = drawn(context), output.expert_logits
        columns_BH = hard_columns(logits_KBC[0], labels, self.num_hard(logits_KBC.shape[-1]))
        terms = {"balanced_softmax": balanced_softmax(logits_KBC, labels, counts_C)}
        if self.hard:
            terms["hard_categories"] = self.hard * hard_category_cross_entropy(
                logits_KBC, labels, counts_C, columns_BH, flavor="published"
            )
        if self.num_experts > 1 and self.distillation:
            terms["distillation"] = self.distillation * online_distillation(logits_KBC, counts_C, floor=FLOOR)
        if self.num_experts > 1 and self.hard_distillation:
            terms["hard_distillation"] = self.hard_distillation * online_distillation(
                logits_KBC, counts_C, columns_BH, flavor="published", floor=FLOOR
            )
        return terms

    def _contrast(self, context: LossContext, output: ModelOutput) -> Tensor:
        """Advance the momentum encoder, compare with its keys of a second view, and queue them (MoCo's order)."""
        network, contrast = context.network, context.network.contrast
        assert context.second_view is not None, "the strategy gives views of its batches"
        contrast.update(network.branches)
        with torch.no_grad(), context.autocast():
            keys_KBP = at_least_float(contrast.keys(context.second_view(CONTRASTIVE)))
        negatives_KPQ, valid_Q = contrast.negatives()
        loss = momentum_contrast(
            contrast.project(output.known_features),
            keys_KBP,
            negatives_KPQ,
            valid_Q,
            self.contrastive_temperature,
        )
        contrast.enqueue(keys_KBP)
        return loss

    def begin_experience(self, network: ExpertNetwork) -> None:
        """Copy the networks into the momentum encoder and empty its queue: old keys are of another model."""
        if network.contrast is not None and self.flavor == "sane":
            network.contrast.restart(network.branches)
