"""PODNet: pooled outputs distillation.

Douillard et al., ECCV 2020; official code arthurdouillard/incremental_learning.pytorch, and approach/podnet.py of
xialeiliu/Long-Tailed-CIL, both held to stored arrays. What maps say on average over their rows and columns stays, and
each class has several proxies (``model.head: proxies``). Mathematics in :mod:`incrlt.losses.pooled` and
:mod:`incrlt.losses.proxies`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from incrlt.errors import UserError
from incrlt.experiment.fields import Index, NonNegative, Positive
from incrlt.experts.single import Single
from incrlt.kernels import less_forget
from incrlt.losses.pooled import class_growth, pooled_outputs_distillation
from incrlt.losses.proxies import nca
from incrlt.roles import Experience
from incrlt.training.checks import check_finetuned_heads
from incrlt.training.optim import head_rows
from incrlt.training.template import IncrTemplate
from incrlt.types import LossTerms, ModelOutput, Stage


class PODNet(IncrTemplate):
    r"""The expert method's loss or NCA, POD-spatial on the maps of every stage, POD-flat on the features.

    .. math:: L = L_{experts} + \sqrt{|C| / |C_{new}|} \, \Big( \lambda_f (1 - \cos(f, f^*)) + \frac{\lambda_s}{L}
        \sum_l \big\| \bar P(a_l^2) - \bar P(a_l^{*2}) \big\|_2 \Big)

    Of each expert, then averaged: f features, :math:`a_l` the map after stage l, P what ``pool`` sums them to, the bar
    length 1, a star the teacher; :math:`\lambda_s` is ``spatial``, :math:`\lambda_f` ``flat``.

    Args:
        spatial: Base weight of POD-spatial; 3 on CIFAR-100, 8 on ImageNet.
        flat: Base weight of POD-flat; 1 on CIFAR-100, 10 on ImageNet. Both are multiplied by
            sqrt(classes seen / new classes).
        pool: What is summed away of the squared maps, see :data:`~incrlt.losses.pooled.Pool`.
        objective: ``experts``: the expert method's loss, which with ``single`` is cross entropy of the scaled
            similarities, as Long-Tailed-CIL trains. ``published``: PODNet's code; ``paper``: its formula. Both stand
            in the place of the loss of ``single``, see :func:`~incrlt.losses.proxies.nca`.
        margin: Margin of ``objective: paper``; the official code has it and cancels it.
        freeze_old_rows: Keep head rows of old classes as they are, as both codes do.
        class_balanced_finetune: Epochs of a finetune of all head rows on exemplars from the second experience on: 20 in
            PODNet's code, none in Long-Tailed-CIL.
        finetune_lr: Its constant learning rate; 0.05 in PODNet's code on CIFAR-100.
        template: Arguments of :class:`~incrlt.training.template.IncrTemplate`.

    Raises:
        UserError: A head without cosines, or an ``objective`` of its own beside experts that bring one.

    Deviations: the backbone is the house's, with a ReLU after each residual addition but the last (the official ones
    have none; maps are taken before it). New rows are drawn, as in Long-Tailed-CIL, where PODNet's code imprints
    k-means of the features. ``head: cosine`` has one proxy per class. Experts are averaged.
    """

    name: ClassVar[str] = "podnet"
    title: ClassVar[str] = "PODNet"
    needs: ClassVar[dict[str, str]] = {"memory": "class_balanced_finetune"}
    later_stages: ClassVar[tuple[tuple[str, str, str], ...]] = (
        ("class_balanced_finetune", "class_balanced_finetune if num_old else 0", "exemplars"),
    )
    clashes: ClassVar[dict[str, str]] = {
        "objective != 'experts' and (experts.name != 'single' or experts.objective != 'cross_entropy')": (
            "strategy.objective '{objective}' stands in the place of the loss of experts '{experts[name]}'. Set "
            "objective: experts, or experts: {{name: single}}."
        ),
        "class_balanced_finetune and experts.second_heads": (
            "strategy.class_balanced_finetune would train heads that experts '{experts[name]}' do not answer with. Set "
            "class_balanced_finetune: 0, or experts.classifier_epochs: 0."
        ),
    }
    steady: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = True
    needs_network: ClassVar[bool] = True
    needs_cosine: ClassVar[bool] = True
    needs_maps: ClassVar[bool] = True

    def __init__(
        self,
        *,
        spatial: NonNegative = 3.0,
        flat: NonNegative = 1.0,
        pool: Literal["spatial", "height", "width", "channels", "gap"] = "spatial",
        objective: Literal["experts", "published", "paper"] = "experts",
        margin: NonNegative = 0.6,
        freeze_old_rows: bool = True,
        class_balanced_finetune: Index = 0,
        finetune_lr: Positive = 0.05,
        **template: object,
    ) -> None:
        super().__init__(**template)
        self.spatial, self.flat, self.pool = spatial, flat, pool
        self.objective, self.margin = objective, margin
        self.freeze_old_rows = freeze_old_rows
        self.class_balanced_finetune, self.finetune_lr = class_balanced_finetune, finetune_lr
        self._check_podnet()

    def _check_podnet(self) -> None:
        plain = isinstance(self.experts, Single) and self.experts.objective == "cross_entropy"
        if self.objective != "experts" and not plain:
            raise UserError(
                f"objective {self.objective!r} stands in the place of the loss of experts '{self.experts.name}'; set "
                "objective: experts, or experts: {name: single}."
            )
        if self.class_balanced_finetune and self.memory is None:
            raise UserError(
                "class_balanced_finetune trains on exemplars; give a memory, or class_balanced_finetune=0."
            )
        if self.class_balanced_finetune:
            check_finetuned_heads(self.experts)

    @property
    def growth(self) -> float:
        """Factor of both distillation terms in this experience; 1 where no class is new."""
        return class_growth(self.network.num_classes, self.num_new) if self.num_new else 1.0

    def loss_terms(self, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Return classification, POD-flat and POD-spatial terms."""
        terms = (
            super().loss_terms(output, labels) if self.objective == "experts" else self._nca(output, labels)
        )
        teacher = self.teacher_output()
        if teacher is None:
            return terms
        if self.flat:
            distance = less_forget(output.known_features, teacher.known_features, kernels=self.kernels)
            terms["pod_flat"] = self.expert_scale * self.flat * self.growth * distance
        if self.spatial:
            distance = pooled_outputs_distillation(output.known_maps, teacher.known_maps, self.pool)
            terms["pod_spatial"] = self.expert_scale * self.spatial * self.growth * distance
        return terms

    def _nca(self, output: ModelOutput, labels: Tensor) -> LossTerms:
        paper = self.objective == "paper"
        losses = [
            nca(
                cosines,
                labels,
                head.scale,
                margin=self.margin,
                flavor="paper" if paper else "published",
                hinge=paper,
            )
            for head, cosines in zip(self.model.heads, output.known_cosines, strict=True)
        ]
        return {"nca": torch.stack(losses).mean()}

    def stages(self, experience: Experience) -> tuple[Stage, ...]:
        """Add the balanced finetune from the second experience on."""
        stages = super().stages(experience)
        if not (self.class_balanced_finetune and self.num_old):
            return stages
        finetune = Stage(
            "class_balanced_finetune",
            self.class_balanced_finetune,
            lr=self.finetune_lr,
            parameters=head_rows,
            data="exemplars",
            freeze_old=False,
        )
        return (stages[0], finetune, *stages[1:])
