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
from incrlt.models.network import ExpertNetwork
from incrlt.plugins.features import features_of
from incrlt.stages._measured import measured
from incrlt.training.hooks import Hooks
from incrlt.types import ModelOutput, Stage

ROWS = "lda_rows"
OFFSETS = "lda_offsets"
"""Under these names the network keeps the discriminant: rows ``[C, K * D]``, offsets ``[C]``."""


@dataclass(frozen=True)
class LDA:
    r"""Answer beside the heads, as read-out ``lda``: nearest class mean under one covariance that all classes share.

    .. math:: z_c = x^\top \Sigma_s^{-1} \mu_c - \tfrac12 \mu_c^\top \Sigma_s^{-1} \mu_c, \qquad
        \Sigma_s = \Sigma + s \, \overline{\sigma^2} I

    x are the features of all experts, each at length 1, side by side and under Tukey's transform; s is ``shrinkage``.

    Features are of the experience's images and the exemplars, without augmentation, computed anew in each experience
    because the backbone has trained in between. Nothing else changes: training, heads and memory keep their bits.

    Counts: none in the scores, every class is as likely as any other; frequent classes have more say in the covariance.

    Deviations: the papers freeze the backbone after the first experience and keep sums of all images ever seen; the
    transform keeps the sign of features, which those of LUCIR have.
    """

    name = "lda"
    kind = "rebalance"
    title = ""
    later_stages = (("lda", 1, "stream"),)

    shrinkage: Positive = 1.0
    """What is added to every variance, in units of their mean; FeCAM has 1."""
    power: Positive = 0.5
    """Power of Tukey's transform; 1 leaves features as they are."""

    def __post_init__(self) -> None:
        check_fields(self)

    def stages(self, strategy: Hooks, first: Stage) -> Sequence[Stage]:
        """Return the strategy's first stage and this one."""
        return first, measured("lda", functools.partial(self._fit, strategy))

    @torch.no_grad()
    def _fit(self, strategy: Hooks, network: ExpertNetwork, num_old: int) -> None:
        features_N, labels_N = features_of(strategy, strategy.stream_dataset)
        found = linear_discriminant(
            tukey(features_N.double(), self.power),
            network.positions(labels_N),
            network.num_classes,
            self.shrinkage,
        )
        weight = network.all_heads[0].weight
        network.remember(ROWS, found.rows.to(weight))
        network.remember(OFFSETS, found.offsets.to(weight))

    def readouts(self, network: ExpertNetwork, output: ModelOutput) -> dict[str, Tensor]:
        """Return the scores ``[B, C]`` that stand beside those of the heads."""
        rows, offsets = network.recall(ROWS), network.recall(OFFSETS)
        if rows is None or offsets is None or len(rows) != output.logits.shape[-1]:
            return {}  # evaluation in the middle of an experience
        units = F.normalize(output.known_features.to(rows), dim=-1).transpose(0, 1).flatten(1)
        return {"lda": Discriminant(rows, offsets).scores(tukey(units, self.power))}
