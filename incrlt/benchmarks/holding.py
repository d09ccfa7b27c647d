"""Where the pictures of a run are held, chosen by how large they are: in memory, in a decoded file, or nowhere."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from incrlt.benchmarks.decoded import CacheError, DecodedCache, Found
from incrlt.benchmarks.looking import Progress, default_folder
from incrlt.benchmarks.surveying import Histogram, Listed, decoded, survey
from incrlt.data.ahead import workers
from incrlt.data.machine import memory_bytes
from incrlt.data.stored import MOST_BYTES
from incrlt.data.stores import Images, MappedPictures, Pixels, StreamedPictures, mapped
from incrlt.errors import UserError

Hold: TypeAlias = Literal["auto", "memory", "cache", "stream"]
SHARE: Final = 0.5
"""Of the memory of this process, what pictures may take."""


@dataclass(frozen=True)
class Holding:
    """How pictures are to be held. The batches are the same, to the bit, whatever is chosen.

    Args:
        hold: ``memory``: one tensor, decoded at each start. ``cache``: a file of decoded pictures, mapped into memory.
            ``stream``: decoded each time they are used. ``auto``: the file, read as one tensor where that is small
            enough; without room on the disk memory, and without room there a stream.
        workers: Threads that read; None: as many as the cores, at most eight; 0: none.
        cache: Folder of the files; None: ``INCRLT_CACHE``, else ``~/.cache/incrlt``.
        gigabytes: Most that the files may take; None: half of what the disk has free.
    """

    hold: Hold = "auto"
    workers: int | None = None
    cache: Path | None = None
    gigabytes: float | None = None

    @property
    def folder(self) -> DecodedCache:
        """The folder of decoded pictures."""
        return DecodedCache(self.cache or default_folder(), self.gigabytes)


@dataclass(frozen=True, eq=False)
class Held:
    """Pictures of a run.

    Args:
        train: uint8 ``[N, C, H, W]``.
        test: uint8 ``[M, C, H, W]``.
        histogram: Of the training pictures ``[C, 256]``.
        where: How they are held and why, for people.
    """

    train: Images
    test: Images
    histogram: Histogram
    where: str


def held(listed: Listed, holding: Holding, progress: Progress | None = None) -> Held:
    """Take pictures where they are to be held, decoding what is not here yet.

    Args:
        listed: The pictures.
        holding: How.
        progress: Told how far decoding is.

    Raises:
        UserError: Pictures cannot be read, or what was asked for has no room.
    """
    threads = workers(holding.workers)
    if holding.hold == "memory":
        if not fits(listed.nbytes):
            raise UserError(_too_large(listed))
        return _in_memory(listed, threads, progress, "")
    if holding.hold == "stream":
        return _streamed(listed, holding, threads, progress, "")
    try:
        found = holding.folder.get(listed, threads, progress)
    except CacheError as error:
        if holding.hold == "cache":
            raise UserError(
                f"{error}. Free some space, choose another folder (data.cache), allow more (data.cache_gigabytes), or "
                "set data.hold: stream."
            ) from error
        why = f"; {error}"
        if fits(listed.nbytes):
            return _in_memory(listed, threads, progress, why)
        return _streamed(listed, holding, threads, progress, why)
    whole = holding.hold == "auto" and fits(listed.nbytes) and listed.nbytes <= MOST_BYTES
    return _of_file(listed, found, threads, whole)


def expected(listed: Listed, holding: Holding) -> tuple[str, str]:
    """Return how pictures would be held, ``memory``, ``cache`` or ``stream``, and a sentence on it; nothing is read."""
    hold: str = holding.hold
    why = ""
    if hold in ("auto", "cache"):
        lack = holding.folder.lack(listed.nbytes)
        why = "" if lack is None else f"; {lack}"
        if hold == "auto":
            hold = "cache" if lack is None else "memory" if fits(listed.nbytes) else "stream"
    where = {
        "memory": "in memory, decoded at each start",
        "cache": f"decoded once, below {holding.cache or default_folder()}",
        "stream": "decoded each time they are used",
    }[hold]
    return hold, f"{_size(listed)} {where}{why}"


def fits(needed: int) -> bool:
    """Say whether so many bytes of pictures may be held in memory: that of the machine, or what its container has."""
    there = memory_bytes()
    return there is None or needed <= SHARE * there


def _too_large(listed: Listed) -> str:
    there, (_, height, width) = memory_bytes() or 0, listed.shape
    return (
        f"{len(listed.paths):,} pictures of {width} x {height} pixels take {listed.nbytes / 2**30:.1f} GiB; this "
        f"machine has {there / 2**30:.1f} for this process, of which half may be used. Set data.hold: auto, or lower "
        "benchmark.image_size (image_size)."
    )


def _in_memory(listed: Listed, threads: int, progress: Progress | None, why: str) -> Held:
    """Decode into two tensors, which are all that is ever held."""
    train, test = (torch.empty((len(rows), *listed.shape), dtype=torch.uint8) for rows in listed.rows)
    places = (place for part in (train, test) for place in part.numpy())

    def take(pixels: Pixels) -> None:
        next(places)[...] = pixels

    seen = survey(listed, threads, take, progress)
    return Held(train, test, seen.histogram, f"{_size(listed)} in memory, decoded at each start{why}")


def _streamed(listed: Listed, holding: Holding, threads: int, progress: Progress | None, why: str) -> Held:
    histogram = holding.folder.histogram(listed, threads, progress)
    decode = functools.partial(decoded, shape=listed.shape)
    train, test = (
        StreamedPictures(own, listed.shape, decode, threads) for own in (listed.train, listed.test)
    )
    where = f"decoded each time they are used, by {_threads(threads)} ({_size(listed)} in all){why}"
    return Held(train, test, histogram, where)


def _of_file(listed: Listed, found: Found, threads: int, whole: bool) -> Held:
    parts: list[Images] = []
    for rows in listed.rows:
        if not rows:  # no file can be mapped at no bytes
            parts.append(torch.empty((0, *listed.shape), dtype=torch.uint8))
        elif whole:
            parts.append(_tensor(mapped(found.file, rows, listed.shape)))
        else:
            parts.append(MappedPictures(found.file, rows, listed.shape, threads))
    how = "mapped into memory" if whole else f"read by {_threads(threads)}"
    return Held(parts[0], parts[1], found.histogram, f"{_size(listed)} decoded in {found.file}, {how}")


def _tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(np.asarray(pixels))


def _size(listed: Listed) -> str:
    size = listed.nbytes
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _threads(number: int) -> str:
    return "no thread of their own" if not number else f"{number} thread{'s' * (number > 1)}"
