"""Images as one uint8 tensor, or in a store that stands for one, and a loader that cuts augmented batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from incrlt.data.augment import CONTRASTIVE, Augmentation, build, second_view
from incrlt.data.stores import Images
from incrlt.errors import UserError

Sampler = Literal["shuffle", "class_aware"]


class ImageTensors(Dataset[tuple[Tensor, int]]):
    """A data set whose images are one tensor, or a store that stands for one.

    Attributes:
        images: uint8 [N, C, H, W].
        targets: int64 [N].
    """

    def __init__(self, images: Images, targets: Tensor | Sequence[int]) -> None:
        """Hold the two, without copying them.

        Args:
            images: uint8 [N, C, H, W].
            targets: int64 [N], or anything that converts to it.

        Raises:
            UserError: Wrong type or shape, or different lengths.
        """
        self.images = images
        self.targets = torch.as_tensor(targets, dtype=torch.int64)
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise UserError(f"images must be uint8 [N, C, H, W]; got {images.dtype} {list(images.shape)}")
        if self.targets.shape != (len(images),):
            raise UserError(f"{len(images)} images need as many labels; got {list(self.targets.shape)}")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one image, uint8 [C, H, W], and its label."""
        return self.images[index], int(self.targets[index])


@dataclass(frozen=True)
class Group:
    """Images that fill a fixed share of each batch.

    Attributes:
        samples: int64 [n], which samples of the loader belong to the group; may repeat.
        batch_size: Images the group gives to each batch (fewer in the last one of a pass).
    """

    samples: Tensor
    batch_size: int

    def batches_per_pass(self, drop_last: bool) -> int:
        """Return how many batches one pass over the group gives."""
        return num_batches(len(self.samples), self.batch_size, drop_last)


def num_batches(num_samples: int, batch_size: int, drop_last: bool) -> int:
    """Return into how many batches samples are cut, the last one smaller or dropped."""
    full, rest = divmod(num_samples, batch_size)
    return full + (rest > 0 and not drop_last)


