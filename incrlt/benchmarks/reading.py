"""Reads listed pictures at the size of a run, in parallel, and finds the ones that are broken or come twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from incrlt.benchmarks.listing import LeftOut, Listing
from incrlt.benchmarks.looking import Progress, copies, each, opened
from incrlt.data.machine import memory_bytes
from incrlt.errors import UserError


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
    images = np.empty((len(listing.entries), *shape), dtype=np.uint8)
    digests = [b""] * len(listing.entries)

    def one(index: int) -> LeftOut | None:
        digests[index], found = opened(listing.entries[index], shape)
        if isinstance(found, LeftOut):
            return found
        images[index] = found
        return None

    refused = each(one, len(listing.entries), progress)
    refused += [] if twice else copies(listing.entries, digests)
    rest = listing.without(refused)
    rest.check(skip_broken)
    names = {item.name for item in refused}
    if names:
        images = images[[index for index, entry in enumerate(listing.entries) if entry.name not in names]]
    return ReadPictures(rest, torch.from_numpy(images))


def _check_memory(number: int, shape: Sequence[int]) -> None:
    needed, there = number * int(np.prod(shape)), memory_bytes()
    if there is not None and needed > there / 2:
        raise UserError(
            f"{number:,} pictures of {shape[2]} x {shape[1]} pixels take {needed / 2**30:.1f} GiB; this machine has "
            f"{there / 2**30:.1f} for this process, of which half may be used. Give fewer at a time, or lower "
            "image_size."
        )
