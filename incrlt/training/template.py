"""The one subclass of Avalanche's ``SupervisedTemplate``; every strategy is this template plus its loss terms.

All of Avalanche's callbacks keep firing, so plugins (EWC, LwF, Replay, LRScheduler, EarlyStopping, ...) compose.
What the template adds: heads that grow without losing optimizer state and never during evaluation, several stages
per experience, a frozen teacher, mixed precision, batches cut from tensors on the device, named loss terms that
are watched for non-finite values, and state that a checkpoint can hold.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, ClassVar

import incrlt._compat  # noqa: F401  (must come before avalanche)

import torch
from avalanche.benchmarks.utils.data import AvalancheDataset
from avalanche.core import BasePlugin, SupervisedPlugin
from avalanche.distributed import DistributedHelper
from avalanche.logging import BaseLogger
from avalanche.training.plugins.evaluation import EvaluationPlugin, default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.nn import CrossEntropyLoss
from torch.optim import Optimizer

from incrlt.data.avalanche import class_aware_loader, convert, parts_of_loader
from incrlt.data.stored import NotExactError, TensorCache
from incrlt.data.tensors import TensorBatches
from incrlt.errors import UserError
from incrlt.experiment.ranges import checked
from incrlt.experts.base import ExpertMethod
from incrlt.experts.single import Single
from incrlt.models.network import ExpertNetwork
from incrlt.training import state
from incrlt.training.checks import PRECISIONS, check_batches, check_settings, no_second_view
from incrlt.training.frozen import backbone_trains, feature_batches
from incrlt.training.graph import CapturedStep, Stepper
from incrlt.training.optim import held_by, replace_parameters, stage_optimizer
from incrlt.types import LossContext, LossTerms, ModelOutput, Schedule, Stage, class_counts

ASIDE = 1_000_003
"""Distance between the seeds of stages with generators of their own, beyond any seed that users count up."""


def quiet_evaluator() -> EvaluationPlugin:
    """Return an evaluation plugin without metrics and loggers, for runs that record counts instead."""
    return EvaluationPlugin(loggers=[BaseLogger()])


def classes_of(experience: Any) -> list[int]:
    """Return the label ids of an experience, ascending; benchmarks without a class timeline are read by target."""
    classes = getattr(experience, "classes_in_this_experience", None)
    return sorted({int(label) for label in (experience.dataset.targets if classes is None else classes)})


def class_names_of(experience: Any) -> Sequence[str] | None:
    """Return the names of a benchmark's classes by label id; None where it does not tell them."""
    stream = getattr(experience, "origin_stream", None)
    return getattr(getattr(stream, "benchmark", None), "class_names", None)


