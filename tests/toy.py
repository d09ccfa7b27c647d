"""A few handwritten digits in three experiences, a tiny network, and strategies on them in milliseconds."""

from __future__ import annotations

import itertools
from functools import cache

import incrlt._compat

import torch
from avalanche.benchmarks import (
    benchmark_from_datasets,
    class_incremental_benchmark,
    nc_benchmark,
    with_classes_timeline,
)
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

import incrlt.models
from incrlt.data import augment
from incrlt.data.tensors import ImageTensors
from incrlt.plugins import ExemplarMemory

SIZES = (4, 3, 3)
"""Classes per experience."""

ORDER = (7, 2, 9, 0, 4, 1, 8, 3, 6, 5)
KINDS = ("nc", "class-incremental", "from-datasets", "from-datasets-no-timeline")


@cache
def digits():
    """Images uint8 ``[1797, 1, 8, 8]`` and labels int64, read once."""
    data = load_digits()
    images = torch.tensor(data.images * 15, dtype=torch.uint8).unsqueeze(1)
    return images, torch.tensor(data.target, dtype=torch.int64)


def chosen(train, per_class=None, labels=range(10)):
    """Indices of the first images per class (24 train, 10 test), disjoint between train and test."""
    targets = digits()[1]
    start, stop = (0, per_class or 24) if train else (100, 100 + (per_class or 10))
    return torch.cat([(targets == label).nonzero().flatten()[start:stop] for label in labels])


def images(train, per_class=None, labels=range(10)):
    """uint8 data set."""
    index = chosen(train, per_class, labels)
    return ImageTensors(digits()[0][index], digits()[1][index])


def floats(train, per_class=None, labels=range(10)):
    """What a user's script has: a TensorDataset of floats in [0, 1]."""
    index = chosen(train, per_class, labels)
    x, y = digits()[0][index].float() / 240, digits()[1][index]
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    return data


@cache
def stream(remap=True, per_class=None):
    """Ours: uint8 images, augmentation, three experiences."""
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


def parts():
    """Label ids of each experience."""
    edges = [0, 4, 7, 10]
    return [ORDER[a:b] for a, b in itertools.pairwise(edges)]


def benchmark(kind):
    """Three experiences in an Avalanche benchmark of a kind, as a user would make it; labels are not remapped."""
    if kind == "nc":
        return nc_benchmark(
            floats(True), floats(False), 3, task_labels=False,
            fixed_class_order=list(ORDER), per_exp_classes=dict(enumerate(SIZES)),
        )  # fmt: skip
    if kind == "class-incremental":
        return class_incremental_benchmark(
            {
                "train": as_classification_dataset(floats(True)),
                "test": as_classification_dataset(floats(False)),
            },
            class_order=list(ORDER),
            num_classes_per_exp=list(SIZES),
        )
    made = benchmark_from_datasets(
        train=[as_classification_dataset(floats(True, labels=part)) for part in parts()],
        test=[as_classification_dataset(floats(False, labels=part)) for part in parts()],
    )
    return made if kind == "from-datasets-no-timeline" else with_classes_timeline(made)


def network(head="cosine", layout=None, seed=0):
    """resnet8 of width 8 on one channel."""
    torch.manual_seed(seed)
    return incrlt.models.build("resnet8", layout=layout, head=head, in_channels=1, width=8)


def quiet():
    """Accuracy metrics without a logger."""
    return EvaluationPlugin(accuracy_metrics(stream=True), loggers=[BaseLogger()])


def make(cls, *, head="cosine", memory=5, lr=0.1, optimizer=None, seed=0, **options):
    """Build one of our strategies; ``memory`` is images per class, 0 for none."""
    experts = options.get("experts")
    model = network(head, experts.layout if experts else None, seed)
    if optimizer is None:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    else:
        optimizer = optimizer(model.parameters())
    settings = {
        "train_mb_size": 32,
        "train_epochs": 2,
        "eval_mb_size": 64,
        "evaluator": quiet(),
        "memory": ExemplarMemory(per_class=memory) if memory else None,
    }
    return cls(model=model, optimizer=optimizer, **{**settings, **options})


def weights(model):
    """A copy of every number that the model holds; facts such as its class ids are no numbers."""
    state = model.state_dict().items()
    return {name: value.clone() for name, value in state if not name.endswith("_extra_state")}


def changed(before, after):
    """Names of tensors that differ; what is not a number in both is the same."""

    def same(a, b):
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())

    return {name for name in before if not same(before[name], after[name])}


def train(strategy, experiences, evaluate=None):
    """Train in turn; returns the last evaluation's stream accuracy, if asked for."""
    for experience in experiences:
        strategy.train(experience)
    return accuracy(strategy, evaluate) if evaluate is not None else None


def accuracy(strategy, experiences):
    """Stream accuracy by Avalanche's metric."""
    found = strategy.eval(experiences)
    (value,) = [v for k, v in found.items() if k.startswith("Top1_Acc_Stream/eval_phase/test")]
    return value


class RepeatedCall:
    """Does on any device what a graph does (:class:`incrlt.training.graph.Graph`): for tests of all around it."""

    def __init__(self):
        self._function, self._results = list, []

    def capture(self, function):
        """Keep the function."""
        self._function, self._results = function, function()
        return self._results

    def replay(self):
        """Call it, and write into the first results."""
        for result, value in zip(self._results, self._function(), strict=True):
            result.copy_(value)
