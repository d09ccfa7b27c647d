"""Post-hoc logit adjustment: take the prior out of the answers, without training.

Menon et al., ICLR 2021 (prior of the counts); AdaPrior, CVPR 2026 (the network's own mean answer).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from incrlt.experiment.fields import NonNegative
from incrlt.experiment.ranges import check_fields
from incrlt.losses.prior import prior_adjusted, static_prior
from incrlt.models.network import OFFSETS, ExpertNetwork
from incrlt.plugins.features import answers_of
from incrlt.stages._measured import cleared, measured
from incrlt.training.hooks import Hooks
from incrlt.types import Stage


@dataclass(frozen=True)
class LogitAdjustment:
    r"""Subtract the log of a prior from the logits, in evaluation alone; training goes on without it.

    .. math:: z_c \leftarrow z_c - \alpha \log \pi_c

    :math:`\alpha` is ``strength``, :math:`\pi` the prior.

    Counts: images per class in the stream, exemplars included (``prior: counts``).

    Deviation: offsets are centred, which changes no answer: classes that have just arrived begin at the middle.
    """

    name = "logit_adjustment"
    kind = "rebalance"
    title = "logit adjustment"
    later_stages = (("logit_adjustment", 1, "stream"),)

    strength: NonNegative = 1.0
    """Factor of the log prior: 1 for counts, 0.6 to 0.7 for answers (AdaPrior). With a loss that adds a prior, counts
    correct twice."""
    prior: Literal["counts", "answers"] = "counts"
    """``counts``: share of each class in the stream. ``answers``: the mean answer to it, without augmentation."""

    def __post_init__(self) -> None:
        check_fields(self)

    def stages(self, strategy: Hooks, first: Stage) -> Sequence[Stage]:
        """Return the strategy's first stage, which clears the offsets of before, and this one."""
        return cleared(first, _clear), measured("logit_adjustment", functools.partial(self._adjust, strategy))

    @torch.no_grad()
    def _adjust(self, strategy: Hooks, network: ExpertNetwork, num_old: int) -> None:
        if self.prior == "counts":
            prior = static_prior(strategy.class_counts)
        else:
            prior = answers_of(strategy, strategy.stream_dataset)
        offsets = prior_adjusted(torch.zeros_like(prior), prior, self.strength)
        network.remember(OFFSETS, (offsets - offsets.mean()).float())


def _clear(network: ExpertNetwork) -> None:
    network.remember(OFFSETS, torch.zeros(network.num_classes))
