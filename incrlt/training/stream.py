"""What one experience trains on, and the batches cut from it."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from incrlt.data.avalanche import class_aware_loader, convert, parts_of_loader
from incrlt.data.draws import expected_draws
from incrlt.data.stored import NotExactError, TensorCache
from incrlt.data.tensors import TensorBatches
from incrlt.roles import Dataset, Loader
from incrlt.training.network import Network, position_table
from incrlt.types import Stage, class_counts

ASIDE = 1_000_003
"""Distance between the seeds of stages with generators of their own, beyond any seed that users count up."""


@dataclass(frozen=True)
class Stream:
    """What this experience trains on.

    Attributes:
        dataset: Its images, exemplars, and what a replay plugin adds; None before the first experience.
        counts: Images per class in it ``[C]``, arrival order.
        drawn: Images per class that an epoch of its loader draws on average ``[C]``, fractions as they are.
        batches: Its loader.
        table: Label id to arrival position; None where they are the same.
    """

    dataset: Dataset | None = None
    counts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    drawn: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    batches: Loader | None = None
    table: Tensor | None = None

    @property
    def known_dataset(self) -> Dataset:
        """Its images, once there has been an experience."""
        assert self.dataset is not None, "no experience has begun"
        return self.dataset

    @property
    def known_batches(self) -> Loader:
        """Its loader, while the experience trains."""
        assert self.batches is not None, "no experience trains"
        return self.batches

    def positions(self, labels: Tensor) -> Tensor:
        """Map label ids ``[B]`` of seen classes to arrival positions ``[B]``, without a host sync."""
        return labels if self.table is None else self.table[labels]

    def counts_of(self, dataset: Dataset) -> Tensor:
        """Return the images per class of a data set of these classes ``[C]``."""
        device = None if self.table is None else self.table.device
        labels = self.positions(torch.as_tensor(list(dataset.targets), device=device))
        return class_counts(labels, len(self.counts))

    def drawn_by(self, stage: Stage, dataset: Dataset) -> Tensor:
        """Return images per class that a stage's sampler draws on average from a data set of these classes ``[C]``."""
        if not len(self.counts):
            return self.counts
        counts = self.counts_of(dataset)
        return expected_draws(counts, "class_aware") if stage.sampler == "class_aware" else counts

    def without_batches(self) -> Stream:
        """Return the same without its loader."""
        return dataclasses.replace(self, batches=None)


