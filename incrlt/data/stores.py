"""Pictures that stand in for one tensor ``[N, C, H, W]`` and are read only where rows of them are asked for.

Batches, memory, herding, second views, stored features and evaluation pick rows; whether they come from memory, from a
file of decoded pictures or from the files themselves is decided here. Order and augmentation are drawn by whoever
asks, so that the number of workers, none included, changes no bit.

Workers are threads: Pillow lets go of Python's lock while it decodes and resizes, nothing is copied between processes,
and a script needs no ``if __name__ == "__main__"``. They live for an epoch and end with it, also with one that is left
half-way, so that nothing stays to be closed and a store can be pickled at any time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Indices: TypeAlias = npt.NDArray[np.int64]
Pixels: TypeAlias = npt.NDArray[np.uint8]

AHEAD: Final = 2
"""Batches that are read while one is used: what a store holds of its pictures, however many there are."""
CHUNK: Final = 4
"""Pictures that a worker takes at a time."""


class PictureStore(ABC):
    """uint8 pictures of one size, read when asked for.

    Attributes:
        shape: Pictures, channels, height, width.
        workers: Threads that read; 0 reads in the thread that asks.
    """

    dtype: Final = torch.uint8
    ndim: Final = 4
    device: Final = torch.device("cpu")

    def __init__(self, number: int, shape: Sequence[int], workers: int = 0) -> None:
        """Take note of sizes; nothing is read.

        Args:
            number: Pictures.
            shape: Channels, height, width.
            workers: Threads that read.
        """
        self.shape = torch.Size((number, *shape))
        self.workers = workers

    @abstractmethod
    def fill(self, images: Tensor, rows: Indices) -> None:
        """Read pictures into a tensor.

        Args:
            images: uint8 ``[n, C, H, W]``, written to.
            rows: int64 ``[n]``.

        Raises:
            UserError: One cannot be read.
        """

    def __len__(self) -> int:
        """Return the number of pictures."""
        return self.shape[0]

    def numel(self) -> int:
        """Return the bytes that all pictures would take."""
        return self.shape.numel()

    def __iter__(self) -> Iterator[Tensor]:
        """Yield each picture ``[C, H, W]``."""
        return (self[row] for row in range(len(self)))

    def __getitem__(self, key: int | slice | Indices | Tensor | Sequence[int]) -> Tensor:
        """Return a picture ``[C, H, W]``, or the pictures ``[n, C, H, W]`` of a slice, rows or a mask."""
        if isinstance(key, int | np.integer):
            return self.pick(np.array([range(len(self))[int(key)]]))[0]
        return self.pick(np.arange(len(self))[key.cpu().numpy() if isinstance(key, Tensor) else key])

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """Return pictures as torch's function of that name does, on the CPU; ``dim`` is 0."""
        assert dim == 0, "pictures have rows and nothing else to pick"
        return self.pick(rows.cpu().numpy())

    def pick(self, rows: Indices) -> Tensor:
        """Return the pictures at ``rows`` ``[n]``: uint8 ``[n, C, H, W]``."""
        if len(rows) <= CHUNK or not self.workers:
            images = self._empty(len(rows))
            self.fill(images, rows)
            return images
        return next(self.read_ahead([rows]))

    def read_ahead(self, plan: Iterable[Indices]) -> Iterator[Tensor]:
        """Yield the pictures of one batch after the other, reading a few ahead.

        Args:
            plan: Rows ``[n]`` of each batch, in order.

        Yields:
            uint8 ``[n, C, H, W]``.
        """
        if not self.workers:
            yield from map(self.pick, plan)
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="incrlt-pictures")
        try:
            begun: deque[tuple[Tensor, list[Future[None]]]] = deque()
            for rows in plan:
                begun.append(self._begin(pool, rows))
                if len(begun) > AHEAD:
                    yield _finished(*begun.popleft())
            while begun:
                yield _finished(*begun.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, pool: ThreadPoolExecutor, rows: Indices) -> tuple[Tensor, list[Future[None]]]:
        images = self._empty(len(rows))
        spans = [slice(start, start + CHUNK) for start in range(0, len(rows), CHUNK)]
        return images, [pool.submit(self.fill, images[span], rows[span]) for span in spans]

    def _empty(self, number: int) -> Tensor:
        return torch.empty((number, *self.shape[1:]), dtype=torch.uint8)


