"""Tau-normalisation: shrink the rows of frequent classes, without training.

Kang et al., Decoupling Representation and Classifier, ICLR 2020; official code facebookresearch/classifier-balancing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from incrlt.errors import UserError
from incrlt.experiment.fields import NonNegative
from incrlt.experiment.ranges import check_fields
from incrlt.losses.norms import tau_factors
from incrlt.stages._measured import measured
from incrlt.training.hooks import Hooks
from incrlt.types import Stage


@dataclass(frozen=True)
class TauNorm:
    r"""Divide each row of a linear head by a power of its length; the next experience trains the row as it was.

    .. math:: w_c \leftarrow w_c / \|w_c\|^\tau

    Counts: none. Rows stay where they are, their factors become the class scales, which evaluation reads.

    Raises:
        UserError: Cosine heads, which look at no length.
    """

    name = "tau_norm"
    kind = "rebalance"
    title = "tau-norm"
    later_stages = (("tau_norm", 1, "stream"),)
    clashes: ClassVar[dict[str, str]] = {
        "model.head == 'cosine'": (
            "rebalance 'tau_norm' divides rows by their length, which cosine heads do not look at; set "
            "model.head: linear, or take rebalance: {{name: lws}}."
        )
    }

    tau: NonNegative = 0.7
    """Power of the length; Kang et al. choose between 0 and 2 on validation images."""
    drop_bias: bool = True
    """Set biases to 0, as the official code does; the next experience starts from there. Otherwise a bias is divided
    along with its row."""

    def __post_init__(self) -> None:
        check_fields(self)

    def stages(self, strategy: Hooks, first: Stage) -> Sequence[Stage]:
        """Return the strategy's first stage and this one."""
        if any(hasattr(head, "cosines") for head in strategy.model.final_heads):
            raise UserError(
                "rebalance 'tau_norm' divides rows by their length, which cosine heads do not look at; set "
                "model.head: linear, or take rebalance: {name: lws}."
            )
        return first, measured("tau_norm", self._normalise)

    @torch.no_grad()
    def _normalise(self, network: Any, num_old: int) -> None:
        for head in network.final_heads:
            rows = slice(0, head.num_classes)
            head.class_scale[rows] = tau_factors(head.weight[rows], self.tau)
            if self.drop_bias:
                head.bias[rows] = 0.0
