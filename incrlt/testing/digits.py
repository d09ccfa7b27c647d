"""A few handwritten digits in three experiences, and a tiny network: a strategy trains on them in a second."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, TypeVar

import incrlt._compat

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import Optimizer

import incrlt.models
from incrlt.benchmarks.streams import Benchmark
from incrlt.data import augment
from incrlt.data.tensors import ImageTensors
from incrlt.models import ExpertNetwork, Layout
from incrlt.plugins import ExemplarMemory
from incrlt.training.template import IncrTemplate

S = TypeVar("S", bound=IncrTemplate)

SIZES = (4, 3, 3)
"""Classes per experience."""
ORDER = (7, 2, 9, 0, 4, 1, 8, 3, 6, 5)
"""Label ids as they arrive."""


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Images uint8 ``[1797, 1, 8, 8]`` and labels int64, read once."""
    data = load_digits()
    images = torch.tensor(data.images * 15, dtype=torch.uint8).unsqueeze(1)
    return images, torch.tensor(data.target, dtype=torch.int64)


def chosen(train: bool, per_class: int | None = None, labels: Iterable[int] = range(10)) -> Tensor:
    """Indices of the first images per class (24 train, 10 test), disjoint between train and test."""
    targets = digits()[1]
    start, stop = (0, per_class or 24) if train else (100, 100 + (per_class or 10))
    return torch.cat([(targets == label).nonzero().flatten()[start:stop] for label in labels])


def images(train: bool, per_class: int | None = None, labels: Iterable[int] = range(10)) -> ImageTensors:
    """Those images as a uint8 data set."""
    index = chosen(train, per_class, labels)
    return ImageTensors(digits()[0][index], digits()[1][index])


@cache
def stream(remap: bool = True, per_class: int | None = None) -> Benchmark:
    """uint8 images, augmentation, three experiences of :data:`SIZES` classes.

    Args:
        remap: Labels are arrival positions.
        per_class: Training images of each class; None: 24.
    """
    return nc_benchmark(
        images(True, per_class),
        images(False),
        n_experiences=3,
        task_labels=False,
        fixed_class_order=list(ORDER),
        per_exp_classes=dict(enumerate(SIZES)),
        class_ids_from_zero_from_first_exp=remap,
        train_transform=augment.build("shift", (1, 8, 8), (0.3,), (0.4,), train=True),
        eval_transform=augment.build("none", (1, 8, 8), (0.3,), (0.4,), train=False),
    )


def network(head: str = "cosine", layout: Layout | None = None, seed: int = 0) -> ExpertNetwork:
    """A resnet8 of width 8 on one channel."""
    torch.manual_seed(seed)
    return incrlt.models.build("resnet8", layout=layout, head=head, in_channels=1, width=8)


def quiet() -> EvaluationPlugin:
    """Accuracy metrics without a logger."""
    return EvaluationPlugin(accuracy_metrics(stream=True), loggers=[BaseLogger()])


def make(
    cls: Callable[..., S],
    *,
    head: str = "cosine",
    memory: int = 5,
    lr: float = 0.1,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    seed: int = 0,
    **options: Any,
) -> S:
    """Build a strategy.

    Args:
        cls: Its class.
        head: ``cosine`` or ``linear``.
        memory: Exemplars per class, 0 for no memory.
        lr: Learning rate of plain SGD.
        optimizer: Makes another one of the parameters.
        seed: Of the network's weights.
        options: Further arguments of the class.
    """
    experts = options.get("experts")
    model = network(head, experts.layout if experts else None, seed)
    made = (
        torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
        if optimizer is None
        else optimizer(model.parameters())
    )
    settings = {
        "train_mb_size": 32,
        "train_epochs": 2,
        "eval_mb_size": 64,
        "evaluator": quiet(),
        "memory": ExemplarMemory(per_class=memory) if memory else None,
    }
    return cls(model=model, optimizer=made, **{**settings, **options})


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every number that the model holds; facts such as its class ids are no numbers."""
    state = model.state_dict().items()
    return {name: value.clone() for name, value in state if not name.endswith("_extra_state")}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of tensors that differ; what is not a number in both is the same."""

    def same(a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())

    return {name for name in before if not same(before[name], after[name])}


def train(strategy: IncrTemplate, experiences: Iterable[Any], evaluate: Any = None) -> float | None:
    """Train in turn; returns the last evaluation's stream accuracy, if asked for."""
    for experience in experiences:
        strategy.train(experience)
    return accuracy(strategy, evaluate) if evaluate is not None else None


def accuracy(strategy: IncrTemplate, experiences: Sequence[object]) -> float:
    """Stream accuracy by Avalanche's metric."""
    found = strategy.eval(experiences)
    (value,) = [v for k, v in found.items() if k.startswith("Top1_Acc_Stream/eval_phase/test")]
    return float(value)
