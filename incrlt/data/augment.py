"""Crop, resize, flip and normalise a whole batch at once, equal to torchvision for the same random numbers.

Every operation here acts on rows and columns separately. So the operations only update two maps, one per
image axis, and the pixels are touched once at the end: by a gather as long as the maps are indices, by two
matrix products as soon as one operation interpolates. Operations that need the pixels themselves
(:mod:`incrlt.data.pictures`, :mod:`incrlt.data.policy`) get what the maps before them show.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from incrlt.data import boxes
from incrlt.data.draw import Draw
from incrlt.data.pictures import ColourJitter, Cutout, RandomBlur, RandomGrey, RandomRotation
from incrlt.data.policy import AutoAugment, ImageNetAutoAugment
from incrlt.data.rand import RandAugment
from incrlt.errors import UserError, did_you_mean

OUTSIDE = -1
"""Index of a pixel outside the image; it shows the fill value."""

_TRIES = 10  # torchvision draws this many boxes before it takes the central crop


@dataclass(frozen=True)
class Axis:
    """Where each position of an output axis comes from, for every image of a batch.

    Attributes:
        source: Length of the axis in the stored image.
        index: int64 [B, n]; source position or ``OUTSIDE``. None when ``weights`` is given.
        weights: float32 [B, n, source]; the output is a weighted sum of source positions.
    """

    source: int
    index: Tensor | None = None
    weights: Tensor | None = None

    def __len__(self) -> int:
        chosen = self.index if self.weights is None else self.weights
        assert chosen is not None
        return chosen.shape[1]

    def take(self, positions: Tensor) -> Axis:
        """Pick positions of this axis; those off its ends become outside.

        Args:
            positions: int64 [B, m].
        """
        length = len(self)
        outside = (positions < 0) | (positions >= length)
        inside = positions.clamp(0, length - 1)
        if self.weights is not None:
            wide = inside[:, :, None].expand(-1, -1, self.source)
            picked = self.weights.expand(len(inside), -1, -1).gather(1, wide)
            return Axis(self.source, weights=picked.masked_fill_(outside[:, :, None], 0.0))
        assert self.index is not None
        index = self.index.expand(len(inside), -1).gather(1, inside)
        return Axis(self.source, index=index.masked_fill_(outside, OUTSIDE))

    def blend(self, weights: Tensor) -> Axis:
        """Interpolate between positions of this axis.

        Args:
            weights: float32 [B, m, n] over the n positions of this axis.
        """
        if self.weights is not None:
            return Axis(self.source, weights=weights @ self.weights)
        assert self.index is not None
        batch, outputs, _ = weights.shape
        # The extra column collects the weight that falls outside; it is cut off again.
        column = self.index.where(self.index >= 0, self.source)[:, None].expand(batch, outputs, -1)
        spread = weights.new_zeros(batch, outputs, self.source + 1).scatter_add_(2, column, weights)
        return Axis(self.source, weights=spread[:, :, : self.source])


@dataclass(frozen=True)
class Pad:
    """Widen the image on each side (pixels); the border shows the fill of the augmentation."""

    left: int
    top: int
    right: int
    bottom: int

    def apply(self, rows: Axis, columns: Axis, draw: Draw) -> tuple[Axis, Axis]:
        """Return the two axes after padding."""
        high = torch.arange(-self.top, len(rows) + self.bottom, device=draw.device)
        wide = torch.arange(-self.left, len(columns) + self.right, device=draw.device)
        return rows.take(high[None].expand(draw.batch, -1)), columns.take(wide[None].expand(draw.batch, -1))


@dataclass(frozen=True)
class RandomCrop:
    """Cut a window of ``height`` x ``width`` pixels at a uniformly drawn place (torchvision RandomCrop)."""

    height: int
    width: int

    def apply(self, rows: Axis, columns: Axis, draw: Draw) -> tuple[Axis, Axis]:
        """Return the two axes of the window.

        Raises:
            UserError: The window is larger than the image.
        """
        if self.height > len(rows) or self.width > len(columns):
            raise UserError(
                f"crop of {self.height}x{self.width} does not fit the image of {len(rows)}x{len(columns)}; "
                "use a smaller crop or pad first"
            )
        top = draw.below(len(rows) - self.height + 1)
        left = draw.below(len(columns) - self.width + 1)
        return crop(rows, columns, top, left, self.height, self.width)


@dataclass(frozen=True)
class CentreCrop:
    """Cut the central window of ``height`` x ``width`` pixels (torchvision CenterCrop)."""

    height: int
    width: int

    def apply(self, rows: Axis, columns: Axis, draw: Draw) -> tuple[Axis, Axis]:
        """Return the two axes of the window, which is no larger than the image."""
        top = torch.full((draw.batch,), round((len(rows) - self.height) / 2), device=draw.device)
        left = torch.full((draw.batch,), round((len(columns) - self.width) / 2), device=draw.device)
        return crop(rows, columns, top, left, self.height, self.width)


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cut a box of random area and shape and resize it bilinearly (torchvision RandomResizedCrop).

    Attributes:
        height: Output height in pixels.
        width: Output width in pixels.
        scale: Range of the box area as a fraction of the image area.
        ratio: Range of width / height of the box, drawn uniformly in the logarithm.
        antialias: Widen the filter where the box is larger than the output, as PIL always does.
    """

    height: int
    width: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    antialias: bool = True

    def boxes(self, height: int, width: int, draw: Draw) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw one box per image.

        All ten attempts are drawn at once and the first that fits is taken, so no value has to travel
        from the device to the host.

        Args:
            height: Height of the image to cut from, pixels.
            width: Width of the image to cut from, pixels.
            draw: Random numbers.

        Returns:
            top, left, box height, box width; int64 [B] each.
        """
        area, shape = draw.uniform(_TRIES), draw.uniform(_TRIES)
        area = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        shape = torch.exp(low + shape * (high - low))
        wide, high_ = (area * shape).sqrt().round().long(), (area / shape).sqrt().round().long()
        fits = (wide > 0) & (wide <= width) & (high_ > 0) & (high_ <= height)
        first = fits.int().argmax(0, keepdim=True)
        central_height, central_width = self._central(height, width)
        found = fits.any(0)
        box_height = high_.gather(0, first)[0].where(found, central_height)
        box_width = wide.gather(0, first)[0].where(found, central_width)
        top = draw.below(height - box_height + 1).where(found, (height - central_height) // 2)
        left = draw.below(width - box_width + 1).where(found, (width - central_width) // 2)
        return top, left, box_height, box_width

    def _central(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of torchvision's central crop, taken when no attempt fitted."""
        if width / height < min(self.ratio):
            return round(width / min(self.ratio)), width
        if width / height > max(self.ratio):
            return height, round(height * max(self.ratio))
        return height, width

    def apply(self, rows: Axis, columns: Axis, draw: Draw) -> tuple[Axis, Axis]:
        """Return the two axes of the resized box."""
        top, left, height, width = self.boxes(len(rows), len(columns), draw)
        down = interpolation(top, height, self.height, len(rows), self.antialias)
        across = interpolation(left, width, self.width, len(columns), self.antialias)
        return rows.blend(down), columns.blend(across)


