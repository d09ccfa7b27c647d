"""One stage at work: all that entering it sets, so that leaving it has one thing to throw away."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import incrlt._compat  # noqa: F401  (must come before avalanche)

import torch
from avalanche.training.plugins import LRSchedulerPlugin
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from incrlt.data.tensors import TensorBatches
from incrlt.experts.base import ExpertMethod
from incrlt.roles import Loader
from incrlt.training.compute import Compute
from incrlt.training.frozen import backbone_trains, feature_batches
from incrlt.training.network import Network
from incrlt.training.optim import held_by, stage_optimizer
from incrlt.types import ModelOutput, Stage


@dataclass
class StageRun:
    """A stage while it trains.

    Attributes:
        stage: What it is.
        index: Its place in the experience.
        optimizer: Its own, or the strategy's.
        batches: Its loader.
        counts: Images per class as its sampler draws them ``[C]``.
        backbone_trains: Whether the optimizer holds a parameter of stem or branches.
        features_stored: Batches hold features ``[B, K, D]`` in the place of images.
        paced: Parameters whose gradients are brought to their own expert's pace.
        scheduler: Of the learning rate; None leaves it alone.
        epoch: Epoch within the stage, from 0.
        constants: What losses have computed from the counts.
    """

    stage: Stage
    index: int = 0
    optimizer: Optimizer | None = None
    batches: Loader | None = None
    counts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    backbone_trains: bool = True
    features_stored: bool = False
    paced: list[nn.Parameter] = field(default_factory=list)
    scheduler: LRScheduler | None = None
    epoch: int = 0
    constants: dict[Hashable, object] = field(default_factory=dict)

    def forward(self, compute: Compute, network: Network, images: Tensor) -> ModelOutput:
        """Run the network on a batch as this stage trains it.

        Args:
            compute: How it runs.
            network: The one that trains.
            images: ``[B, c, H, W]``, or stored features ``[B, K, D]``.
        """
        if self.features_stored:
            features = images.transpose(0, 1)
        elif network.tells_maps and self.stage.loss is None:  # losses of stages read no maps
            trains = self.backbone_trains
            features, maps = compute.features_and_maps(network, images, backbone_trains=trains)
            return network.classify(features, self.stage.rebalanced, maps)
        else:
            features = compute.features(network, images, backbone_trains=self.backbone_trains)
        return network.classify(features, self.stage.rebalanced)

    def store_features(self, compute: Compute, network: Network, eval_batch_size: int) -> Loader:
        """Replace the images of its batches by their features, computed once; return those batches."""
        assert isinstance(self.batches, TensorBatches), "checked before the first epoch"
        self.batches = feature_batches(compute, network, self.batches, eval_batch_size)
        self.features_stored = True
        return self.batches

    def pace(self, num_experts: int) -> None:
        """Give each expert the gradient of its own loss, see :attr:`~incrlt.experts.base.ExpertMethod.averaged`."""
        gradients = [p.grad for p in self.paced if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, num_experts)

    def close(self) -> None:
        """Throw the loader away and what was computed of it; what the stage was stays readable."""
        self.backbone_trains, self.features_stored = True, False
        self.paced, self.scheduler = [], None

    def catch_up(self, epochs: int) -> None:
        """Bring the scheduler to where another process left it."""
        for _ in range(epochs if self.scheduler is not None else 0):
            self.optimizer._opt_called = True  # type: ignore[union-attr]  # the process that was killed made the steps
            self.scheduler.step()  # type: ignore[union-attr]
        self.epoch = epochs - 1  # stays so when all epochs of the stage were done


def enter(
    stage: Stage,
    index: int,
    *,
    network: Network,
    model: nn.Module,
    optimizer: Optimizer,
    batches: Loader | None,
    counts: Tensor,
    experts: ExpertMethod,
    frozen_rows: int,
) -> StageRun:
    """Set a stage up: its optimizer and scheduler, what is frozen, what is paced.

    Args:
        stage: What it is.
        index: Its place in the experience.
        network: What trains, as the template sees it.
        model: What trains, as a module.
        optimizer: The strategy's.
        batches: The stage's loader.
        counts: Images per class as its sampler draws them ``[C]``.
        experts: Says whether its terms are means over experts.
        frozen_rows: Leading head rows that stay.
    """
    own = optimizer if stage.lr is None else stage_optimizer(optimizer, stage, model)
    run = StageRun(stage, index, own, batches, counts)
    model.train()
    run.backbone_trains = not stage.frozen_backbone and backbone_trains(own, model)
    network.freeze_old(frozen_rows)
    if stage.frozen_backbone:
        network.freeze_backbone()
    run.scheduler = stage.schedule(own, stage.epochs) if stage.schedule else None
    run.paced = _to_pace(network, experts, own)
    return run


@contextlib.contextmanager
def schedulers_rest(plugins: list[object], index: int) -> Iterator[None]:
    """Keep Avalanche's ``LRSchedulerPlugin`` from counting the epochs of later stages, whose rates are their own.

    Args:
        plugins: Those of the strategy; without the resting ones inside.
        index: Place of the stage in its experience.
    """
    found = enumerate(plugins) if index > 0 else ()
    resting = [(place, plugin) for place, plugin in found if isinstance(plugin, LRSchedulerPlugin)]
    for _, plugin in resting:
        plugins.remove(plugin)
    try:
        yield
    finally:
        for place, plugin in resting:
            plugins.insert(place, plugin)


def leave(network: Network, model: nn.Module) -> None:
    """Thaw what the stage froze, and leave no gradients: no later stage clears what this one alone has trained."""
    model.zero_grad()
    network.freeze_old(0)
    model.train()


def _to_pace(network: Network, experts: ExpertMethod, optimizer: Optimizer) -> list[nn.Parameter]:
    """Return what :meth:`StageRun.pace` acts on: only what trains, nobody clears the gradients of the rest."""
    if network.num_experts == 1 or not experts.averaged:
        return []
    trained = set(map(id, held_by(optimizer)))
    return [p for p in network.own_parameters if id(p) in trained]
