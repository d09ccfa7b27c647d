"""What tells pictures, experiences and classes apart: what they are, never a number that may start again.

Experiences are numbered by their stream, labels by their benchmark. With two streams in one strategy's life, a stream
cut into many, or classes that come again, such numbers repeat. Within a process a picture is told by the object it is
stored in, its row there, and the transforms it goes through; in a saved state by its content
(:mod:`incrlt.data.contents`); a class by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from incrlt.data.avalanche import stored_parts
from incrlt.data.contents import picture_hashes
from incrlt.data.stored import Indices
from incrlt.errors import UserError
from incrlt.roles import Dataset

ROWS = 1 << 40
"""More rows than any stored data set has: keys are ``number of the data set * ROWS + row``."""


class Pictures:
    """Keys of pictures: two samples have the same key when they are the same picture.

    The same picture is the same row of the same stored object, on its way through the same training transforms. So
    subsets and concatenations of a data set share keys, and a permuted copy of it, as in permuted MNIST, does not.
    Copies and pickles of the object know what it knows, as long as the data sets are copied with it.
    """

    def __init__(self) -> None:
        self._stored: list[
            tuple[object, ...]
        ] = []  # held, so that no other object gets the place of one in memory

    def keys(self, dataset: Any) -> Indices:
        """Return the keys of a data set's samples, int64 ``[N]``.

        Args:
            dataset: An Avalanche data set, whatever transform group is active.
        """
        keys = np.empty(len(dataset), dtype=np.int64)
        for stored, rows, places, transforms in stored_parts(dataset):
            keys[places] = self._number((stored, *transforms)) * ROWS + rows
        return keys

    def same(self, first: Any, second: Any) -> bool:
        """Say whether two data sets hold the same pictures in the same order."""
        return first is second or (
            len(first) == len(second) and np.array_equal(self.keys(first), self.keys(second))
        )

    def _number(self, parts: tuple[object, ...]) -> int:
        for number, known in enumerate(self._stored):
            if len(known) == len(parts) and all(a is b for a, b in zip(known, parts, strict=True)):
                return number
        self._stored.append(parts)
        return len(self._stored) - 1


class PastData:
    """Data sets of past experiences, without any picture twice: what a strategy that keeps everything trains on.

    Args:
        datasets: Those that are past already, in order.
    """

    def __init__(self, datasets: Iterable[Dataset] = ()) -> None:
        self.pictures = Pictures()
        self._datasets: list[Dataset] = []
        for dataset in datasets:
            self.add(dataset)

    def add(self, dataset: Dataset) -> None:
        """Keep a data set, unless all its pictures are here."""
        known = [self.pictures.keys(past) for past in self._datasets]
        if not _in(self.pictures.keys(dataset), known).all():
            self._datasets.append(dataset)

    def beside(self, dataset: Dataset) -> list[Dataset]:
        """Return the past data sets in training mode, without pictures that ``dataset`` has, in order of arrival."""
        return self._without([self.pictures.keys(dataset)])

    def all(self) -> list[Dataset]:
        """Return the past data sets in training mode, each picture once, in order of arrival."""
        return self._without([])

    def _without(self, taken: list[Indices]) -> list[Dataset]:
        found = []
        for past in self._datasets:
            keys = self.pictures.keys(past)
            new = ~_in(keys, taken)
            taken.append(keys)
            if new.all():
                found.append(past.train())
            elif new.any():
                found.append(past.train().subset(np.flatnonzero(new).tolist()))
        return found


def _in(keys: Indices, others: list[Indices]) -> Any:
    """Return which keys are among others, bool ``[N]``."""
    return np.isin(keys, np.concatenate(others)) if others else np.zeros(len(keys), dtype=bool)


def contents(dataset: Any, indices: Indices) -> Tensor:
    """Return a hash of each picture's content, int64 ``[n]``; 0 where a picture is another one at each reading.

    Args:
        dataset: An Avalanche data set.
        indices: int64 ``[n]``, which of its samples.
    """
    found = np.empty(len(indices), dtype=np.int64)
    for stored, rows, places, _ in stored_parts(dataset):
        row_of = np.full(len(dataset), -1, dtype=np.int64)
        row_of[places] = rows
        here = row_of[indices] >= 0
        found[here] = picture_hashes(stored, row_of[indices][here])
    return torch.from_numpy(found)


def labels_of(dataset: object) -> Tensor:
    """Return the labels ``[N]`` of a data set without loading its images.

    Raises:
        UserError: It has no ``targets``.
    """
    targets = getattr(dataset, "targets", None)
    if targets is None:
        raise UserError(
            "the exemplar memory needs data sets with targets. Build them with "
            "avalanche.benchmarks.utils.as_classification_dataset."
        )
    return torch.tensor([int(label) for label in targets], dtype=torch.int64)


def class_names(experience: Any) -> dict[int, str]:
    """Return the names of an experience's classes by label id; empty where the benchmark does not tell them.

    Names are read from ``class_names`` of the experience's benchmark, a sequence or mapping over label ids.
    """
    stream = getattr(experience.logging(), "_origin_stream", None)
    names = getattr(getattr(stream, "benchmark", None), "class_names", None)
    if names is None:
        return {}
    by_label = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
    labels = labels_of(experience.dataset).unique().tolist()
    return {label: str(by_label[label]) for label in labels if label in by_label}


def check_names(known: Mapping[int, str], experience: object) -> dict[int, str]:
    """Return the class names known so far with those of an experience.

    Args:
        known: Names by label id, as an earlier call returned them.
        experience: The one that arrives.

    Raises:
        UserError: One label id has two names.
    """
    names = class_names(experience)
    differ(known, names, "in what was trained on before", "in this experience")
    return {**known, **names}


def differ(known: Mapping[int, str], names: Mapping[int, str], here: str, there: str) -> None:
    """Refuse two namings that give one label id two names.

    Args:
        known: Names by label id.
        names: The same, of something else.
        here: Where the first are from.
        there: Where the second are from.

    Raises:
        UserError: They differ; both names are told.
    """
    twice = [label for label in sorted(names) if known.get(label, names[label]) != names[label]]
    if twice:
        more = f" ({len(twice)} labels differ)" if len(twice) > 1 else ""
        raise UserError(
            f"label {twice[0]} is {known[twice[0]]!r} {here} and {names[twice[0]]!r} {there}{more}. Give each class a "
            "label id of its own in all benchmarks, or start with a new strategy, memory and recorder."
        )
