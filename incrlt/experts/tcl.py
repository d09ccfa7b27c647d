"""TCL: experts teach each other only what they are right about.

Zhou and Luo, CVPR 2026. No code is public: formulas are those of summaries, and what they leave open is a field here.
Losses in :mod:`incrlt.losses.trust`.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from incrlt.experiment.fields import ExpertCount, Fraction, NonNegative, Positive
from incrlt.experts.base import ExpertMethod
from incrlt.losses.margins import never_zero
from incrlt.losses.trust import (
    compensation,
    consensus_calibration,
    diverse_balanced_softmax,
    prior_strengths,
    running_accuracy,
    trusted_distillation,
)
from incrlt.models import ExpertNetwork
from incrlt.models.layout import Layout
from incrlt.types import LossContext, LossTerms, ModelOutput

ACCURACY = "tcl_accuracy"
"""Under this name the network keeps the running accuracy of each class ``[C]``."""


@dataclass(frozen=True)
class TCL(ExpertMethod):
    r"""K experts on SHIKE's layout, each with a prior of its own strength, that distil where they are right.

    .. math:: L = \frac{1}{K} \sum_k \Big[ -\log \frac{n_y^{\tau_k} e^{z_{k,y}}}{\sum_c n_c^{\tau_k} e^{z_{k,c}}} +
        \lambda_t \sum_{j \ne k} [\arg\max z_k = y] \, w_y \, \mathrm{KL}(p_k \| p_j) + \lambda_c L_{calibration} \Big]

    :math:`\tau_k` is the strength of the prior of expert k, :math:`w_c \propto \sqrt{1 - accuracy_c}`,
    :math:`\lambda_t` is ``trust``, :math:`\lambda_c` ``calibration``
    (:func:`~incrlt.losses.trust.consensus_calibration`).

    Counts: the prior takes images per class as drawn. The running accuracy is the ensemble's on training batches, as
    they were drawn, and lives in the network.

    Deviation: terms are averaged over experts where the paper sums; what experts share gets 1 / K of its gradient.
    """

    name = "tcl"
    title = "TCL"
    needs_cosine = True

    num_experts: ExpertCount = 3
    """Experts K."""
    prior_spread: Fraction = 0.1
    """Strengths of the prior reach from 1 - this to 1 + this; 0.1 gives the paper's 0.9, 1.0, 1.1."""
    trust: NonNegative = 1.0
    """Weight of the trust-gated distillation."""
    calibration: NonNegative = 0.02
    """Weight of the consensus calibration; 0.5 costs 2 points in the paper."""
    accuracy_momentum: Fraction = 0.1
    """Share of a new batch in a class's running accuracy. Not told by the paper's summaries: ours."""
    calibrate: Literal["all_wrong", "any_negative"] = "all_wrong"
    """Images that are calibrated: those no expert has right, or those whose mean has a class above the label."""
    detach: bool = True
    """The teaching expert takes no gradient."""
    scale: Positive = 30.0
    """Scale of the cosine heads at the start."""
    learn_scale: bool = False
    """Let the scale train, as LUCIR does."""

    @property
    def layout(self) -> Layout:
        """Two shared stages and depth-wise fusion, as SHIKE; one head per expert."""
        return Layout(
            num_experts=self.num_experts,
            shared="two_stages",
            fusion=True,
            scale=self.scale,
            learn_scale=self.learn_scale,
            unit_rows=True,
        )

    def phase(self, context: LossContext) -> Hashable:
        """The loss stays the same; what runs over is a buffer."""
        return None

    def begin_experience(self, network: ExpertNetwork) -> None:
        """Give new classes an accuracy of 0; old ones keep theirs."""
        accuracy = torch.zeros(network.num_classes)
        before = network.recall(ACCURACY)
        if before is not None:
            accuracy[: len(before)] = before.cpu()
        network.remember(ACCURACY, accuracy)

    def loss(self, context: LossContext, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Return balanced softmax, trusted distillation and consensus calibration."""
        logits_KBC = output.expert_logits
        prior_KC = context.constant(("tcl_prior", self.prior_spread), lambda: self._prior(context))
        terms: LossTerms = {"balanced_softmax": diverse_balanced_softmax(logits_KBC, labels, prior_KC)}
        if self.num_experts == 1:
            return terms
        if self.trust:
            weights_C = self._weights(context.network, output, labels)
            terms["trust"] = self.trust * trusted_distillation(
                logits_KBC, labels, weights_C, detach=self.detach
            )
        if self.calibration:
            terms["calibration"] = self.calibration * consensus_calibration(
                logits_KBC, labels, where=self.calibrate
            )
        return terms

    def _prior(self, context: LossContext) -> Tensor:
        """Return the log prior of each expert ``[K, C]``."""
        log_counts = never_zero(context.class_counts).log()
        return (
            log_counts.new_tensor(prior_strengths(self.num_experts, self.prior_spread))[:, None] * log_counts
        )

    @torch.no_grad()
    def _weights(self, network: ExpertNetwork, output: ModelOutput, labels: Tensor) -> Tensor:
        """Return class weights of the accuracy so far ``[C]``, then let the batch move it."""
        accuracy_C = None if network is None else network.recall(ACCURACY)
        if accuracy_C is None:
            return output.logits.new_ones(output.logits.shape[-1])
        weights_C = compensation(accuracy_C)
        moved_C = running_accuracy(accuracy_C, output.logits.argmax(-1), labels, self.accuracy_momentum)
        accuracy_C.copy_(moved_C)
        return weights_C