class IncrTemplate(SupervisedTemplate):
    """Trains a network experience by experience; base of all strategies.

    Args:
        model: An :class:`~incrlt.models.ExpertNetwork`, or any module that maps a batch to logits where the
            strategy does not need features.
        optimizer: Any torch optimizer over the model's parameters.
        criterion: Plain two-argument loss, used in evaluation, by plugins, and to train foreign models.
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
        teacher: Frozen model of the experience before, or None.
        num_old: Classes that arrived before this experience.
        stage: The stage that trains now.
        epoch_terms: Mean of each loss term over the last epoch.
        stream_dataset: What this experience trains on: its images, exemplars, and what a replay plugin adds.
        class_counts: Images per class in the training stream, exemplars included ``[C]``, arrival order.
        stage_counts: The same as the sampler of the stage draws them ``[C]``.
        stepper: How batches are computed, and why not as a graph.
        mb_experts_used: Experts that the router ran for each image of the batch ``[B]``; None without a router.

    Raises:
        UserError: Settings that cannot work together, before any work starts.
    """

    name: ClassVar[str] = "template"
    uses_teacher: ClassVar[bool] = False
    needs_network: ClassVar[bool] = False
    needs_cosine: ClassVar[bool] = False
    needs_memory: ClassVar[bool] = False
    steady: ClassVar[bool] = False
    """``loss_terms`` asks for nothing that changes within a stage but what the expert method tells by its ``phase``; a
    strategy that says so has its steps captured once per stage, others once per epoch."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Hold a strategy's own hyper-parameters to the ranges of their annotations, before its constructor runs."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = checked(cls.__init__)  # type: ignore[method-assign]

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Any = None,
        experts: ExpertMethod | None = None,
        memory: Any = None,
        rebalance: Any = None,
        router: Any = None,
        schedule: Schedule | None = None,
        train_mb_size: int = 128,
        train_epochs: int = 1,
        base_epochs: int | None = None,
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
        self.base_epochs, self.grad_clip = base_epochs, grad_clip
        self.precision, self.channels_last, self.kernels = precision, channels_last, kernels
        self.fast_data, self.reset_optimizer = fast_data, reset_optimizer
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.batch_generator = torch.Generator().manual_seed(batch_seed)
        self.augmentation_generator = torch.Generator(self.device).manual_seed(augmentation_seed)
        self.aside_generators = (torch.Generator(), torch.Generator(self.device))
        self._seeds = batch_seed, augmentation_seed

        self.tensor_cache = TensorCache(self.device)
        self.teacher: ExpertNetwork | None = None
        self.num_old = 0
        self.experience_index = 0
        self.stage = Stage("train", train_epochs)
        self.stage_epoch = 0
        self.class_counts = torch.zeros(0, dtype=torch.long)
        self.stage_counts = self._stream_counts = self.class_counts
        self._constants: dict[Any, Any] = {}
        self.epoch_terms: dict[str, float] = {}
        self.epoch_images, self.epoch_seconds, self.epoch_lr = 0, 0.0, 0.0
        self.mb_out: ModelOutput | None = None
        self.mb_scores: dict[str, Tensor] = {}
        self.mb_experts_used: Tensor | None = None
        self._batches: Any = None
        self._captured: CapturedStep | None = None
        self.on_epoch_end: Callable[[IncrTemplate], None] | None = None
        self.fallback_reason: str | None = None
        self._step_terms: list[tuple[list[str], Tensor]] = []
        self._initial_lrs = [group["lr"] for group in optimizer.param_groups]
        self._replaced: list[tuple[nn.Parameter, nn.Parameter]] = []
        self._resume: dict[str, Any] | None = None
        self._resume_stream: Any = None
        self.main_optimizer = optimizer
        self.stage_index = 0
        self.memory_before: dict[str, Any] | None = None
        self._position_table: Tensor | None = None
        self.stream_dataset, self._own_loader = None, None
        self._paced: list[nn.Parameter] = []
        check_settings(self)
        if router is not None:
            router.attach(self.model)
        self.guide = self._place_guide(self.experts.guide())
        self.stepper = Stepper(self, step)

    def _place_guide(self, guide: ExpertNetwork | None) -> ExpertNetwork | None:
        if guide is not None:
            self.place(guide).eval().requires_grad_(False)
        return guide

    # ------------------------------------------------------------------ what a strategy writes

    def begin_experience(self, experience: Any) -> None:
        """Prepare the grown model before its first epoch, e.g. imprint; not called when a run is resumed."""

    def loss_terms(self, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Return the named terms of the training loss.

        Args:
            output: The network's answer to the batch, classes in arrival order.
            labels: Class positions ``[B]``.
        """
        return self.experts.loss(self.loss_context(), output, labels)

    def end_experience(self, experience: Any) -> None:
        """Conclude an experience after plugins have (exemplars are chosen), before the teacher is frozen."""

    def stages(self, experience: Any) -> tuple[Stage, ...]:
        """Return the stages of this experience: training, the experts' own, those of ``rebalance``, the router's."""
        epochs = self.train_epochs if self.base_epochs is None or self.num_old else self.base_epochs
        first = Stage("train", epochs, schedule=self.schedule)
        own = self.experts.stages()
        router = () if self.router is None else (self.router.stage(),)
        if self.rebalance is None:
            return (first, *own, *router)
        first, *rest = self.rebalance.stages(self, first)
        return (first, *own, *rest, *router)

    def readouts(self, output: ModelOutput) -> dict[str, Tensor]:
        """Return scores ``[B, C]`` by name of read-out; the first one is what Avalanche's metrics see."""
        return {"cnn": output.logits}

    def routed(self, output: ModelOutput) -> dict[str, Tensor]:
        """Return the scores ``[B, C]`` of the experts that the router would have run, where there is a router."""
        if self.router is None or not self.model.num_classes:
            return {}
        logits, self.mb_experts_used = self.router.read_out(self.model.router, output)
        return {"routed": logits}

    def extra_state(self) -> dict[str, Any]:
        """Return what the strategy itself must remember, as tensors and plain data."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`extra_state`."""

    # ------------------------------------------------------------------ services for strategies

    @property
    def is_expert_network(self) -> bool:
        """True when the model tells features and grows by itself."""
        return isinstance(self.model, ExpertNetwork)

    @property
    def num_new(self) -> int:
        """Classes that arrived with this experience."""
        return self.model.num_classes - self.num_old if self.is_expert_network else 0

    @property
    def seen_classes(self) -> list[int]:
        """Label ids of the classes that have arrived, in that order."""
        return list(self.model.class_ids) if self.is_expert_network else []

    def loss_context(self) -> LossContext:
        """Return what expert methods may know."""
        return LossContext(
            self.stage_counts,
            self.num_old,
            self.stage_epoch,
            self.stage.epochs,
            network=self.model,
            second_view=self.second_view,
            autocast=self.autocast,
            guide=None if self.guide is None else self._guide_output,
            kernels=self.kernels,
            constants=self._constants,
        )

    @torch.no_grad()
    def _guide_output(self) -> ModelOutput:
        assert self.guide is not None
        return self.run_network(self.guide, self.mb_x, rebalanced=True)

    def second_view(self, augmentation: str) -> Tensor:
        """Augment the images of this batch once more ``[B, c, H, W]``.

        Raises:
            UserError: The loader gives finished images only.
        """
        if not isinstance(self._batches, TensorBatches):
            raise no_second_view(self)
        return self._batches.second_view(augmentation)

    def phase(self) -> Hashable:
        """Return what the loss depends on beside the batch; a captured step is renewed when it changes."""
        steady = self.stage.steady if self.stage.loss is not None else self.steady
        own = self.experts.phase(self.loss_context()) if self.stage.loss is None else None
        return self.experience_index, self.stage_index, own if steady else self.stage_epoch

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which networks run."""
        dtype = PRECISIONS[self.precision]
        if dtype is None:
            return contextlib.nullcontext()
        # a graph must not hold casts of weights made outside of it
        return torch.autocast(self.device.type, dtype, cache_enabled=self.stepper.name != "graph")

    def run_network(self, network: ExpertNetwork, x: Tensor, rebalanced: bool | None = None) -> ModelOutput:
        """Run an expert network under autocast; features and logits come back in fp32."""

        def extract(images: Tensor) -> Tensor:
            trains = network is self.model and self.is_training
            if trains and self._features_stored:
                return images.transpose(0, 1)
            with (
                self.autocast(),
                torch.set_grad_enabled(torch.is_grad_enabled() and self._backbone_trains),
            ):
                return self.stepper.extract(network, images) if trains else network.extract(images)

        return network.forward_all(x, rebalanced=rebalanced, extract=extract)

    @torch.no_grad()
    def teacher_output(self) -> ModelOutput | None:
        """Return the teacher's answer to the current batch, or None in the first experience."""
        return None if self.teacher is None else self.run_network(self.teacher, self.mb_x, rebalanced=False)

    # ------------------------------------------------------------------ Avalanche's seam: data and model

    def _before_training_exp(self, **kwargs: Any) -> None:
        if DistributedHelper.is_distributed:
            raise UserError(
                "several processes were started, but gradients would not be shared between them; "
                "run one process per experiment"
            )
        self._backbone_trains, self._features_stored = True, False
        self.memory_before = None if self.memory is None else self.memory.state_dict()
        begins = self._resume is None or bool(self._resume["progress"]["trained"])
        if begins and self.is_expert_network:
            self.num_old = self.model.num_classes
        super()._before_training_exp(**kwargs)
        self._read_stream()
        self._stream_loader = self._fast(self.dataloader)
        check_batches(self, self._stream_loader)
        if begins:
            self._resume = None
            self._start_experience()
        elif self._resume is not None and self.memory is not None:
            # a stage may have chosen exemplars before the process was killed
            self.memory.load_state_dict(self._resume["memory"], self._resume_stream)

    def _start_experience(self) -> None:
        if self.is_expert_network:
            self._check_guide()
            self.experts.begin_experience(self.model)
        for group, lr in zip(self.optimizer.param_groups, self._initial_lrs, strict=False):
            if self.schedule is not None:
                group["lr"] = lr
        if self.reset_optimizer:
            self.optimizer.state.clear()
        self.begin_experience(self.experience)

    def _check_guide(self) -> None:
        if self.guide is None:
            return
        if self.guide.class_ids != self.model.class_ids:
            raise UserError(
                f"experts.teacher knows {self.guide.num_classes} classes, in its own order; this experience has "
                f"{self.model.num_classes}. Distil a teacher that was trained on the same classes in one task."
            )
        taught, names = self.guide.class_names, class_names_of(self.experience)
        if taught is None or names is None:  # label ids are all that is known
            return
        for label in self.model.class_ids:
            if taught.get(label) != names[label]:
                raise UserError(
                    f"class {label} is {taught.get(label)!r} to experts.teacher and {names[label]!r} here. Distil a "
                    "teacher that was trained with the same class order (benchmark.order, seeds.class_order)."
                )

    def _read_stream(self) -> None:
        """Take note of what this experience trains on, which a plugin such as Avalanche's replay may have changed."""
        parts = self._parts_of_stream()
        self.stream_dataset = functools.reduce(AvalancheDataset.concat, [dataset for dataset, _ in parts])
        if not self.is_expert_network:
            return
        table = self.model.positions(torch.arange(max(self.model.class_ids) + 1))
        self._position_table = table.to(self.device)
        self.class_counts = self._counts_of(self.stream_dataset)
        self._stream_counts = self.class_counts
        if len(parts) > 1:
            drawn = [self._counts_of(dataset) * passes for dataset, passes in parts]
            self._stream_counts = torch.stack(drawn).sum(0).round().long()

    def _parts_of_stream(self) -> list[tuple[Any, float]]:
        """Return the data sets of the loader and the passes an epoch makes over each."""
        if self.dataloader is self._own_loader:
            return [(self.adapted_dataset, 1.0)]
        try:
            return parts_of_loader(self.dataloader)
        except NotExactError as reason:
            warnings.warn(
                f"a plugin put a loader of its own in place ({reason}): class counts, and stages after the first, see "
                "the images of the experience and of incrlt's memory, not those that this loader may add.",
                stacklevel=2,
            )
            return [(self.adapted_dataset, 1.0)]

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Build Avalanche's training loader; a plugin may put another one in its place."""
        super().make_train_dataloader(**kwargs)
        self._own_loader = self.dataloader

    def _counts_of(self, dataset: Any) -> Tensor:
        labels = self.positions(torch.as_tensor(list(dataset.targets), device=self.device))
        return class_counts(labels, self.model.num_classes)

    def positions(self, labels: Tensor) -> Tensor:
        """Map label ids ``[B]`` of seen classes to arrival positions ``[B]``, without a host sync."""
        assert self._position_table is not None
        return self._position_table[labels]

    def _fast(self, loader: Any) -> Any:
        if not self.fast_data:
            return loader
        try:
            return convert(
                loader,
                self.device,
                self.batch_generator,
                self.augmentation_generator,
                cache=self.tensor_cache,
                channels_last=self.channels_last,
            )
        except NotExactError as reason:
            self.fallback_reason = str(reason)
            return loader

    def make_eval_dataloader(self, **kwargs: Any) -> None:
        """Build Avalanche's evaluation loader, then cut its batches from tensors where that is exact."""
        super().make_eval_dataloader(**kwargs)
        self._eval_width = max(classes_of(self.experience)) + 1
        self.dataloader = self._fast(self.dataloader)

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        """Grow the heads when training meets new classes; evaluation leaves an expert network as it is."""
        model = self.model if model is None else model
        if not isinstance(model, ExpertNetwork):
            return super().model_adaptation(model)
        if self.is_training:
            new = [label for label in classes_of(self.experience) if label not in set(model.class_ids)]
            if new:
                self._replaced += model.grow(new)
            self.place(model)
        return model

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, in the memory format of the strategy."""
        memory_format = torch.channels_last if self.channels_last else torch.preserve_format
        return model.to(self.device).to(memory_format=memory_format)

    def make_optimizer(self, **kwargs: Any) -> None:
        """Point the optimizer at grown parameters, keeping the state of their old rows."""
        if not self.is_expert_network:
            return super().make_optimizer(**kwargs)
        replace_parameters(self.optimizer, self._replaced)
        self._replaced = []
        self.optimized_param_id = dict(self.model.named_parameters())
        return None

    @property
    def mb_task_id(self) -> Tensor:
        """Task labels of the batch; zeros where the benchmark has none, so that task-aware plugins run."""
        if len(self.mbatch) >= 3:
            return self.mbatch[-1]
        return torch.zeros_like(self.mb_y)

    # ------------------------------------------------------------------ Avalanche's seam: one step

    def forward(self) -> Tensor:
        """Run the model on the batch and return fp32 logits in the benchmark's label ids."""
        if not self.is_expert_network:
            with self.autocast():
                return super().forward().float()
        if self.is_training:
            self._captured = self.stepper.take(self)
            captured = self._captured is not None
            self.mb_out = self._captured.output if captured else self._output_of_batch()
            return self.model.to_labels(self.mb_out.logits)
        self.mb_out = self.run_network(self.model, self.mb_x, rebalanced=True)
        self.mb_scores = {**self.readouts(self.mb_out), **self.routed(self.mb_out)}
        return self.model.to_labels(next(iter(self.mb_scores.values())), self._eval_width)

    def criterion(self) -> Tensor:
        """Sum the loss terms in training; in evaluation, the plain criterion."""
        if not self.is_training:
            return self._criterion(self.mb_output, self.mb_y)
        if self._captured is not None:
            values = self._captured.terms.clone()  # the next batch writes new ones there
            self._step_terms.append((self._captured.names, values))
            return values.sum()
        terms = self._terms()
        self._step_terms.append((list(terms), torch.stack([term.detach() for term in terms.values()])))
        return torch.stack(list(terms.values())).sum()

    def _output_of_batch(self) -> ModelOutput:
        return self.run_network(self.model, self.mb_x, self.stage.rebalanced)

    def terms_of_batch(self) -> tuple[ModelOutput, LossTerms]:
        """Return output and loss terms of the batch, without callbacks: what a captured step consists of."""
        self.mb_out = self._output_of_batch()
        return self.mb_out, self._terms()

    def plugin_between(self, hooks: Sequence[str]) -> str | None:
        """Return which plugin acts in one of these callbacks, None if none does; evaluation only watches."""
        for plugin in self.plugins:
            for hook in () if isinstance(plugin, EvaluationPlugin) else hooks:
                found = getattr(type(plugin), hook, None)
                if found is not None and found is not getattr(SupervisedPlugin, hook, None):
                    return f"plugin {type(plugin).__name__} acts in {hook}"
        return None

    @contextlib.contextmanager
    def on_batch(self, x: Tensor, y: Tensor) -> Iterator[None]:
        """Put tensors of the same shapes in place of the batch."""
        batch = self.mbatch
        self.mbatch = [x, y, *batch[2:]]
        try:
            yield
        finally:
            self.mbatch = batch

    def _terms(self) -> LossTerms:
        if not self.is_expert_network:
            return {"criterion": self._criterion(self.mb_output, self.mb_y)}
        assert self.mb_out is not None
        labels = self.positions(self.mb_y)
        if self.stage.loss is not None:
            return self.stage.loss(self.loss_context(), self.mb_out, labels)
        terms = self.loss_terms(self.mb_out, labels)
        if not isinstance(terms, dict):
            raise UserError(
                f"the loss of experts '{self.experts.name}' is a {type(terms).__name__}; return named terms, such as "
                '{"focal": value}.'
            )
        return terms

    def backward(self) -> None:
        """Run the backward pass; gradients are unscaled before plugins and clipping see them."""
        if self._captured is not None:
            self._captured.give_gradients()
        elif self.scaler.is_enabled():
            self.scaler.scale(self.loss).backward(retain_graph=self.retain_graph)
            self.scaler.unscale_(self.optimizer)
        else:
            super().backward()
        self._pace_experts()

    def _pace_experts(self) -> None:
        """Give each expert the gradient of its own loss, see :attr:`~incrlt.experts.base.ExpertMethod.averaged`."""
        gradients = [p.grad for p in self._paced if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, self.model.num_experts)

    def _to_pace(self) -> list[nn.Parameter]:
        """Return what :meth:`_pace_experts` acts on: only what trains, nobody clears the gradients of the rest."""
        if not self.is_expert_network or self.model.num_experts == 1 or not self.experts.averaged:
            return []
        trained = set(map(id, held_by(self.optimizer)))
        return [p for p in self.model.own_parameters if id(p) in trained]

    def optimizer_step(self) -> None:
        """Clip, step, and put frozen head rows back."""
        if self.grad_clip is not None:
            # only what trains: parameters outside a stage's optimizer keep gradients nobody clears
            nn.utils.clip_grad_norm_(held_by(self.optimizer), self.grad_clip)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        if self.is_expert_network:
            self.model.restore_frozen()

    def _train_cleanup(self) -> None:
        super()._train_cleanup()
        self.mb_out, self._batches, self._stream_loader, self._captured = None, None, [], None

    def _eval_cleanup(self) -> None:
        super()._eval_cleanup()
        self.mb_out, self.mb_scores, self.mb_experts_used = None, {}, None

    # ------------------------------------------------------------------ stages and epochs

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        first = 0 if self._resume is None else self._resume["progress"]["stage"]
        for index, stage in enumerate(self.stages(experience)):
            if index >= first and stage.epochs > 0:
                with self._enter(index, stage) as start:
                    self._run_epochs(stage, start, **kwargs)

    def _run_epochs(self, stage: Stage, start: int, **kwargs: Any) -> None:
        for self.stage_epoch in range(start, stage.epochs):
            self._before_training_epoch(**kwargs)
            if self._stopped():
                break
            begun, self.epoch_lr = time.perf_counter(), float(self.optimizer.param_groups[0]["lr"])
            self.training_epoch(**kwargs)
            self._collect_terms()
            self.epoch_seconds = time.perf_counter() - begun
            self._after_training_epoch(**kwargs)
            if self._scheduler is not None:
                self._scheduler.step()
            if self.on_epoch_end is not None:
                self.on_epoch_end(self)

    def _stopped(self) -> bool:
        """Return whether a plugin such as EarlyStopping has ended the stage.

        Before its first epoch a later stage has given no reason: what is asked for there is about the stage before.
        """
        asked, self._stop_training = self._stop_training, False
        return asked and not (self.stage_index > 0 and self.stage_epoch == 0)

    @contextlib.contextmanager
    def _enter(self, index: int, stage: Stage) -> Iterator[int]:
        """Set up a stage, yield its first epoch, and leave model and optimizer as they were found."""
        self.main_optimizer, self.stage, self.stage_index = self.optimizer, stage, index
        if stage.lr is not None:
            self.optimizer = stage_optimizer(self.main_optimizer, stage, self.model)
        self.dataloader = self._batches = self._stage_loader(stage)
        self.model.train()
        if self.is_expert_network:
            self._backbone_trains = not stage.frozen_backbone and backbone_trains(self.optimizer, self.model)
            self.model.freeze_old(self.frozen_rows(stage))
            if stage.frozen_backbone:
                self.model.freeze_backbone()
        self._scheduler = stage.schedule(self.optimizer, stage.epochs) if stage.schedule else None
        self._paced, self._stop_training = self._to_pace(), False
        try:
            start = self._catch_up()
            if stage.cache_features:
                self.dataloader = self._batches = feature_batches(self, self._batches)
                self._features_stored = True
            if start == 0 and stage.prepare is not None:
                stage.prepare(self.model, self.num_old)
            yield start
        finally:
            self.stepper.forget()
            self.model.zero_grad()  # no later stage clears what this one alone has trained
            self.optimizer = self.main_optimizer
            self._backbone_trains, self._features_stored = True, False
            if self.is_expert_network:
                self.model.freeze_old(0)
            self.model.train()

    def frozen_rows(self, stage: Stage) -> int:
        """Return how many leading head rows a stage must not change; strategies that freeze old rows say so."""
        return self.num_old if stage.lr is not None and stage.freeze_old else 0

    @staticmethod
    def on_stream_loader(stage: Stage) -> bool:
        """Say whether a stage trains on the loader of the stream; others have one of their own."""
        usual = stage.sampler == "shuffle" and stage.batch_size is None and not stage.aside
        return stage.data == "stream" and usual

    def _stage_loader(self, stage: Stage) -> Any:
        self.stage_counts, self._constants = self._stream_counts, {}
        if self.on_stream_loader(stage):
            return self._stream_loader
        dataset = self.stream_dataset
        if stage.data == "exemplars":
            self.memory.update(self, self.experience)
            dataset = self.memory.dataset().train()
        self.stage_counts = self._drawn(dataset, stage)
        permutation, augmentation = self._generators(stage)
        return class_aware_loader(
            dataset,
            batch_size=stage.batch_size or self.train_mb_size,
            class_aware=stage.sampler == "class_aware",
            device=self.device,
            permutation_generator=permutation,
            augmentation_generator=augmentation,
            channels_last=self.channels_last,
            fast=self.fast_data,
            cache=self.tensor_cache,
        )

    def _generators(self, stage: Stage) -> tuple[torch.Generator, torch.Generator]:
        """Return the generators of a stage; its own begin from the seeds and the experience."""
        if not stage.aside:
            return self.batch_generator, self.augmentation_generator
        for generator, seed in zip(self.aside_generators, self._seeds, strict=True):
            generator.manual_seed(seed + ASIDE * (self.experience_index + 1))
        return self.aside_generators

    def _drawn(self, dataset: Any, stage: Stage) -> Tensor:
        """Return images per class as the stage's sampler draws them: priors must not correct twice."""
        if not self.is_expert_network:
            return self.class_counts
        counts = self._counts_of(dataset)
        return (
            torch.full_like(counts, len(dataset) // len(counts)) if stage.sampler == "class_aware" else counts
        )

    def _collect_terms(self) -> None:
        """Average the epoch's terms in one transfer; name the first one that is not finite."""
        if not self._step_terms:
            return
        names = self._step_terms[0][0]
        values = torch.stack([values for _, values in self._step_terms]).cpu()
        self._step_terms = []
        broken = (~values.isfinite()).nonzero()
        if len(broken):
            step, term = broken[0].tolist()
            raise UserError(
                f"loss term '{names[term]}' became {values[step, term].item()} in experience "
                f"{self.experience_index}, stage '{self.stage.name}', epoch {self.stage_epoch + 1}, step {step + 1}. "
                "Lower training.lr, set training.grad_clip, or use training.precision: fp32."
            )
        self.epoch_terms = dict(zip(names, values.double().mean(0).tolist(), strict=True))

    def training_epoch(self, **kwargs: Any) -> None:
        """Run Avalanche's epoch, counting images."""
        self.epoch_images, self._step_terms = 0, []
        super().training_epoch(**kwargs)

    def _after_training_iteration(self, **kwargs: Any) -> None:
        self.epoch_images += len(self.mb_y)
        super()._after_training_iteration(**kwargs)

    def _after_training_exp(self, **kwargs: Any) -> None:
        super()._after_training_exp(**kwargs)
        self.end_experience(self.experience)
        if self.uses_teacher:
            self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.experience_index += 1

    # ------------------------------------------------------------------ state

    def state_dict(self, trained: bool = False) -> dict[str, Any]:
        """Return everything of the strategy that a later process needs to go on bit-exactly, as tensors and plain data.

        Plugins of yours are not in it (EWC's importances, ReplayPlugin's buffer): Avalanche's plugins have no state
        that could be saved without their code. With them, save the whole strategy by Avalanche's ``save_checkpoint``.

        Args:
            trained: The experience is complete, evaluation included; otherwise an epoch has just ended.

        Raises:
            UserError: The model is not an expert network.
        """
        return state.save(self, trained)

    def load_state_dict(self, saved: dict[str, Any], train_stream: Any) -> None:
        """Restore :meth:`state_dict`; training then goes on with experience ``experience_index``.

        Args:
            saved: As returned by :meth:`state_dict`.
            train_stream: Stream of the same benchmark; exemplars are looked up in it.

        Raises:
            UserError: The state belongs to another strategy or format.
        """
        state.load(self, saved, train_stream)

    def resume_from(self, saved: dict[str, Any], train_stream: Any) -> None:
        """Go on with the epoch after the saved one as soon as training reaches its experience."""
        self._resume, self._resume_stream = saved, train_stream

    def _catch_up(self) -> int:
        """Return the first epoch of a stage; on resuming, restore optimizer, counters and random states first."""
        saved, self._resume = self._resume, None
        if saved is None or saved["progress"]["stage"] != self.stage_index:
            return 0
        epoch = int(saved["progress"]["epoch"])
        for _ in range(epoch if self._scheduler is not None else 0):
            self.optimizer._opt_called = True  # type: ignore[attr-defined]  # the steps were made by the process that was killed
            self._scheduler.step()
        state.restore_progress(self, saved)
        self.stage_epoch = epoch - 1  # stays so when all epochs of the stage were done
        return epoch
