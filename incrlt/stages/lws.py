"""Learnable weight scaling: the second stage of Long-Tailed-CIL.

Kang et al., Decoupling, ICLR 2020 (learnable weight scaling); Liu et al., ECCV 2022 (in each experience, with the
head of the new classes).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from incrlt.experiment.fields import Count, Fraction, Index, Positive
from incrlt.experiment.ranges import check_fields
from incrlt.losses import cross_entropy
from incrlt.training.hooks import Hooks
from incrlt.types import LossContext, LossTerms, ModelOutput, Stage


def classification(context: LossContext, output: ModelOutput, labels: Tensor) -> LossTerms:
    """Return plain cross entropy of the combined logits, as the official code does.

    The gradient of each expert's rows is a K-th of that of the combined logits; it is brought to the scale of the
    expert method's own terms, as every mean over experts is.
    """
    loss = cross_entropy(output.logits, labels)
    return {"cross_entropy": loss if context.expert_scale == 1 else context.expert_scale * loss}


@dataclass(frozen=True)
class LWS:
    r"""Freeze the backbone, draw classes uniformly, and train one factor per class and the new head rows.

    .. math:: z_c = s_c \, z_c^{(1)}, \qquad L = L_{ce}(\bar z)

    :math:`s_c` is the factor of class c and :math:`z^{(1)}` what the head answers without; the bar is the mean of the
    experts.
    """

    name = "lws"
    kind = "rebalance"
    title = "LWS"
    needs: ClassVar[dict[str, str]] = {"tensors": "cache_features"}
    later_stages = (("lws", "epochs", "stream"),)
    first_epochs = "0 if num_old and images <= skip_below * num_new else train_epochs"

    epochs: Count = 30
    """Epochs of the stage; 30 in Long-Tailed-CIL."""
    lr: Positive = 0.1
    """Learning rate of the new head rows, cosine schedule to 0."""
    scale_lr: Fraction = 0.1
    """Learning rate of the class factors, relative to ``lr``."""
    skip_below: Index = 0
    """Skip the first stage of an experience with at most this many images per class on average; 10 in the
    official code, where it is not documented. 0 never skips."""
    cache_features: bool = False
    """Compute the frozen features once per stage, of images without random augmentation: faster, other numbers."""

    def __post_init__(self) -> None:
        check_fields(self)

    def stages(self, strategy: Hooks, first: Stage) -> Sequence[Stage]:
        """Return the strategy's first stage and this one."""
        images = len(strategy.experience.dataset) / max(1, strategy.num_new)
        if strategy.num_old and images <= self.skip_below:
            first = dataclasses.replace(first, epochs=0)
        return first, Stage(
            "lws",
            self.epochs,
            lr=self.lr,
            parameters=self._parameters,
            schedule=lambda optimizer, epochs: CosineAnnealingLR(optimizer, epochs),
            sampler="class_aware",
            frozen_backbone=True,
            cache_features=self.cache_features,
            loss=classification,
            steady=True,
            rebalanced=True,
        )

    def _parameters(self, model: nn.Module) -> list[dict[str, object]]:
        rows = [parameter for head in model.final_heads for parameter in head.classifier]
        scales = [head.class_scale for head in model.final_heads]
        return [{"params": rows}, {"params": scales, "lr": self.lr * self.scale_lr, "weight_decay": 0.0}]
