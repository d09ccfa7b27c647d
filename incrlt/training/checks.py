"""Settings that cannot work together, said before any work starts."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import incrlt._compat  # noqa: F401  (must come before avalanche)

from avalanche.distributed import DistributedHelper
from avalanche.training.plugins import LRSchedulerPlugin
from torch import nn
from torch.nn import CrossEntropyLoss
from torch.optim import Optimizer, SparseAdam
from torch.optim.lr_scheduler import ChainedScheduler, SequentialLR

from incrlt.checkpoint import first_non_finite
from incrlt.data.tensors import TensorBatches
from incrlt.errors import UserError
from incrlt.experts.base import ExpertMethod
from incrlt.experts.single import Single
from incrlt.plugins.scheduler import SchedulerFactory
from incrlt.roles import Criterion, Memory, Rebalance, RouterStage
from incrlt.training.network import ForeignNetwork, Network
from incrlt.training.optim import held_by, stage_optimizer
from incrlt.training.stream import Feed, Stream, is_streams_loader
from incrlt.types import Schedule, Stage

USUAL = {"rebalance": "LWS(epochs=30)", "router": "ExpertAssignment()"}


@dataclass(frozen=True)
class Asked:
    """What a strategy was given.

    Attributes:
        name: The strategy's.
        needs_network: It reads features and grows heads.
        needs_cosine: It reads cosines.
        needs_memory: It trains on exemplars.
        network: The model as the template sees it.
        model: The model as it was given.
        optimizer: Of the first stage.
        experts: The tail axis.
        memory: Exemplars, or None.
        rebalance: A second stage, or None.
        router: A last stage, or None.
        fast_data: Batches may be cut from tensors.
        criterion: Loss of foreign models and of evaluation.
        schedule: Of the learning rate, or None.
        later_rate: Its factor after the first experience.
        plugins: All that are attached.
    """

    name: str
    needs_network: bool
    needs_cosine: bool
    needs_memory: bool
    network: Network
    model: nn.Module
    optimizer: Optimizer
    experts: ExpertMethod
    memory: Memory | None
    rebalance: Rebalance | None
    router: RouterStage | None
    fast_data: bool
    criterion: Criterion
    schedule: Schedule | None
    later_rate: float
    plugins: Sequence[object]


def check_settings(asked: Asked) -> None:
    """Refuse settings that contradict each other.

    Raises:
        UserError: What was given, what is allowed, what to do.
    """
    _check_parts(asked)
    _check_tensors(asked)
    _check_model(asked)
    _check_criterion(asked)
    if asked.needs_memory and asked.memory is None:
        raise UserError(f"strategy '{asked.name}' needs exemplars; set memory: {{per_class: 20}}.")
    if not asked.later_rate > 0:
        raise UserError(f"later_rate must be a number > 0; got {asked.later_rate}.")
    if asked.schedule is None and asked.later_rate != 1:
        raise UserError(
            f"later_rate is {asked.later_rate}, and without a schedule nothing sets rates. Give schedule=, such as "
            "incrlt.schedules.cosine(), or leave later_rate out."
        )
    _check_optimizer(asked)
    _check_stage_optimizer(asked)
    for plugin in asked.plugins:
        if isinstance(plugin, LRSchedulerPlugin):
            _check_scheduler(asked, plugin)


def _check_scheduler(asked: Asked, plugin: LRSchedulerPlugin) -> None:
    """Refuse a scheduler of Avalanche's plugin that would move another optimizer's rates, or the same ones twice."""
    if asked.schedule is not None or any(isinstance(other, SchedulerFactory) for other in asked.plugins):
        raise UserError(
            "an LRSchedulerPlugin and a schedule both set the learning rate. Leave one of them out; schedule= alone is "
            "right in every experience and stage."
        )
    if getattr(plugin.scheduler, "optimizer", asked.optimizer) is not asked.optimizer:
        raise UserError(
            "the scheduler of an LRSchedulerPlugin belongs to another optimizer than the strategy's, so that it would "
            "do nothing. Build it from the same object, or give schedule= in its place."
        )


def check_processes() -> None:
    """Refuse several processes that incrlt did not make.

    Raises:
        UserError: There are some.
    """
    if DistributedHelper.is_distributed:
        raise UserError(
            "a process group exists that incrlt did not make, so that gradients would not be shared; build and "
            "train the strategy inside `with incrlt.processes.joined():`."
        )


def check_scheduler_resets(plugins: Iterable[object], optimizer: Optimizer) -> None:
    """Refuse, before any training, a scheduler that Avalanche's plugin does not bring back to its beginning.

    Its reset puts ``last_epoch`` to 0 and the rates to their base: a warm-up begins at its full rate from the second
    experience on, and what is composed of several schedulers goes on where it was.

    Args:
        plugins: All that are attached.
        optimizer: The strategy's, as the schedulers left it when they were made.

    Raises:
        UserError: One warms up or is composed, and is to be reset.
    """
    for plugin in plugins:
        if not isinstance(plugin, LRSchedulerPlugin) or plugin.first_exp_only or not plugin.reset_scheduler:
            continue
        base = plugin.scheduler.base_lrs if hasattr(plugin.scheduler, "base_lrs") else []
        rates = [group["lr"] for group in optimizer.param_groups]
        composed = isinstance(plugin.scheduler, SequentialLR | ChainedScheduler)
        if composed or any(rate != start for rate, start in zip(rates, base, strict=False)):
            raise UserError(
                f"the {type(plugin.scheduler).__name__} of an LRSchedulerPlugin warms up or is composed of several, "
                "and the plugin's reset does not bring it back, so that rates would be wrong from the second "
                "experience on. Give schedule=, such as incrlt.plugins.cosine(warmup_epochs=5), or first_exp_only=True."
            )


def _check_optimizer(asked: Asked) -> None:
    """Refuse an optimizer that holds nothing of the model (a part of it, and more, are fine), or cannot step on it."""
    own = {id(parameter) for parameter in asked.model.parameters()}
    if own and own.isdisjoint(map(id, held_by(asked.optimizer))):
        raise UserError(
            "the optimizer holds no parameter of the model, so that nothing would train; build it from the parameters "
            "of the same object: optimizer=torch.optim.SGD(model.parameters(), lr=0.1)."
        )
    reason = None
    if _needs_closure(asked.optimizer):
        reason = "computes the loss several times in a step (a closure), and a strategy computes it once"
    elif isinstance(asked.optimizer, SparseAdam):
        reason = "takes sparse gradients, and those of a network are dense"
    if reason is not None:
        raise UserError(
            f"the optimizer is {type(asked.optimizer).__name__}, which {reason}. Take another one, such as SGD or "
            "AdamW."
        )


def _needs_closure(optimizer: Optimizer) -> bool:
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _check_stage_optimizer(asked: Asked) -> None:
    """Later stages build an optimizer like the strategy's; one that does not let itself be built is refused here."""
    has_later = asked.rebalance or asked.router or asked.experts.stages()
    if has_later and not isinstance(asked.network, ForeignNetwork):
        stage_optimizer(asked.optimizer, Stage("second", 1, lr=1.0), asked.model)


