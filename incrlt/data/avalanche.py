"""From the loader Avalanche built to the same batches out of tensors on the device.

Avalanche reads every sample through several nested data sets and transforms. Most of that can be known
before the first batch: which stored image each sample is, and which transforms it meets on its way. This
module walks the nest once with index arrays. Whatever it does not know exactly, it refuses with a reason, and
the caller keeps the loader it has: user code is never approximated.

Private names of Avalanche 0.6 used here (pinned by the tests): ``_flat_data``, ``_datasets``, ``_indices``,
``_transform_groups``, ``_frozen_transform_groups``, ``_data_attributes``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import incrlt._compat  # noqa: F401  (must come before avalanche)

import numpy as np
import torch
from avalanche.benchmarks.utils import data_loader as stock
from avalanche.benchmarks.utils.classification_dataset import lookup
from avalanche.benchmarks.utils.data import AvalancheDataset, _FlatDataWithTransform
from avalanche.benchmarks.utils.flat_data import FlatData
from avalanche.benchmarks.utils.transforms import (
    MultiParamCompose,
    MultiParamTransformCallable,
    TupleTransform,
)
from avalanche.distributed import DistributedHelper
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from incrlt.data.augment import Augmentation
from incrlt.data.draws import expected_passes
from incrlt.data.stored import Indices, NotExactError, Stored, TensorCache
from incrlt.data.stores import Images, JoinedPictures
from incrlt.data.tensors import Group, TensorBatches, class_aware_order, num_batches
from incrlt.data.translate import UntranslatableError, translate

_MULTI_LOADERS = (
    stock.MultiDatasetDataLoader,
    stock.SingleDatasetDataLoader,
    stock.GroupBalancedDataLoader,
    stock.TaskBalancedDataLoader,
    stock.ReplayDataLoader,
)
_HARMLESS = {
    "collate_fn",
    "drop_last",
    "multiprocessing_context",
    "num_workers",
    "persistent_workers",
    "pin_memory",
    "pin_memory_device",
    "prefetch_factor",
    "shuffle",
}
"""Loader arguments that say how samples are fetched, or that are translated; all others are refused."""


# --- loaders ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Loader:
    """What a loader does, without how."""

    datasets: tuple[Any, ...]
    batch_sizes: tuple[int, ...]
    termination: int
    oversample_small: bool
    shuffle: bool
    drop_last: bool


def _read_loader(loader: object) -> _Loader:
    if DistributedHelper.is_distributed:
        raise NotExactError("distributed training splits the data between processes")
    if type(loader) in _MULTI_LOADERS:
        return _read_multi(loader)
    if type(loader) is DataLoader:
        return _read_plain(loader)
    raise NotExactError(f"{type(loader).__name__} is neither torch's DataLoader nor a known one of Avalanche")


def _read_multi(loader: Any) -> _Loader:
    unknown = set(loader.loader_kwargs) - _HARMLESS
    if unknown:
        raise NotExactError(f"the loader was given {', '.join(sorted(unknown))}")
    if loader.never_ending:
        raise NotExactError("the loader never ends")
    _check_collate(loader.loader_kwargs["collate_fn"])
    return _Loader(
        datasets=tuple(loader.datasets),
        batch_sizes=tuple(loader.batch_sizes),
        termination=loader.termination_dataset,
        oversample_small=loader.oversample_small_datasets,
        shuffle=bool(loader.loader_kwargs.get("shuffle", False)),
        drop_last=bool(loader.loader_kwargs.get("drop_last", False)),
    )


def _read_plain(loader: DataLoader[object]) -> _Loader:
    _check_collate(loader.collate_fn)
    if type(loader.batch_sampler) is not BatchSampler or loader.batch_size is None:
        raise NotExactError("the DataLoader has a batch sampler of its own")
    if loader.worker_init_fn is not None or loader.generator is not None:
        raise NotExactError("the DataLoader has a worker_init_fn or a generator of its own")
    return _Loader(
        datasets=(loader.dataset,),
        batch_sizes=(loader.batch_size,),
        termination=0,
        oversample_small=False,
        shuffle=_is_shuffling(loader.sampler),
        drop_last=loader.drop_last,
    )


def _is_shuffling(sampler: object) -> bool:
    if type(sampler) is SequentialSampler:
        return False
    if type(sampler) is not RandomSampler:
        raise NotExactError(f"the DataLoader has a sampler of its own ({type(sampler).__name__})")
    partial = sampler.num_samples != len(sampler.data_source)
    if sampler.replacement or partial or sampler.generator is not None:
        raise NotExactError("the RandomSampler draws with replacement, a part, or from its own generator")
    return True


def _check_collate(collate: object) -> None:
    if collate is not default_collate:
        name = getattr(collate, "__name__", type(collate).__name__)
        raise NotExactError(f"the samples are joined by a collate function of their own ({name})")


def parts_of_loader(loader: object) -> list[tuple[Any, float]]:
    """Return the data sets of a loader, each with how many passes over it an epoch makes (1: each image once).

    Args:
        loader: What a plugin such as Avalanche's ReplayPlugin put into ``strategy.dataloader``.

    Raises:
        NotExactError: The loader or its data are of an unknown kind, so that nobody can say which classes it draws
            how often.
    """
    plan = _read_loader(loader)
    if not all(isinstance(dataset, AvalancheDataset) for dataset in plan.datasets):
        raise NotExactError("its data are not Avalanche's")
    own = [
        num_batches(len(dataset), size, plan.drop_last)
        for dataset, size in zip(plan.datasets, plan.batch_sizes, strict=True)
    ]
    epoch = own[plan.termination]
    passes = [
        expected_passes(len(dataset), size, epoch, oversample=plan.oversample_small, drop_last=plan.drop_last)
        for dataset, size in zip(plan.datasets, plan.batch_sizes, strict=True)
    ]
    return list(zip(plan.datasets, passes, strict=True))


# --- data sets -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """Samples that come from one stored data set by the same transforms.

    Attributes:
        dataset: Where we are in the nest; a stored data set at the end of the walk.
        rows: Which of its samples.
        places: Their places in the outermost data set.
        group: Transform group asked for from outside, None when each level uses its own.
        chain: Avalanche's transforms of a whole sample, innermost first.
        trouble: What about the nest is not known exactly, or None.
    """

    dataset: Any
    rows: Indices
    places: Indices
    group: str | None = None
    chain: tuple[object, ...] = ()
    trouble: str | None = None

    def exact(self) -> _Chain:
        """Return the transforms of images and those of labels.

        Raises:
            NotExactError: They, or the nest, are not known exactly.
        """
        if self.trouble is not None:
            raise NotExactError(self.trouble)
        parts = [_split(transform) for transform in self.chain]
        return _Chain(sum((x for x, _ in parts), ()), sum((y for _, y in parts), ()))


@dataclass(frozen=True)
class _Chain:
    """Image transforms and label transforms, innermost first."""

    x: tuple[object, ...]
    y: tuple[object, ...]


def stored_parts(dataset: Any) -> list[tuple[object, Indices, Indices, tuple[object, ...]]]:
    """Return what a data set is made of, in training mode: whatever lies in it, known or not.

    Args:
        dataset: An Avalanche data set, or any other.

    Returns:
        Per part the stored data set, the rows taken from it, their places in ``dataset``, and the transforms that
        Avalanche applies to a sample, innermost first.
    """
    if isinstance(dataset, AvalancheDataset):
        dataset = dataset.train()
    span = np.arange(len(dataset), dtype=np.int64)
    return [(part.dataset, part.rows, part.places, part.chain) for part in _walk(_Part(dataset, span, span))]


def _walk(part: _Part) -> Iterator[_Part]:
    """Yield the stored data sets under a nest of Avalanche's and torch's data sets."""
    dataset = part.dataset
    if isinstance(dataset, AvalancheDataset):
        yield from _walk(replace(part, dataset=dataset._flat_data))
    elif isinstance(dataset, FlatData):
        yield from _walk_flat(part)
    elif type(dataset) is Subset:
        rows = _as_indices(dataset.indices)[part.rows]
        yield from _walk(_inside(part, dataset.dataset, rows, part.places))
    elif type(dataset) is ConcatDataset:
        yield from _walk_concat(part, dataset.datasets)
    else:
        yield part


def _walk_flat(part: _Part) -> Iterator[_Part]:
    dataset = part.dataset
    part = _add_transforms(part) if isinstance(dataset, _FlatDataWithTransform) else replace(part, group=None)
    if dataset._indices is not None:
        part = replace(part, rows=_as_indices(dataset._indices)[part.rows])
    yield from _walk_concat(part, dataset._datasets)


def _walk_concat(part: _Part, datasets: Sequence[Any]) -> Iterator[_Part]:
    """Distribute the samples over concatenated data sets."""
    ends = np.cumsum([len(dataset) for dataset in datasets])
    which = np.searchsorted(ends, part.rows, side="right")
    for position, dataset in enumerate(datasets):
        chosen = which == position
        if chosen.any():
            rows = part.rows[chosen] - (ends[position] - len(dataset))
            yield from _walk(_inside(part, dataset, rows, part.places[chosen]))


def _inside(part: _Part, dataset: object, rows: Indices, places: Indices) -> _Part:
    """Step into a data set; Avalanche hands its transform group only to its own private levels."""
    if isinstance(dataset, AvalancheDataset) and _column_names(dataset):
        part = replace(part, trouble="an Avalanche data set with extra columns lies inside a torch data set")
    group = part.group if isinstance(dataset, _FlatDataWithTransform) else None
    return replace(part, dataset=dataset, rows=rows, places=places, group=group)


def _add_transforms(part: _Part) -> _Part:
    """Put the transforms of one level before those met so far, which lie further outside."""
    dataset = part.dataset
    group = part.group or dataset._transform_groups.current_group
    part = replace(part, group=group)
    for groups in (dataset._transform_groups, dataset._frozen_transform_groups):
        try:
            transform = groups.transform_groups[group]  # made at this moment where all groups are equal
        except KeyError:
            part = replace(part, trouble=f"a data set has no transform group '{group}'")
            continue
        if transform is not None:
            part = replace(part, chain=(transform, *part.chain))
    return part


def _split(transform: Any) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """Return image transforms and label transforms of Avalanche's multi-argument transforms."""
    if type(transform) is TupleTransform:
        if len(transform.transforms) > 2:
            raise NotExactError("a transform changes more than image and label")
        image, label = [*transform.transforms, None][:2]
        return ((image,) if image is not None else ()), ((label,) if label is not None else ())
    if type(transform) is MultiParamTransformCallable:
        return _split_callable(transform.transform)
    if type(transform) is MultiParamCompose:
        parts = [_split_callable(part) for part in transform.transforms]
        return sum((x for x, _ in parts), ()), sum((y for _, y in parts), ())
    raise NotExactError(f"transform {type(transform).__name__} may change image and label together")


