"""A read-out that is computed: linear discriminant analysis on the features of all experts.

Hayes and Kanan, Deep Streaming LDA, CVPR workshops 2020; Goswami et al., FeCAM, NeurIPS 2023. Mathematics in
:mod:`incrlt.losses.discriminant`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from incrlt.experiment.fields import Positive
from incrlt.experiment.ranges import check_fields
from incrlt.losses.discriminant import Discriminant, linear_discriminant, tukey
from incrlt.models.network import DISCRIMINANT, DISCRIMINANT_POWER, ExpertNetwork
from incrlt.plugins.features import features_of
from incrlt.stages._measured import cleared, measured
from incrlt.training.hooks import Hooks
from incrlt.types import ModelOutput, Stage

ROWS = "lda_rows"
OFFSETS = "lda_offsets"
"""Under these names the network keeps what answers beside its heads: rows ``[C, K * D]``, offsets ``[C]``."""


@dataclass(frozen=True)
class LDA:
    r"""Answer by the nearest class mean under one covariance that all classes share, as read-out ``lda``.

    .. math:: z_c = x^\top \Sigma_s^{-1} \mu_c - \tfrac12 \mu_c^\top \Sigma_s^{-1} \mu_c, \qquad
        \Sigma_s = \Sigma + s \, \overline{\sigma^2} I

    x are the features of all experts, each at length 1, side by side and under Tukey's transform; s is ``shrinkage``.
    Without ``beside`` each expert has a discriminant of its own in the place of its head wherever a network answers:
    evaluation, router, prediction, updates, exports.

    Features are of the experience's images and the exemplars, without augmentation, computed anew in each experience
    because the backbone has trained in between. Training, heads and memory keep their bits.

    Counts: none in the scores, every class is as likely as any other; frequent classes have more say in the covariance.

    Deviations: the papers freeze the backbone after the first experience and keep sums of all images ever seen; the
    transform keeps the sign of features, which those of LUCIR have.
    """

    name = "lda"
    kind = "rebalance"
    title = (("LDA", "not beside"),)
    later_stages = (("lda", 1, "stream"),)

    shrinkage: Positive = 1.0
    """What is added to every variance, in units of their mean; FeCAM has 1."""
    power: Positive = 0.5
    """Power of Tukey's transform; 1 leaves features as they are."""
    beside: bool = True
    """Answer beside the heads, as a read-out of its own; otherwise in their place."""

    def __post_init__(self) -> None:
        check_fields(self)

    def stages(self, strategy: Hooks, first: Stage) -> Sequence[Stage]:
        """Return the strategy's first stage and this one."""
        return cleared(first, _clear), measured("lda", functools.partial(self._fit, strategy))

    @torch.no_grad()
    def _fit(self, strategy: Hooks, network: ExpertNetwork, num_old: int) -> None:
        features_N, labels_N = features_of(strategy, strategy.stream_dataset)
        features_N, labels_N = tukey(features_N.double(), self.power), network.positions(labels_N)
        weight = network.all_heads[0].weight
        if self.beside:
            found = self._discriminant(features_N, labels_N, network)
            network.remember(ROWS, found.rows.to(weight))
            network.remember(OFFSETS, found.offsets.to(weight))
            return
        units = features_N.unflatten(1, (network.num_experts, -1)).unbind(1)
        each = [self._discriminant(unit, labels_N, network) for unit in units]
        packed = torch.stack([torch.cat([own.rows, own.offsets[:, None]], dim=1) for own in each])
        network.remember(DISCRIMINANT, packed.to(weight))
        network.remember(DISCRIMINANT_POWER, weight.new_tensor(self.power))

    def _discriminant(self, features: Tensor, labels: Tensor, network: ExpertNetwork) -> Discriminant:
        return linear_discriminant(features, labels, network.num_classes, self.shrinkage)

    def readouts(self, network: ExpertNetwork, output: ModelOutput) -> dict[str, Tensor]:
        """Return the scores ``[B, C]`` that stand beside those of the heads; none in their place."""
        rows, offsets = network.recall(ROWS), network.recall(OFFSETS)
        if rows is None or offsets is None or len(rows) != output.logits.shape[-1]:
            return {}  # evaluation in the middle of an experience
        units = F.normalize(output.known_features.to(rows), dim=-1).transpose(0, 1).flatten(1)
        return {"lda": Discriminant(rows, offsets).scores(tukey(units, self.power))}


def _clear(network: ExpertNetwork) -> None:
    network.forget(DISCRIMINANT)