def _check_criterion(asked: Asked) -> None:
    """Refuse the loss that would not train: an expert network trains on its expert method's, any other on this one."""
    if isinstance(asked.network, ForeignNetwork):
        if asked.experts != Single():
            raise UserError(
                f"model is a {type(asked.model).__name__}, which trains on criterion; the loss of experts "
                f"'{asked.experts.name}' would do nothing. Build the model with incrlt.models.build(...), or leave "
                "experts out."
            )
        return
    if not _is_plain(asked.criterion):
        raise UserError(
            f"criterion is {asked.criterion!r}, and an expert network trains on the loss of its expert method, so that "
            "it would count in evaluation alone. Choose the loss there: experts=Single(objective='balanced_softmax'), "
            "or an ExpertMethod of your own; leave criterion out, or give a plain CrossEntropyLoss()."
        )


def _is_plain(criterion: Criterion) -> bool:
    if type(criterion) is not CrossEntropyLoss:
        return False
    usual = CrossEntropyLoss()
    settings = ("label_smoothing", "ignore_index", "reduction")
    return criterion.weight is None and all(getattr(criterion, s) == getattr(usual, s) for s in settings)


def _check_parts(asked: Asked) -> None:
    if asked.memory is not None and not hasattr(asked.memory, "update"):
        raise UserError(
            f"memory is {asked.memory!r}; give an object with a method update, such as "
            "ExemplarMemory(per_class=20)."
        )
    if not isinstance(asked.experts, ExpertMethod):
        raise UserError(
            f"experts is {asked.experts!r}; give an object of a subclass of incrlt.experts.ExpertMethod, such as "
            "RIDE(num_experts=3)."
        )
    _check_method(type(asked.experts))
    for name, method in (("rebalance", "stages"), ("router", "stage")):
        part = getattr(asked, name)
        if part is not None and not hasattr(part, method):
            raise UserError(
                f"{name} is {part!r}; give an object with a method {method}, such as {USUAL[name]}."
            )


def _check_method(cls: type[ExpertMethod]) -> None:
    """Refuse an expert method of a user's that lacks what makes it one."""
    if cls.loss is ExpertMethod.loss:
        raise UserError(f"experts {cls.__name__} has no loss; write loss(self, context, output, labels).")
    lost = [name for base in cls.__mro__ if issubclass(base, ExpertMethod) for name in _undeclared(base)]
    if lost:
        raise UserError(
            f"experts {cls.__name__} cannot be given {', '.join(lost)}: write @dataclass(frozen=True) above the class."
        )


def _undeclared(cls: type) -> list[str]:
    """Return what a class annotates as a hyper-parameter and no dataclass made one of."""
    fields = getattr(cls, "__dataclass_fields__", {})
    own = vars(cls).get("__annotations__", {})
    return [name for name, kind in own.items() if "ClassVar" not in str(kind) and name not in fields]


