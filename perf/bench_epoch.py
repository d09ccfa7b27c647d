"""A training epoch of the base experience of ``cifar100lt_10tasks``, against Avalanche's and plain loops.

All competitors train the same ResNet-32 from the same weights on the same images, 128 at a time, padded,
cropped, resized and flipped alike. Decoded images stay in memory for all of them; what differs is that the
others make one PIL image after another. Nothing is written in a turn: a run also saves a checkpoint per epoch.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import incrlt._compat

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from avalanche.benchmarks import nc_benchmark
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR100

import incrlt.experiment.schema
from incrlt.benchmarks import datasets, protocols, streams
from incrlt.errors import UserError
from incrlt.plugins.confusion import ConfusionRecorder
from incrlt.runner.build import build_strategy, choose_precision
from perf.alternate import alternate, ratio, spread

EXPERIMENT = Path(__file__).resolve().parent.parent / "experiments" / "cifar100lt_10tasks.yaml"
CPU = torch.device("cpu")
RATIOS = {  # name: (slower, faster, goal)
    "fp32, over Avalanche Naive": ("avalanche naive", "incrlt fp32", ">= 3"),
    "fp32, over plain loop, no workers": ("plain, 0 workers", "incrlt fp32", ">= 2"),
    "fp32, over plain loop, 2 workers": ("plain, 2 workers", "incrlt fp32", ">= 2"),
    "default, over Avalanche Naive": ("avalanche naive", "incrlt default", ">= 3"),
    "default, over plain loop, no workers": ("plain, 0 workers", "incrlt default", ">= 2"),
    "default, over plain loop, 2 workers": ("plain, 2 workers", "incrlt default", ">= 2"),
    "overhead fp32, over bare tensors": ("incrlt fp32", "bare fp32", "< 1.15"),
    "overhead default, over bare tensors": ("incrlt default", "bare default", "< 1.15"),
    "data alone, Avalanche over incrlt": ("data: avalanche", "data: incrlt", ""),
    "data alone, plain over incrlt": ("data: plain, 0 workers", "data: incrlt", ""),
    "bf16 and channels_last alone, bare over bare": ("bare fp32", "bare default", ""),
}


class Setting:
    """Data, network and optimizer that all competitors share.

    Args:
        images: Images per turn, drawn from the base experience.
    """

    def __init__(self, images: int) -> None:
        self.experiment = incrlt.experiment.schema.load(EXPERIMENT)
        self.batch = self.experiment.training.batch_size
        self.data = datasets.load("cifar100", self.experiment.data.root)
        self.resolved = protocols.resolve(self.experiment.protocol(), self.data.train_labels.numpy())
        self.benchmark = streams.build(self.data, self.resolved)
        base = self.benchmark.train_stream[0]
        self.size = len(base.dataset)
        self.chosen = np.random.RandomState(0).permutation(self.size)[:images].tolist()
        self.model = self.strategy("fp32").model
        self.model.grow(range(len(base.classes_in_this_experience)))

    def strategy(self, precision: str) -> Any:
        """Return the strategy as a run of the experiment builds it."""
        training = self.experiment.training.model_copy(update={"precision": precision})
        experiment = self.experiment.model_copy(update={"training": training})
        return build_strategy(experiment, 3, CPU, [ConfusionRecorder()])

    def copy_of_model(self, channels_last: bool = False) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return a network from the common weights and its optimizer."""
        model = copy.deepcopy(self.model).train()
        if channels_last:
            model.to(memory_format=torch.channels_last)
        training = self.experiment.training
        options = {"momentum": training.momentum, "weight_decay": training.weight_decay}
        return model, torch.optim.SGD(model.parameters(), lr=training.lr, **options)

    def pil(self) -> CIFAR100:
        """Return torchvision's dataset of the kept images, in the order of ours."""
        mean, std = self.data.mean, self.data.std
        augment = [transforms.Pad(4), transforms.RandomResizedCrop(32), transforms.RandomHorizontalFlip()]
        normalise = [transforms.ToTensor(), transforms.Normalize(mean, std)]
        dataset = CIFAR100(
            datasets.data_root(self.experiment.data.root), transform=transforms.Compose(augment + normalise)
        )
        kept = np.concatenate(self.resolved.train_indices)
        dataset.data = dataset.data[kept]
        dataset.targets = self.data.train_labels[kept].tolist()
        return dataset


def first_experience(benchmark: Any, setting: Setting) -> Any:
    """Return the base experience, cut to the images of a turn."""
    experience = benchmark.train_stream[0]
    experience._dataset = experience._dataset.subset(setting.chosen)
    return experience


def begin(strategy: Any, experience: Any) -> None:
    """Do what ``strategy.train`` does before the first epoch."""
    strategy.is_training, strategy._eval_streams = True, []
    strategy.experience = experience
    strategy.model.train()
    strategy._before_training()
    strategy._before_training_exp()