@dataclass(frozen=True)
class RandomFlip:
    """Mirror left and right with probability ``p`` (torchvision RandomHorizontalFlip)."""

    p: float = 0.5

    def apply(self, rows: Axis, columns: Axis, draw: Draw) -> tuple[Axis, Axis]:
        """Return the two axes with the columns of some images reversed."""
        return rows, flip(columns, draw.uniform() < self.p)


AxisOp = Pad | CentreCrop | RandomCrop | RandomResizedCrop | RandomFlip
PictureOp = RandomRotation | AutoAugment | RandAugment | Cutout | ColourJitter | RandomGrey | RandomBlur
Op = AxisOp | PictureOp


def crop(rows: Axis, columns: Axis, top: Tensor, left: Tensor, height: int, width: int) -> tuple[Axis, Axis]:
    """Cut one window per image.

    Args:
        rows: Vertical axis.
        columns: Horizontal axis.
        top: int64 [B], first row of each window.
        left: int64 [B], first column of each window.
        height: Rows of the window.
        width: Columns of the window.
    """
    down = top[:, None] + torch.arange(height, device=top.device)
    across = left[:, None] + torch.arange(width, device=left.device)
    return rows.take(down), columns.take(across)


def flip(columns: Axis, chosen: Tensor) -> Axis:
    """Reverse the columns of the chosen images.

    Args:
        columns: Horizontal axis.
        chosen: bool [B].
    """
    positions = torch.arange(len(columns), device=chosen.device)
    return columns.take(torch.where(chosen[:, None], positions.flip(0), positions))