def _check_tensors(asked: Asked) -> None:
    for name in ("experts", "rebalance", "router"):
        if getattr(getattr(asked, name), "cache_features", False) and not asked.fast_data:
            raise UserError(
                f"{name}.cache_features needs images as tensors on the device, and fast_data is off; set fast_data: "
                "true (data.on_device in YAML), or cache_features: false."
            )
    if asked.experts.layout.contrast is not None and not asked.fast_data:
        raise no_second_view(asked.experts, None)


def check_batches(experts: ExpertMethod, stages: Iterable[Stage], stream: Stream, feed: Feed) -> None:
    """Refuse, before the first epoch, what needs images as tensors on the device where they cannot be.

    Raises:
        UserError: A stage is to store features, or the experts want second views.
    """
    if experts.layout.contrast is not None:
        _check_second_view(experts, stream, feed)
    if isinstance(stream.batches, TensorBatches):
        return
    for stage in stages:
        if not stage.cache_features or stage.epochs == 0:
            continue
        if is_streams_loader(stage) or not feed.makes_tensors(stream.known_dataset):
            raise UserError(
                f"stage '{stage.name}' is to store features (cache_features), but its batches come from a "
                f"loader ({feed.reason or 'fast_data is off'}). Set cache_features: false."
            )


def _check_second_view(experts: ExpertMethod, stream: Stream, feed: Feed) -> None:
    if not isinstance(stream.batches, TensorBatches):
        raise no_second_view(experts, feed.reason)
    if stream.batches.augmentation is None:
        raise no_second_view(
            experts, "its images are finished: they are not normalised by a known mean and std"
        )


def no_second_view(experts: ExpertMethod, reason: str | None) -> UserError:
    """Return the error of experts that want a second view where there is none."""
    return UserError(
        f"experts '{experts.name}' want a second view of each image, but batches come from a loader "
        f"that gives one ({reason or 'fast_data is off'}). Give uint8 images, or switch the contrastive term off "
        "(contrastive: 0)."
    )


def _check_layout(asked: Asked) -> None:
    wanted, found = asdict(asked.experts.layout), asked.model.architecture.get("layout")
    if found is None:  # put together by hand
        return
    if found["shared"] == "all":  # heads alone: any method's, where nothing else of its layout is missing
        wanted["shared"] = "all"
    names = [name for name, value in wanted.items() if found[name] != value]
    if names:
        differ = ", ".join(f"{name} {found[name]!r} for {wanted[name]!r}" for name in names)
        raise UserError(
            f"the model was not built for experts '{asked.experts.name}': it has {differ}. "
            "Build it with incrlt.models.build(..., layout=experts.layout)."
        )


def _check_model(asked: Asked) -> None:
    experts, model = asked.experts, asked.model
    if isinstance(asked.network, ForeignNetwork):
        wanted = asked.needs_network or asked.rebalance is not None or asked.router is not None
        if wanted or experts.layout.num_experts > 1:
            raise UserError(
                f"strategy '{asked.name}' with these settings needs features and a growing head; build the "
                f"model with incrlt.models.build(...), got {type(model).__name__}."
            )
        return
    if asked.needs_cosine and not model.has_cosine_heads:
        raise UserError(f"strategy '{asked.name}' needs a cosine head; set model.head: cosine.")
    ldam = getattr(experts, "objective", None) == "ldam"  # its margins are cosines
    if (experts.needs_cosine or ldam) and not model.has_cosine_heads:
        which = f"'{experts.name}'{' with objective ldam' if ldam else ''}"
        raise UserError(f"experts {which} need cosine heads; set model.head: cosine.")
    wanted_experts = experts.layout.num_experts
    if model.num_experts != wanted_experts:
        raise UserError(
            f"experts '{experts.name}' wants {wanted_experts} branches, the model has {model.num_experts}; "
            f"build it with incrlt.models.build(..., layout=experts.layout)."
        )
    _check_layout(asked)
    if asked.router is not None and model.num_experts < 2:
        raise UserError(
            f"a router chooses between experts, and experts '{experts.name}' has only one; "
            "set experts: {name: ride} or leave the router out."
        )


def check_finetuned_heads(experts: ExpertMethod) -> None:
    """Refuse a finetune of heads that an expert method with second heads does not answer with.

    Raises:
        UserError: It has them.
    """
    if experts.layout.second_heads:
        raise UserError(
            f"class_balanced_finetune would train heads that experts '{experts.name}' do not answer with; "
            "set class_balanced_finetune: 0, or experts.classifier_epochs: 0."
        )


def check_finite(model: nn.Module, where: str) -> None:
    """Stop a run that diverged in a step whose loss was still finite, before anything of it is evaluated or saved.

    Args:
        model: What trains.
        where: Names experience, stage and epoch in the error.

    Raises:
        UserError: The first parameter or buffer that is not finite.
    """
    name = first_non_finite(model.state_dict())
    if name is not None:
        raise UserError(
            f"the run diverged: {name} of the model is not finite after {where}. Lower training.lr, set "
            "training.grad_clip, or use training.precision: fp32."
        )