def incrlt_epoch(setting: Setting, precision: str, stack: contextlib.ExitStack) -> tuple[Callable, Any]:
    """Return one epoch of the experiment's own strategy, and the strategy."""
    strategy = setting.strategy(precision)
    begin(strategy, first_experience(setting.benchmark, setting))
    assert strategy.fallback_reason is None
    stage = strategy.stages(strategy.experience)[0]
    stack.enter_context(strategy._enter(0, stage))
    strategy.model.load_state_dict(setting.model.state_dict())
    work = strategy.work
    work.scheduler = None  # the rate stays at its first value for as many turns as there are
    work.stage = dataclasses.replace(stage, epochs=1)
    return lambda: strategy._run_epochs(0), strategy


def avalanche_epoch(setting: Setting) -> tuple[Callable, Any]:
    """Return one epoch of Avalanche's ``Naive`` without metrics and loggers, and the strategy."""
    rule = setting.resolved.protocol
    test = CIFAR100(datasets.data_root(setting.experiment.data.root), train=False)
    benchmark = nc_benchmark(
        setting.pil(),
        test,
        n_experiences=rule.num_experiences,
        task_labels=False,
        fixed_class_order=list(rule.class_order),
        per_exp_classes=dict(enumerate(rule.classes_per_experience)),
        class_ids_from_zero_from_first_exp=True,
    )
    model, optimizer = setting.copy_of_model()
    quiet = EvaluationPlugin(loggers=[BaseLogger()])
    strategy = Naive(model=model, optimizer=optimizer, train_mb_size=setting.batch, evaluator=quiet)
    begin(strategy, first_experience(benchmark, setting))

    def epoch() -> None:
        strategy._before_training_epoch()
        strategy.training_epoch()
        strategy._after_training_epoch()

    return epoch, strategy


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    """Train on one batch."""
    optimizer.zero_grad()
    F.cross_entropy(model(x).float(), y).backward()
    optimizer.step()


def plain_epoch(setting: Setting, workers: int) -> tuple[Callable, Any]:
    """Return one epoch of a loop over torchvision's dataset and a DataLoader, and the loader."""
    dataset = setting.pil()
    base = np.flatnonzero(np.isin(dataset.targets, setting.resolved.protocol.class_order[:50]))
    chosen = base[setting.chosen]
    position = {label: place for place, label in enumerate(setting.resolved.protocol.class_order)}
    dataset.data = dataset.data[chosen]
    dataset.targets = [position[dataset.targets[index]] for index in chosen]
    loader = DataLoader(
        dataset, setting.batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    model, optimizer = setting.copy_of_model()

    def epoch() -> None:
        for x, y in loader:
            step(model, optimizer, x, y)

    return epoch, loader


def bare_epoch(setting: Setting, like: Any) -> Callable:
    """Return one epoch of the shortest loop with the tensors, precision and layout of ``like``, set up above."""
    model, optimizer = setting.copy_of_model(like.channels_last)
    batches = like.dataloader
    rows = torch.arange(len(batches.targets)) if batches.rows is None else batches.rows

    def batch(places: torch.Tensor) -> list[torch.Tensor]:
        x = batches.augmentation(batches.images[rows[places]])
        x = x.contiguous(memory_format=torch.channels_last) if like.channels_last else x
        return [x, batches.targets[places]]

    def epoch() -> None:
        for places in torch.randperm(len(rows)).split(setting.batch):
            x, y = batch(places)
            optimizer.zero_grad()
            with like.autocast():
                features = model.extract(x)
            logits = model.classify(features.float(), False).logits
            F.cross_entropy(logits, y).backward()
            optimizer.step()

    return epoch


def measure(
    images: int = 640, rounds: int = 12, seconds: float = float("inf"), threads: int = 1
) -> dict[str, Any]:
    """Measure all competitors in alternation.

    Returns:
        ``settings``, images per second and paired ratios, with medians and quartiles.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    setting = Setting(images)
    with contextlib.ExitStack() as stack:
        plain, fp32 = incrlt_epoch(setting, "fp32", stack)
        default, auto = incrlt_epoch(setting, "auto", stack)
        naive, stock = avalanche_epoch(setting)
        loop, loader = plain_epoch(setting, 0)
        turns = {
            "incrlt fp32": plain,
            "incrlt default": default,
            "bare fp32": bare_epoch(setting, fp32),
            "bare default": bare_epoch(setting, auto),
            "avalanche naive": naive,
            "plain, 0 workers": loop,
            "plain, 2 workers": plain_epoch(setting, 2)[0],
            "data: incrlt": lambda: list(fp32.dataloader),
            "data: avalanche": lambda: list(stock.dataloader),
            "data: plain, 0 workers": lambda: list(loader),
        }
        times = alternate(turns, rounds, seconds)
    return {
        "images_per_turn": len(setting.chosen),
        "images_in_experience": setting.size,
        "batch_size": setting.batch,
        "threads": threads,
        "default_precision": choose_precision("auto", CPU),
        "default_channels_last": auto.channels_last,
        "images_per_second": {
            name: spread([len(setting.chosen) / t for t in values]) for name, values in times.items()
        },
        "ratios": {
            name: ratio(times, of, over) | {"goal": goal} for name, (of, over, goal) in RATIOS.items()
        },
    }


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(3600)
def test_training_epoch(benchmark):
    """Goals are not asserted: how far data can lift an epoch is the processor's doing (see README.md)."""
    try:
        figures = benchmark.pedantic(measure, rounds=1)
    except UserError as reason:
        pytest.skip(str(reason))
    benchmark.extra_info.update(figures)
