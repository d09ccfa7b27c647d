"""Exemplar memory: a few images per class, chosen when the class arrives and trained on ever after.

The memory is concatenated to the training data of each later experience (iCaRL's and LUCIR's protocol; unlike
Avalanche's ``ReplayPlugin``, which adds a second mini-batch). It keeps indices, never images: an exemplar is
a data set that was trained on and an index into it. Data sets and pictures are known by what they are
(:mod:`incrlt.benchmarks.identity`), never by the numbers of a stream, which may start again.

Papers: Rebuffi et al. (iCaRL), CVPR 2017, for memory and herding; Hou et al. (LUCIR), CVPR 2019, for the
growing memory of 20 images per class. Handing on what small classes cannot use is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import incrlt._compat  # noqa: F401  (before avalanche)

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from incrlt.benchmarks.identity import Pictures, check_names, class_names, contents, labels_of
from incrlt.data.stored import Indices
from incrlt.errors import UserError, did_you_mean
from incrlt.plugins import saved_exemplars
from incrlt.plugins.features import features_of
from incrlt.plugins.herding import Flavor, check_flavor, herding
from incrlt.roles import Experience, State, Strategy

Selection = Literal["herding", "random"]


def quotas(available: Sequence[int], total: int, *, redistribute: bool) -> list[int]:
    """Share a budget equally among classes, in whole images.

    What does not divide evenly goes to the first classes, one image each.

    Args:
        available: Images each class could store, in order of arrival.
        total: Images in all, >= 0.
        redistribute: Raise the level until the budget is used or every class has given all it has. Otherwise
            a small class's unused share stays empty.

    Returns:
        Images per class; at most ``available``, in sum at most ``total``.

    Example:
        >>> quotas([9, 1, 9], 10, redistribute=False), quotas([9, 1, 9], 10, redistribute=True)
        ([4, 1, 3], [5, 1, 4])
    """
    level = _level(available, total) if redistribute else total // max(1, len(available))
    share = [min(images, level) for images in available]
    rest = total - (sum(share) if redistribute else level * len(available))
    for index, images in enumerate(available):
        if redistribute and images <= level:
            continue
        if rest <= 0:
            break
        share[index] = min(images, level + 1)
        rest -= 1
    return share


def _level(available: Sequence[int], total: int) -> int:
    """Return the largest whole level such that ``sum(min(images, level))`` stays within ``total``."""
    level, spent = 0, 0
    for position, images in enumerate(sorted(available)):
        classes = len(available) - position  # those that reach at least this size
        if spent + (images - level) * classes > total:
            return level + (total - spent) // classes
        spent += (images - level) * classes
        level = images
    return level


class ExemplarMemory(SupervisedPlugin):
    """Keep exemplars of past classes and add them to the training data of each experience.

    A class that comes again in a later experience is chosen anew from its exemplars and its new images. Streams may
    follow one another, and one experience may be cut into many: a picture is stored once, and is never added to data
    that hold it already.

    Args:
        per_class: Images per class; the memory grows with the classes. Give this or ``total``.
        total: Images in all, shared equally among the classes seen; remainders go to those that came first.
        selection: ``"herding"`` or ``"random"`` (uniform, from the memory's own generator).
        flavor: Herding rule, ``"lucir"`` or ``"long-tailed-cil"``.
        redistribute: Let larger classes use what small classes leave of the budget (``total``, or
            ``per_class`` times the classes seen). A dropped image never comes back: old classes do not grow.
        seed: Seed of the random selection.

    Raises:
        UserError: Not exactly one budget, a budget below 1, or an unknown name.
    """

    def __init__(
        self,
        *,
        per_class: int | None = None,
        total: int | None = None,
        selection: Selection = "herding",
        flavor: Flavor = "lucir",
        redistribute: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_budget(per_class, total)
        check_flavor(flavor)
        if selection not in get_args(Selection):
            raise UserError(
                f"selection {selection!r} is not known; allowed: {', '.join(get_args(Selection))}."
                + did_you_mean(selection, get_args(Selection))
            )
        self.per_class = per_class
        self.total = total
        self.selection: Selection = selection
        self.flavor: Flavor = flavor
        self.redistribute = redistribute
        self._random_state = torch.Generator().manual_seed(seed).get_state()
        # label, in order of arrival -> number of the data set and index [n, 2], best first
        self._places: dict[int, Tensor] = {}
        self._sources: dict[int, AvalancheDataset] = {}  # number, in order of arrival -> data set
        self._keys: dict[int, Indices] = {}  # the same -> what its pictures are [N]
        self._hints: dict[int, int] = {}  # the same -> its place in its stream, -1 without one
        self._seen: set[int] = set()  # data sets whose classes have been chosen from
        self._pictures = Pictures()
        self._contents: dict[tuple[int, int], int] = {}  # place -> hash of the picture
        self._names: dict[int, str] = {}  # label -> name, where the benchmark tells it

    # Avalanche's callbacks

    def after_train_dataset_adaptation(self, strategy: Strategy, **kwargs: object) -> None:
        """Concatenate the exemplars to the data that are trained on, without pictures that are there already.

        Raises:
            UserError: The benchmark calls a label by another name than one before it.
        """
        check_names(self._names, strategy.experience)
        exemplars = self.dataset(without=strategy.experience.dataset)
        if exemplars is not None:
            strategy.adapted_dataset = strategy.adapted_dataset.concat(exemplars)

    def after_training_exp(self, strategy: Strategy, **kwargs: object) -> None:
        """Choose exemplars of the classes just learnt, unless a stage has done so already."""
        self.update(strategy, strategy.experience)

    # What others use

    def update(self, strategy: Strategy, experience: Experience) -> None:
        """Choose exemplars of an experience's classes and cut the older ones to their new quota.

        Old classes keep their ranking. A second call with the same data changes nothing. Model modes
        and random states are untouched.

        Args:
            strategy: Gives the model that herding looks through.
            experience: Its ``dataset`` must have ``targets``.

        Raises:
            UserError: The data set has no targets, or the benchmark calls a label by another name than one before it.
        """
        names = check_names(self._names, experience)
        number = self._number_of(experience.dataset)
        if number in self._seen:
            return
        self._hints[number] = saved_exemplars.place_in_stream(experience)
        candidates = self._candidates(number)
        known = {label: len(places) for label, places in self._places.items()}
        known.update((label, len(places)) for label, places in candidates.items())
        quota = self._quotas(known)
        ranked = {**self._places, **self._choose(strategy, candidates, quota)}
        self._places = {label: places[: quota[label]] for label, places in ranked.items()}
        self._contents = self._contents_of(self._all_places())
        self._seen.add(number)
        self._names = names

    def dataset(self, *, without: AvalancheDataset | None = None) -> AvalancheDataset | None:
        """Return all exemplars with training transforms, or None when there are none.

        Args:
            without: Leave out the exemplars that are pictures of this data set.
        """
        rows = self._all_places()
        if without is not None and len(rows):
            taken = np.isin(self._keys_of(rows), self._pictures.keys(without))
            rows = rows[torch.from_numpy(~taken)]
        return self._images(rows) if len(rows) else None

    def counts(self) -> dict[int, int]:
        """Return the number of exemplars per label, in order of arrival (by label within an experience)."""
        return {label: len(places) for label, places in self._places.items()}

    def __len__(self) -> int:
        return sum(self.counts().values())

    def state_dict(self) -> State:
        """Return plain tensors and data that ``torch.load(weights_only=True)`` accepts.

        Returns:
            ``labels`` int64 ``[C]`` in order of arrival, ``counts`` int64 ``[C]``, ``places`` int64
            ``[M, 2]`` (number of the data set, index into it) class by class in ranking order, ``pictures`` int64
            ``[M]`` (hash of each picture's content), ``experiences`` int64 (numbers of the data sets seen),
            ``sources`` (how each is found again), ``names`` of labels, ``random_state`` uint8.
        """
        rows = self._all_places()
        return {
            "labels": torch.tensor(list(self._places), dtype=torch.int64),
            "counts": torch.tensor(list(self.counts().values()), dtype=torch.int64),
            "places": rows,
            "pictures": torch.tensor([self._contents[place] for place in _pairs(rows)], dtype=torch.int64),
            "experiences": torch.tensor(sorted(self._seen), dtype=torch.int64),
            "sources": saved_exemplars.describe(
                {n: self._sources[n] for n in sorted(self._seen)}, self._hints
            ),
            "names": dict(self._names),
            "random_state": self._random_state.clone(),
        }

    def load_state_dict(self, state: State, train_stream: Sequence[Experience]) -> None:
        """Become the memory that ``state`` describes.

        Args:
            state: From :meth:`state_dict`, also of an older version, which knew labels but no pictures.
            train_stream: Every experience the memory was filled from; with several streams, one after the other:
                ``[*first.train_stream, *second.train_stream]``.

        Raises:
            UserError: The stream is another one: an experience is missing, a label has another name, or an exemplar
                has another label or is another picture.
        """
        places = dict(
            zip(state["labels"].tolist(), state["places"].split(state["counts"].tolist()), strict=True)
        )
        found = saved_exemplars.find(state, places, train_stream)
        self._places, self._seen = places, set(found)
        self._sources = {number: experience.dataset for number, experience in found.items()}
        self._hints = {n: saved_exemplars.place_in_stream(experience) for n, experience in found.items()}
        self._pictures = Pictures()
        self._keys = {number: self._pictures.keys(dataset) for number, dataset in self._sources.items()}
        self._contents = {}
        self._contents = self._contents_of(self._all_places())
        self._names = {label: name for e in found.values() for label, name in class_names(e).items()}
        self._random_state = state["random_state"].clone()

    # How it is done

    def _number_of(self, dataset: AvalancheDataset) -> int:
        """Return the number of a data set, a new one where its pictures, in their order, were not seen before."""
        labels_of(dataset)  # refused before it is kept
        keys = self._pictures.keys(dataset)
        for number, known in self._keys.items():
            if np.array_equal(keys, known):
                return number
        number = max(self._keys, default=-1) + 1
        self._sources[number], self._keys[number] = dataset, keys
        return number

    def _all_places(self) -> Tensor:
        """Return where the exemplars are, class by class, int64 ``[M, 2]``."""
        return torch.cat([torch.empty(0, 2, dtype=torch.int64), *self._places.values()])

    def _keys_of(self, places: Tensor) -> Indices:
        """Return what the pictures at ``places`` ``[n, 2]`` are, int64 ``[n]``."""
        numbers, indices = places.numpy().T
        keys = np.empty(len(places), dtype=np.int64)
        for number in np.unique(numbers).tolist():  # a pair of Python numbers for each exemplar costs seconds
            own = numbers == number
            keys[own] = self._keys[number][indices[own]]
        return keys

    def _contents_of(self, places: Tensor) -> dict[tuple[int, int], int]:
        """Return the content of each picture, read where it is not known."""
        found = {place: self._contents[place] for place in _pairs(places) if place in self._contents}
        new: dict[int, list[int]] = {}
        for number, index in _pairs(places):
            if (number, index) not in found:
                new.setdefault(number, []).append(index)
        for number, indices in new.items():
            hashes = contents(self._sources[number], np.array(indices, dtype=np.int64)).tolist()
            found.update(zip([(number, index) for index in indices], hashes, strict=True))
        return found

    def _candidates(self, number: int) -> dict[int, Tensor]:
        """Return per label of a data set what may be stored: its exemplars, then its new pictures, each once."""
        targets = labels_of(self._sources[number])
        stored = self._keys_of(self._all_places())
        first = np.zeros(len(targets), dtype=bool)
        first[np.unique(self._keys[number], return_index=True)[1]] = True
        fresh = torch.from_numpy(first & ~np.isin(self._keys[number], stored))
        labels, place = targets.unique(return_inverse=True)
        order = torch.argsort(place[fresh], stable=True)  # once, not a look at all images for each class
        rows = fresh.nonzero()[order]  # [n, 1], class by class, each in the order of the data set
        sizes = torch.bincount(place[fresh], minlength=len(labels)).tolist()
        candidates = {}
        for label, new in zip(labels.tolist(), rows.split(sizes) if sizes else (), strict=True):
            new = torch.cat([torch.full_like(new, number), new], dim=1)
            old = self._places.get(label)
            candidates[label] = new if old is None else torch.cat([old, new])
        return candidates

    def _quotas(self, available: Mapping[int, int]) -> dict[int, int]:
        """Share the budget among the labels, given how many images of each there are."""
        if self.per_class is not None and not self.redistribute:
            return {label: min(images, self.per_class) for label, images in available.items()}
        total = self.total if self.per_class is None else self.per_class * len(available)
        assert total is not None
        shares = quotas(list(available.values()), total, redistribute=self.redistribute)
        return dict(zip(available, shares, strict=True))

    def _choose(
        self, strategy: Strategy, candidates: Mapping[int, Tensor], quota: Mapping[int, int]
    ) -> dict[int, Tensor]:
        """Rank the candidates ``[n, 2]`` of each label, best first, as far as its quota goes."""
        takes = [quota[label] for label in candidates]
        sizes = [len(places) for places in candidates.values()]
        if not sizes:
            return {}
        if self.selection == "random":
            orders = self._shuffles(sizes)
        else:
            rows = torch.cat(list(candidates.values()))
            features, _ = features_of(strategy, self._images(rows))
            orders = herding(features.split(sizes), takes, self.flavor)
        return {
            label: places[order[:take]]
            for (label, places), order, take in zip(candidates.items(), orders, takes, strict=True)
        }

    def _shuffles(self, sizes: Sequence[int]) -> list[Tensor]:
        generator = torch.Generator()
        generator.set_state(self._random_state)
        orders = [torch.randperm(size, generator=generator) for size in sizes]
        self._random_state = generator.get_state()
        return orders

    def _images(self, places: Tensor) -> AvalancheDataset:
        """Return the images at ``places`` ``[n, 2]``, in that order, with training transforms."""
        runs = torch.unique_consecutive(places[:, 0], return_counts=True)[1].tolist()
        parts = [
            self._sources[int(run[0, 0])].train().subset(run[:, 1].tolist()) for run in places.split(runs)
        ]
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.concat(part)
        return whole


def _check_budget(per_class: int | None, total: int | None) -> None:
    if (per_class is None) == (total is None):
        raise UserError(
            f"give the exemplar memory exactly one of per_class and total; got per_class={per_class}, "
            f"total={total}."
        )
    name, images = ("total", total) if per_class is None else ("per_class", per_class)
    if isinstance(images, bool) or not isinstance(images, int) or images < 1:
        raise UserError(f"{name} is a number of images and must be a whole number >= 1; got {images!r}.")


def _pairs(places: Tensor) -> list[tuple[int, int]]:
    """Return places ``[n, 2]`` as pairs."""
    return [(number, index) for number, index in places.tolist()]
