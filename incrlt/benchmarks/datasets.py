"""Reads a dataset once, into uint8 tensors: digits (embedded), CIFAR-10, CIFAR-100, or a folder of pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from incrlt.benchmarks import facts, folder, large
from incrlt.benchmarks.folder import prepare_command
from incrlt.benchmarks.holding import Holding, held
from incrlt.benchmarks.looking import Progress
from incrlt.benchmarks.surveying import Listed
from incrlt.data.stores import Images
from incrlt.errors import UserError

LARGEST_FILE = 1 << 30
"""Bytes of a file of CIFAR; the largest has 155 million."""
_AT_A_TIME = 1024
"""Pictures whose values are counted at a time."""


@dataclass(frozen=True, eq=False)
class ImageData:
    """A whole dataset: its images in memory, or in stores that read them when they are asked for.

    Args:
        name: Name of the dataset.
        train_images: uint8 ``[N, C, H, W]``.
        train_labels: int64 ``[N]``, class ids from 0.
        test_images: uint8 ``[M, C, H, W]``.
        test_labels: int64 ``[M]``.
        class_names: Name of each class id.
        mean: Per-channel mean for normalisation, in units of [0, 1].
        std: Per-channel standard deviation for normalisation.
        where: How pictures from files are held and why, for people; empty for the others.
        account: How many files there were, and what was left out and why; empty for the others.
        split: Of a large data set, whether its lists are those that were published; empty for the others.
    """

    name: str
    train_images: Images
    train_labels: Tensor
    test_images: Images
    test_labels: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    where: str = ""
    account: str = ""
    split: str = ""


def load(name: str, root: str | os.PathLike[str] | None = None, download: bool = False) -> ImageData:
    """Read a dataset.

    Args:
        name: ``digits``, ``cifar10`` or ``cifar100``.
        root: Folder of the datasets, that is, the one in which torchvision's ``cifar-100-python`` lies. By
            default the environment variable ``INCRLT_DATA``, else ``data``. ``digits`` needs none.
        download: Whether missing files may be downloaded; torchvision shows a progress bar.

    Raises:
        UserError: Unknown name; files missing, damaged or not downloadable. The message lists them.
    """
    facts.info(name)
    if name in large.SETS:
        raise UserError(f"{name} is read from files by an experiment (benchmark.dataset), not by load().")
    return _READERS[name](name, data_root(root), download)


data_root = folder.data_root


def _digits(name: str, root: Path, download: bool) -> ImageData:
    """Read scikit-learn's 1,797 handwritten digits, 8 x 8 pixels.

    The values 0..16 become 0..255. Of each class, 130 images drawn with ``RandomState(0)`` are the training
    set, in file order; the rest is the test set. The training set is balanced, as a long tail needs it.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(np.round(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    train = _draw_per_class(digits.target, facts.DIGITS_TRAIN_PER_CLASS)
    return _data(
        name, images[train], labels[train], images[~train], labels[~train], tuple(str(n) for n in range(10))
    )


def _draw_per_class(labels: np.ndarray, per_class: int) -> Tensor:
    """Return a bool mask ``[N]`` with ``per_class`` images of every class."""
    generator = np.random.RandomState(0)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for class_id in np.unique(labels):
        mask[generator.permutation(np.flatnonzero(labels == class_id))[:per_class]] = True
    return mask


def _cifar(name: str, root: Path, download: bool) -> ImageData:
    reader = _reader(name)
    bad = _problems(reader, root)
    if bad and not download:
        raise UserError(_how_to_get(name, reader, root, bad))
    try:
        train, test = (reader(str(root), train=which, download=bool(bad)) for which in (True, False))
    except Exception as error:  # torchvision raises whatever the network, the archive or the disk did
        raise UserError(
            f"{name} could not be {'downloaded' if bad else 'read'} ({type(error).__name__}: {error}). "
            + _how_to_get(name, reader, root, bad or ["none"])
        ) from error
    return _data(name, *_tensors(train), *_tensors(test), tuple(train.classes))


def _tensors(dataset: Any) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2)))
    return images, torch.tensor(dataset.targets, dtype=torch.int64)


def _files(reader: Any) -> list[tuple[str, str]]:
    """Return (file name, md5) of everything torchvision reads."""
    meta = (reader.meta["filename"], reader.meta["md5"])
    return [(file, md5) for file, md5 in (*reader.train_list, *reader.test_list, meta)]


