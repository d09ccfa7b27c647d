"""Random numbers of a batch, and operations that only some of its images undergo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """Source of random numbers of one call.

    Attributes:
        batch: Number of images B.
        device: Where the numbers are needed.
        generator: Generator on that device, or None for torch's global one.
    """

    batch: int
    device: torch.device
    generator: torch.Generator | None

    def uniform(self, *shape: int) -> Tensor:
        """Return float32 ``[*shape, B]`` in [0, 1)."""
        size = (*shape, self.batch)
        return torch.rand(size, dtype=torch.float32, device=self.device, generator=self.generator)

    def below(self, limit: Tensor | int) -> Tensor:
        """Return int64 [B], uniform over 0 .. limit - 1."""
        drawn = (self.uniform() * limit).long()
        return drawn.clamp_(max=limit - 1)  # the product can round up to the limit

    def between(self, low: float, high: float) -> Tensor:
        """Return float32 [B], uniform from ``low`` to ``high``."""
        return low + self.uniform() * (high - low)


def on_chosen(images: Tensor, chosen: Tensor, change: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """Replace the chosen images by ``change(images, *parameters)``; the others keep their bits.

    On the CPU only the chosen images are computed. Elsewhere all are, since to know how many are chosen
    would wait for the device; ``change`` treats every image by itself, so the result is the same.

    Args:
        images: [B, C, H, W]; on the CPU this tensor itself is changed.
        chosen: bool [B].
        change: Keeps shape and type.
        parameters: [B, ...], one row per image.
    """
    if images.device.type != "cpu":
        return torch.where(chosen[:, None, None, None], change(images, *parameters), images)
    rows = chosen.nonzero()[:, 0]
    if len(rows) == 0:
        return images
    picked = (parameter.index_select(0, rows) for parameter in parameters)
    return images.index_copy_(0, rows, change(images.index_select(0, rows), *picked))
