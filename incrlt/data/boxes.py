"""Random resized crops of large images on a CPU: box after box by torch's own resize, where dense matrices cost most.

The boxes are those of :class:`~incrlt.data.augment.RandomResizedCrop`, drawn by the same random numbers; the values
agree with its two matrix products up to rounding in float32 (1e-3 of a grey level). At 224 x 224 pixels it takes an
eighth of their time on one thread; below :data:`SMALLEST` pixels, and on a GPU, one product over the batch is faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

SMALLEST: Final = 96
"""Pixels of the smaller side from which boxes are cut one after the other."""


def pays(images: Tensor) -> bool:
    """Say whether images ``[B, C, H, W]`` are where and as large as this is made for."""
    return images.device.type == "cpu" and min(images.shape[-2:]) >= SMALLEST


def resized(
    images: Tensor,
    boxes: tuple[Tensor, Tensor, Tensor, Tensor],
    size: tuple[int, int],
    antialias: bool,
    border: Sequence[int] = (0, 0, 0, 0),
    fill: int = 0,
    mirrored: Tensor | None = None,
) -> Tensor:
    """Cut a box of each image and bring it to one size.

    Args:
        images: uint8 or float32 ``[B, C, H, W]``, grey levels.
        boxes: Top, left, height and width of each, int64 ``[B]`` each, in the image with its border.
        size: Height and width wanted.
        antialias: As in torch's ``interpolate``.
        border: Pixels that widen the image left, top, right and below.
        fill: Grey level of the border.
        mirrored: Which are turned left to right, bool ``[B]``; None: none.

    Returns:
        float32 ``[B, C, h, w]``, grey levels.
    """
    left, top, right, bottom = border
    wide = pad(images, (left, right, top, bottom), value=fill) if any(border) else images
    found = images.new_empty((*images.shape[:2], *size), dtype=torch.float32)
    for number, (y, x, height, width) in enumerate(zip(*(side.tolist() for side in boxes), strict=True)):
        box = wide[number : number + 1, :, y : y + height, x : x + width].float()
        image = interpolate(box, size, mode="bilinear", antialias=antialias)[0]
        found[number] = image.flip(-1) if mirrored is not None and mirrored[number] else image
    return found
