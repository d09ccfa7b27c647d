"""A few handwritten digits in three experiences, a tiny network, and strategies on them in milliseconds."""

from __future__ import annotations

import itertools

import incrlt._compat  # noqa: F401  (before avalanche)

from avalanche.benchmarks import (
    benchmark_from_datasets,
    class_incremental_benchmark,
    nc_benchmark,
    with_classes_timeline,
)
from avalanche.benchmarks.utils import as_classification_dataset
from torch.utils.data import TensorDataset

from incrlt.testing.digits import (
    ORDER,
    SIZES,
    accuracy,
    changed,
    chosen,
    digits,
    images,
    make,
    network,
    quiet,
    stream,
    train,
    weights,
)

__all__ = [
    "ORDER",
    "SIZES",
    "accuracy",
    "changed",
    "chosen",
    "digits",
    "images",
    "make",
    "network",
    "quiet",
    "stream",
    "train",
    "weights",
]

KINDS = ("nc", "class-incremental", "from-datasets", "from-datasets-no-timeline")


def floats(train, per_class=None, labels=range(10)):
    """What a user's script has: a TensorDataset of floats in [0, 1]."""
    index = chosen(train, per_class, labels)
    x, y = digits()[0][index].float() / 240, digits()[1][index]
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    return data


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