def interpolation(start: Tensor, length: Tensor, outputs: int, inputs: int, antialias: bool) -> Tensor:
    """Return the bilinear weights that stretch a stretch of an axis to ``outputs`` pixels.

    The weights are torch's (``upsample_bilinear2d`` with and without antialias, half-pixel centres): a
    triangle around the centre of each output pixel, cut at the borders of the box, with sum 1.

    Args:
        start: int64 [B], first position of the box.
        length: int64 [B], positions in the box.
        outputs: Positions of the result.
        inputs: Positions of the axis the box is cut from.
        antialias: Widen the triangle where the box has more than ``outputs`` positions.

    Returns:
        float32 [B, outputs, inputs].
    """
    scale = length.float() / outputs
    centre = scale[:, None] * (torch.arange(outputs, dtype=torch.float32, device=start.device) + 0.5)
    place = torch.arange(inputs, device=start.device) - start[:, None]
    width = scale.clamp(min=1.0) if antialias else torch.ones_like(scale)
    distance = (place[:, None, :].float() + 0.5 - centre[:, :, None]).abs_()
    weights = distance.div_(width[:, None, None]).neg_().add_(1.0).clamp_(min=0.0)
    inside = (place >= 0) & (place < length[:, None])
    weights *= inside[:, None, :]
    return weights.div_(weights.sum(2, keepdim=True))