class TensorBatches:
    """Iterate over augmented batches, each a list ``[x, y, *columns]`` on the device of the images.

    A batch joins one mini-batch of every group, in the order of the groups. The ``termination`` group sets
    the length of an epoch; shorter groups start over (with a new permutation) if ``oversample_small``, or
    else run out. Avalanche's multi-data-set loaders compose batches so; the random numbers are our own.

    All permutations of an epoch are drawn when it starts, so the state of both generators between two
    epochs is all that is needed to continue exactly.
    """

    def __init__(
        self,
        images: Images,
        targets: Tensor,
        *,
        batch_size: int | None = None,
        groups: Sequence[Group] | None = None,
        termination: int = 0,
        oversample_small: bool = False,
        rows: Tensor | None = None,
        columns: Sequence[Tensor] = (),
        augmentation: Augmentation | None = None,
        sampler: Sampler = "shuffle",
        shuffle: bool = True,
        drop_last: bool = False,
        channels_last: bool = False,
        permutation_generator: torch.Generator | None = None,
        augmentation_generator: torch.Generator | None = None,
    ) -> None:
        """Hold the tensors and the rule by which batches are made.

        Args:
            images: [M, ...]; uint8 when there is an augmentation. A store is read ahead as the epoch goes, and
                its batches come to the device of the labels.
            targets: int64 [N], label of each sample, on the same device.
            batch_size: Images per batch, all images forming one group. Give this or ``groups``.
            groups: Groups of images with their own batch sizes.
            termination: Group whose passes are the epochs.
            oversample_small: Restart groups that end before the termination group.
            rows: int64 [N], image of each sample; None when sample i is image i (N = M).
            columns: More values per sample for the batches (task labels), int64 [N] each.
            augmentation: Applied to each batch; None passes images on as they are.
            sampler: ``shuffle``, or ``class_aware``: classes are drawn uniformly, and images of a class
                without repeats until it is used up. The epoch keeps its number of images.
            shuffle: False keeps the stored order (``sampler="shuffle"`` only).
            drop_last: Leave out batches that are not full.
            channels_last: Return images in that memory format.
            permutation_generator: CPU generator of the order; None takes torch's global one.
            augmentation_generator: Generator of the augmentation, on the device of the images.

        Raises:
            UserError: Arguments that exclude each other or do not fit.
        """
        self.images = images
        self.targets = targets
        self.rows = rows
        self.columns = tuple(columns)
        self.groups = _as_groups(batch_size, groups, targets)
        self.termination = termination
        self.oversample_small = oversample_small
        self.augmentation = augmentation
        self.sampler: Sampler = sampler
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.channels_last = channels_last
        self.permutation_generator = permutation_generator
        self.augmentation_generator = augmentation_generator
        self._shown: Tensor | None = None  # samples of the last batch; of a store, its images
        self._check()

    def _check(self) -> None:
        images = self.images if self.rows is None else self.rows
        lengths = {len(column) for column in (images, self.targets, *self.columns)}
        if len(lengths) != 1:
            raise UserError(f"images, targets and columns must have one length; got {sorted(lengths)}")
        if self.sampler not in get_args(Sampler):
            raise UserError(f"unknown sampler '{self.sampler}'; choose shuffle or class_aware")
        if self.sampler == "class_aware" and len(self.groups) > 1:
            raise UserError("class_aware sampling needs one group; call with_sampler to join groups")
        if not 0 <= self.termination < len(self.groups):
            raise UserError(f"termination {self.termination} is none of the {len(self.groups)} groups")

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return self.groups[self.termination].batches_per_pass(self.drop_last)

    @property
    def batch_size(self) -> int:
        """Images in a batch to which every group contributes in full."""
        return sum(group.batch_size for group in self.groups)

    @property
    def num_images(self) -> int:
        """Images in all groups together."""
        return sum(len(group.samples) for group in self.groups)

    def __iter__(self) -> Iterator[list[Tensor]]:
        """Run one epoch."""
        if isinstance(self.images, Tensor):
            for samples in self._steps():
                yield self.batch(samples)
            return
        steps = list(self._steps())  # known in advance, so that pictures can be read before they are wanted
        rows = [rows.cpu().numpy() for rows in map(self._rows_of, steps)]
        for samples, images in zip(steps, self.images.read_ahead(rows), strict=True):
            yield self._batch(samples, images)

    def _steps(self) -> Iterator[Tensor]:
        """Yield the samples [B] of each batch of an epoch, whose order is drawn at the first."""
        plans = [self._plan(position) for position in range(len(self.groups))]
        for step in range(len(self)):
            parts = [plan[step] for plan in plans if step < len(plan)]
            yield parts[0] if len(parts) == 1 else torch.cat(parts)

    def batch(self, samples: Tensor) -> list[Tensor]:
        """Return the batch of the given samples.

        Args:
            samples: int64 [B], on the device of the images.

        Returns:
            ``[x, y, *columns]``.
        """
        return self._batch(samples, self.images.index_select(0, self._rows_of(samples)))

    def _rows_of(self, samples: Tensor) -> Tensor:
        return samples if self.rows is None else self.rows.index_select(0, samples)

    def _batch(self, samples: Tensor, images: Tensor) -> list[Tensor]:
        """Return the batch of samples whose images [B, ...] are there as they are stored."""
        images = images.to(self.targets.device, non_blocking=True)
        if isinstance(self.images, Tensor):
            self._shown = samples
        else:
            self._shown = images.clone()  # to read them again may mean to decode them again
        augmented = self._augmented(images, self.augmentation)
        return [augmented, *(column.index_select(0, samples) for column in (self.targets, *self.columns))]

    def second_view(self, augmentation: Augmentation | str) -> Tensor:
        """Augment the images of the last batch once more, with the next random numbers of the same generator.

        Args:
            augmentation: Another augmentation, or the name of one; a named one normalises as the loader's own. The name
                ``contrastive`` is that of NCL's view beside the loader's own.

        Returns:
            float32 [B, C, h, w], row by row the images of the batch.

        Raises:
            UserError: No batch was made yet, the images are finished as stored, or the name is unknown.
        """
        if self._shown is None:
            raise UserError("a second view is one of the last batch, and none was made yet")
        if isinstance(augmentation, str):
            augmentation = self._named(augmentation)
        shown = self._shown
        if isinstance(self.images, Tensor):
            shown = self.images.index_select(0, self._rows_of(shown))
        return self._augmented(shown, augmentation)

    def _named(self, name: str) -> Augmentation:
        """Return a named augmentation with the normalisation of the loader's own."""
        own = self.augmentation
        if own is None:
            raise UserError(f"the second view '{name}' has no mean and std: the loader does not normalise")
        channels, height, width = self.images.shape[1:]
        name = second_view(own, height, width) if name == CONTRASTIVE else name
        mean, std = (values * (channels if len(values) == 1 else 1) for values in (own.mean, own.std))
        return build(name, (channels, height, width), mean, std, train=True)

    def _augmented(self, images: Tensor, augmentation: Augmentation | None) -> Tensor:
        """Return images as they are stored, augmented."""
        if augmentation is not None:
            images = augmentation(images, generator=self.augmentation_generator)
        if self.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return images

    def with_sampler(self, sampler: Sampler, batch_size: int | None = None) -> TensorBatches:
        """Return a loader of the same images as one group under another sampler.

        Args:
            sampler: See the constructor.
            batch_size: Default: the present batch size, all groups together.
        """
        samples = torch.cat([group.samples for group in self.groups])
        return TensorBatches(
            self.images,
            self.targets,
            rows=self.rows,
            groups=[Group(samples, batch_size or self.batch_size)],
            columns=self.columns,
            augmentation=self.augmentation,
            sampler=sampler,
            drop_last=self.drop_last,
            channels_last=self.channels_last,
            permutation_generator=self.permutation_generator,
            augmentation_generator=self.augmentation_generator,
        )

    def in_order(self, batch_size: int) -> TensorBatches:
        """Return a loader of every sample once, in stored order, normalised and without random augmentation.

        Args:
            batch_size: Images per batch.
        """
        return TensorBatches(
            self.images,
            self.targets,
            rows=self.rows,
            batch_size=batch_size,
            augmentation=None if self.augmentation is None else self._named("none"),
            shuffle=False,
            channels_last=self.channels_last,
        )

    def with_images(self, images: Tensor) -> TensorBatches:
        """Return a loader of the same samples, in the same random order, that shows something else for each.

        Args:
            images: [N, ...], one for each sample, given out as they are.
        """
        return TensorBatches(
            images,
            self.targets,
            groups=self.groups,
            termination=self.termination,
            oversample_small=self.oversample_small,
            columns=self.columns,
            sampler=self.sampler,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
            permutation_generator=self.permutation_generator,
        )

    def _plan(self, position: int) -> list[Tensor]:
        """Return the images a group gives to each step of this epoch."""
        group = self.groups[position]
        per_pass = group.batches_per_pass(self.drop_last)
        steps = len(self) if self.oversample_small else min(len(self), per_pass)
        if per_pass == 0 or steps == 0:
            return []
        passes = -(-steps // per_pass)
        order = torch.cat([self._order(group) for _ in range(passes)]).to(group.samples.device)
        return list(group.samples[order].split(_sizes(group, per_pass) * passes))[:steps]

    def _order(self, group: Group) -> Tensor:
        """Return the positions in the group in the order of one pass, cut to full batches if asked."""
        count = len(group.samples)
        if self.sampler == "class_aware":
            order = class_aware_order(self.targets[group.samples].cpu(), self.permutation_generator)
        elif self.shuffle:
            order = torch.randperm(count, generator=self.permutation_generator)
        else:
            order = torch.arange(count)
        return order[: count - count % group.batch_size] if self.drop_last else order


def _as_groups(batch_size: int | None, groups: Sequence[Group] | None, targets: Tensor) -> tuple[Group, ...]:
    """Return the groups, one of all images when only a batch size was given."""
    if (batch_size is None) == (groups is None):
        raise UserError("give either batch_size or groups")
    if groups is None:
        assert batch_size is not None
        groups = [Group(torch.arange(len(targets), device=targets.device), batch_size)]
    if not groups or any(group.batch_size < 1 for group in groups):
        raise UserError("each loader needs at least one group, and each batch size must be at least 1")
    return tuple(groups)


def _sizes(group: Group, per_pass: int) -> list[int]:
    """Return the sizes of the batches of one pass."""
    size = group.batch_size
    return [min(size, len(group.samples) - step * size) for step in range(per_pass)]


def class_aware_order(targets: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw classes uniformly and, within a class, images without repeats until all were shown.

    Args:
        targets: int64 [N], on the CPU.
        generator: CPU generator; None takes torch's global one.

    Returns:
        int64 [N], positions in ``targets``; small classes repeat, large ones are cut.
    """
    if len(targets) == 0:
        return torch.empty(0, dtype=torch.int64)
    classes, counts = targets.unique(return_counts=True)
    drawn = torch.randint(len(classes), (len(targets),), generator=generator)
    # The draws of one class stand together after sorting, as do its images: class after class.
    places = drawn.argsort(stable=True).split(drawn.bincount(minlength=len(classes)).tolist())
    members = targets.argsort(stable=True).split(counts.tolist())
    order = torch.empty_like(targets)
    for place, member in zip(places, members, strict=True):
        passes = -(-len(place) // len(member))
        shuffled = torch.rand(passes, len(member), dtype=torch.float32, generator=generator)
        shuffled = shuffled.argsort(1).flatten()
        order[place] = member[shuffled[: len(place)]]
    return order
