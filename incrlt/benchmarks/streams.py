"""Turns a dataset and a resolved protocol into an ordinary Avalanche benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import incrlt._compat  # noqa: F401  before avalanche

import numpy as np
from avalanche.benchmarks import NCScenario, benchmark_from_datasets, nc_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from torch import Tensor
from torch.utils.data import Subset

from incrlt.benchmarks.datasets import ImageData
from incrlt.benchmarks.protocols import Protocol, ResolvedProtocol, resolve
from incrlt.data import augment
from incrlt.data.stored import Indices
from incrlt.data.tensors import ImageTensors
from incrlt.errors import UserError

Benchmark: TypeAlias = NCScenario
"""What :func:`build` returns, by a name that other modules can annotate with without importing avalanche."""


def build(
    data: ImageData,
    protocol: Protocol | ResolvedProtocol,
    augmentation: Callable[[Any], Tensor] | None = None,
) -> Benchmark:
    """Return the benchmark of a protocol, from ``nc_benchmark``.

    Labels are arrival positions: the first class to arrive is 0. All task labels are 0. Training experiences
    have the kept images in uint8 behind ``train_transform``; the test experiences have all test images of
    their classes, balanced, behind the normalisation alone.

    Args:
        data: The dataset.
        protocol: The rule, or the rule already resolved on the labels of ``data``.
        augmentation: A training transform of your own (uint8 ``[C, H, W]`` in, float out) in place of the
            one the protocol names. Its ``repr`` then stands in the protocol and changes the hash.

    Returns:
        An Avalanche ``NCScenario`` with three more attributes: ``protocol`` (:class:`ResolvedProtocol`),
        ``class_names`` (in arrival order) and ``groups`` (many, medium or few, in arrival order).

    Raises:
        UserError: The protocol is for another dataset.
    """
    resolved = _resolved(data, protocol, augmentation)
    rule = resolved.protocol
    channels, height, width = data.train_images.shape[1:]
    shape = (channels, height, width)
    train = augmentation or augment.build(rule.augmentation, shape, data.mean, data.std, train=True)
    kept = np.concatenate(resolved.train_indices)
    if len(data.test_labels.unique()) < rule.num_classes:
        return _with_names(_without_some_tests(data, resolved, train), data, resolved)
    benchmark = nc_benchmark(
        _kept(data, kept),
        ImageTensors(data.test_images, data.test_labels),
        n_experiences=rule.num_experiences,
        task_labels=False,
        fixed_class_order=list(rule.class_order),
        per_exp_classes=dict(enumerate(rule.classes_per_experience)),
        class_ids_from_zero_from_first_exp=True,
        train_transform=train,
        eval_transform=augment.build(_evaluated(rule, augmentation), shape, data.mean, data.std, train=False),
    )
    return _with_names(benchmark, data, resolved)


def _evaluated(rule: Protocol, augmentation: Callable[[Any], Tensor] | None) -> str:
    """Return by which name pictures are prepared for evaluation; a transform of the user's own has none."""
    return rule.augmentation if augmentation is None else "none"


def _with_names(benchmark: Any, data: ImageData, resolved: ResolvedProtocol) -> object:
    benchmark.protocol = resolved
    benchmark.class_names = tuple(data.class_names[c] for c in resolved.protocol.class_order)
    benchmark.groups = tuple(resolved.groups)
    return benchmark


def _without_some_tests(
    data: ImageData, resolved: ResolvedProtocol, train: Callable[[Any], Tensor]
) -> object:
    """Return the benchmark of data that have no test pictures of some classes, which ``nc_benchmark`` cannot split.

    A test experience without any picture is left out of the test stream.
    """
    rule = resolved.protocol
    place = np.argsort(rule.class_order)
    shape = (int(data.train_images.shape[1]), *map(int, data.train_images.shape[2:]))
    named = resolved.protocol.augmentation if resolved.protocol.augmentation in augment.NAMED else "none"
    evaluated = augment.build(named, shape, data.mean, data.std, train=False)  # type: ignore[arg-type]
    groups = {"train": (train, None), "eval": (evaluated, None)}
    tested = place[data.test_labels.numpy()]
    rows = [np.flatnonzero((tested >= own.start) & (tested < own.stop)) for own in rule.ranges]

    train_set = ImageTensors(data.train_images, place[data.train_labels.numpy()])
    test_set = ImageTensors(data.test_images, tested)
    benchmark = benchmark_from_datasets(
        train=[
            as_classification_dataset(_view(train_set, own), transform_groups=groups)
            for own in resolved.train_indices
        ],
        test=[
            as_classification_dataset(_view(test_set, own), transform_groups=groups)
            for own in rows
            if len(own)
        ],
    )
    return _known_to_its_streams(benchmark)


def of_parts(
    train: Sequence[ImageTensors],
    test: ImageTensors,
    class_names: Sequence[str],
    augmentation: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> object:
    """Return a benchmark whose experiences are given as they are: new classes, known ones, or both, of any number.

    Args:
        train: Pictures of each experience; labels are arrival positions.
        test: Pictures of the one test experience.
        class_names: In arrival order.
        augmentation: Name of the training augmentation.
        mean: Per channel, in units of [0, 1].
        std: Per channel, in units of [0, 1].

    Returns:
        An Avalanche ``CLScenario`` with the attribute ``class_names``.
    """
    channels, height, width = test.images.shape[1:]
    shape, numbers = (channels, height, width), (tuple(mean), tuple(std))
    groups = {
        "train": (augment.build(augmentation, shape, *numbers, train=True), None),
        "eval": (augment.build("none", shape, *numbers, train=False), None),
    }
    benchmark = benchmark_from_datasets(
        train=[as_classification_dataset(part, transform_groups=groups) for part in train],
        test=[as_classification_dataset(test, transform_groups=groups)],
    )
    benchmark.class_names = tuple(class_names)
    return _known_to_its_streams(benchmark)


def _known_to_its_streams(benchmark: Any) -> object:
    """Let experiences find their benchmark, and with it the names of classes: Avalanche only does so elsewhere."""
    for stream in benchmark.streams.values():
        stream.benchmark = benchmark
    return benchmark


def _kept(data: ImageData, kept: Indices) -> object:
    """Return the kept training images, in that order: a view where a copy would hold most of them twice."""
    if isinstance(data.train_images, Tensor) and 2 * len(kept) < len(data.train_images):
        return ImageTensors(data.train_images[kept], data.train_labels[kept])
    return _view(ImageTensors(data.train_images, data.train_labels), kept)


def _view(images: ImageTensors, rows: Indices) -> object:
    """Return the pictures at ``rows`` ``[n]``, in that order, without a copy."""
    view: Any = Subset(images, rows.tolist())
    view.targets = images.targets[rows]  # Avalanche looks for them here
    return view


def _resolved(
    data: ImageData, protocol: Protocol | ResolvedProtocol, augmentation: Callable[[Any], Tensor] | None
) -> ResolvedProtocol:
    rule = protocol.protocol if isinstance(protocol, ResolvedProtocol) else protocol
    if rule.dataset != data.name:
        raise UserError(
            f"the protocol {rule.name} is for {rule.dataset}, but the data are {data.name}; "
            f"make the protocol for {data.name}."
        )
    if augmentation is not None:
        rule = replace(rule, augmentation=repr(augmentation))
    if not isinstance(protocol, ResolvedProtocol):
        return resolve(rule, data.train_labels.numpy())
    return protocol if rule is protocol.protocol else replace(protocol, protocol=rule)
