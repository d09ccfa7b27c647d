"""Counts of (true class, predicted class) while an evaluation runs, and in a checkpoint."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from incrlt.metrics.counts import LARGE, Cells, Counts, held


class SavedCells(TypedDict):
    """A large table in a checkpoint."""

    size: int
    places: Tensor
    images: Tensor


class Counting:
    """Counts of an evaluation under way: a table on the device, or of many classes the cell of each image.

    Args:
        size: Classes C.
    """

    def __init__(self, size: int) -> None:
        self.size, self.large = size, size * size > LARGE
        self._counts: Tensor | None = None
        self._cells: list[Tensor] = []

    def add(self, true: Tensor, predicted: Tensor) -> None:
        """Count a batch of rows and columns ``[B]``; rows below 0 are left out."""
        last = self.size**2  # the cell of those that are left out
        cell = torch.where(true >= 0, true * self.size + predicted, last)
        if self.large:
            self._cells.append(cell)
            return
        if self._counts is None:
            self._counts = torch.zeros(self.size**2 + 1, dtype=torch.long, device=true.device)
        self._counts.index_add_(0, cell, torch.ones_like(cell))

    def table(self) -> Counts | Cells:
        """Return the counts of all batches."""
        if not self.large:
            assert self._counts is not None
            counts: Counts = self._counts[:-1].reshape(self.size, self.size).cpu().numpy()
            return counts
        places, images = np.unique(torch.cat(self._cells).cpu().numpy(), return_counts=True)
        known = places < self.size**2
        return Cells(self.size, places[known], images[known])


def saved(table: Counts | Cells) -> Tensor | SavedCells:
    """Return a table for a checkpoint: a tensor ``[C, C]``, or size, places and images of a large one."""
    if not isinstance(table, Cells):
        return torch.as_tensor(table)
    return {
        "size": table.size, "places": torch.as_tensor(table.places), "images": torch.as_tensor(table.images),
    }  # fmt: skip


def loaded(state: Tensor | SavedCells) -> Counts | Cells:
    """Return what :func:`saved` returned; older versions saved large tables whole."""
    if isinstance(state, Tensor):
        counts: Counts = state.numpy()
        return counts if counts.size <= LARGE else held(counts, "confusions")
    return Cells(state["size"], state["places"].numpy(), state["images"].numpy())
