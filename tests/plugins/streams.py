"""Long-tailed digits in every benchmark kind, and a strategy of Avalanche's own to train on them."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from avalanche.benchmarks import (
    benchmark_from_datasets,
    class_incremental_benchmark,
    nc_benchmark,
    with_classes_timeline,
)
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training.supervised import Naive
from sklearn.datasets import load_digits
from torch.utils.data import Dataset

COUNTS = [30, 20, 12, 8, 5, 3, 2, 1, 25, 15]
KINDS = ["nc", "nc-task-labels", "class-incremental", "from-datasets"]
TRAIN_SHIFT = 64.0  # stands for augmentation: tells which transforms an image went through


@cache
def digits():
    """Images ``[1797, 64]`` and labels, read once."""
    return load_digits(return_X_y=True)


class Digits(Dataset):
    """Digits as vectors of 65 numbers; the first is the image's own number."""

    def __init__(self, indices):
        images, labels = digits()
        numbers = np.arange(len(labels))[:, None]
        self.rows = torch.from_numpy(np.hstack([numbers, images]))[indices].float()
        self.targets = labels[indices].tolist()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.rows[index], self.targets[index]


def indices(counts=COUNTS, labels=range(10)):
    """The first images of each class, as many as ``counts`` says."""
    targets = digits()[1]
    return np.concatenate([np.flatnonzero(targets == label)[: counts[label]] for label in labels])


def shift(row):
    """A train transform that only touches the second number (always 0 in digits)."""
    row = row.clone()
    row[1] = TRAIN_SHIFT
    return row


def make(kind, counts=COUNTS):
    """Build a benchmark of five experiences with two classes each."""
    train, test = Digits(indices(counts)), Digits(indices([20] * 10))
    if kind.startswith("nc"):
        return nc_benchmark(
            train,
            test,
            n_experiences=5,
            task_labels=kind == "nc-task-labels",
            seed=7,
            class_ids_from_zero_from_first_exp=kind == "nc",
            train_transform=shift,
            eval_transform=torch.clone,
        )
    groups = {"train": (shift, None), "eval": (torch.clone, None)}
    if kind == "class-incremental":
        data = {
            "train": as_classification_dataset(train, transform_groups=groups),
            "test": as_classification_dataset(test, transform_groups=groups),
        }
        return class_incremental_benchmark(data, num_experiences=5, seed=7)
    pairs = [(8, 1), (0, 7), (2, 6), (3, 5), (9, 4)]
    data = {
        name: [
            as_classification_dataset(Digits(indices(number, pair)), transform_groups=groups)
            for pair in pairs
        ]
        for name, number in {"train": counts, "test": [20] * 10}.items()
    }
    return with_classes_timeline(benchmark_from_datasets(**data))


class TinyNet(torch.nn.Module):
    """Two layers with dropout and batch statistics, so that a wrong mode shows."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(63, 32)
        self.norm = torch.nn.BatchNorm1d(32)
        self.dropout = torch.nn.Dropout(0.2)
        self.head = torch.nn.Linear(32, 10)

    def forward(self, x):
        hidden = self.body(x[:, 2:] / 16)  # not the image's number and not the transform's mark
        if len(x) > 1 or not self.norm.training:
            hidden = self.norm(hidden)
        return self.head(self.dropout(hidden.relu()))


def naive(*plugins, model=None, epochs=1):
    """Avalanche's stock strategy."""
    torch.manual_seed(0)
    model = TinyNet() if model is None else model
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        train_mb_size=16,
        train_epochs=epochs,
        eval_mb_size=50,
        plugins=list(plugins),
        evaluator=None,
    )


def contents(dataset):
    """Image numbers, labels and second pixels of a data set, as it yields them."""
    samples = [dataset[index] for index in range(len(dataset))]
    numbers = [int(sample[0][0]) for sample in samples]
    return numbers, [int(sample[1]) for sample in samples], [float(sample[0][1]) for sample in samples]
