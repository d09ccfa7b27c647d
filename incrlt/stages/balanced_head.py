"""A head that is computed: class-weighted ridge regression on frozen features.

Zhuang et al., ACIL, NeurIPS 2022, and Fang et al., AIR (class weights); official code
ZHUANGHP/Analytic-continual-learning. Mathematics in :mod:`incrlt.losses.ridge`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from incrlt.errors import UserError
from incrlt.experiment.fields import Positive
from incrlt.experiment.ranges import check_fields
from incrlt.losses.ridge import balancing_weights, ridge_solution
from incrlt.models.network import ExpertNetwork
from incrlt.plugins.features import features_of
from incrlt.stages._measured import measured
from incrlt.training.hooks import Hooks
from incrlt.types import ModelOutput, Stage, class_counts

ROWS = "balanced_head"
"""Under this name the network keeps the rows of each expert that answer beside its heads ``[K, C, D]``."""


@dataclass(frozen=True)
class BalancedHead:
    r"""Replace the rows of every class by the solution of a ridge regression to one-hot targets, all classes alike.

    .. math:: W = \arg\min_W \sum_i \pi_{y_i} \| f_i W - e_{y_i} \|^2 + \gamma \|W\|^2 = (X^\top \Pi X + \gamma I)^{-1}
        X^\top \Pi Y

    :math:`\gamma` is ``ridge``, :math:`\pi_c \propto 1 / n_c` where ``balanced``.

    With ``beside`` the heads stay as they are, and the solution answers beside them, as read-out ``analytic``.

    Features are of the experience's images and the exemplars, without augmentation, at length 1 and without a constant:
    cosine and linear heads then decide alike. On a cosine head the lengths of rows become the class scales, which
    evaluation reads. Computed in float64, in one pass, from the start in each experience, because the backbone has
    trained in between. The next experience goes on from these rows.

    Counts: the images per class in the stream, exemplars included.

    Deviation: the papers freeze the backbone after the first experience and keep sums of all images ever seen.
    """

    name = "balanced_head"
    kind = "rebalance"
    title = (("balanced head", "not beside"),)
    later_stages = (("balanced_head", 1, "stream"),)

    clashes: ClassVar[dict[str, str]] = {
        "model.head == 'proxies' and not beside": (
            "rebalance 'balanced_head' solves for one row per class, and model.head 'proxies' has ten. Set model.head: "
            "cosine, or rebalance.beside: true."
        )
    }

    ridge: Positive = 0.1
    """Regularisation; 0.1 in the official code."""
    balanced: bool = True
    """Every class weighs the same (AIR); otherwise every image does (ACIL)."""
    beside: bool = False
    """Answer beside the heads, as a read-out of its own, and change nothing of them."""

    def __post_init__(self) -> None:
        check_fields(self)

    def stages(self, strategy: Hooks, first: Stage) -> Sequence[Stage]:
        """Return the strategy's first stage and this one."""
        if not self.beside and any(hasattr(head, "num_proxies") for head in strategy.model.final_heads):
            raise UserError(
                "rebalance 'balanced_head' solves for one row per class, and a head of proxies has several; set "
                "model.head: cosine, or beside: true."
            )
        return first, measured("balanced_head", functools.partial(self._solve, strategy))

    @torch.no_grad()
    def _solve(self, strategy: Hooks, network: ExpertNetwork, num_old: int) -> None:
        features_N, labels_N = features_of(strategy, strategy.stream_dataset)
        labels_N = network.positions(labels_N)
        counts_C = class_counts(labels_N, network.num_classes)
        weights_C = balancing_weights(counts_C) if self.balanced else None
        units = features_N.double().unflatten(1, (network.num_experts, -1)).unbind(1)
        rows = [
            ridge_solution(unit, labels_N, network.num_classes, self.ridge, weights_C).T for unit in units
        ]
        final_heads = network.all_heads[-network.num_experts :]
        if self.beside:
            network.remember(ROWS, torch.stack(rows).to(final_heads[0].weight))
            return
        for head, own in zip(final_heads, rows, strict=True):
            _put(head, own.to(head.weight))

    def readouts(self, network: ExpertNetwork, output: ModelOutput) -> dict[str, Tensor]:
        """Return the scores ``[B, C]`` that stand beside those of the heads; none where the rows replaced theirs."""
        rows = network.recall(ROWS) if self.beside else None
        if (
            rows is None or rows.shape[1] != output.logits.shape[-1]
        ):  # evaluation in the middle of an experience
            return {}
        units = F.normalize(output.known_features, dim=-1)
        return {"analytic": torch.einsum("kbd,kcd->bc", units, rows.to(units)) / len(rows)}


def _put(head: Any, rows: torch.Tensor) -> None:
    """Write rows ``[C, D]``, so that the head's decisions are those of ``rows @ x``."""
    used = slice(0, head.num_classes)
    head.weight[used] = rows
    if hasattr(head, "cosines"):
        length = rows.norm(dim=1)
        head.class_scale[used] = length / length.mean().clamp(min=1e-12)
        head.weight[used] = F.normalize(rows, dim=1)
    else:
        head.class_scale[used] = 1.0
        head.bias[used] = 0.0
