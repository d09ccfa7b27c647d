"""Rotate, shear and shift whole batches; each output pixel shows one source pixel, as in torchvision.

A map says for each output pixel at which pixel of the image it looks: int64 [H * W], counted row by row, and
``H * W`` for one outside. It is computed in torchvision's order of float32 operations (``affine`` and
``rotate`` of tensors, mode nearest), so that ties round alike.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotation(degrees: Tensor) -> Tensor:
    """Return the matrices of counter-clockwise rotations about the centre.

    Args:
        degrees: Float [G].

    Returns:
        float32 [G, 2, 3]: from output to source position, in pixels from the centre (x, y).
    """
    angle = degrees.double().deg2rad()
    cosine, sine = angle.cos(), angle.sin()
    # An image turned counter-clockwise is read clockwise; the vertical axis points down.
    return _matrix(cosine, -sine, 0, sine, cosine, 0)


def shear_down(slope: Tensor, width: int) -> Tensor:
    """Return the matrices that shift each column down by its distance from the left border times -slope.

    Args:
        slope: Float [G], pixels per pixel.
        width: Width of the image, pixels.

    Returns:
        float32 [G, 2, 3], as :func:`rotation`.
    """
    slope = slope.double()
    return _matrix(1, 0, 0, slope, 1, slope * (width / 2))


def shear_right(slope: Tensor, height: int) -> Tensor:
    """Return the matrices that shift each row right by its distance from the upper border times -slope.

    Args:
        slope: Float [G], pixels per pixel.
        height: Height of the image, pixels.

    Returns:
        float32 [G, 2, 3], as :func:`rotation`.
    """
    slope = slope.double()
    return _matrix(1, slope, slope * (height / 2), 0, 1, 0)


def shift(right: Tensor, down: Tensor) -> Tensor:
    """Return the matrices of shifts by pixels.

    Args:
        right: Float [G].
        down: Float [G].

    Returns:
        float32 [G, 2, 3], as :func:`rotation`.
    """
    return _matrix(1, 0, -right.double(), 0, 1, -down.double())


def _matrix(*entries: Tensor | int) -> Tensor:
    """Return float32 [G, 2, 3] of entries float64 [G], or of numbers, which are those of every matrix."""
    like = next(entry for entry in entries if isinstance(entry, Tensor))
    rows = [entry if isinstance(entry, Tensor) else torch.full_like(like, entry) for entry in entries]
    return torch.stack(rows, 1).float().view(-1, 2, 3)


def maps(matrices: Tensor, height: int, width: int) -> Tensor:
    """Return where each output pixel looks.

    Args:
        matrices: float32 [G, 2, 3], see :func:`rotation`.
        height: Of the image, pixels.
        width: Of the image, pixels.

    Returns:
        int64 [G, H * W].
    """
    x = torch.arange(width, dtype=torch.float32, device=matrices.device) - (width - 1) / 2
    y = (torch.arange(height, dtype=torch.float32, device=matrices.device) - (height - 1) / 2)[:, None]

    def pixel(entries: Tensor, size: int) -> Tensor:
        along, across, offset = (entries / (size / 2)).view(-1, 3, 1, 1).unbind(1)
        return ((x * along + y * across + offset + 1) * (size / 2) - 0.5).round_()

    column, row = pixel(matrices[:, 0], width), pixel(matrices[:, 1], height)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return (row * width + column).masked_fill_(~inside, height * width).long().flatten(1)


def look_up(images: Tensor, places: Tensor, fill: int | tuple[int, ...]) -> Tensor:
    """Read the pixels that maps ask for.

    Args:
        images: [B, C, H, W].
        places: int64 [B, H * W], see :func:`maps`.
        fill: Grey level shown outside, of all channels or of each; levels beyond C are left out.
    """
    greys = (fill,) * images.shape[1] if isinstance(fill, int) else fill[: images.shape[1]]
    outside = torch.stack(
        [images.new_full((len(images), 1), grey) for grey in greys], 1
    )  # none is copied over
    padded = torch.cat([images.flatten(2), outside], 2)
    return padded.gather(2, places[:, None].expand(-1, images.shape[1], -1)).view_as(images)
