"""The one subclass of Avalanche's ``SupervisedTemplate``; every strategy is this template plus its loss terms.

All of Avalanche's callbacks keep firing, so plugins (EWC, LwF, Replay, LRScheduler, EarlyStopping, ...) compose.
What it adds lives in values with one owner each, and here they are put to work where Avalanche calls:
:class:`~incrlt.training.compute.Compute` (how networks run), :class:`~incrlt.training.stream.Stream` (what an
experience trains on), :class:`~incrlt.training.stage.StageRun` and :class:`~incrlt.training.epoch.EpochRun` (a stage
and an epoch at work), :class:`~incrlt.training.graph.Stepper` (how a batch is computed),
:class:`~incrlt.training.terms.TermLog`, :class:`~incrlt.training.teacher.Teacher`,
:class:`~incrlt.training.optim.Upkeep` (the optimizer between experiences) and
:class:`~incrlt.training.state.Awaited` (a checkpoint until training is there).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import incrlt._compat  # noqa: F401  (must come before avalanche)

import torch
from avalanche.core import BasePlugin
from avalanche.training.plugins.evaluation import EvaluationPlugin, default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.nn import CrossEntropyLoss
from torch.optim import Optimizer

from incrlt.data.workers import close_loader, lone_image_told
from incrlt.experiment.ranges import checked
from incrlt.experts.base import ExpertMethod
from incrlt.experts.single import Single
from incrlt.models.network import ExpertNetwork
from incrlt.roles import Criterion, Dataset, Experience, Memory, Rebalance, RouterStage, State
from incrlt.training import checks, state
from incrlt.training import stage as stages_at_work
from incrlt.training.answered import Answered
from incrlt.training.arguments import by_name
from incrlt.training.arrival import class_names_of, classes_of, take_in
from incrlt.training.compute import Compute
from incrlt.training.epoch import EpochRun
from incrlt.training.graph import Stepper, obstacle
from incrlt.training.hooks import Hooks
from incrlt.training.network import ForeignNetwork, at_the_door, follow, stay
from incrlt.training.optim import Upkeep
from incrlt.training.readouts import all_scores
from incrlt.training.stage import StageRun
from incrlt.training.stream import Feed, Stream, read_stream
from incrlt.training.teacher import Teacher, check_guide
from incrlt.training.terms import TermLog, named
from incrlt.types import LossTerms, ModelOutput, Schedule, Stage


class IncrTemplate(Hooks, SupervisedTemplate):
    """Trains a network experience by experience; base of all strategies.

    Args:
        model: An :class:`~incrlt.models.ExpertNetwork`, or any module that maps a batch to logits where the
            strategy does not need features.
        optimizer: Any torch optimizer over the model's parameters.
        criterion: Plain two-argument loss, used in evaluation and to train foreign models. An expert network trains on
            the loss of ``experts``: there, only a plain ``CrossEntropyLoss()`` is taken.
        experts: Expert method: the classification part of the loss.
        memory: An :class:`~incrlt.plugins.memory.ExemplarMemory`, or None.
        rebalance: Adds a second stage to each experience, e.g. :class:`~incrlt.stages.lws.LWS`.
        router: Adds a last stage that learns which images need how many experts, e.g.
            :class:`~incrlt.stages.expert_assignment.ExpertAssignment`; None runs all experts.
        schedule: ``schedule(optimizer, epochs)`` builds the learning-rate scheduler of the first stage, fresh in
            each experience; None leaves the rate to the user's plugins.
        train_mb_size: Images per training batch.
        train_epochs: Epochs of the first stage in each experience.
        base_epochs: Epochs of the first stage in the first experience; None: as in the others.
        later_rate: Factor of the schedule's rates in every experience after the first.
        eval_mb_size: Images per evaluation batch.
        device: Where the network trains.
        plugins: Avalanche plugins; the template's memory comes before them, once.
        evaluator: Avalanche's evaluation plugin.
        eval_every: As in Avalanche; -1 evaluates only when asked to.
        peval_mode: As in Avalanche.
        precision: ``fp32``, ``bf16``, or ``fp16`` (CUDA only, with a loss scaler).
        channels_last: Keep images and weights in channels-last order.
        step: How a batch is computed: ``eager``, ``compile`` (the backbone by ``torch.compile``), ``graph`` (forward,
            loss and backward as one CUDA graph), or ``auto``: the graph where that is safe with the plugins attached.
        kernels: Backend of the fused losses: ``auto``, ``reference``, ``closed_form`` or ``triton``.
        grad_clip: Largest gradient norm; None does not clip.
        fast_data: Cut batches from tensors on the device where this is exact, else keep the loader as it is.
        reset_optimizer: Forget momentum at the start of each experience (LUCIR's code does); otherwise it is kept,
            row by row where a head grows.
        batch_seed: Seeds the order of images.
        augmentation_seed: Seeds random augmentation.

    Attributes:
        stepper: How batches are computed, and why not as a graph.
        mb_out: What the network said about the batch; a plugin that changes what is trained on puts another one here.
        mb_scores: In evaluation, the scores ``[B, C]`` of each read-out.
        mb_experts_used: Experts that the router ran for each image of the batch ``[B]``; None without a router.
        on_epoch_end: Called with the strategy after each epoch.
        others: What a method may ask, see :class:`~incrlt.training.hooks.Hooks`.

    Raises:
        UserError: Settings that cannot work together, before any work starts.
    """

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Hold a strategy's own hyper-parameters to the ranges of their annotations, before its constructor runs.

        Model, optimizer and criterion may be given by position, as in Avalanche's examples.
        """
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = by_name(checked(cls.__init__))  # type: ignore[method-assign]

    @by_name
    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Criterion | None = None,
        experts: ExpertMethod | None = None,
        memory: Memory | None = None,
        rebalance: Rebalance | None = None,
        router: RouterStage | None = None,
        schedule: Schedule | None = None,
        train_mb_size: int = 128,
        train_epochs: int = 1,
        base_epochs: int | None = None,
        later_rate: float = 1.0,
        eval_mb_size: int | None = 512,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = default_evaluator,
        eval_every: int = -1,
        peval_mode: str = "epoch",
        precision: str = "fp32",
        channels_last: bool = False,
        kernels: str = "auto",
        step: str = "auto",
        grad_clip: float | None = None,
        fast_data: bool = True,
        reset_optimizer: bool = True,
        batch_seed: int = 0,
        augmentation_seed: int = 0,
    ) -> None:
        own_plugins = [] if memory is None else [memory]
        own_plugins += [plugin for plugin in plugins or [] if plugin is not memory]
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=CrossEntropyLoss() if criterion is None else criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=own_plugins,
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )
        self.experts = Single() if experts is None else experts
        self.memory, self.rebalance, self.router, self.schedule = memory, rebalance, router, schedule
        self.base_epochs, self.later_rate, self.reset_optimizer = base_epochs, later_rate, reset_optimizer
        self.network = at_the_door(model, self._task_labels)
        self.compute = Compute(self.device, precision, channels_last, kernels, grad_clip)
        self.feed = Feed(self.device, fast_data, channels_last, batch_seed, augmentation_seed)
        checks.check_settings(self._asked())
        self.compute.check_order(model)
        checks.check_scheduler_resets(self.plugins, optimizer)
        if self.needs_maps or self.experts.needs_maps:
            self.network.tells_maps = True
        if router is not None:
            router.attach(self.model)
        self.compute.share(self.network)

        self.past, self.guide = Teacher(self.compute), Teacher(self.compute, self.experts.guide())
        self.stream, self.work = Stream(), StageRun(Stage("train", train_epochs))
        self.epoch_run, self.terms = EpochRun(), TermLog()
        self.num_old, self.experience_index = 0, 0
        self.mb_out: ModelOutput | None = None
        self.mb_scores: dict[str, Tensor] = {}
        self.mb_experts_used: Tensor | None = None
        self.on_epoch_end: Callable[[IncrTemplate], None] | None = None
        self.main_optimizer, self._upkeep = optimizer, Upkeep(optimizer)
        self.memory_before: State | None = None
        self._answered: Answered | None = None
        self._awaited = state.Awaited()
        self._own_loader: object = None
        self.stepper = Stepper(step, self.compute, self.network, self._obstacle)

    def _asked(self) -> checks.Asked:
        return checks.Asked(
            self.name, self.needs_network, self.needs_cosine, self.needs_memory, self.network, self.model,
            self.optimizer, self.experts, self.memory, self.rebalance, self.router, self.feed.fast, self._criterion,
            self.schedule, self.later_rate, self.plugins,
        )  # fmt: skip

    def _obstacle(self) -> str | None:
        guided = self.guide.network is not None
        return obstacle(self.compute, self.network, self.experts, guided, self.plugins)

    # ------------------------------------------------------------------ Avalanche: an experience begins and ends

    def _before_training_exp(self, **kwargs: object) -> None:
        checks.check_processes()
        self.compute.draw_alike()
        self.memory_before = None if self.memory is None else self.memory.state_dict()
        inside = self._awaited.inside
        if not inside:
            self.num_old = self.network.num_classes
        super()._before_training_exp(**kwargs)
        own = self.dataloader is self._own_loader
        self.stream = read_stream(self.network, self.feed, self.dataloader, own, self.adapted_dataset)
        self.work = StageRun(self.work.stage, counts=self.stream.drawn, batches=self.stream.batches)
        checks.check_batches(self.experts, self.stages(self.experience), self.stream, self.feed)
        if not inside:
            self._start_experience()
        elif self.memory is not None:
            self._awaited.restore_memory(self.memory)

    def _start_experience(self) -> None:
        self._awaited.drop()
        if self.guide.network is not None:
            check_guide(self.guide.network, self.model, class_names_of(self.experience))
        self.experts.begin_experience(self.model)
        checks.check_settings(self._asked())  # plugins may have put another criterion or optimizer in place
        self._upkeep.begin(self.optimizer, first_rates=self.schedule is not None, forget=self.reset_optimizer)
        self.begin_experience(self.experience)

    def _after_training_exp(self, **kwargs: object) -> None:
        super()._after_training_exp(**kwargs)
        self.end_experience(self.experience)
        if self.uses_teacher:
            self.past.take(self.model)
        self.experience_index += 1
        if self.memory is not None:
            self.compute.world.check_same("the exemplar memory", state.tensors_of(self.memory.state_dict()))

    def make_train_dataloader(self, **kwargs: object) -> None:
        """Build Avalanche's training loader; a plugin may put another one in its place."""
        super().make_train_dataloader(**kwargs)
        self._own_loader = self.dataloader

    def make_eval_dataloader(self, **kwargs: object) -> None:
        """Build Avalanche's evaluation loader, then cut its batches from tensors where that is exact."""
        super().make_eval_dataloader(**kwargs)
        self._eval_width = max(classes_of(self.experience)) + 1
        self.dataloader = self.feed.convert(self.dataloader)

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        """Grow the heads when training meets new classes; evaluation leaves an expert network as it is."""
        model = self.model if model is None else model
        if not isinstance(model, ExpertNetwork):
            return super().model_adaptation(model)
        if self.is_training:
            self._upkeep.note(take_in(model, self.experience))
            self.compute.place(model)
        return model

    def make_optimizer(self, **kwargs: object) -> None:
        """Point the optimizer at grown parameters, keeping the state of their old rows."""
        if isinstance(self.network, ForeignNetwork):
            return super().make_optimizer(**kwargs)
        self._upkeep.carry(self.optimizer)
        self.optimized_param_id = dict(self.model.named_parameters())
        return None

    # ------------------------------------------------------------------ Avalanche: one step

    @property
    def mb_task_id(self) -> Tensor:
        """Task labels of the batch; zeros where the benchmark has none, so that task-aware plugins run."""
        if len(self.mbatch) >= 3:
            return self.mbatch[-1]
        return torch.zeros_like(self.mb_y)

    def _task_labels(self) -> Tensor:
        return self.mb_task_id

    def forward(self) -> Tensor:
        """Run the model on the batch and return fp32 logits in the benchmark's label ids."""
        follow(self.network, self.model)
        stay(self.device, self.compute.device)
        if self.is_training:
            return self._forward_in_training()
        output = self.compute.run(self.network, self.mb_x, rebalanced=True)
        if isinstance(self.network, ForeignNetwork):
            return output.logits
        self.mb_out = output
        self.mb_scores, self.mb_experts_used = all_scores(
            self.readouts(output), output, self.model, self.rebalance, self.router
        )
        return self.network.to_labels(next(iter(self.mb_scores.values())), self._eval_width)

    def _forward_in_training(self) -> Tensor:
        x, y = self.mb_x, self.mb_y
        taken = self.stepper.take(self.model, self._terms_of, x, y, self.phase)
        size, what = self.stage.batch_size or self.train_mb_size, f"stage '{self.stage.name}'"
        with lone_image_told(len(y), self.epoch_images, size, what):
            self.mb_out = taken.output if taken else self.work.forward(self.compute, self.network, x)
        logits = self.network.to_labels(self.mb_out.logits)
        self._answered = Answered(self.mb_out, logits, logits._version)
        return logits

    def criterion(self) -> Tensor:
        """Sum the loss terms in training; in evaluation, the plain criterion."""
        if not self.is_training:
            return self._criterion(self.network.with_floor(self.mb_output, self.mb_y), self.mb_y)
        if self.stepper.taken is not None:
            return self.terms.add_captured(self.stepper.taken.names, self.stepper.taken.terms)
        assert self.mb_out is not None and self._answered is not None
        if not isinstance(self.network, ForeignNetwork):
            self._answered.check(self.mb_out, self.mb_output)
        return self.terms.add(self._terms(self.mb_out))

    def _terms_of(self, x: Tensor, y: Tensor) -> tuple[ModelOutput, LossTerms]:
        """Return output and terms of tensors put in the place of the batch, without callbacks."""
        batch = self.mbatch
        self.mbatch = [x, y, *batch[2:]]
        try:
            self.mb_out = self.work.forward(self.compute, self.network, x)
            return self.mb_out, self._terms(self.mb_out)
        finally:
            self.mbatch = batch

    def _terms(self, output: ModelOutput) -> LossTerms:
        if isinstance(self.network, ForeignNetwork):
            return {"criterion": self._criterion(self.mb_output, self.mb_y)}
        labels = self.positions(self.mb_y)
        if self.work.stage.loss is not None:
            return self.work.stage.loss(self.loss_context(), output, labels)
        return named(self.loss_terms(output, labels), self.experts.name)

    def backward(self) -> None:
        """Run the backward pass, or take a captured one's gradients; then each expert gets its own pace."""
        if self.stepper.taken is not None:
            self.stepper.taken.give_gradients()
        else:
            self.compute.backward(self.loss, self.optimizer, self.retain_graph, self.model)
        self.work.pace(self.network.num_experts)

    def optimizer_step(self) -> None:
        """Clip, step, and put frozen head rows back."""
        self.compute.update(self.optimizer)
        self.network.restore_frozen()

    def _train_cleanup(self) -> None:
        super()._train_cleanup()
        close_loader(self._own_loader)
        self._own_loader = None
        self.mb_out, self._answered = None, None
        self.work.batches, self.stream = None, self.stream.without_batches()

    def _eval_cleanup(self) -> None:
        super()._eval_cleanup()
        self.mb_out, self.mb_scores, self.mb_experts_used = None, {}, None

    # ------------------------------------------------------------------ Avalanche: stages and epochs

    def _train_exp(self, experience: Experience, eval_streams: object = None, **kwargs: object) -> None:
        first = self._awaited.stage
        for index, stage in enumerate(self.stages(experience)):
            if index >= first and stage.epochs > 0:
                with stages_at_work.schedulers_rest(self.plugins, index), self._enter(index, stage) as start:
                    self._run_epochs(start, **kwargs)

    def _run_epochs(self, start: int, **kwargs: object) -> None:
        work = self.work
        for epoch in range(start, work.stage.epochs):
            work.epoch = epoch
            self._before_training_epoch(**kwargs)
            if self._stopped():
                break
            with self.epoch_run.measured(self.optimizer):
                self.terms.clear()
                self.training_epoch(**kwargs)
                self.terms.collect(self._where())
                self.compute.agree(self.network)
                checks.check_finite(self.model, self._where())
            self._after_training_epoch(**kwargs)
            if work.scheduler is not None:
                work.scheduler.step()
            if self.on_epoch_end is not None:
                self.on_epoch_end(self)

    def _after_training_iteration(self, **kwargs: object) -> None:
        self.epoch_run.images += len(self.mb_y)
        super()._after_training_iteration(**kwargs)

    def _where(self) -> str:
        return f"experience {self.experience_index}, stage '{self.stage.name}', epoch {self.stage_epoch + 1}"

    def _stopped(self) -> bool:
        """Return whether a plugin such as EarlyStopping has ended the stage.

        Before its first epoch a later stage has given no reason: what is asked for there is about the stage before.
        """
        asked, self._stop_training = self._stop_training, False
        return asked and not (self.work.index > 0 and self.work.epoch == 0)

    @contextlib.contextmanager
    def _enter(self, index: int, stage: Stage) -> Iterator[int]:
        """Set up a stage, yield its first epoch, and leave model and optimizer as they were found."""
        self.main_optimizer = self.optimizer
        batches, counts = self.feed.of_stage(
            stage, self.stream, self._exemplars, self.train_mb_size, self.experience_index
        )
        self.work = stages_at_work.enter(
            stage,
            index,
            network=self.network,
            model=self.model,
            optimizer=self.optimizer,
            batches=batches,
            counts=counts,
            experts=self.experts,
            frozen_rows=self.frozen_rows(stage),
        )
        assert self.work.optimizer is not None
        self.optimizer, self.dataloader, self._stop_training = self.work.optimizer, batches, False
        try:
            start = self._catch_up()
            if stage.cache_features:
                self.dataloader = self.work.store_features(self.compute, self.network, self.eval_mb_size)
            if start == 0 and stage.prepare is not None:
                stage.prepare(self.model, self.num_old)
            yield start
        finally:
            self.stepper.forget()
            if stage.lr is not None:  # else it is the strategy's, or what a plugin has put in its place
                self.optimizer = self.main_optimizer
            self.work.close()
            stages_at_work.leave(self.network, self.model)

    def _exemplars(self) -> Dataset:
        """Choose exemplars of this experience too, and return all there are, in training transforms."""
        self.memory.update(self, self.experience)
        return self.memory.dataset().train()

    # ------------------------------------------------------------------ state

    def _parts(self) -> dict[str, state.Part]:
        """Return what moves from step to step, by its name in a checkpoint."""
        return {
            "optimizer": self.optimizer,
            "scaler": self.compute,
            "clock": state.Counters(self.clock),
            "generators": self.feed,
            "random": state.Randomness(self.device),
        }

    def state_dict(self, trained: bool = False) -> State:
        """Return everything of the strategy that a later process needs to go on bit-exactly, as tensors and plain data.

        Plugins of yours are not in it (EWC's importances, ReplayPlugin's buffer): Avalanche's plugins have no state
        that could be saved without their code. With them, save the whole strategy by Avalanche's ``save_checkpoint``.

        Args:
            trained: The experience is complete, evaluation included; otherwise an epoch has just ended.

        Raises:
            UserError: The model is not an expert network.
        """
        alone = trained or self.optimizer is self.main_optimizer
        return {
            "format": state.FORMAT,
            "strategy": self.name,
            "progress": {
                "experience": self.experience_index,
                "stage": self.work.index,
                "epoch": self.work.epoch + 1,
                "trained": trained,
            },
            "model": self.network.state(),
            "teacher": self.past.state_dict(),
            "num_old": self.num_old,
            "main_optimizer": None if alone else self.main_optimizer.state_dict(),
            "memory": None if self.memory is None else self.memory.state_dict(),
            "memory_before": None if trained else self.memory_before,  # what this experience trains on
            "extra": self.extra_state(),
            **{name: part.state_dict() for name, part in self._parts().items()},
        }

    def load_state_dict(self, saved: State, train_stream: Sequence[Experience]) -> None:
        """Restore :meth:`state_dict`; training then goes on with experience ``experience_index``.

        Args:
            saved: As returned by :meth:`state_dict`.
            train_stream: Stream of the same benchmark; exemplars are looked up in it.

        Raises:
            UserError: The state belongs to another strategy or format.
        """
        state.check(saved, self.name, self.memory is not None)
        state.load_network(self.model.to(self.device), saved["model"], self.optimizer, self.router)
        self.past.load_state_dict(saved["teacher"], self.model)
        self.num_old = saved["num_old"]
        self.experience_index = saved["progress"]["experience"]
        if self.memory is not None:
            before = saved["memory_before"]
            self.memory.load_state_dict(saved["memory"] if before is None else before, train_stream)
        self.load_extra_state(saved["extra"])
        self._awaited.wait(saved, train_stream)  # for what moves from step to step
        if saved["progress"]["trained"]:
            self._restore_progress(saved)

    def _restore_progress(self, saved: State) -> None:
        """Restore what moves from step to step."""
        if saved["main_optimizer"] is not None:
            self.main_optimizer.load_state_dict(saved["main_optimizer"])
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])

    def _catch_up(self) -> int:
        """Return the first epoch of a stage; on resuming, restore optimizer, counters and random states first."""
        saved = self._awaited.arrive(self.work.index)
        if saved is None:
            return 0
        epoch = int(saved["progress"]["epoch"])
        self.work.catch_up(epoch)
        self._restore_progress(saved)
        return epoch