class Feed:
    """Makes loaders: from tensors on the device where that is exact, else as Avalanche makes them.

    Args:
        device: Where batches are cut.
        fast: Cut batches from tensors where that is exact.
        channels_last: Memory order of their images.
        batch_seed: Seeds the order of images.
        augmentation_seed: Seeds random augmentation.

    Attributes:
        cache: Decoded images.
        reason: Why the last loader was kept as it was; None where it was not.
    """

    def __init__(
        self,
        device: torch.device,
        fast: bool = True,
        channels_last: bool = False,
        batch_seed: int = 0,
        augmentation_seed: int = 0,
    ) -> None:
        self.device, self.fast, self.channels_last = device, fast, channels_last
        self.cache = TensorCache(device)
        self.reason: str | None = None
        self._seeds = batch_seed, augmentation_seed
        self.order = torch.Generator().manual_seed(batch_seed)
        self.augmentation = torch.Generator(device).manual_seed(augmentation_seed)
        self._aside = (torch.Generator(), torch.Generator(device))

    def convert(self, loader: Loader) -> Loader:
        """Return batches from tensors that are the loader's own, or the loader where they would not be."""
        if not self.fast:
            return loader
        try:
            return convert(
                loader,
                self.device,
                self.order,
                self.augmentation,
                cache=self.cache,
                channels_last=self.channels_last,
            )
        except NotExactError as reason:
            self.reason = str(reason)
            return loader

    def of_stage(
        self,
        stage: Stage,
        stream: Stream,
        exemplars: Callable[[], Dataset],
        batch_size: int,
        experience: int,
    ) -> tuple[Loader, Tensor]:
        """Return the loader of a stage, and images per class as its sampler draws them on average ``[C]``.

        Args:
            stage: Gives the data, the sampler, and whether generators of its own draw.
            stream: What the experience trains on.
            exemplars: Chooses and returns them, in training transforms; asked by a stage on exemplars alone.
            batch_size: Images per batch, unless the stage has its own number.
            experience: Index of the experience; generators of a stage aside begin from it and the seeds.
        """
        if is_streams_loader(stage):
            return stream.known_batches, stream.drawn
        dataset = exemplars() if stage.data == "exemplars" else stream.known_dataset
        order, augmentation = self._generators(stage, experience)
        batches = class_aware_loader(
            dataset,
            batch_size=stage.batch_size or batch_size,
            class_aware=stage.sampler == "class_aware",
            device=self.device,
            permutation_generator=order,
            augmentation_generator=augmentation,
            channels_last=self.channels_last,
            fast=self.fast,
            cache=self.cache,
        )
        return batches, stream.drawn_by(stage, dataset)

    def makes_tensors(self, dataset: Dataset) -> bool:
        """Say whether batches of a data set would be cut from tensors."""
        found = class_aware_loader(
            dataset, batch_size=1, device=self.device, fast=self.fast, cache=self.cache
        )
        return isinstance(found, TensorBatches)

    def _generators(self, stage: Stage, experience: int) -> tuple[torch.Generator, torch.Generator]:
        if not stage.aside:
            return self.order, self.augmentation
        for generator, seed in zip(self._aside, self._seeds, strict=True):
            generator.manual_seed(seed + ASIDE * (experience + 1))
        return self._aside

    def state_dict(self) -> list[Tensor]:
        """Return the states of all generators."""
        return [generator.get_state() for generator in (self.order, self.augmentation, *self._aside)]

    def load_state_dict(self, state: list[Tensor]) -> None:
        """Restore the generators."""
        for generator, value in zip((self.order, self.augmentation, *self._aside), state, strict=True):
            generator.set_state(value.cpu())


def read_stream(network: Network, feed: Feed, loader: Loader, own: bool, dataset: Dataset) -> Stream:
    """Take note of what an experience trains on, which a plugin such as Avalanche's replay may have changed.

    Args:
        network: Grown.
        feed: Cuts the loader's batches.
        loader: The training loader, after all plugins.
        own: It is the one that the template made, of ``dataset``.
        dataset: The adapted data set.
    """
    parts = [(dataset, 1.0)] if own else _parts_of(loader, dataset)
    whole = functools.reduce(lambda one, other: one.concat(other), [part for part, _ in parts])
    batches = feed.convert(loader)
    if not network.class_ids:  # a foreign model: its labels may be anything
        return Stream(whole, batches=batches)
    empty = Stream(counts=torch.zeros(network.num_classes), table=position_table(network, feed.device))
    counts = drawn = empty.counts_of(whole)
    if len(parts) > 1:
        drawn = torch.stack(
            [expected_draws(empty.counts_of(part), passes=times) for part, times in parts]
        ).sum(0)
    return Stream(whole, counts, drawn, batches, empty.table)


def _parts_of(loader: Loader, dataset: Dataset) -> list[tuple[Dataset, float]]:
    """Return the data sets of a loader and the passes an epoch makes over each."""
    try:
        return parts_of_loader(loader)
    except NotExactError as reason:
        warnings.warn(
            f"a plugin put a loader of its own in place ({reason}): class counts, and stages after the first, see "
            "the images of the experience and of incrlt's memory, not those that this loader may add.",
            stacklevel=2,
        )
        return [(dataset, 1.0)]


def is_streams_loader(stage: Stage) -> bool:
    """Say whether a stage trains on the loader of the stream; others have one of their own."""
    usual = stage.sampler == "shuffle" and stage.batch_size is None and not stage.aside
    return stage.data == "stream" and usual