def _split_callable(transform: object) -> tuple[tuple[object, ...], tuple[object, ...]]:
    if type(transform) in (TupleTransform, MultiParamTransformCallable, MultiParamCompose):
        return _split(transform)
    return (transform,), ()  # what is not known by the translation to take the image alone is refused there


def _as_indices(indices: Any) -> Indices:
    if isinstance(indices, np.ndarray | Tensor | list | range):
        return np.asarray(indices, dtype=np.int64)
    return np.fromiter((int(index) for index in indices), dtype=np.int64, count=len(indices))


def _column_names(dataset: object) -> list[str]:
    """Return the attributes a data set appends to its samples, in order."""
    if not isinstance(dataset, AvalancheDataset):
        return []
    return [name for name, values in dataset._data_attributes.items() if values.use_in_getitem]


def _column(dataset: Any, name: str) -> Tensor:
    values = list(dataset._data_attributes[name])
    if not all(isinstance(value, int | np.integer) for value in values):
        raise NotExactError(f"column '{name}' holds values that are not integers")
    return torch.tensor(values, dtype=torch.int64)


# --- putting it together ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pool:
    """All samples of a loader: one image tensor or store, and for each sample its image, label and columns."""

    images: Images
    rows: Tensor
    targets: Tensor
    columns: tuple[Tensor, ...]
    augmentation: Augmentation | None