def problems(name: str, root: str | os.PathLike[str] | None = None) -> list[str]:
    """Return one phrase per file of ``cifar10`` or ``cifar100`` that is missing or damaged."""
    return _problems(_reader(name), data_root(root))


def _reader(name: str) -> Any:
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def _problems(reader: Any, root: Path) -> list[str]:
    """Return one phrase per file that is missing or damaged."""
    found = []
    for file, md5 in _files(reader):
        path = root / reader.base_folder / file
        if not path.is_file():
            found.append(f"{file} is missing (md5 {md5})")
        elif not _intact(path, md5):
            found.append(f"{file} is damaged or unreadable (md5 should be {md5})")
    return found


def _intact(path: Path, md5: str) -> bool:
    from torchvision.datasets.utils import check_md5

    try:
        return path.stat().st_size <= LARGEST_FILE and check_md5(str(path), md5)
    except OSError:
        return False


def _how_to_get(name: str, reader: Any, root: Path, bad: list[str]) -> str:
    return (
        f"{name} is not complete in {root / reader.base_folder}: {'; '.join(bad)}. Run {prepare_command(name, root)}, "
        f"or put the official files there ({reader.url}, archive md5 {reader.tgz_md5}), or say where they are "
        f"(--data, data.root or INCRLT_DATA), or allow the download (data.download: true, in a script "
        f"download=True)."
    )


def load_folder(
    root: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    holding: Holding | None = None,
    progress: Progress | None = None,
) -> ImageData:
    """Read pictures of your own from ``root/train/CLASS`` and ``root/test/CLASS``.

    They are cut to the largest central square and brought to one size, in colour. Mean and deviation are those of
    the training pictures.

    Args:
        root: The folder; None: ``INCRLT_DATA``, else ``data``.
        image_size: Side in pixels; None: 32.
        holding: Where they are held; None chooses by their size.
        progress: Called with the pictures decoded so far and those there are.

    Raises:
        UserError: Folders are missing, classes differ, a picture cannot be read, or memory would not do.
    """
    return read_folder(folder.scan(root, image_size), holding, progress)


def read_folder(
    found: folder.ImageFolder, holding: Holding | None = None, progress: Progress | None = None
) -> ImageData:
    """Read the pictures of a folder that was listed; see :func:`load_folder`."""
    pictures = held(Listed.of(found), holding or Holding(), progress)
    (mean, std), split = _of_histogram(torch.from_numpy(pictures.histogram)), ""
    if isinstance(found, large.LargeFolder):
        known = facts.info(found.dataset)
        mean, std, split = known.mean, known.std, found.split
    return ImageData(
        found.name,
        pictures.train,
        folder_labels(found.train),
        pictures.test,
        folder_labels(found.test),
        found.class_names,
        mean,
        std,
        pictures.where,
        found.account + (f" ({found.left_out})" if found.left_out else ""),
        split,
    )


def folder_labels(classes: tuple[tuple[Path, ...], ...]) -> Tensor:
    """Return the label of each picture of a folder's part, int64 ``[N]``, without reading any."""
    return torch.from_numpy(np.repeat(np.arange(len(classes)), [len(paths) for paths in classes]))


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation per channel of uint8 images, in units of [0, 1]; a flat channel counts as one step."""
    histograms = torch.zeros((images.shape[1], 256), dtype=torch.int64)
    for part in images.split(_AT_A_TIME):  # counting takes eight bytes a value
        for channel, counts in enumerate(histograms):
            counts += part[:, channel].flatten().bincount(minlength=256)
    return _of_histogram(histograms)


def _of_histogram(histograms: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation per channel of int64 counts ``[C, 256]``."""
    share = histograms.double() / histograms.sum(1, keepdim=True)
    values = torch.arange(256).double() / 255
    mean = share @ values
    std = ((share @ values**2) - mean**2).clamp(min=0).sqrt().clamp(min=1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def _data(
    name: str,
    train_images: Tensor,
    train_labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    class_names: tuple[str, ...],
) -> ImageData:
    known = facts.info(name)
    return ImageData(
        name, train_images, train_labels, test_images, test_labels, class_names, known.mean, known.std
    )


_READERS: dict[str, Callable[[str, Path, bool], ImageData]] = {
    "digits": _digits,
    "cifar10": _cifar,
    "cifar100": _cifar,
}
