"""From a checked experiment to what trains: data, device, precision, network, optimizer, memory, strategy."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import incrlt._compat

import torch
from torch import nn

import incrlt.models
from incrlt.benchmarks import datasets
from incrlt.benchmarks.holding import Holding
from incrlt.benchmarks.looking import Progress
from incrlt.data.features import FeatureCache
from incrlt.errors import UserError, shown
from incrlt.experiment import explain
from incrlt.experiment.clashes import computation
from incrlt.experiment.methods import Entry, Kind, load_class
from incrlt.experiment.sections import Experiment, Training
from incrlt.experts.base import ExpertMethod
from incrlt.models.network import ExpertNetwork
from incrlt.models.pretrained import preparation_of
from incrlt.models.standing import Standing
from incrlt.plugins.memory import ExemplarMemory
from incrlt.plugins.quiet import quiet_evaluator
from incrlt.processes import local_device, world
from incrlt.schedules import cosine, multistep_with_warmup
from incrlt.training.compute import overwriting
from incrlt.training.randomness import seed_everything
from incrlt.training.template import IncrTemplate
from incrlt.types import Schedule


class Images:
    """The images of an experiment: labels at once, pictures from files when they are wanted, and no longer than that.

    Mean and deviation are those of pretrained weights where there are some.

    Args:
        experiment: Names them.

    Raises:
        UserError: They are missing or damaged.

    Attributes:
        labels: Of the training images, int64 ``[N]``.
    """

    def __init__(self, experiment: Experiment) -> None:
        chosen, where = experiment.benchmark, experiment.data
        self._known = None if experiment.model.pretrained is None else preparation_of(experiment.model.name)
        self._holding = holding_of(experiment)
        self._data: datasets.ImageData | None = None
        self._pictures = experiment.pictures()
        if self._pictures is not None:
            self.labels = datasets.folder_labels(self._pictures.train)
        else:
            self._data = datasets.load(chosen.dataset, where.root, where.download)
            self.labels = self._data.train_labels

    def take(self, progress: Progress | None = None) -> datasets.ImageData:
        """Read the images and let go of them: whoever takes them decides what is held. They can be taken once.

        Args:
            progress: Told how far decoding is.

        Raises:
            UserError: Pictures cannot be read.
        """
        data, self._data = self._data, None
        if data is None:
            assert self._pictures is not None, "they can be taken once"
            data = datasets.read_folder(self._pictures, self._holding, progress)
        known = self._known
        return data if known is None else dataclasses.replace(data, mean=known.mean, std=known.std)


def holding_of(experiment: Experiment) -> Holding:
    """Return how an experiment wants its pictures to be held."""
    where = experiment.data
    cache = Path(where.cache).expanduser() if where.cache else None
    return Holding(where.hold, where.workers, cache, where.cache_gigabytes)


def load_data(experiment: Experiment) -> datasets.ImageData:
    """Read the images of an experiment.

    Raises:
        UserError: They are missing or damaged.
    """
    return Images(experiment).take()


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is the first GPU if there is one.

    Raises:
        UserError: A GPU is asked for that is not there.
    """
    if world().size > 1 and name in ("auto", "cuda"):
        return local_device()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(
            f"device {name!r} is not here: torch sees {count} CUDA devices. Use device: auto or cpu."
        )
    return device


def check_device(experiment: Experiment, device: torch.device) -> None:
    """Refuse what this device cannot compute, before data are read: a file may leave the choice to ``auto``.

    Raises:
        UserError: A captured step or fp16 on a CPU, a compiled one without a compiler.
    """
    problems = computation(experiment.training, device.type, experiment.model.width)
    if experiment.training.step == "compile" and device.type == "cpu" and os.name == "posix":
        problems += _lacking_compiler()
    if problems:
        raise explain.user_error(f"on this machine {experiment.name}", problems)


def _lacking_compiler() -> list[str]:
    """Return what to say where there is no C++ compiler, which ``torch.compile`` calls on a CPU."""
    compiler = (shlex.split(os.environ.get("CXX", "")) or ["g++"])[0]
    if shutil.which(compiler) is not None:
        return []
    return [
        f"training.step 'compile' needs a C++ compiler on a CPU, and {shown(compiler)} is not here. Install one, name "
        "it in CXX, or set training.step: eager."
    ]