def _gather(datasets: Sequence[Any], cache: TensorCache) -> _Pool:
    """Resolve the samples of some data sets, one after the other."""
    parts, start = [], 0
    for dataset in datasets:
        span = np.arange(len(dataset), dtype=np.int64)
        parts += [replace(part, places=part.places + start) for part in _walk(_Part(dataset, span, span))]
        start += len(dataset)
    if not parts:
        raise NotExactError("there are no samples")
    chains = [part.exact() for part in parts]
    stored = cache.take([(part.dataset, part.rows) for part in parts])
    targets = np.empty(start, dtype=np.int64)
    for part, chain, store in zip(parts, chains, stored, strict=True):
        targets[part.places] = _apply_label_transforms(chain.y, store.labels[part.rows])
    images, rows = _join(parts, stored, start)
    columns = _columns(datasets)
    device = cache.device
    return _Pool(
        images,
        torch.from_numpy(rows).to(device),
        torch.from_numpy(targets).to(device),
        tuple(column.to(device) for column in columns),
        _common_augmentation(chains, stored, images.dtype),
    )


def _apply_label_transforms(transforms: Sequence[Any], labels: Indices) -> Indices:
    """Apply Avalanche's class mappings; nothing else is known to be a function of the label alone."""
    for transform in transforms:
        mapping = isinstance(transform, functools.partial) and transform.func is lookup
        if not mapping or transform.keywords or len(transform.args) != 1:
            raise NotExactError("the labels go through a target transform")
        labels = np.asarray(transform.args[0], dtype=np.int64)[labels]
    return labels


