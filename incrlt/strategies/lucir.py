"""LUCIR: learning a unified classifier incrementally via rebalancing.

Hou et al., CVPR 2019; official code hshustc/CVPR19_Incremental_Learning. Cosine heads put old and new classes on one
scale, less-forget keeps the direction of features, margin ranking separates old from new, imprinting starts the
new rows at their class means. Every part can be switched for the paper's ablation. With K experts each term is
computed per expert, on its own features and cosines against the same expert of the teacher, and averaged.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import MultiStepLR

from incrlt.errors import UserError
from incrlt.experiment.fields import Count, Index, NonNegative
from incrlt.kernels import TermSpec, TermTensors, expert_loss, less_forget
from incrlt.losses import adaptive_weight, mimic_scores
from incrlt.plugins.features import features_of
from incrlt.roles import Experience, State
from incrlt.training.checks import check_finetuned_heads
from incrlt.training.class_means import ClassMeans
from incrlt.training.optim import head_rows
from incrlt.training.template import IncrTemplate
from incrlt.types import LossTerms, ModelOutput, Stage


class LUCIR(IncrTemplate):
    r"""Cosine heads, less-forget, margin ranking, imprinting, and an optional class-balanced finetune.

    .. math:: L = L_{experts} + \lambda \sqrt{|C_{old}| / |C_{new}|} \, (1 - \cos(f, f^*))
        + \mu \frac{1}{|S_{old}| J} \sum_{i \in S_{old}} \sum_{j \le J} \max(0, m - c_{i,y_i} + t_{i,j})

    Of each expert, then averaged: f its features and f* the teacher's, c its cosines, t the J largest cosines to new
    classes; :math:`\lambda` is ``less_forget``, :math:`\mu` ``margin_ranking``, m ``margin``, J ``num_negatives``.

    Args:
        less_forget: Base weight of the less-forget term; 5 for CIFAR-100, 10 for ImageNet. 0 switches it off.
        adaptive: Multiply the weight by sqrt(old classes / new classes).
        mimic_scores: Weight of the term that keeps cosines to old classes (the paper's ablation without
            less-forget); 0 switches it off.
        margin_ranking: Weight of the margin ranking term; 0 switches it off.
        margin: Margin of the ranking, in cosine.
        num_negatives: Hardest negatives per old sample.
        negatives: ``new`` ranks against new classes, ``all`` against every other class.
        imprint: Start new head rows at the mean feature of their class.
        freeze_old_rows: Keep head rows of old classes as they are; the official code does with less-forget.
        class_balanced_finetune: Epochs on exemplars alone after training, frozen backbone, learning rate 0.01,
            x 0.1 half-way (the official ImageNet script: 20); 0 switches it off.
        readout: ``cnn`` (the head) or ``nme`` (nearest mean of exemplars); the other one is recorded too.
        template: Arguments of :class:`~incrlt.training.template.IncrTemplate`.

    Raises:
        UserError: The head is not a cosine head; ``nme`` or the finetune without a memory.

    Deviation: none that changes the mathematics with one expert. Old rows are restored after each step where the
    official code gives them learning rate 0; weight decay of the class-balanced finetune is the optimizer's own.
    """

    name: ClassVar[str] = "lucir"
    title: ClassVar[str] = "LUCIR"
    needs: ClassVar[dict[str, str]] = {
        "cosine": "margin_ranking or mimic_scores",
        "memory": "readout == 'nme' or class_balanced_finetune",
    }
    later_stages: ClassVar[tuple[tuple[str, str, str], ...]] = (
        ("class_balanced_finetune", "class_balanced_finetune if num_old else 0", "exemplars"),
    )
    clashes: ClassVar[dict[str, str]] = {
        "class_balanced_finetune and experts.second_heads": (
            "strategy.class_balanced_finetune would train heads that experts '{experts[name]}' do not answer with. "
            "Set class_balanced_finetune: 0, or experts.classifier_epochs: 0."
        )
    }
    steady: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = True
    needs_network: ClassVar[bool] = True

    def __init__(
        self,
        *,
        less_forget: NonNegative = 5.0,
        adaptive: bool = True,
        mimic_scores: NonNegative = 0.0,
        margin_ranking: NonNegative = 1.0,
        margin: NonNegative = 0.5,
        num_negatives: Count = 2,
        negatives: Literal["new", "all"] = "new",
        imprint: bool = True,
        freeze_old_rows: bool = True,
        class_balanced_finetune: Index = 0,
        readout: Literal["cnn", "nme"] = "cnn",
        **template: object,
    ) -> None:
        super().__init__(**template)
        self.less_forget, self.adaptive, self.mimic_scores = less_forget, adaptive, mimic_scores
        self.margin_ranking, self.margin = margin_ranking, margin
        self.num_negatives, self.negatives = num_negatives, negatives
        self.imprint, self.freeze_old_rows = imprint, freeze_old_rows
        self.class_balanced_finetune = class_balanced_finetune
        self.class_means = ClassMeans(first=readout == "nme")
        self._check_lucir(readout)

    def _check_lucir(self, readout: str) -> None:
        if not self.model.has_cosine_heads and (self.margin_ranking or self.mimic_scores):
            raise UserError(
                "strategy 'lucir' ranks cosines: set model.head: cosine, or margin_ranking: 0 and mimic_scores: 0 "
                "for the ablation without cosine normalisation."
            )
        if self.memory is None and (readout == "nme" or self.class_balanced_finetune):
            raise UserError(
                "readout: nme and class_balanced_finetune need exemplars; set memory: {per_class: 20}."
            )
        if self.class_balanced_finetune:
            check_finetuned_heads(self.experts)

    @property
    def less_forget_weight(self) -> float:
        """Weight of the less-forget term in this experience."""
        if not self.adaptive or not self.num_new:
            return self.less_forget
        return adaptive_weight(self.less_forget, self.num_old, self.num_new)

    def begin_experience(self, experience: Experience) -> None:
        """Imprint the new rows with features of the model as it was before this experience."""
        if not (self.imprint and self.num_old and self.num_new):
            return
        features_N, labels_N = features_of(self, experience.dataset)
        positions_N = self.model.positions(labels_N) - self.num_old
        new_N = positions_N >= 0  # classes that come again keep their rows
        width = self.model.heads[0].num_features
        unit_KND = F.normalize(features_N[new_N].reshape(int(new_N.sum()), -1, width).transpose(0, 1), dim=-1)
        means_KCD = unit_KND.new_zeros(len(unit_KND), self.num_new, width).index_add_(
            1, positions_N[new_N], unit_KND
        )
        self.model.imprint(F.normalize(means_KCD, dim=-1))

    def loss_terms(self, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Return classification, less-forget, mimic-scores and margin-ranking terms."""
        terms = super().loss_terms(output, labels)
        teacher = self.teacher_output()
        if teacher is None:
            return terms
        if self.less_forget:
            distance = less_forget(output.known_features, teacher.known_features, kernels=self.kernels)
            terms["less_forget"] = self.expert_scale * self.less_forget_weight * distance
        if self.mimic_scores:
            distance = mimic_scores(output.known_cosines, teacher.known_cosines)
            terms["mimic_scores"] = self.expert_scale * self.mimic_scores * distance
        if self.margin_ranking:
            terms["margin_ranking"] = self._ranking(output, labels)
        return terms

    def _ranking(self, output: ModelOutput, labels: Tensor) -> Tensor:
        spec = TermSpec(
            ranking=self.expert_scale * self.margin_ranking,
            num_old=self.num_old,
            margin=self.margin,
            num_negatives=self.num_negatives,
            negatives=self.negatives,
        )
        tensors = TermTensors(cosines=output.known_cosines)
        return expert_loss(output.expert_logits, labels, spec, tensors, kernels=self.kernels)["ranking"]

    def stages(self, experience: Experience) -> tuple[Stage, ...]:
        """Add the class-balanced finetune from the second experience on."""
        stages = super().stages(experience)
        if not (self.class_balanced_finetune and self.num_old):
            return stages
        finetune = Stage(
            "class_balanced_finetune",
            self.class_balanced_finetune,
            lr=0.01,
            parameters=head_rows,
            schedule=lambda optimizer, epochs: MultiStepLR(optimizer, [max(1, epochs // 2)], 0.1),
            data="exemplars",
            frozen_backbone=True,
            freeze_old=False,
        )
        return (stages[0], finetune, *stages[1:])

    def end_experience(self, experience: Experience) -> None:
        """Compute the means of the exemplars of all classes."""
        if self.memory is not None:
            self.class_means.update(self)

    def readouts(self, output: ModelOutput) -> dict[str, Tensor]:
        """Return the scores of both read-outs."""
        return self.class_means.readouts(output)

    def extra_state(self) -> State:
        """Return the class means."""
        return self.class_means.state_dict()

    def load_extra_state(self, state: State) -> None:
        """Restore the class means."""
        self.class_means.load_state_dict(state)
