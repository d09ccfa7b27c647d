"""What a method of the time axis writes, and what it may ask while it trains.

:class:`~incrlt.training.template.IncrTemplate` calls the first and answers the second; nothing here knows Avalanche.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from incrlt.data.stored import TensorCache
from incrlt.data.tensors import TensorBatches
from incrlt.errors import UserError
from incrlt.experts.base import ExpertMethod
from incrlt.models.network import ExpertNetwork
from incrlt.roles import Dataset, Experience, Memory, Rebalance, RouterStage, State
from incrlt.schedules import slowed
from incrlt.training.checks import no_second_view
from incrlt.training.compute import Compute
from incrlt.training.epoch import EpochRun
from incrlt.training.network import Network
from incrlt.training.stage import StageRun
from incrlt.training.stream import Feed, Stream
from incrlt.training.teacher import Teacher
from incrlt.training.terms import TermLog
from incrlt.types import LossContext, LossTerms, ModelOutput, Schedule, Stage


class Hooks:
    """The open half of a strategy: every method of the first part may be overridden.

    Attributes:
        experts: The tail axis.
        memory: Exemplars, or None.
        rebalance: Adds a second stage, or None.
        router: Adds a last stage, or None.
        schedule: Of the first stage's learning rate.
        train_epochs: Epochs of the first stage.
        base_epochs: The same in the first experience; None: as in the others.
        later_rate: Factor of the first stage's learning rate in every experience after the first.
        model: What trains, as it was given.
        network: The same as the template sees it.
        experience: The one that trains.
        num_old: Classes that arrived before this experience.
        experience_index: Experiences trained before this one.
        stream: What this experience trains on.
        work: The stage at work.
        compute: How networks run.
        feed: Makes loaders.
        past: The teacher.
        guide: A larger network that the expert method distils.
        terms: Loss terms of the epoch.
        epoch_run: What the epoch has cost.
    """

    experts: ExpertMethod
    memory: Memory | None
    rebalance: Rebalance | None
    router: RouterStage | None
    schedule: Schedule | None
    train_epochs: int
    base_epochs: int | None
    later_rate: float
    model: Any
    network: Network
    experience: Experience
    num_old: int
    experience_index: int
    stream: Stream
    work: StageRun
    compute: Compute
    feed: Feed
    past: Teacher
    guide: Teacher
    terms: TermLog
    epoch_run: EpochRun
    device: torch.device
    optimizer: Optimizer
    adapted_dataset: Dataset
    eval_mb_size: int
    mb_x: Tensor
    mb_y: Tensor
    mb_output: Tensor

    name: ClassVar[str] = "template"
    uses_teacher: ClassVar[bool] = False
    needs_network: ClassVar[bool] = False
    needs_cosine: ClassVar[bool] = False
    needs_memory: ClassVar[bool] = False
    needs_maps: ClassVar[bool] = False
    """``loss_terms`` reads ``output.maps``, the maps between the stages of the backbone."""
    freeze_old_rows: bool = False
    """Head rows of old classes stay as they are in the first stage of an experience."""
    steady: ClassVar[bool] = False
    """``loss_terms`` asks for nothing that changes within a stage but what the expert method tells by its ``phase``; a
    strategy that says so has its steps captured once per stage, others once per epoch."""

    # ------------------------------------------------------------------ what a strategy writes

    def begin_experience(self, experience: Experience) -> None:
        """Prepare the grown model before its first epoch, e.g. imprint; not called when a run is resumed."""

    def loss_terms(self, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Return the named terms of the training loss.

        Args:
            output: The network's answer to the batch, classes in arrival order.
            labels: Class positions ``[B]``.
        """
        return self.experts.loss(self.loss_context(), output, labels)

    def end_experience(self, experience: Experience) -> None:
        """Conclude an experience after plugins have (exemplars are chosen), before the teacher is frozen."""

    def stages(self, experience: Experience) -> tuple[Stage, ...]:
        """Return the stages of this experience: training, the experts' own, those of ``rebalance``, the router's."""
        epochs = self.train_epochs if self.base_epochs is None or self.num_old else self.base_epochs
        schedule = self.schedule
        if schedule is not None and self.num_old:
            schedule = slowed(schedule, self.later_rate)
        first = Stage("train", epochs, schedule=schedule)
        own = self.experts.stages()
        router = () if self.router is None else (self.router.stage(),)
        if self.rebalance is None:
            return (first, *own, *router)
        stages = self.rebalance.stages(self, first)
        if isinstance(stages, Stage):
            raise UserError(
                f"stages of {type(self.rebalance).__name__} returned one stage alone; it returns the first stage, "
                "changed or not, and those that follow it: (first, Stage(...))."
            )
        first, *rest = stages
        return (first, *own, *rest, *router)

    def frozen_rows(self, stage: Stage) -> int:
        """Return how many leading head rows a stage must not change; in the first, ``freeze_old_rows`` decides."""
        frozen = self.freeze_old_rows if stage.lr is None else stage.freeze_old
        return self.num_old if frozen else 0

    def readouts(self, output: ModelOutput) -> dict[str, Tensor]:
        """Return scores ``[B, C]`` by name of read-out; the first one is what Avalanche's metrics see."""
        return {"cnn": output.logits}

    def extra_state(self) -> State:
        """Return what the strategy itself must remember, as tensors and plain data."""
        return {}

    def load_extra_state(self, state: State) -> None:
        """Restore :meth:`extra_state`."""

    # ------------------------------------------------------------------ what a strategy may ask

    @property
    def num_new(self) -> int:
        """Classes that arrived with this experience."""
        return self.network.num_classes - self.num_old

    @property
    def seen_classes(self) -> list[int]:
        """Label ids of the classes that have arrived, in that order."""
        return list(self.network.class_ids)

    @property
    def teacher(self) -> ExpertNetwork | None:
        """Frozen model of the experience before, or None."""
        return self.past.network

    @property
    def stream_dataset(self) -> Dataset:
        """What this experience trains on: its images, exemplars, and what a replay plugin adds."""
        return self.stream.known_dataset

    @property
    def class_counts(self) -> Tensor:
        """Images per class in the training stream, exemplars included ``[C]``, arrival order."""
        return self.stream.counts

    @property
    def stage_counts(self) -> Tensor:
        """The same as the sampler of the stage draws them ``[C]``."""
        return self.work.counts

    @property
    def stage(self) -> Stage:
        """The stage that trains now."""
        return self.work.stage

    @property
    def stage_index(self) -> int:
        """Its place in the experience."""
        return self.work.index

    @property
    def stage_epoch(self) -> int:
        """Epoch within the stage, from 0."""
        return self.work.epoch

    @property
    def epoch_terms(self) -> dict[str, float]:
        """Mean of each loss term over the last epoch."""
        return self.terms.means

    @property
    def epoch_images(self) -> int:
        """Images seen in the epoch."""
        return self.epoch_run.images

    @property
    def epoch_seconds(self) -> float:
        """Seconds that the last epoch trained."""
        return self.epoch_run.seconds

    @property
    def epoch_lr(self) -> float:
        """Learning rate with which the epoch began."""
        return self.epoch_run.lr

    @property
    def precision(self) -> str:
        """Precision of the networks' arithmetic."""
        return self.compute.precision

    @property
    def kernels(self) -> str:
        """Backend of the fused losses."""
        return self.compute.kernels

    @property
    def channels_last(self) -> bool:
        """Whether images and weights are kept in channels-last order."""
        return self.compute.channels_last

    @property
    def tensor_cache(self) -> TensorCache:
        """Decoded images on the device."""
        return self.feed.cache

    @property
    def fallback_reason(self) -> str | None:
        """Why batches come from a loader; None where they are cut from tensors."""
        return self.feed.reason

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which networks run."""
        return self.compute.autocast()

    def positions(self, labels: Tensor) -> Tensor:
        """Map label ids ``[B]`` of seen classes to arrival positions ``[B]``, without a host sync."""
        return self.stream.positions(labels)

    @property
    def expert_scale(self) -> int:
        """What a term that is a mean over experts is multiplied with, to have the scale of the expert method's terms.

        1; K where the method's terms are sums over experts, as the published codes have them. A term of a strategy that
        is not multiplied by it would weigh a K-th there of what it weighs beside a single network.
        """
        return self.experts.expert_scale

    def teacher_output(self) -> ModelOutput | None:
        """Return the teacher's answer to the current batch, or None in the first experience."""
        return self.past.output(self.mb_x, rebalanced=False)

    def loss_context(self) -> LossContext:
        """Return what expert methods may know."""
        return LossContext(
            self.work.counts,
            self.num_old,
            self.work.epoch,
            self.work.stage.epochs,
            network=self.model,
            second_view=self.second_view,
            autocast=self.compute.autocast,
            guide=None if self.guide.network is None else self._guide_output,
            kernels=self.compute.kernels,
            constants=self.work.constants,
            expert_scale=self.expert_scale,
        )

    def _guide_output(self) -> ModelOutput:
        answer = self.guide.output(self.mb_x, rebalanced=True)
        assert answer is not None
        return answer

    def second_view(self, augmentation: str) -> Tensor:
        """Augment the images of this batch once more ``[B, c, H, W]``.

        Raises:
            UserError: The loader gives finished images only.
        """
        if not isinstance(self.work.batches, TensorBatches):
            raise no_second_view(self.experts, self.feed.reason)
        return self.work.batches.second_view(augmentation)

    def phase(self) -> Hashable:
        """Return what the loss depends on beside the batch; a captured step is renewed when it changes."""
        stage = self.work.stage
        steady = self.steady if stage.loss is None else stage.steady
        own = self.experts.phase(self.loss_context()) if stage.loss is None else None
        return self.experience_index, self.work.index, own if steady else self.work.epoch
