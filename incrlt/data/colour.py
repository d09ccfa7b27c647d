"""Colour operations on whole batches, in units of 0..255, each image with its own strength.

uint8 images give the bits of torchvision's functions on uint8 tensors; float images are treated as those
functions treat floats, without rounding. Strengths are float32 [B]; 1 leaves an image as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from incrlt.errors import UserError

_RED, _GREEN, _BLUE = 0.2989, 0.587, 0.114  # luma of ITU-R BT.601, with torchvision's digits


def whole_levels(images: Tensor) -> Tensor:
    """Return uint8 images of their own: floats are rounded."""
    return images.round().clamp_(0, 255).byte() if images.is_floating_point() else images.clone()


def replaced(images: Tensor, tables: Tensor) -> Tensor:
    """Look each image's grey levels up in its table.

    Args:
        images: uint8 [B, C, H, W].
        tables: [B, 256], whole levels.
    """
    return tables.gather(1, images.flatten(1).long()).to(images.dtype).view_as(images)


def grey(images: Tensor) -> Tensor:
    """Return the luma [B, 1, H, W] of RGB images, cut to whole levels for uint8; grey images stay.

    Raises:
        UserError: Neither one nor three channels.
    """
    if images.shape[1] == 1:
        return images
    if images.shape[1] != 3:
        raise UserError(f"colour operations need 1 or 3 channels; the images have {images.shape[1]}")
    red, green, blue = images.unbind(1)
    return (_RED * red + _GREEN * green + _BLUE * blue).to(images.dtype)[:, None]


def blend(images: Tensor, other: Tensor | None, strength: Tensor, rest: Tensor | None = None) -> Tensor:
    """Return ``strength * images + rest * other``, cut to 0..255.

    Args:
        images: [B, C, H, W].
        other: Broadcast to the images; None is black.
        strength: float32 [B].
        rest: float32 [B]; None is 1 - strength. torchvision subtracts in double precision, which is one more
            bit than float32 can tell.
    """
    mixed = strength[:, None, None, None] * images
    if other is not None:
        mixed += (1 - strength if rest is None else rest)[:, None, None, None] * other
    return mixed.clamp_(0, 255).to(images.dtype)


def brightness(images: Tensor, strength: Tensor, rest: Tensor | None = None) -> Tensor:
    """Blend with black; arguments as :func:`blend`."""
    return blend(images, None, strength, rest)


def contrast(images: Tensor, strength: Tensor, rest: Tensor | None = None) -> Tensor:
    """Blend with the mean luma of each image; arguments as :func:`blend`."""
    mean = grey(images).float().mean((1, 2, 3), keepdim=True)
    return blend(images, mean, strength, rest)


def saturation(images: Tensor, strength: Tensor, rest: Tensor | None = None) -> Tensor:
    """Blend with the grey image; arguments as :func:`blend`. Grey images stay as they are."""
    return images if images.shape[1] == 1 else blend(images, grey(images), strength, rest)


def sharpness(images: Tensor, strength: Tensor, rest: Tensor | None = None) -> Tensor:
    """Blend with the smoothed image; arguments as :func:`blend`. Images below 3 x 3 stay as they are."""
    if min(images.shape[-2:]) <= 2:
        return images
    return blend(images, _smooth(images), strength, rest)


def _smooth(images: Tensor) -> Tensor:
    """Average each inner pixel, five times, with its eight neighbours; border pixels stay."""
    wide = images.float()
    down = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    sums = down[..., :-2] + down[..., 1:-1] + down[..., 2:] + 4 * wide[..., 1:-1, 1:-1]
    inner = sums.div_(13)
    result = images.clone()
    # A thirteenth of a whole number is never close to one half: whatever the order, it rounds alike.
    result[..., 1:-1, 1:-1] = inner if images.is_floating_point() else inner.round_()
    return result


def stretch(images: Tensor) -> Tensor:
    """Spread each channel over 0..255 (autocontrast); flat channels stay."""
    low = images.amin((2, 3), keepdim=True).float()
    high = images.amax((2, 3), keepdim=True).float()
    flat = low == high
    scale = (255 / (high - low)).masked_fill_(flat, 1.0)
    return (images - low.masked_fill_(flat, 0.0)).mul_(scale).clamp_(0, 255).to(images.dtype)


def equalise(images: Tensor) -> Tensor:
    """Make the grey levels of each channel equally frequent.

    Args:
        images: uint8 [B, C, H, W].
    """
    levels = images.flatten(2).long()
    below = _histograms(levels).cumsum(2)
    total = levels.shape[2]
    # The pixels that are not of the brightest level present, shared out over 255 levels.
    step = below.masked_fill(below == total, 0).amax(2, keepdim=True) // 255
    table = (below + step // 2) // step.clamp(min=1)
    table = torch.nn.functional.pad(table[..., :-1], (1, 0)).clamp_(0, 255).to(torch.uint8)
    return torch.where(step == 0, images.flatten(2), table.gather(2, levels)).view_as(images)


def _histograms(levels: Tensor) -> Tensor:
    """Count the levels of each channel: int32 [B, C, 256] of int64 [B, C, n]."""
    batch, channels, _ = levels.shape
    if levels.device.type == "cpu":
        offsets = torch.arange(batch * channels)[:, None] * 256
        counts = (levels.flatten(0, 1) + offsets).flatten().bincount(minlength=batch * channels * 256)
        return counts.int().view(batch, channels, 256)
    counts = torch.zeros(batch, channels, 256, dtype=torch.int32, device=levels.device)
    return counts.scatter_add_(2, levels, torch.ones_like(levels, dtype=torch.int32))


def turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue; value and chroma of each pixel stay.

    Args:
        images: float32 [B, 3, H, W]; grey images [B, 1, H, W] stay as they are.
        turn: float32 [B], in whole turns of the colour circle.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    top = images.amax(1)
    chroma = top - images.amin(1)
    over = chroma.where(chroma > 0, 1.0)
    # Sixths of the circle from red; a pixel with two largest channels has the same hue by both rules.
    hue = torch.where(
        top == red,
        (green - blue) / over,
        torch.where(top == green, 2 + (blue - red) / over, 4 + (red - green) / over),
    )
    hue = hue + 6 * turn[:, None, None]
    start = torch.arange(5, 0, -2, device=images.device)[:, None, None]  # of red, green and blue
    place = (hue[:, None] + start).remainder_(6)
    drop = torch.minimum(place, 4 - place).clamp_(0, 1)
    return top[:, None] - chroma[:, None] * drop
