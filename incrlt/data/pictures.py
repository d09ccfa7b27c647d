"""Random rotation, hiding, colour jitter, greying and blur of whole batches.

Unlike the operations of :mod:`incrlt.data.augment`, these need the pixels. Each has ``paint``, which takes
images in 0..255 (uint8, or float32 where nothing was rounded) and returns images of the same shape. uint8 images
are left alone; float32 ones, which exist only between operations, may be changed in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from incrlt.data import colour, geometry
from incrlt.data.draw import Draw, on_chosen
from incrlt.errors import UserError


@dataclass(frozen=True)
class RandomRotation:
    """Turn each image by an angle of up to ``degrees`` either way (torchvision RandomRotation, mode nearest).

    Equal to torchvision on tensors for the same angle; PIL computes positions in fixed point, so that a few
    pixels of PIL images come from a neighbour.

    Attributes:
        degrees: Largest angle.
        fill: Grey level shown outside the image.
    """

    degrees: float
    fill: int = 0

    def paint(self, images: Tensor, draw: Draw) -> Tensor:
        """Return the turned images."""
        return self.turn(images, draw.between(-self.degrees, self.degrees))

    def turn(self, images: Tensor, angle: Tensor) -> Tensor:
        """Return the images turned counter-clockwise by given angles, degrees [B]."""
        places = geometry.maps(geometry.rotation(angle), *images.shape[-2:])
        return geometry.look_up(images, places, self.fill)


@dataclass(frozen=True)
class Cutout:
    """Hide a square whose centre is anywhere in the image (arXiv:1708.04552); the image's borders cut it.

    The square is black before normalisation, as in the official code of NCL and SHIKE. (The paper's own code
    hides after normalisation, which shows the mean colour.)

    Attributes:
        length: Side of the square, pixels; even.
    """

    length: int

    def __post_init__(self) -> None:
        if self.length < 2 or self.length % 2:
            raise UserError(f"the side of a Cutout must be an even number of pixels; got {self.length}")

    def paint(self, images: Tensor, draw: Draw) -> Tensor:
        """Return the images with one square hidden in each."""
        height, width = images.shape[-2:]
        return self.hide(images, draw.below(height), draw.below(width))

    def hide(self, images: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Return the images without the pixels from centre - length / 2 up to centre + length / 2.

        Args:
            images: [B, C, H, W].
            row: int64 [B], row of the centre.
            column: int64 [B], column of the centre.
        """
        height, width = images.shape[-2:]
        down = self._covered(row, height)[:, None, :, None]
        return images.masked_fill(down & self._covered(column, width)[:, None, None, :], 0)

    def _covered(self, centre: Tensor, size: int) -> Tensor:
        """Return which positions of an axis the square covers, bool [B, size]."""
        distance = torch.arange(size, device=centre.device) - centre[:, None]
        return (distance >= -(self.length // 2)) & (distance < self.length // 2)


@dataclass(frozen=True)
class ColourJitter:
    """Change brightness, contrast, saturation and hue, in a random order (torchvision ColorJitter, RandomApply).

    Equal to torchvision on float tensors for the same numbers; uint8 images are not rounded between the steps.

    Attributes:
        brightness: The strength is uniform over 1 - brightness .. 1 + brightness.
        contrast: Likewise.
        saturation: Likewise.
        hue: Largest turn either way, in turns of the colour circle (up to 0.5).
        p: Probability that an image is changed at all.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    p: float = 1.0

    def paint(self, images: Tensor, draw: Draw) -> Tensor:
        """Return the changed images, float32."""
        wanted = draw.uniform() < self.p
        ranges = [(max(0.0, 1 - x), 1 + x) for x in (self.brightness, self.contrast, self.saturation)]
        strengths = [draw.between(low, high) for low, high in (*ranges, (-self.hue, self.hue))]
        order = draw.uniform(len(strengths)).argsort(0)
        return self.change(images, wanted, strengths, order)

    def change(self, images: Tensor, wanted: Tensor, strengths: list[Tensor], order: Tensor) -> Tensor:
        """Return the changed images for given random numbers, float32.

        Args:
            images: [B, C, H, W].
            wanted: bool [B], which images are changed.
            strengths: float32 [B] each: brightness, contrast, saturation, hue.
            order: int64 [4, B]; entry j says which of the four comes at place j.
        """
        images = images.float()
        changes: tuple[Callable[..., Tensor], ...]
        changes = (colour.brightness, colour.contrast, colour.saturation, colour.turn_hue)
        for turn in order:
            for k, strength in enumerate(strengths):
                images = on_chosen(images, wanted & (turn == k), changes[k], strength)
        return images


@dataclass(frozen=True)
class RandomGrey:
    """Show the luma in all channels with probability ``p`` (torchvision RandomGrayscale)."""

    p: float = 0.1

    def paint(self, images: Tensor, draw: Draw) -> Tensor:
        """Return the images, some of them grey."""
        chosen = draw.uniform() < self.p
        own = images if images.is_floating_point() else images.clone()
        return on_chosen(own, chosen, lambda x: colour.grey(x).expand_as(x))


@dataclass(frozen=True)
class RandomBlur:
    """Blur with a Gaussian of random width (torchvision GaussianBlur, reflected at the borders, RandomApply).

    PIL, which the official code of NCL uses, approximates the Gaussian by three boxes and repeats the border.

    Attributes:
        size: Pixels of the window, odd.
        sigma: Range of the standard deviation, pixels.
        p: Probability that an image is blurred.
    """

    size: int
    sigma: tuple[float, float] = (0.1, 2.0)
    p: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % 2 == 0:
            raise UserError(f"the window of a blur must be an odd number of pixels; got {self.size}")

    def paint(self, images: Tensor, draw: Draw) -> Tensor:
        """Return the images, some of them blurred, float32.

        Raises:
            UserError: The window reaches beyond the reflected image.
        """
        if self.size // 2 >= min(images.shape[-2:]):
            height, width = images.shape[-2:]
            raise UserError(f"a blur over {self.size} pixels does not fit images of {height}x{width}")
        sigma, chosen = draw.between(*self.sigma), draw.uniform() < self.p
        return on_chosen(images.float(), chosen, self.blur, sigma)

    def blur(self, images: Tensor, sigma: Tensor) -> Tensor:
        """Return all images blurred, float32.

        Args:
            images: float32 [B, C, H, W].
            sigma: float32 [B], pixels.
        """
        height, width = images.shape[-2:]
        down = self._weights(sigma, height)
        across = down if width == height else self._weights(sigma, width)
        with torch.autocast(images.device.type, enabled=False):  # half precision would cost grey levels
            lines = torch.bmm(images.flatten(1, 2), across.transpose(1, 2)).view_as(images)
            return torch.stack([torch.bmm(down, channel) for channel in lines.unbind(1)], 1)

    def _weights(self, sigma: Tensor, size: int) -> Tensor:
        """Return how much of each pixel of an axis goes into each: float32 [B, size, size]."""
        distance = torch.arange(2 * size - 1, device=sigma.device)
        bell = torch.exp(-0.5 * (distance / sigma[:, None]).square()) * (distance <= self.size // 2)
        source = torch.arange(size, device=sigma.device)
        centre, last = source[:, None], size - 1
        # Beyond a border stand the mirror images of all pixels but the border's own.
        first = bell[:, source + centre] * (source > 0)
        second = bell[:, 2 * last - source - centre] * (source < last)
        weights = bell[:, (source - centre).abs()] + first + second
        return weights / weights.sum(2, keepdim=True)
