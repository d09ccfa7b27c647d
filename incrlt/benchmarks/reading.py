"""Reads listed pictures at the size of a run, in parallel, and finds the ones that are broken or come twice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from incrlt.benchmarks.listing import Entry, LeftOut, Listing
from incrlt.benchmarks.preparing import read_picture
from incrlt.data.machine import memory_bytes
from incrlt.errors import UserError

WORKERS: Final = 8
"""Pictures decoded at a time, at most; Pillow lets go of Python's lock meanwhile."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class ReadPictures:
    """Pictures that were read.

    Args:
        listing: Those that were, and everything that was left out.
        images: uint8 ``[N, C, H, W]``, in the order of the listing's entries.
    """

    listing: Listing
    images: Tensor

    def part(self, name: str) -> tuple[Tensor, tuple[str, ...]]:
        """Return images and class names of one part."""
        rows = [index for index, entry in enumerate(self.listing.entries) if entry.part == name]
        return self.images[rows], tuple(self.listing.entries[index].label for index in rows)


def read(
    listing: Listing,
    shape: Sequence[int],
    skip_broken: bool = False,
    progress: Progress | None = None,
    twice: bool = False,
) -> ReadPictures:
    """Read the pictures of a listing.

    Args:
        listing: Which.
        shape: Channels, height, width.
        skip_broken: Go on without what cannot be read; otherwise all of it is named at once.
        progress: Called with the pictures read so far and those there are.
        twice: Keep pictures that come twice: those that are only asked about may.

    Raises:
        UserError: Something is broken, nothing is left, or memory would not do.
    """
    _check_memory(len(listing.entries), shape)
    channels, height, width = shape
    images = np.empty((len(listing.entries), channels, height, width), dtype=np.uint8)
    digests = [b""] * len(listing.entries)
    refused: list[LeftOut] = []

    def one(index: int) -> LeftOut | None:
        entry = listing.entries[index]
        try:
            content = entry.path.read_bytes()
            digests[index] = hashlib.sha256(content).digest()
            images[index] = read_picture(content, height, width, channels, entry.name).transpose(2, 0, 1)
        except OSError as error:
            return LeftOut(entry.name, "unreadable", f"it cannot be read ({error.strerror})")
        except UserError as error:
            return LeftOut(entry.name, "unreadable", _short(str(error), entry.name))
        return None

    with ThreadPoolExecutor(max_workers=max(1, min(WORKERS, os.cpu_count() or 1))) as pool:
        for done, problem in enumerate(pool.map(one, range(len(listing.entries))), 1):
            refused += [] if problem is None else [problem]
            if progress is not None:
                progress(done, len(listing.entries))
    refused += [] if twice else _twice(listing.entries, digests)
    rest = listing.without(refused)
    rest.check(skip_broken)
    names = {item.name for item in refused}
    if names:
        images = images[[index for index, entry in enumerate(listing.entries) if entry.name not in names]]
    return ReadPictures(rest, torch.from_numpy(images))


def _short(sentence: str, name: str) -> str:
    """Return the reason out of a sentence of :func:`read_picture`, which names the picture already."""
    reason = sentence.removeprefix(f"the picture {name} ").split("; ")[0]
    return f"it {reason}" if reason != sentence.split("; ")[0] else reason


def _check_memory(number: int, shape: Sequence[int]) -> None:
    needed, there = number * int(np.prod(shape)), memory_bytes()
    if there is not None and needed > there / 2:
        raise UserError(
            f"{number:,} pictures of {shape[2]} x {shape[1]} pixels take {needed / 2**30:.1f} GiB; this machine has "
            f"{there / 2**30:.1f} for this process, of which half may be used. Give fewer at a time, or lower "
            "image_size."
        )


def _twice(entries: Sequence[Entry], digests: Sequence[bytes]) -> list[LeftOut]:
    """Name pictures whose files are the same: one of a class is enough, and what is tested is not trained on."""
    of: dict[bytes, list[Entry]] = {}
    for entry, digest in zip(entries, digests, strict=True):
        if digest:
            of.setdefault(digest, []).append(entry)
    found: list[LeftOut] = []
    for same in of.values():
        if len({entry.label for entry in same}) > 1:
            told = " and ".join(dict.fromkeys(f"{entry.name} ({entry.label})" for entry in same))
            kind = "the same picture under two classes"
            found += [LeftOut(entry.name, kind, f"the same picture is {told}") for entry in same]
            continue
        keep = next((entry for entry in same if entry.part == "test"), same[0])
        kind = "duplicates by content"
        reason = f"the same file as {keep.name}"
        found += [LeftOut(entry.name, kind, reason, broken=False) for entry in same if entry is not keep]
    return found
