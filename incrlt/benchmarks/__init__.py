"""What arrives, with which images and in which order.

:mod:`~incrlt.benchmarks.protocols` holds the rules (NumPy only), :mod:`~incrlt.benchmarks.datasets` reads
images and :mod:`~incrlt.benchmarks.streams` makes an Avalanche benchmark of both. The five functions here
do all of it in one call; torch and Avalanche load when one is called.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from incrlt.files import Plain

if TYPE_CHECKING:
    from incrlt.benchmarks.protocols import Protocol
    from incrlt.benchmarks.streams import Benchmark

__all__ = ["cifar10_lt", "cifar100_lt", "digits_lt", "folder_lt", "from_dataset"]


def cifar100_lt(
    protocol: str | Protocol = "lfh-shuffled-10",
    imbalance_ratio: float = 100,
    seed: int = 0,
    **options: object,
) -> Benchmark:
    """Return long-tailed CIFAR-100 as an Avalanche benchmark; 10,847 of 50,000 training images by default.

    Args:
        protocol: A protocol id (:data:`incrlt.benchmarks.protocols.NAMES`), or a :class:`Protocol`, which
            then decides everything else.
        imbalance_ratio: Images of the largest class over those of the smallest, >= 1.
        seed: Seed of the choice of the kept images; 0 gives the literature's.
        **options: ``root`` (folder of the data), ``download``, ``augmentation`` (a name, or a transform of
            your own), and any field of a protocol: ``holdout="long-tailed-cil"``, ``order_seed``,
            ``profile``, ``memory``, ``image_choice``. ``base_classes``, ``increment`` and ``order`` in place
            of a protocol id make a free split.

    Returns:
        As :func:`incrlt.benchmarks.streams.build`.

    Raises:
        UserError: Something of this is impossible, or the data are not there.
    """
    return _build("cifar100", protocol, imbalance_ratio, seed, options)


def cifar10_lt(
    protocol: str | Protocol = "lfh-shuffled-5",
    imbalance_ratio: float = 100,
    seed: int = 0,
    **options: object,
) -> Benchmark:
    """Return long-tailed CIFAR-10, by default 5 classes and then 5 times one; as :func:`cifar100_lt`."""
    return _build("cifar10", protocol, imbalance_ratio, seed, options)


def digits_lt(
    protocol: str | Protocol = "lfh-shuffled-5", imbalance_ratio: float = 10, seed: int = 0, **options: object
) -> Benchmark:
    """Return long-tailed handwritten digits, embedded in scikit-learn; as :func:`cifar100_lt`.

    By default 5 classes and then 5 times one, 130 down to 13 images of 8 x 8 pixels.
    """
    return _build("digits", protocol, imbalance_ratio, seed, options)


def folder_lt(
    root: str | os.PathLike[str],
    protocol: str | Protocol = "lfh-shuffled-5",
    imbalance_ratio: float | None = None,
    seed: int = 0,
    image_size: int = 32,
    **options: object,
) -> Benchmark:
    """Return pictures of your own as an Avalanche benchmark; class names are the names of their folders.

    Args:
        root: Folder with ``train/CLASS`` and ``test/CLASS``.
        protocol: As in :func:`cifar100_lt`.
        imbalance_ratio: None keeps every picture, so that the tail is the folder's own; a number cuts one, from as
            many pictures as every class has.
        seed: Seed of the choice of the kept pictures.
        image_size: Side in pixels to which pictures are brought.
        **options: As in :func:`cifar100_lt`, but for ``root`` and ``download``.

    Returns:
        As :func:`incrlt.benchmarks.streams.build`.

    Raises:
        UserError: As :func:`incrlt.benchmarks.datasets.load_folder`, or the classes cannot be split so.
    """
    from incrlt.benchmarks import datasets, folder, streams

    augmentation = _own_augmentation(options)
    found = folder.scan(root, image_size)
    options |= {"imbalance_ratio": imbalance_ratio, "image_seed": seed} | found.rule(imbalance_ratio is None)
    rule = _rule(found.name, protocol, options)
    return streams.build(datasets.read_folder(found), rule, augmentation)


def from_dataset(
    train: object,
    test: object,
    protocol: str | Protocol = "lfh-shuffled-5",
    imbalance_ratio: float | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
    image_size: int = 32,
    **options: object,
) -> Benchmark:
    """Return pictures from Python as an Avalanche benchmark, with tail, protocol and hash like the built-in ones.

    Args:
        train: A torch data set of pictures and labels, or a pair ``(pictures, labels)`` of uint8 arrays or PIL
            pictures; see :mod:`incrlt.benchmarks.given`.
        test: The same.
        protocol: As in :func:`cifar100_lt`.
        imbalance_ratio: As in :func:`folder_lt`.
        seed: Seed of the choice of the kept pictures.
        names: Name of each label, where labels are whole numbers from 0.
        image_size: Side in pixels to which PIL pictures are brought; arrays keep their size.
        **options: As in :func:`cifar100_lt`, but for ``root`` and ``download``.

    Returns:
        As :func:`incrlt.benchmarks.streams.build`. As in a folder, class 0 is the most frequent one in training.

    Raises:
        UserError: Pictures of another type, range or size; labels without names; or the classes cannot be split so.
    """
    from incrlt.benchmarks import given, streams

    augmentation = _own_augmentation(options)
    data, rule = given.data_of(train, test, names, image_size, as_it_is=imbalance_ratio is None)
    options |= {"imbalance_ratio": imbalance_ratio, "image_seed": seed} | rule
    return streams.build(data, _rule(data.name, protocol, options), augmentation)


def _build(
    dataset: str, protocol: str | Protocol, imbalance_ratio: float, seed: int, options: Plain
) -> Benchmark:
    from incrlt.benchmarks import datasets, streams

    root: str | os.PathLike[str] | None = options.pop("root", None)
    download = options.pop("download", False)
    augmentation = _own_augmentation(options)
    options |= {"imbalance_ratio": imbalance_ratio, "image_seed": seed}
    rule = _rule(dataset, protocol, options)  # before any data are read
    return streams.build(datasets.load(dataset, root, download), rule, augmentation)


def _own_augmentation(options: dict[str, object]) -> Any:
    """Take a transform of the user's own out of the options; a name stays, as part of the protocol."""
    return None if isinstance(options.get("augmentation"), str) else options.pop("augmentation", None)


def _rule(dataset: str, protocol: str | Protocol, options: Plain) -> Protocol:
    from incrlt.benchmarks.protocols import Protocol

    if isinstance(protocol, Protocol):
        return protocol
    if "base_classes" in options or "increment" in options:
        return Protocol.free(dataset, **options)
    return Protocol.named(protocol, dataset, **options)
