"""SHIKE: self-heterogeneous integration with knowledge excavation.

Jin et al., CVPR 2023; official code jinyan-06/SHIKE. Experts fuse the shared features of one depth with their own
last stage, learn from each other's non-target answers, and get a second classifier, balanced, once features are
learned.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from incrlt.errors import UserError
from incrlt.experiment.fields import ExpertCount, Index, NonNegative, Positive
from incrlt.experts.base import ExpertMethod, drawn, fused, log_prior, scaled
from incrlt.kernels import TermSpec, TermTensors
from incrlt.losses import (
    balanced_softmax,
    cross_entropy,
    dynamic_knowledge_transfer,
    mutual_distillation,
)
from incrlt.models.layout import Layout
from incrlt.schedules import cosine
from incrlt.types import LossContext, LossTerms, ModelOutput, Stage

OFFICIAL_CLASSES = 100
"""Classes of the only setting whose code is public."""


@dataclass(frozen=True)
class SHIKE(ExpertMethod):
    r"""K experts over two shared stages, fused depth-wise, with a second classifier; mean of the logits.

    .. math:: L = \frac{1}{K} \sum_k \Big[ L_{ce}(z_k) + \lambda_t \, \mathrm{KL}(\tilde p \,\|\, \tilde p_k)
        + \lambda_m \sum_{j \ne k} \mathrm{KL}(p_j \| p_k) \Big]

    Tilde: softmax over the classes beside the label, of the teacher that all experts form
    (:func:`~incrlt.losses.dynamic_knowledge_transfer`) and of expert k; :math:`\lambda_t` is ``transfer``,
    :math:`\lambda_m` ``mutual``. Then, on second heads over frozen features: balanced softmax.

    Counts: the first stage uses none; the prior of the classifier stage takes images per class as drawn.

    Deviations of the default flavor from the official code: terms are averaged over experts; the target column
    leaves teacher and student of the transfer term (the code leaves a logit of 0 against one of -30); weights do not
    change with the number of classes; the second classifier starts as a copy of the first, not at random, and
    batch-norm statistics stay while it trains.
    """

    name = "shike"
    title = "SHIKE"
    offline_title = "SHIKE-{num_experts}"
    needs_cosine = True
    needs: ClassVar[dict[str, str]] = {"tensors": "cache_features"}
    traits: ClassVar[dict[str, str]] = {"second_heads": "classifier_epochs > 0"}
    later_stages = (("classifier", "classifier_epochs", "stream"),)
    usual: ClassVar[dict[str, str]] = {
        "classifier_warmup": "classifier_epochs - 1 if 0 < classifier_epochs <= 5 else 5"
    }
    clashes: ClassVar[dict[str, str]] = {
        "classifier_epochs and classifier_warmup >= classifier_epochs": (
            "experts.classifier_warmup is {classifier_warmup}, but the classifier stage has only {classifier_epochs} "
            "epochs. Warm up for fewer."
        ),
        "cache_features and (flavor == 'published' or not classifier_epochs)": (
            "experts.cache_features stores what a classifier stage with a frozen backbone trains on; flavor '{flavor}' "
            "with classifier_epochs {classifier_epochs} has none. Set cache_features: false."
        ),
    }

    num_experts: ExpertCount = 3
    """Experts K."""
    objective: Literal["cross_entropy", "balanced_softmax"] = "cross_entropy"
    """Loss of the first stage; the paper's is plain."""
    transfer: NonNegative = 0.1
    """Weight of dynamic knowledge transfer (the code's 10 / 100 classes)."""
    mutual: NonNegative = 0.01
    """Weight of mutual distillation per pair of experts (the code's 1 / 100 classes)."""
    classifier_epochs: Index = 20
    """Epochs of the classifier stage; 0 keeps the first classifier alone."""
    classifier_lr: Positive = 0.1
    """Its learning rate, cosine to 0 after the warm-up."""
    classifier_warmup: Index = 5
    """Its epochs of linear warm-up; of a stage of 5 epochs or fewer, all but the last."""
    fusion: bool = True
    """Multiply the last map of each expert by one of another depth; without, experts on a pretrained network differ by
    their heads and losses."""
    cache_features: bool = False
    """Compute its frozen features once, of images without random augmentation: faster, other numbers."""
    scale: Positive = 30.0
    """Scale of the cosine heads at the start."""
    learn_scale: bool = False
    """Let the scale train, as LUCIR does."""
    flavor: Literal["sane", "published"] = "sane"
    """``published``: the official code, accidents included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cache_features and (self.flavor == "published" or not self.classifier_epochs):
            raise UserError(
                "experts.cache_features stores what a classifier stage with a frozen backbone trains on; flavor "
                f"{self.flavor!r} with classifier_epochs {self.classifier_epochs} has none. Set cache_features: false."
            )

    @property
    def layout(self) -> Layout:
        """Two shared stages, depth-wise fusion, two heads per expert on the unit sphere."""
        return Layout(
            num_experts=self.num_experts,
            shared="two_stages",
            fusion=self.fusion,
            scale=self.scale,
            learn_scale=self.learn_scale,
            unit_rows=True,
            second_heads=self.classifier_epochs > 0,
        )

    def phase(self, context: LossContext) -> Hashable:
        """The loss stays the same."""
        return None

    def loss(self, context: LossContext, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Return the experts' loss, dynamic knowledge transfer and mutual distillation."""
        if self.flavor == "published":
            return self._published(context, output, labels)
        others = self.num_experts - 1
        spec = TermSpec(
            classification=1.0,
            transfer=self.transfer if others else 0.0,
            mutual=self.mutual * others,
            mutual_prior=False,
        )
        plain = self.objective == "cross_entropy"
        tensors = TermTensors() if plain else TermTensors(prior=log_prior(context))
        return fused(context, output, labels, spec, tensors, classification=self.objective)

    def _published(self, context: LossContext, output: ModelOutput, labels: Tensor) -> LossTerms:
        logits_KBC = output.expert_logits
        plain = self.objective == "cross_entropy"
        base = (
            cross_entropy(logits_KBC, labels)
            if plain
            else balanced_softmax(logits_KBC, labels, drawn(context))
        )
        terms: LossTerms = {self.objective: base}
        # the official code averages over batch and classes: 10 and 1 there are 0.1 and 0.01 at 100 classes alone
        factor = OFFICIAL_CLASSES / logits_KBC.shape[-1]
        if self.num_experts > 1 and self.transfer:
            transfer = dynamic_knowledge_transfer(logits_KBC, labels, flavor="published")
            terms["transfer"] = self.transfer * factor * transfer
        if self.num_experts > 1 and self.mutual:
            terms["mutual"] = self.mutual * factor * mutual_distillation(logits_KBC)
        return scaled(terms, self.num_experts)

    def stages(self) -> tuple[Stage, ...]:
        """Return the classifier stage: second heads alone, on balanced softmax, on all the stream."""
        if not self.classifier_epochs:
            return ()
        sane = self.flavor == "sane"
        return (
            Stage(
                "classifier",
                self.classifier_epochs,
                lr=self.classifier_lr,
                parameters=_second_heads,
                schedule=cosine(min(self.classifier_warmup, self.classifier_epochs - 1)),
                frozen_backbone=sane,
                cache_features=self.cache_features,
                freeze_old=False,
                loss=_balanced,
                steady=True,
                rebalanced=True,
                prepare=_start_at_first if sane else None,
            ),
        )


def _balanced(context: LossContext, output: ModelOutput, labels: Tensor) -> LossTerms:
    tensors = TermTensors(prior=log_prior(context))
    spec = TermSpec(
        classification=float(context.expert_scale)
    )  # the official code sums over experts here too
    return fused(context, output, labels, spec, tensors, classification="balanced_softmax")


def _second_heads(model: Any) -> list[dict[str, object]]:
    return [{"params": [head.weight for head in model.second_heads]}]


@torch.no_grad()
def _start_at_first(network: Any, num_old: int) -> None:
    """Copy the rows of new classes from the first classifier; old ones keep what their own stage taught them."""
    for first, second in zip(network.heads, network.second_heads, strict=True):
        second.weight[num_old : network.num_classes] = first.weight[num_old : network.num_classes]
        second.scale.copy_(first.scale)
