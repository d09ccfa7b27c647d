"""A few training images of every class on one small sheet, so that a report can show what a class looks like.

``thumbnails.npz`` holds one JPEG and where to find a class on it: the images of a class lie side by side in a block,
``columns`` blocks beside each other, classes in arrival order. A report hands the JPEG to the browser as it is.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from incrlt.errors import UserError
from incrlt.files import write_atomic
from incrlt.metrics.counts import as_counts, smallest
from incrlt.metrics.record import UNREADABLE, read_arrays

THUMBNAILS_FILE = "thumbnails.npz"
LARGEST_SIDE = 32
MOST_PER_CLASS = 4
MOST_PIXELS = 1 << 21
MOST_BYTES = 700_000
QUALITIES = (85, 60, 35)
"""The first whose sheet is small enough: 85 for the 400 images of CIFAR-100, 35 for as many pixels of noise as fit."""
_JPEG = b"\xff\xd8\xff"
_NUMBERS = ("side", "per_class", "columns")

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Sheet:
    """A sheet of thumbnails.

    Args:
        jpeg: The picture, an encoded JPEG.
        side: Pixels of a thumbnail's side.
        per_class: Thumbnails that a class has room for.
        columns: Classes beside each other.
        counts: Thumbnails of each class in arrival order [C]; rare classes have fewer than ``per_class``.
    """

    jpeg: bytes
    side: int
    per_class: int
    columns: int
    counts: tuple[int, ...]

    def place(self, class_index: int) -> tuple[int, int]:
        """Return the column and the row of a class's first thumbnail, in thumbnails."""
        row, column = divmod(class_index, self.columns)
        return column * self.per_class, row

    @property
    def width(self) -> int:
        """Thumbnails beside each other on the whole sheet."""
        return self.columns * self.per_class


def room(num_classes: int) -> tuple[int, int]:
    """Return how many thumbnails of a class fit, and their largest side in pixels.

    Example:
        >>> room(100), room(500), room(1000), room(8142)
        ((4, 32), (4, 32), (2, 32), (1, 16))
    """
    side = LARGEST_SIDE
    while num_classes * side * side > MOST_PIXELS and side > 1:
        side //= 2
    per_class = MOST_PIXELS // (side * side * max(1, num_classes))
    return (1 if side < LARGEST_SIDE else max(1, min(MOST_PER_CLASS, per_class))), side


def save_thumbnails(path: str | os.PathLike[str], images_of_class: Sequence[Images]) -> Path:
    """Write the sheet of a run, whole or not at all.

    Args:
        path: The file, usually ``<run folder>/thumbnails.npz``.
        images_of_class: Per class in arrival order uint8 [n, channels, H, W], n >= 1; images beyond :func:`room`
            are left out. Three channels are colours; of any other number the first is shown as grey.

    Returns:
        The path written.
    """
    per_class, side = room(len(images_of_class))
    side = min(side, *images_of_class[0].shape[2:])  # the browser enlarges small ones
    shown = [images[:per_class] for images in images_of_class]
    columns = max(1, round((len(shown) / per_class) ** 0.5))  # about as wide as high
    arrays = {
        "jpeg": np.frombuffer(_encoded(_draw(shown, side, per_class, columns)), dtype=np.uint8),
        "counts": smallest(as_counts([len(images) for images in shown], "counts")),
        **dict(zip(_NUMBERS, np.array([side, per_class, columns]), strict=True)),
    }
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # a JPEG does not get any smaller; the archive's checksums find damage
    return write_atomic(path, packed.getvalue())


def _draw(images_of_class: Sequence[Images], side: int, per_class: int, columns: int) -> Image.Image:
    """Return the sheet as a picture."""
    colours = images_of_class[0].shape[1] == 3
    size = (columns * per_class * side, -(-len(images_of_class) // columns) * side)
    sheet = Image.new("RGB" if colours else "L", size)
    for index, images in enumerate(images_of_class):
        row, column = divmod(index, columns)
        for place, image in enumerate(images):
            left = (column * per_class + place) * side
            sheet.paste(_thumbnail(image, side, colours), (left, row * side))
    return sheet


def _encoded(sheet: Image.Image) -> bytes:
    """Return a JPEG of the best quality that fits into :data:`MOST_BYTES`, else the smallest."""
    jpeg = b""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        sheet.save(buffer, "JPEG", quality=quality)
        jpeg = buffer.getvalue()
        if len(jpeg) <= MOST_BYTES:
            break
    return jpeg


def _thumbnail(image: Images, side: int, colours: bool) -> Image.Image:
    """Return an image [channels, H, W] as a square of ``side`` pixels, cut in the middle where it is not square."""
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)) if colours else image[0])
    return ImageOps.fit(picture, (side, side), Image.Resampling.BOX)


def load_thumbnails(path: str | os.PathLike[str]) -> Sheet:
    """Read what :func:`save_thumbnails` wrote.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        arrays = read_arrays(path)
        jpeg = bytes(arrays["jpeg"].astype(np.uint8))
        counts = [as_counts(count, "counts").item() for count in arrays["counts"]]
        side, per_class, columns = (as_counts(arrays[name], name).item() for name in _NUMBERS)
    except UNREADABLE as error:
        raise UserError(f"cannot read the thumbnails in {path}: {error}") from error
    if not jpeg.startswith(_JPEG) or min(side, per_class, columns) < 1 or max(counts, default=0) > per_class:
        raise UserError(f"cannot read the thumbnails in {path}: its parts do not fit together")
    return Sheet(jpeg, side, per_class, columns, tuple(counts))