@functools.lru_cache(maxsize=64)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the factors that turn 0..255 into normalised values, [C, 1, 1] each, kept on the device."""
    scale = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32, device=device)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32, device=device)
    return scale[:, None, None], shift[:, None, None]


@dataclass(frozen=True)
class Augmentation:
    """Augment and normalise images; one object serves batches, single samples and PIL images.

    Two augmentations are equal when their values are; the ``repr`` is stable and part of a protocol's hash.
    The random numbers of a batch differ from torchvision's per-sample ones, the distribution does not.
    torchvision rounds to whole grey levels after resizing uint8 or PIL images; here nothing is rounded (but
    before AutoAugment, which counts levels), so a resized pixel may differ by up to one level of 255.

    Attributes:
        ops: Operations in order.
        mean: Per channel, in units of [0, 1]; one value serves all channels.
        std: Per channel, in units of [0, 1].
        fill: Grey level 0..255 shown outside the image.
    """

    ops: tuple[Op, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fill: int = 0

    # Avalanche inspects call signatures, refuses keyword-only parameters and would pass the label as a
    # second argument; these two names tell it that images are all this takes.
    min_params: ClassVar[int] = 1
    max_params: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise UserError(f"mean has {len(self.mean)} values and std {len(self.std)}; give one per channel")
        if any(s <= 0 for s in self.std):
            raise UserError(f"std must be positive in every channel; got {self.std}")

    @property
    def is_random(self) -> bool:
        """Whether two calls with the same image may differ."""
        return any(not isinstance(op, Pad | CentreCrop) for op in self.ops)

    def __call__(self, images: object, *, generator: torch.Generator | None = None) -> Tensor:
        """Return the augmented, normalised images.

        Args:
            images: uint8 [B, C, H, W] or [C, H, W], or a PIL image.
            generator: Generator on the device of the images; None takes torch's global one.

        Returns:
            float32 [B, C, h, w], without B for a single image.

        Raises:
            UserError: Not uint8, or another number of channels than ``mean`` has.
        """
        images = images if isinstance(images, Tensor) else from_pil(images)
        self._check(images)
        if images.ndim == 3:
            return self._transform(images[None], generator)[0]
        return self._transform(images, generator)

    def _check(self, images: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim not in (3, 4):
            raise UserError(
                f"images must be uint8 of shape [C, H, W] or [B, C, H, W]; got {images.dtype} "
                f"{list(images.shape)}. Keep images as 0..255; the augmentation scales them"
            )
        if len(self.mean) not in (1, images.shape[-3]):
            raise UserError(f"images have {images.shape[-3]} channels but mean and std have {len(self.mean)}")

    def _transform(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        draw = Draw(len(images), images.device, generator)
        axes: tuple[Axis, Axis] | None = None
        ops, box = self.ops, self._first_box()
        if box is not None and boxes.pays(images):
            images, ops = self._boxed(images, *box, draw)
        for op in ops:
            if isinstance(op, AxisOp):
                axes = op.apply(*(axes or identity_axes(images)), draw)
            else:
                images, axes = op.paint(self._read(images, axes), draw), None
        pixels = self._read(images, axes).float()
        scale, shift = _scale_and_shift(self.mean, self.std, images.device)
        return pixels.mul_(scale).sub_(shift)

    def _first_box(self) -> tuple[Pad, RandomResizedCrop] | None:
        """Return the resized crop that the operations begin with and the border it cuts from; None without one."""
        match self.ops:
            case (RandomResizedCrop() as box, *_):
                return Pad(0, 0, 0, 0), box
            case (Pad() as border, RandomResizedCrop() as box, *_):
                return border, box
        return None

    def _boxed(
        self, images: Tensor, border: Pad, box: RandomResizedCrop, draw: Draw
    ) -> tuple[Tensor, tuple[Op, ...]]:
        """Return the boxes of large images, float32, and what is left to do; random numbers are drawn as for axes."""
        height, width = images.shape[-2:]
        drawn = box.boxes(height + border.top + border.bottom, width + border.left + border.right, draw)
        left, mirrored = self.ops[self.ops.index(box) + 1 :], None
        match left:
            case (RandomFlip(p=p), *_):
                mirrored, left = draw.uniform() < p, left[1:]
        sides, size = (border.left, border.top, border.right, border.bottom), (box.height, box.width)
        return boxes.resized(images, drawn, size, box.antialias, sides, self.fill, mirrored), left

    def _read(self, images: Tensor, axes: tuple[Axis, Axis] | None) -> Tensor:
        """Return what the axes show, uint8 as long as nothing was interpolated."""
        if axes is None:
            return images
        if images.dtype == torch.uint8 and axes[0].weights is None:
            return _gather(images, *axes, self.fill)
        return render(images, *axes, self.fill)


def identity_axes(images: Tensor) -> tuple[Axis, Axis]:
    """Return rows and columns that show the images unchanged.

    Args:
        images: [B, C, H, W].
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device)[None].expand(len(images), -1)
    columns = torch.arange(width, device=images.device)[None].expand(len(images), -1)
    return Axis(height, index=rows), Axis(width, index=columns)


def render(images: Tensor, rows: Axis, columns: Axis, fill: int) -> Tensor:
    """Read the pixels that the two axes ask for.

    Args:
        images: uint8 or float32 [B, C, H, W] in 0..255.
        rows: Vertical axis.
        columns: Horizontal axis.
        fill: Grey level outside the image.

    Returns:
        float32 [B, C, h, w] in 0..255.
    """
    if rows.weights is None or columns.weights is None:
        return _gather(images, rows, columns, fill).float()
    return _interpolate(images, rows.weights, columns.weights, fill)


def _gather(images: Tensor, rows: Axis, columns: Axis, fill: int) -> Tensor:
    assert rows.index is not None and columns.index is not None
    batch, channels, height, width = images.shape
    # One row and one column of fill, so that "outside" is an ordinary index.
    padded = torch.nn.functional.pad(images, (0, 1, 0, 1), value=fill).flatten(2)
    down = rows.index.where(rows.index >= 0, height)
    across = columns.index.where(columns.index >= 0, width)
    flat = (down * (width + 1))[:, :, None] + across[:, None, :]
    pixels = padded.gather(2, flat.flatten(1)[:, None].expand(-1, channels, -1))
    return pixels.view(batch, channels, len(rows), len(columns))