def choose_precision(name: str, device: torch.device) -> str:
    """Return the precision of a name; ``auto`` is bf16 where the hardware multiplies in it, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def build_strategy(
    experiment: Experiment,
    in_channels: int,
    device: torch.device,
    recorders: Sequence[object],
    *,
    pretrained: bool = True,
) -> IncrTemplate:
    """Build model, optimizer and strategy of an experiment; weights are drawn from ``seeds.init``.

    Args:
        experiment: What to build.
        in_channels: Channels of the images.
        device: Where it trains.
        recorders: Plugins.
        pretrained: Read the pretrained weights that it names; False where a checkpoint brings all weights.
    """
    training, seeds = experiment.training, experiment.seeds.filled()
    seed_everything(seeds["init"])
    experts = load_class("experts", experiment.experts.name)(**experiment.experts.hyper_parameters)
    model = _model(experiment, experts, in_channels, pretrained)
    precision = choose_precision(training.precision, device)
    safe = device.type != "cpu" or overwriting(model) is None
    channels_last = (
        precision != "fp32" and safe if training.channels_last == "auto" else training.channels_last
    )
    optimizer = torch.optim.SGD(
        _trained(model, training),
        lr=training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.nesterov,
    )
    return load_class("strategy", experiment.strategy.name)(
        model=model,
        optimizer=optimizer,
        experts=experts,
        memory=_memory(experiment),
        rebalance=_entry("rebalance", experiment.rebalance),
        router=_entry("router", experiment.router),
        schedule=_schedule(training),
        train_mb_size=training.batch_size,
        train_epochs=training.epochs,
        base_epochs=training.base_epochs,
        later_rate=1.0 if training.later_lr is None else training.later_lr / training.lr,
        eval_mb_size=training.eval_batch_size,
        device=device,
        plugins=recorders,
        evaluator=quiet_evaluator(),
        precision=precision,
        kernels=training.kernels,
        step=training.step,
        channels_last=channels_last,
        grad_clip=training.grad_clip,
        fast_data=experiment.data.on_device,
        batch_seed=seeds["batches"],
        augmentation_seed=seeds["augmentation"],
        **experiment.strategy.hyper_parameters,
    )


def _model(
    experiment: Experiment, experts: ExpertMethod, in_channels: int, pretrained: bool
) -> ExpertNetwork:
    """Build the network, with what stands still, and with features that are kept where wanted."""
    chosen, layout = experiment.model, experts.layout
    if chosen.train == "heads":
        layout = dataclasses.replace(layout, shared="all")
    last_relu = chosen.last_relu
    if last_relu is None and chosen.pretrained is not None:
        last_relu = True  # also where the weights are not read: a saved network is the same one
    model = incrlt.models.build(
        chosen.name,
        layout=layout,
        head=chosen.head,
        in_channels=in_channels,
        width=chosen.width,
        last_relu=last_relu,
        pretrained=chosen.pretrained if pretrained else None,
        adapters=chosen.adapter_rank if chosen.train == "adapters" else None,
    )
    standing = Standing.of(chosen.train, chosen.norm)
    if standing != Standing():
        model.stand(standing)
    if experiment.data.feature_cache is not None:
        model.kept_features = FeatureCache(Path(experiment.data.feature_cache).expanduser())
    return model


def _trained(model: ExpertNetwork, training: Training) -> Iterable[nn.Parameter] | list[dict[str, object]]:
    """Return what the optimizer holds: everything; or groups by part, heads first, without what stands still."""
    rates = (None, training.lr_stem, training.lr_branches)
    if model.standing == Standing() and rates == (None, None, None):
        return model.parameters()
    parts = {
        id(p): place for place, part in ((1, model.stem), (2, model.branches)) for p in part.parameters()
    }
    groups: list[list[nn.Parameter]] = [[], [], []]
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[parts.get(id(parameter), 0)].append(parameter)
    own = zip(groups, rates, strict=True)
    return [{"params": part, **({} if rate is None else {"lr": rate})} for part, rate in own if part]


def _memory(experiment: Experiment) -> ExemplarMemory | None:
    if experiment.memory is None:
        return None
    return ExemplarMemory(**experiment.memory.model_dump(), seed=experiment.seeds.filled()["batches"])


def _entry(kind: Kind, entry: Entry | None) -> object:
    return None if entry is None else load_class(kind, entry.name)(**entry.hyper_parameters)


def _schedule(training: Training) -> Schedule:
    if training.schedule == "cosine":
        return cosine(training.warmup_epochs)
    return multistep_with_warmup(training.milestones, training.gamma, training.warmup_epochs)
