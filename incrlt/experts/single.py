"""One expert: a plain network with a classification loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from incrlt.losses import balanced_softmax, cross_entropy
from incrlt.types import LossContext, LossTerms, ModelOutput


@dataclass(frozen=True)
class Single:
    """A single network, K = 1."""

    name = "single"
    num_experts = 1

    objective: Literal["cross_entropy", "balanced_softmax"] = "cross_entropy"
    """``balanced_softmax`` (Ren et al. 2020) adds the log prior of the training stream, exemplars included."""

    def loss(self, context: LossContext, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Return the classification term; see :class:`incrlt.experts.base.ExpertMethod`."""
        if self.objective == "balanced_softmax":
            return {"balanced_softmax": balanced_softmax(output.expert_logits, labels, context.class_counts)}
        return {"cross_entropy": cross_entropy(output.expert_logits, labels)}