def _interpolate(images: Tensor, down: Tensor, across: Tensor, fill: int) -> Tensor:
    batch, channels, height, width = images.shape
    # Reordered while a pixel is still one byte.
    pixels = images.permute(0, 2, 1, 3).contiguous().float().view(batch, height, channels * width)
    if fill:
        pixels = pixels - fill
    with torch.autocast(images.device.type, enabled=False):  # half precision would cost grey levels
        tall = torch.bmm(down, pixels).view(batch, -1, width)
        done = torch.bmm(tall, across.transpose(1, 2))
    done = done.view(batch, down.shape[1], channels, across.shape[1]).permute(0, 2, 1, 3).contiguous()
    return done.add_(fill) if fill else done


def from_pil(image: Any) -> Tensor:
    """Return a PIL image (or uint8 array [H, W] / [H, W, C]) as a uint8 tensor [C, H, W].

    Raises:
        UserError: The image is neither grey nor RGB with 8 bits per channel.
    """
    pixels = np.asarray(image)
    if getattr(image, "mode", "RGB") not in ("L", "RGB"):
        raise UserError(f"PIL images must be of mode L or RGB; got {image.mode}. Call image.convert('RGB')")
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise UserError(
            f"images must be uint8 tensors or 8-bit PIL images; got {type(image).__name__} with values of "
            f"type {pixels.dtype}"
        )
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.array(pixels, order="C"))


def _crop_flip(height: int, width: int) -> tuple[Op, ...]:
    return Pad(4, 4, 4, 4), RandomCrop(height, width), RandomFlip()


def _resized_crop_flip(height: int, width: int) -> tuple[Op, ...]:
    return Pad(4, 4, 4, 4), RandomResizedCrop(height, width), RandomFlip()


def _shift(height: int, width: int) -> tuple[Op, ...]:
    return Pad(1, 1, 1, 1), RandomCrop(height, width)


def _crop_rotate_flip(height: int, width: int) -> tuple[Op, ...]:
    return *_crop_flip(height, width), RandomRotation(15)


