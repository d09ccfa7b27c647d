"""One look at every picture of a run: whether it can be read, what it is by content, and how often each value comes.

It is made once, before anything is learned, so that all pictures that cannot be read are named at once. Whoever wants
the pixels too is given them on the way: memory, a file, or nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from incrlt.benchmarks.folder import ImageFolder
from incrlt.benchmarks.listing import SHOWN
from incrlt.benchmarks.looking import Progress
from incrlt.benchmarks.preparing import read_picture
from incrlt.data.ahead import in_order
from incrlt.data.stores import Pixels
from incrlt.errors import UserError
from incrlt.files import LARGEST_PICTURE, read_bytes

Histogram: TypeAlias = npt.NDArray[np.int64]
"""How often each value 0..255 comes in each channel, ``[C, 256]``."""


@dataclass(frozen=True)
class Listed:
    """Pictures of a run before any is opened.

    Args:
        train: Paths of the training pictures, by row.
        test: Paths of the test pictures, by row.
        shape: Channels, height, width that they are brought to.
    """

    train: tuple[Path, ...]
    test: tuple[Path, ...]
    shape: tuple[int, int, int]

    @staticmethod
    def of(found: ImageFolder) -> Listed:
        """Return the pictures of a folder that was listed, class after class, in colour."""
        train, test = (tuple(path for own in part for path in own) for part in (found.train, found.test))
        return Listed(train, test, (3, found.image_size, found.image_size))

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them, those to be trained on first."""
        return (*self.train, *self.test)

    @property
    def rows(self) -> tuple[range, range]:
        """Rows of the training and of the test pictures among all."""
        return range(len(self.train)), range(len(self.train), len(self.train) + len(self.test))

    @property
    def nbytes(self) -> int:
        """Bytes of all pictures, decoded."""
        return (len(self.train) + len(self.test)) * int(np.prod(self.shape))


@dataclass(frozen=True, eq=False)
class Survey:
    """What a look at all pictures found.

    Args:
        histogram: Of the training pictures ``[C, 256]``.
        contents: SHA-256 of each file, 32 bytes each, uint8 ``[N, 32]``.
    """

    histogram: Histogram
    contents: npt.NDArray[np.uint8]


def survey(
    listed: Listed,
    threads: int,
    take: Callable[[Pixels], None] | None = None,
    progress: Progress | None = None,
) -> Survey:
    """Read every picture once.

    Args:
        listed: Which.
        threads: That read; 0 reads in this one.
        take: Given the pixels ``[C, H, W]`` of one picture after the other, in the order of ``listed.paths``.
        progress: Told how far it is.

    Raises:
        UserError: Pictures cannot be read; all of them are named.
    """
    paths, training = listed.paths, len(listed.train)
    histogram = np.zeros((listed.shape[0], 256), dtype=np.int64)
    contents = np.zeros((len(paths), 32), dtype=np.uint8)
    refused: list[str] = []
    found = in_order(lambda path: _one(path, listed.shape), paths, threads)
    for row, (pixels, digest, counts) in enumerate(found):
        if isinstance(pixels, str):
            refused.append(pixels)
        elif take is not None and not refused:
            take(pixels)
        contents[row] = np.frombuffer(digest, np.uint8)
        if row < training:
            histogram += counts
        if progress is not None:
            progress(row + 1, len(paths))
    _refuse(refused)
    return Survey(histogram, contents)


def _one(path: Path, shape: tuple[int, int, int]) -> tuple[Pixels | str, bytes, Histogram]:
    """Return pixels, or why there are none, with content and histogram."""
    nothing = np.zeros((shape[0], 256), dtype=np.int64)
    try:
        content = read_bytes(path, LARGEST_PICTURE)
        pixels = decoded(path, shape, content)
    except OSError as error:
        reason = f"{type(error).__name__}: {error}"
        return f"the picture {path} cannot be read ({reason}); mend or remove it.", bytes(32), nothing
    except UserError as error:
        return str(error), bytes(32), nothing
    except ValueError as error:
        return f"the picture {path} cannot be read ({error}); mend or remove it.", bytes(32), nothing
    planes = (Image.fromarray(plane).histogram() for plane in pixels)
    return pixels, hashlib.sha256(content).digest(), np.array(list(planes), dtype=np.int64)


def decoded(path: Path, shape: Sequence[int], content: bytes | None = None) -> Pixels:
    """Return the pixels of a picture, ``[C, H, W]``.

    Args:
        path: Where it is.
        shape: Channels, height, width.
        content: Of the file, where it was read already.

    Raises:
        UserError: It cannot be read.
    """
    channels, height, width = shape
    pixels = read_picture(path if content is None else content, height, width, channels, path)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def content_of(path: Path) -> bytes:
    """Return the SHA-256 of a file; zeros where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return bytes(32)


def _refuse(sentences: list[str]) -> None:
    """Raise where pictures cannot be read: one sentence, or all of them at once."""
    if len(sentences) == 1:
        raise UserError(sentences[0])
    if sentences:
        more = f"\n  and {len(sentences) - SHOWN:,} more" if len(sentences) > SHOWN else ""
        listed = "".join(f"\n  {sentence}" for sentence in sentences[:SHOWN])
        raise UserError(
            f"{len(sentences):,} pictures cannot be read; mend or remove them, or let a run go on without them by "
            f"--skip-broken (data.skip_broken):{listed}{more}"
        )
