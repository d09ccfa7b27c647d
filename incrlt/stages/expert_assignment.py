"""Expert assignment: the last stage of RIDE, which learns when the experts so far are enough.

Wang et al., ICLR 2021, section 3.3; official code frank-xwang/RIDE-LongTailRecognition. It serves any method with two
experts or more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from incrlt.experiment.fields import Count, Fraction, Positive, Size
from incrlt.experiment.ranges import check_fields
from incrlt.losses.routing import routing_loss, routing_targets
from incrlt.models.inference import early_exit
from incrlt.models.network import ExpertNetwork
from incrlt.models.router import SETTINGS, Router
from incrlt.roles import State
from incrlt.schedules import cosine
from incrlt.types import LossContext, LossTerms, ModelOutput, Stage


@dataclass(frozen=True)
class ExpertAssignment:
    r"""Freeze the experts, draw classes uniformly, and train a router that sends on what later experts get right.

    .. math:: L = \frac{1}{K - 1} \sum_{k < K} \mathrm{BCE}\big( \sigma(r_k), [\text{experts 1..k wrong, more of them
        right}] \big)

    :math:`r_k` is the router's score after expert k; images that should go on weigh ``pos_weight``.

    It trains in each experience, on the stream with its exemplars, and goes on from the router of the experience
    before. Counts: none. What it saves is computation; accuracy rather falls a little (the authors say so).

    Deviations from the official code: logits are normalised (``normalise: false`` is published); momentum and weight
    decay are the strategy's (published: nesterov 0.9, 5e-4);
    one router serves all experiences, where the official code knows one task.
    """

    name = "expert_assignment"
    kind = "router"
    title = "router"
    needs: ClassVar[dict[str, str]] = {"tensors": "cache_features"}
    later_stages = (("router", "epochs", "stream"),)

    epochs: Count = 5
    """Epochs of the stage."""
    lr: Positive = 0.01
    """Learning rate, cosine schedule to 0."""
    batch_size: Size = 512
    """Images per step."""
    pos_weight: Positive = 100.0
    """Weight of images that should go on; more of it buys accuracy for computation."""
    top: Size = 30
    """Largest logits that the router looks at: 30 on CIFAR, 50 for RIDE's larger networks."""
    hidden: Size = 16
    """Width to which the router brings a feature."""
    shared: bool = True
    """One last layer for all decisions; otherwise one for each."""
    normalise: bool = True
    """Bring logits to a mean square of 1. As published they are not, and a step overshoots: the loss grows."""
    threshold: Fraction = 0.5
    """Probability above which an image goes on to the next expert."""
    cache_features: bool = False
    """Compute the frozen features once per stage, of images without random augmentation: faster, other numbers."""

    def __post_init__(self) -> None:
        check_fields(self)

    def attach(self, network: ExpertNetwork) -> None:
        """Give the network a router, unless it has one of this shape.

        Args:
            network: An :class:`~incrlt.models.ExpertNetwork` with two experts or more.

        Weights are drawn from a copy of the global random state, and the stage has generators of its own: a run with
        a router trains the same experts as one without.
        """
        first = network.all_heads[0]
        wanted: State = dict(
            zip(
                SETTINGS,
                (network.num_experts, first.num_features, self.top, self.hidden, self.shared, self.normalise),
                strict=True,
            )
        )
        if network.router is None or _settings(network.router) != wanted:
            with torch.random.fork_rng(devices=[]):
                network.router = Router(**wanted).to(first.weight)
        network.router.threshold.fill_(self.score_threshold)

    @property
    def score_threshold(self) -> float:
        """``threshold`` before the sigmoid; infinite at 0 and 1."""
        if self.threshold in (0, 1):
            return math.inf if self.threshold else -math.inf
        return math.log(self.threshold / (1 - self.threshold))

    def stage(self) -> Stage:
        """Return the stage: only the router trains, on logits as evaluation reads them."""
        return Stage(
            "router",
            self.epochs,
            lr=self.lr,
            parameters=_router_parameters,
            schedule=cosine(),
            sampler="class_aware",
            frozen_backbone=True,
            cache_features=self.cache_features,
            loss=self.loss,
            rebalanced=True,
            batch_size=self.batch_size,
            aside=True,
            prepare=_forget_calibration,
        )

    def loss(self, context: LossContext, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Return the routing loss; in the last epoch the router also records its scores, for budgets.

        Args:
            context: Gives the network and the epoch.
            output: Answers of the frozen experts.
            labels: Class positions ``[B]``.
        """
        router: Router = context.network.router
        scores = router(output.expert_logits, output.known_features, output.combine)
        if context.epoch == context.epochs - 1:
            router.record(scores)
        targets = routing_targets(output.expert_logits, labels, output.combine)
        return {"routing": routing_loss(scores, targets, self.pos_weight)}

    def read_out(self, router: Router, output: ModelOutput) -> tuple[Tensor, Tensor]:
        """Return the answer of routed inference, and experts used, where all experts have run.

        Args:
            router: The network's.
            output: The network's answer as evaluation reads it.

        Returns:
            Logits ``[B, C]`` in arrival order, and experts used per image ``[B]``.
        """
        scores = router(output.expert_logits, output.known_features, output.combine)
        return early_exit(output.expert_logits, scores, router.threshold, output.combine)


def _settings(router: nn.Module) -> State:
    return {name: getattr(router, name, None) for name in SETTINGS}


def _router_parameters(model: nn.Module) -> list[dict[str, object]]:
    return [{"params": list(model.router.parameters())}]


def _forget_calibration(network: ExpertNetwork, num_old: int) -> None:
    network.router.forget()
