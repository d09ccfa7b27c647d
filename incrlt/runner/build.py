"""From a checked experiment to what trains: data, device, precision, network, optimizer, memory, strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import incrlt._compat

import torch

import incrlt.models
from incrlt.benchmarks import datasets
from incrlt.errors import UserError
from incrlt.experiment import explain
from incrlt.experiment.clashes import NARROWEST_CHANNELS_LAST, computation
from incrlt.experiment.methods import Kind, load_class
from incrlt.experiment.sections import Experiment
from incrlt.plugins.memory import ExemplarMemory
from incrlt.processes import local_device, world
from incrlt.schedules import cosine, multistep_with_warmup
from incrlt.training.randomness import seed_everything
from incrlt.training.template import IncrTemplate, quiet_evaluator


def load_data(experiment: Experiment) -> datasets.ImageData:
    """Read the images of an experiment.

    Raises:
        UserError: They are missing or damaged.
    """
    chosen, where = experiment.benchmark, experiment.data
    if chosen.dataset == "folder":
        return datasets.load_folder(where.root, chosen.image_size)
    return datasets.load(chosen.dataset, where.root, where.download)


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
        UserError: A captured step or fp16 on a CPU.
    """
    problems = computation(experiment.training, device.type, experiment.model.width)
    if problems:
        raise explain.user_error(f"on this machine {experiment.name}", problems)


def choose_precision(name: str, device: torch.device) -> str:
    """Return the precision of a name; ``auto`` is bf16 where the hardware multiplies in it, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def build_strategy(
    experiment: Experiment, in_channels: int, device: torch.device, recorders: Sequence[Any]
) -> IncrTemplate:
    """Build model, optimizer and strategy of an experiment; weights are drawn from ``seeds.init``."""
    training, seeds = experiment.training, experiment.seeds.filled()
    seed_everything(seeds["init"])
    experts = load_class("experts", experiment.experts.name)(**experiment.experts.hyper_parameters)
    model = incrlt.models.build(
        experiment.model.name,
        layout=experts.layout,
        head=experiment.model.head,
        in_channels=in_channels,
        width=experiment.model.width,
        last_relu=experiment.model.last_relu,
    )
    precision = choose_precision(training.precision, device)
    safe = device.type != "cpu" or experiment.model.width >= NARROWEST_CHANNELS_LAST
    channels_last = (
        precision != "fp32" and safe if training.channels_last == "auto" else training.channels_last
    )
    optimizer = torch.optim.SGD(
        model.parameters(),
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


def _memory(experiment: Experiment) -> ExemplarMemory | None:
    if experiment.memory is None:
        return None
    return ExemplarMemory(**experiment.memory.model_dump(), seed=experiment.seeds.filled()["batches"])


def _entry(kind: Kind, entry: Any) -> Any:
    return None if entry is None else load_class(kind, entry.name)(**entry.hyper_parameters)


def _schedule(training: Any) -> Any:
    if training.schedule == "cosine":
        return cosine(training.warmup_epochs)
    return multistep_with_warmup(training.milestones, training.gamma, training.warmup_epochs)