Images: TypeAlias = Tensor | PictureStore
"""Where rows of pictures are picked from."""


def _finished(images: Tensor, parts: Iterable[Future[None]]) -> Tensor:
    for part in parts:
        part.result()
    return images


class MappedPictures(PictureStore):
    """Decoded pictures in a file that is mapped into memory: the system keeps what is used, and may let go of it.

    Args:
        file: Pixels, uint8 ``[M, C, H, W]`` and nothing else.
        rows: Which of its pictures.
        shape: Channels, height, width.
        workers: Threads that read.
    """

    def __init__(self, file: Path, rows: range, shape: Sequence[int], workers: int = 0) -> None:
        super().__init__(len(rows), shape, workers)
        self._file, self._rows = file, rows
        self._pixels = mapped(file, rows, shape)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle as the place of the pictures."""
        return type(self), (self._file, self._rows, tuple(self.shape[1:]), self.workers)

    def fill(self, images: Tensor, rows: Indices) -> None:
        """Copy pixels; see :meth:`PictureStore.fill`."""
        np.take(self._pixels, rows, axis=0, out=images.numpy())


def mapped(file: Path, rows: range, shape: Sequence[int]) -> Pixels:
    """Return pictures of a file of pixels, as memory of which nothing written to it gets into the file.

    Args:
        file: uint8 ``[M, C, H, W]`` and nothing else.
        rows: Which of its pictures, at least one.
        shape: Channels, height, width.
    """
    offset = rows.start * int(np.prod(shape))
    return np.memmap(file, np.uint8, "c", offset, (len(rows), *shape))


class StreamedPictures(PictureStore):
    """Pictures decoded from their sources each time they are asked for.

    Args:
        sources: One of each picture, such as a path.
        shape: Channels, height, width.
        decode: Returns the pixels ``[C, H, W]`` of a source; called in several threads at a time.
        workers: Threads that decode.
    """

    def __init__(
        self,
        sources: Sequence[object],
        shape: Sequence[int],
        decode: Callable[[Any], Pixels],
        workers: int = 0,
    ) -> None:
        super().__init__(len(sources), shape, workers)
        self._sources, self._decode = sources, decode

    def fill(self, images: Tensor, rows: Indices) -> None:
        """Decode; see :meth:`PictureStore.fill`."""
        for image, row in zip(images.numpy(), rows.tolist(), strict=True):
            image[...] = self._decode(self._sources[row])


class JoinedPictures(PictureStore):
    """Rows of several tensors and stores, one after the other, without a copy of any.

    Args:
        parts: Pictures and which of them, int64 ``[n]``; all of one size.
    """

    def __init__(self, parts: Sequence[tuple[Images, Indices]]) -> None:
        workers = max(part.workers if isinstance(part, PictureStore) else 0 for part, _ in parts)
        super().__init__(sum(len(rows) for _, rows in parts), parts[0][0].shape[1:], workers)
        self._parts = [part for part, _ in parts]
        self._rows = np.concatenate([rows for _, rows in parts])
        self._part_of = np.repeat(np.arange(len(parts)), [len(rows) for _, rows in parts])

    def fill(self, images: Tensor, rows: Indices) -> None:
        """Read each from its part; see :meth:`PictureStore.fill`."""
        for number in np.unique(self._part_of[rows]).tolist():
            places, part = np.flatnonzero(self._part_of[rows] == number), self._parts[number]
            wanted, found = self._rows[rows[places]], torch.empty(0)
            if isinstance(part, PictureStore):
                found = images.new_empty((len(places), *images.shape[1:]))
                part.fill(found, wanted)
            else:
                found = part.index_select(0, torch.from_numpy(wanted).to(part.device)).cpu()
            images[torch.from_numpy(places)] = found