def _join(parts: Sequence[_Part], stored: Sequence[Stored], total: int) -> tuple[Images, Indices]:
    """Return one image tensor or store for all parts, and the row of each sample in it."""
    rows = np.empty(total, dtype=np.int64)
    found = [store.images for store in stored if store.images is not None]
    if len({id(store) for store in stored}) == 1:  # no copy: index the stored images themselves
        for part in parts:
            rows[part.places] = part.rows
        return found[0], rows
    if len({(images.shape[1:], images.dtype) for images in found}) > 1:
        raise NotExactError("the joined data sets differ in image size or type")
    pieces: list[tuple[Images, Indices]] = []
    start = 0
    for part, images in zip(parts, found, strict=True):
        chosen, inverse = np.unique(part.rows, return_inverse=True)
        pieces.append((images, chosen))
        rows[part.places] = inverse + start
        start += len(chosen)
    return _joined(pieces), rows


def _joined(pieces: Sequence[tuple[Images, Indices]]) -> Images:
    """Return chosen rows of several images, copied only where all are tensors."""
    copies = [
        images[torch.from_numpy(rows).to(images.device)]
        for images, rows in pieces
        if isinstance(images, Tensor)
    ]
    return torch.cat(copies) if len(copies) == len(pieces) else JoinedPictures(pieces)


def _columns(datasets: Sequence[object]) -> list[Tensor]:
    names = _column_names(datasets[0])
    if any(_column_names(dataset) != names for dataset in datasets):
        raise NotExactError("the joined data sets give different columns")
    return [torch.cat([_column(dataset, name) for dataset in datasets]) for name in names]


def _common_augmentation(
    chains: Sequence[_Chain], stored: Sequence[Stored], dtype: torch.dtype
) -> Augmentation | None:
    """Return the augmentation that all samples share; None where they have no transforms at all."""
    found: list[Augmentation | None] = []
    for chain, store in zip(chains, stored, strict=True):
        transforms = [t for t in (store.transform, *chain.x) if t is not None]
        try:
            augmentation = translate(transforms) if transforms else None
        except UntranslatableError as error:
            raise NotExactError(str(error)) from error
        if augmentation not in found:
            found.append(augmentation)
    if len(found) > 1:
        raise NotExactError("the joined data sets have different transforms")
    _check_input(found[0], stored, dtype)
    return found[0]


def _check_input(augmentation: Augmentation | None, stored: Sequence[Stored], dtype: torch.dtype) -> None:
    if augmentation is not None and dtype != torch.uint8:
        raise NotExactError(f"the images are {dtype} and have transforms; only uint8 images can be augmented")
    if augmentation is None and not all(store.gives_tensors() for store in stored):
        raise NotExactError("PIL images without a transform to tensors")


