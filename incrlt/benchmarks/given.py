"""Pictures that a program hands over: arrays, tensors, open pictures, torch data sets; what is wrong is said."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from incrlt.benchmarks.datasets import ImageData, statistics
from incrlt.benchmarks.folder import ImageFolder
from incrlt.benchmarks.preparing import prepared
from incrlt.errors import UserError

CHANNELS = (1, 3)
"""Grey and colour."""
DEFAULT_SIZE = 32
"""Side in pixels to which open pictures are brought where none is asked for."""


def of_array(values: object, shape: Sequence[int] | None = None) -> Tensor:
    """Return pictures of an array as uint8 ``[N, C, H, W]``.

    Args:
        values: uint8, ``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]`` with one or three channels; NumPy or torch.
        shape: Channels, height and width that are wanted; None takes any.

    Raises:
        UserError: Another type, range, layout or size; the sentence says which.
    """
    given = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if given.dtype != np.uint8:
        raise UserError(_wrong_type(given))
    if given.ndim == 3:
        given = given[:, None]
    elif given.ndim == 4 and given.shape[-1] in CHANNELS:
        given = given.transpose(0, 3, 1, 2)
    elif given.ndim != 4 or given.shape[1] not in CHANNELS:
        raise UserError(
            f"pictures are an array of shape {list(given.shape)}; give [N, height, width], [N, height, width, channels]"
            " or [N, channels, height, width], with 1 or 3 channels."
        )
    if shape is not None and tuple(given.shape[1:]) != tuple(shape):
        raise UserError(
            f"pictures have {_told(given.shape[1:])}; this model takes {_told(shape)}. Bring them to that size, or "
            "give files or PIL pictures, which are brought to it."
        )
    return torch.from_numpy(np.array(given, order="C"))


def _wrong_type(given: np.ndarray) -> str:
    if not given.size or given.dtype.kind not in "fiub":
        return f"pictures have values of type {given.dtype}; give uint8, 0 to 255."
    low, high = float(given.min()), float(given.max())
    told = f"pictures have values of type {given.dtype} from {low:g} to {high:g}; give uint8, 0 to 255"
    if not np.isfinite([low, high]).all():
        return f"{told}. Some values are not finite."
    if low >= 0 and high <= 1 and given.dtype.kind == "f":
        return f"{told}: (255 * x).round().astype('uint8')."
    if low >= 0 and high <= 255:
        return f"{told}: x.astype('uint8')."
    return f"{told}. They look normalised; give them as they were before."


def _told(shape: Sequence[int]) -> str:
    kind = {1: "one channel", 3: "three channels"}.get(int(shape[0]), f"{shape[0]} channels")
    return f"{kind} of {shape[1]} x {shape[2]} pixels"


def of_pictures(
    values: Sequence[Any], shape: Sequence[int] | None = None, size: int = DEFAULT_SIZE
) -> Tensor:
    """Return open pictures, or arrays of one picture each, as uint8 ``[N, C, H, W]``.

    Args:
        values: PIL pictures of any size, which are turned, cut and brought to ``shape``; or arrays, which must have it.
        shape: Channels, height, width; None: that of the first array, colour of ``size`` for PIL pictures.
        size: Side in pixels where no shape is given.

    Raises:
        UserError: One is neither, or of another size.
    """
    found: list[Tensor] = []
    for place, value in enumerate(values):
        if hasattr(value, "mode") and hasattr(value, "convert"):  # PIL
            channels, height, width = (3, size, size) if shape is None else shape
            pixels = prepared(value, height, width, channels, f"number {place}")
            found.append(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
        elif isinstance(value, Tensor | np.ndarray):
            found.append(
                of_array(value[None], shape if shape is not None or not found else found[0].shape)[0]
            )
        else:
            raise UserError(
                f"picture number {place} is a {type(value).__name__}; give PIL pictures, or uint8 arrays."
            )
        if found[-1].shape != found[0].shape:
            raise UserError(
                f"picture number {place} has {_told(found[-1].shape)}, those before {_told(found[0].shape)}."
            )
    return torch.stack(found) if found else torch.empty((0, *(shape or (3, size, size))), dtype=torch.uint8)


def of_dataset(
    dataset: Any, shape: Sequence[int] | None = None, size: int = DEFAULT_SIZE
) -> tuple[Tensor, list[object]]:
    """Return the pictures uint8 ``[N, C, H, W]`` and the labels of a torch data set, each sample read once.

    Where the data set has ``classes``, as torchvision's have, whole numbers become those names.

    Raises:
        UserError: Samples are no pairs of picture and label.
    """
    pictures, labels = [], []
    for place in range(len(dataset)):
        sample = dataset[place]
        if not isinstance(sample, tuple | list) or len(sample) < 2:
            raise UserError(
                f"samples of {type(dataset).__name__} must be pairs of picture and label; number {place} is a "
                f"{type(sample).__name__}."
            )
        pictures.append(sample[0])
        labels.append(_plain(sample[1]))
    names = getattr(dataset, "classes", None)
    if names is not None and all(isinstance(label, int) and 0 <= label < len(names) for label in labels):
        labels = [str(names[label]) for label in labels]
    return of_pictures(pictures, shape, size), labels


def _plain(label: object) -> object:
    return label.item() if hasattr(label, "item") and getattr(label, "size", None) is not None else label


def data_of(
    train: object, test: object, names: Sequence[str] | None, size: int, as_it_is: bool
) -> tuple[ImageData, dict[str, object]]:
    """Return a whole data set from Python, and the fields of a protocol that it decides.

    Args:
        train: A torch data set, or pictures and labels.
        test: The same.
        names: Name of each label, where labels are whole numbers.
        size: Side in pixels to which PIL pictures are brought.
        as_it_is: Keep every picture; otherwise a tail is cut, from as many pictures as every class has.

    Raises:
        UserError: Pictures that cannot be used, or test labels that are never learned.
    """
    images, labels = _pair(train, None, size, names)
    test_images, test_labels = _pair(test, images.shape[1:], size, names)
    counts = Counter(labels)
    lost = sorted(set(test_labels) - set(counts))
    if lost or not counts:
        told = ", ".join(lost[:5]) or "nothing"
        raise UserError(f"test has pictures of {told} and train has none; give some to learn from.")
    order = sorted(counts, key=lambda name: (-counts[name], name))
    place = {name: label for label, name in enumerate(order)}
    digest = hashlib.sha256()
    for part, own in ((images, labels), (test_images, test_labels)):
        digest.update(part.numpy().tobytes() + "\0".join(own).encode())
    shares = tuple(counts[name] for name in order)
    whole = ImageFolder(Path(), size, tuple(order), tuple((Path(),) * n for n in shares), ())
    data = ImageData(
        f"own-{digest.hexdigest()[:10]}",
        images,
        torch.tensor([place[name] for name in labels]),
        test_images,
        torch.tensor([place[name] for name in test_labels], dtype=torch.int64),
        tuple(order),
        *statistics(images),
    )
    return data, whole.rule(as_it_is)


def _pair(
    part: object, shape: Sequence[int] | None, size: int, names: Sequence[str] | None
) -> tuple[Tensor, list[str]]:
    """Return the pictures of a part and the name of the class of each."""
    if isinstance(part, tuple) and len(part) == 2:
        pictures, labels = part
        is_array = isinstance(pictures, np.ndarray | Tensor)
        images = of_array(pictures, shape) if is_array else of_pictures(pictures, shape, size)
        labels = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    else:
        images, labels = of_dataset(part, shape, size)
    if len(labels) != len(images):
        raise UserError(
            f"there are {len(images)} pictures and {len(labels)} labels; give one label for each."
        )
    if names is None:
        return images, [str(label) for label in labels]
    wrong = next(
        (label for label in labels if not isinstance(label, int) or not 0 <= label < len(names)), None
    )
    if wrong is not None:
        raise UserError(
            f"the label {wrong!r} has no name: names has {len(names)}, for 0 to {len(names) - 1}."
        )
    return images, [str(names[label]) for label in labels]
