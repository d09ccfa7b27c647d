"""What a strategy asks of an expert method."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from incrlt.types import LossContext, LossTerms, ModelOutput


class ExpertMethod(Protocol):
    """Hyper-parameters and loss terms of one method; a frozen dataclass, so that all state lives elsewhere.

    Attributes:
        name: The name in YAML; also the name of the file.
        num_experts: Number K of branches and heads it works with.
    """

    name: str
    num_experts: int

    def loss(self, context: LossContext, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Return the classification terms of the batch by name.

        Args:
            context: Counts, progress and the number of old classes.
            output: The network's answer, classes in arrival order.
            labels: Class positions ``[B]``.
        """
        ...