def _autoaugment_cutout(height: int, width: int) -> tuple[Op, ...]:
    hole = max(2, min(height, width) // 4 * 2)  # 16 pixels of CIFAR's 32
    return *_crop_flip(height, width), AutoAugment(fill=128), Cutout(hole)


def _simclr(height: int, width: int) -> tuple[Op, ...]:
    window = min(13, 2 * min(height, width) - 1)  # three standard deviations of at most 2 pixels
    return (
        RandomResizedCrop(height, width, scale=(0.2, 1.0)),
        RandomFlip(),
        ColourJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        RandomGrey(0.2),
        RandomBlur(window, (0.1, 2.0), p=0.5),
    )


def _crop_of(height: int, width: int) -> tuple[int, int]:
    """Return the crop that the papers take of a picture resized to 256: 224, and as much of other sizes."""
    return max(1, height * 7 // 8), max(1, width * 7 // 8)


def _imagenet(height: int, width: int) -> tuple[Op, ...]:
    return RandomResizedCrop(*_crop_of(height, width)), RandomFlip()


def _imagenet_jitter(height: int, width: int) -> tuple[Op, ...]:
    return *_imagenet(height, width), ColourJitter(0.4, 0.4, 0.4, 0.0, p=1.0)


def _imagenet_randaugment(height: int, width: int) -> tuple[Op, ...]:
    return *_imagenet_jitter(height, width), RandAugment()


def _imagenet_autoaugment_cutout(height: int, width: int) -> tuple[Op, ...]:
    hole = max(2, min(_crop_of(height, width)) // 28 * 2)  # 16 pixels of 224
    return *_imagenet(height, width), ImageNetAutoAugment(fill=128), Cutout(hole)


def _places(height: int, width: int) -> tuple[Op, ...]:
    crop_height, crop_width = _crop_of(height, width)
    window = min(13, 2 * min(crop_height, crop_width) - 1)
    return (
        RandomResizedCrop(crop_height, crop_width),
        ColourJitter(0.4, 0.4, 0.4, 0.0, p=1.0),
        RandomGrey(0.2),
        RandomBlur(window, (0.1, 2.0), p=0.5),
        RandomFlip(),
    )


def _none(height: int, width: int) -> tuple[Op, ...]:
    return ()


NAMED: dict[str, Callable[[int, int], tuple[Op, ...]]] = {
    "none": _none,
    "crop-flip": _crop_flip,
    "resized-crop-flip": _resized_crop_flip,
    "shift": _shift,
    "crop-rotate-flip": _crop_rotate_flip,
    "autoaugment-cutout": _autoaugment_cutout,
    "simclr": _simclr,
    "imagenet": _imagenet,
    "imagenet-jitter": _imagenet_jitter,
    "imagenet-randaugment": _imagenet_randaugment,
    "imagenet-autoaugment-cutout": _imagenet_autoaugment_cutout,
    "places": _places,
}
"""Augmentations by name: image height and width to the training operations.

``crop-flip`` is the usual CIFAR recipe; ``resized-crop-flip`` is that of the Long-Tailed-CIL code (pad by 4,
then a random resized crop with torchvision's default ranges); ``shift`` is for digits, which a flip spoils.
``crop-rotate-flip`` is RIDE's (up to 15 degrees either way), ``autoaugment-cutout`` that of NCL and SHIKE, with
their grey fill of 128 and a hole half as wide as the image; ``simclr`` is NCL's second, contrastive view.
``imagenet`` is that of the large data sets, whose pictures are stored as squares of 256 pixels: a random resized crop
of 224 and a flip; ``imagenet-jitter`` adds the colour jitter of .4 of Kang, RIDE and SADE; ``imagenet-randaugment`` is
NCL's, which adds two operations of timm's RandAugment to that; ``imagenet-autoaugment-cutout`` is SHIKE's, with
AutoAugment's ImageNet policy in place of the jitter; ``places`` is NCL's for Places, and its second view of all these.
The crop is cut from the stored square, not from the whole picture, as the official code does: a stated deviation.
"""

CROPPED = frozenset(
    {"imagenet", "imagenet-jitter", "imagenet-randaugment", "imagenet-autoaugment-cutout", "places"}
)
"""Augmentations whose pictures are evaluated by their central 7/8: Resize(256), CenterCrop(224)."""

CONTRASTIVE = "contrastive"
"""Stands for the name of NCL's second view beside a first one, see :func:`second_view`."""


def second_view(first: Augmentation, height: int, width: int) -> str:
    """Return the name of NCL's second view beside a first one.

    Its code takes ``simclr`` beside pictures that are shown whole, as CIFAR's, and the view of ``places`` beside crops
    of the large data sets (``augmentation_sim``), so that both views have one size.

    Args:
        first: Augmentation of the first view.
        height: Of the stored images, pixels.
        width: Likewise.
    """
    return "places" if RandomResizedCrop(*_crop_of(height, width)) in first.ops else "simclr"


def build(
    name: str,
    image_shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    train: bool,
) -> Augmentation:
    """Return a named augmentation for images of one size.

    Args:
        name: One of ``NAMED``.
        image_shape: Channels, height, width.
        mean: Per channel, in units of [0, 1].
        std: Per channel, in units of [0, 1].
        train: False gives normalisation only.

    Raises:
        UserError: Unknown name, or mean and std do not fit the channels.
    """
    if name not in NAMED:
        raise UserError(
            f"unknown augmentation '{name}'; choose one of {', '.join(NAMED)}.{did_you_mean(name, NAMED)}"
        )
    channels, height, width = image_shape
    if len(mean) != channels:
        raise UserError(f"images have {channels} channels but mean has {len(mean)} values")
    evaluated = (CentreCrop(*_crop_of(height, width)),) if name in CROPPED else ()
    ops = NAMED[name](height, width) if train else evaluated
    return Augmentation(ops, tuple(float(m) for m in mean), tuple(float(s) for s in std))