def convert(
    loader: object,
    device: torch.device | str,
    permutation_generator: torch.Generator | None = None,
    augmentation_generator: torch.Generator | None = None,
    *,
    cache: TensorCache | None = None,
    channels_last: bool = False,
) -> TensorBatches:
    """Return batches from tensors that are composed like those of an Avalanche or torch loader.

    Batch sizes, the number of batches, the share of each data set and of its oversampling, the distribution
    of the augmentation, labels and columns are those of ``loader``; the random numbers are not.

    Args:
        loader: What stands in ``strategy.dataloader`` after all plugins were called.
        device: Where images, labels and batches are kept.
        permutation_generator: CPU generator of the order; None takes torch's global one.
        augmentation_generator: Generator on ``device``; None takes torch's global one.
        cache: Images decoded before; give the same one again to pay for decoding once.
        channels_last: Memory format of the batches.

    Raises:
        NotExactError: Something about the loader is not known exactly; keep it.
    """
    cache = TensorCache(device) if cache is None else cache
    plan = _read_loader(loader)
    pool = _gather(plan.datasets, cache)
    lengths = [len(dataset) for dataset in plan.datasets]
    groups = torch.arange(sum(lengths), device=cache.device).split(lengths)
    return TensorBatches(
        pool.images,
        pool.targets,
        rows=pool.rows,
        groups=[Group(rows, size) for rows, size in zip(groups, plan.batch_sizes, strict=True)],
        termination=plan.termination,
        oversample_small=plan.oversample_small,
        columns=pool.columns,
        augmentation=pool.augmentation,
        shuffle=plan.shuffle,
        drop_last=plan.drop_last,
        channels_last=channels_last,
        permutation_generator=permutation_generator,
        augmentation_generator=augmentation_generator,
    )


def tensorise(loader: object, device: torch.device | str, *args: Any, **kwargs: Any) -> TensorBatches | None:
    """Return :func:`convert`'s batches, or None where the loader must be kept (see :func:`explain`)."""
    try:
        return convert(loader, device, *args, **kwargs)
    except NotExactError:
        return None


def explain(
    loader: object, device: torch.device | str = "cpu", cache: TensorCache | None = None
) -> str | None:
    """Return why a loader cannot be replaced, or None if it can."""
    try:
        convert(loader, device, cache=cache)
    except NotExactError as reason:
        return str(reason)
    return None


def class_aware_loader(
    dataset: Any,
    *,
    batch_size: int,
    device: torch.device | str,
    class_aware: bool = True,
    permutation_generator: torch.Generator | None = None,
    augmentation_generator: torch.Generator | None = None,
    channels_last: bool = False,
    fast: bool = True,
    cache: TensorCache | None = None,
) -> TensorBatches | DataLoader[object]:
    """Return a loader of one data set for a later training stage.

    Args:
        dataset: An Avalanche data set with ``targets``, in the transform group to use.
        batch_size: Images per batch.
        device: Where batches from tensors are made.
        class_aware: Draw classes uniformly (see :class:`TensorBatches`); False shuffles.
        permutation_generator: CPU generator of the order; None takes torch's global one.
        augmentation_generator: Generator on ``device``, for batches from tensors.
        channels_last: Memory format of batches from tensors.
        fast: Cut batches from tensors where that is exact.
        cache: See :func:`convert`.

    Returns:
        Batches from tensors, or where that is not exact a DataLoader with the same sampling.
    """
    if fast:
        plain = DataLoader(dataset, batch_size, shuffle=True, collate_fn=_collate_of(dataset))
        batches = tensorise(
            plain,
            device,
            permutation_generator,
            augmentation_generator,
            cache=cache,
            channels_last=channels_last,
        )
        if batches is not None:
            return batches.with_sampler("class_aware" if class_aware else "shuffle")
    sampler = _ClassAware(dataset, class_aware, permutation_generator)
    return DataLoader(dataset, batch_size, sampler=sampler, collate_fn=_collate_of(dataset))


def _collate_of(dataset: object) -> Any:
    return getattr(dataset, "collate_fn", None) or default_collate


class _ClassAware(Sampler[int]):
    """Order of an epoch for torch's DataLoader; drawn as :class:`TensorBatches` draws it."""

    def __init__(self, dataset: Any, class_aware: bool, generator: torch.Generator | None) -> None:
        self.targets = torch.as_tensor([int(label) for label in dataset.targets])
        self.class_aware = class_aware
        self.generator = generator

    def __len__(self) -> int:
        return len(self.targets)

    def __iter__(self) -> Iterator[int]:
        if self.class_aware:
            yield from class_aware_order(self.targets, self.generator).tolist()
        else:
            yield from torch.randperm(len(self.targets), generator=self.generator).tolist()
