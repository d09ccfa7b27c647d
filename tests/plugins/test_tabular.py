"""Strategies with exemplars on rows of a table ``[N, D]``, by a network of linear layers."""

from __future__ import annotations

import pytest
import torch
import toy
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset

import incrlt.models
from incrlt.plugins import EvaluationRecorder, ExemplarMemory
from incrlt.strategies import LUCIR, ICaRL


class Rows(torch.nn.Sequential):
    """Two linear layers that map rows ``[B, D]`` to features."""

    def __init__(self, columns, num_features):
        hidden = torch.nn.Linear(columns, num_features)
        super().__init__(hidden, torch.nn.ReLU(), torch.nn.Linear(num_features, num_features))
        self.num_features = num_features


class Perceptron:
    """A backbone of a user's own: ``in_channels`` is the number of columns, nothing is shared."""

    shares = ("stem", "nothing")

    def __init__(self, *, in_channels, width, last_relu):
        self.columns, self.width = in_channels, width

    def stem(self, layout):
        return torch.nn.Identity()

    def branch(self, layout, expert):
        return Rows(self.columns, self.width)


def network():
    """A perceptron with a growing cosine head on the 64 pixels of a digit."""
    torch.manual_seed(0)
    return incrlt.models.build(Perceptron, head="cosine", in_channels=64, width=32)


def rows(train):
    x, y = toy.digits()[0], toy.digits()[1]
    found = []
    for pair in ((0, 1), (2, 3)):
        index = toy.chosen(train, labels=pair)
        data = torch.utils.data.TensorDataset(x[index].flatten(1).float() / 240, y[index])
        data.targets = y[index].tolist()
        found.append(as_classification_dataset(data))
    return found


@pytest.mark.parametrize("kind", [ICaRL, LUCIR])
def test_exemplars_and_class_means_of_a_table(kind):
    benchmark = benchmark_from_datasets(train=rows(True), test=rows(False))
    recorder = EvaluationRecorder()
    model = network()
    strategy = kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        memory=ExemplarMemory(per_class=12),
        plugins=[recorder],
        train_mb_size=32,
        train_epochs=8,
        evaluator=toy.quiet(),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    assert set(strategy.memory.counts()) == {0, 1, 2, 3}
    matrix = recorder.records()["nme"].confusions[-1]
    assert matrix.trace() / matrix.sum() > 0.6  # chance is 0.25
