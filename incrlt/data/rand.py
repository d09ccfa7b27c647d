"""RandAugment as the long-tailed papers use it on large pictures, on whole batches of uint8 images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from incrlt.data import colour, geometry
from incrlt.data.draw import Draw, on_chosen
from incrlt.data.policy import BLENDS, WHOLE

OPERATIONS: Final = (
    "stretch", "equalise", "invert", "rotate", "posterise", "solarise", "solarise-add", "colour", "contrast",
    "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
"""The operations of timm's ``rand``, in its order."""
MOVES: Final = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
LEVELS: Final = ("invert", "posterise", "solarise", "solarise-add", "brightness")
"""Those that replace each grey level by another one, whatever is around it."""
HIGHEST: Final = 10.0
"""The largest magnitude."""
HALF: Final = 128
"""``solarise-add`` brightens the levels below this one."""


@dataclass(frozen=True)
class RandChoice:
    """What was drawn for a batch; the first axis is the turn, first to last.

    Attributes:
        operation: int64 [n, B], place in ``OPERATIONS``.
        applied: bool [n, B].
        magnitude: float32 [n, B] in 0..10.
        positive: bool [n, B], the direction of moves.
    """

    operation: Tensor
    applied: Tensor
    magnitude: Tensor
    positive: Tensor


@dataclass(frozen=True)
class RandAugment:
    """``n`` operations per image, each of 15 and with probability one half (timm's ``rand-n2-m10-mstd0.5``).

    What NCL's code asks of timm 0.4 and later for ImageNet-LT and iNaturalist. The magnitudes mean what they mean
    there: at 10, 30 degrees, slopes of 0.3, shifts of 0.45 of a side, strengths of 1.9, 4 bits, 110 grey levels.

    For the same :class:`RandChoice` the pixels are those of torchvision's functions on uint8 tensors. Unlike timm,
    which works on PIL images, moves show the nearest pixel, where timm draws bilinear or bicubic; grey levels differ by
    one here and there, see :class:`incrlt.data.policy.AutoAugment`.

    Attributes:
        n: Operations per image.
        magnitude: Their mean strength, 0..10.
        deviation: Of the normal distribution of strengths, which is cut to 0..10.
        p: Probability that an operation is applied.
        fill: Grey level of each channel outside the image; ImageNet's mean.
    """

    n: int = 2
    magnitude: float = 10.0
    deviation: float = 0.5
    p: float = 0.5
    fill: tuple[int, int, int] = (124, 116, 104)

    def paint(self, images: Tensor, draw: Draw) -> Tensor:
        """Return the augmented images, uint8.

        Args:
            images: [B, C, H, W] in 0..255, C 1 or 3; floats are rounded first.
            draw: Random numbers.
        """
        operation = torch.stack([draw.below(len(OPERATIONS)) for _ in range(self.n)])
        applied = draw.uniform(self.n) < self.p
        normal = torch.special.ndtri(draw.uniform(self.n))
        magnitude = (self.magnitude + self.deviation * normal).clamp_(0, HIGHEST)
        return self.apply(images, RandChoice(operation, applied, magnitude, draw.uniform(self.n) < 0.5))

    def apply(self, images: Tensor, choice: RandChoice) -> Tensor:
        """Return the augmented images for given random numbers.

        Args:
            images: See :meth:`paint`.
            choice: What was drawn.
        """
        images = colour.whole_levels(images)
        for turn in range(len(choice.operation)):
            share = choice.magnitude[turn].double() / HIGHEST  # as a Python number is
            signed = share.where(choice.positive[turn], -share)
            images = self._operate(images, choice.operation[turn], choice.applied[turn], share, signed)
        return images

    def _operate(
        self, images: Tensor, operation: Tensor, applied: Tensor, share: Tensor, signed: Tensor
    ) -> Tensor:
        """Apply to each image its operation, at a share of the highest magnitude, float64 [B]."""

        def those(*names: str) -> Tensor:
            chosen = [operation == OPERATIONS.index(name) for name in names]
            return torch.stack(chosen).any(0) & applied

        images = on_chosen(images, those(*MOVES), self._move, operation, signed)
        images = on_chosen(images, those(*LEVELS), _replace, operation, share)
        for name, whole in WHOLE.items():
            images = on_chosen(images, those(name), whole)
        strength = _strength(share)
        for name, mix in BLENDS.items():
            images = on_chosen(images, those(name), mix, strength.float(), (1 - strength).float())
        return images

    def _move(self, images: Tensor, operation: Tensor, signed: Tensor) -> Tensor:
        """Turn, shear or shift each image."""
        height, width = images.shape[-2:]
        zero = torch.zeros_like(signed)
        matrices = torch.zeros(len(images), 2, 3, device=images.device)
        for name, own in (
            ("rotate", geometry.rotation(30 * signed)),
            ("shear_x", geometry.shear_right(0.3 * signed, height)),
            ("shear_y", geometry.shear_down(0.3 * signed, width)),
            ("translate_x", geometry.shift((0.45 * width * signed).trunc(), zero)),
            ("translate_y", geometry.shift(zero, (0.45 * height * signed).trunc())),
        ):
            matrices = own.where((operation == OPERATIONS.index(name))[:, None, None], matrices)
        return geometry.look_up(images, geometry.maps(matrices, height, width), self.fill)


def _strength(share: Tensor) -> Tensor:
    """Return the strength of a blend; 1 leaves an image as it is, which is not at 0."""
    return 0.1 + 1.8 * share


def _replace(images: Tensor, operation: Tensor, share: Tensor) -> Tensor:
    """Look each image's grey levels up in a table of its own."""
    levels = torch.arange(256, device=images.device)
    share = share[:, None]
    threshold = (share * 256).int().clamp(max=256)
    lost = 8 - (share * 4).int()  # bits
    brighter = (levels + (share * 110).int()).clamp(max=255)
    tables = {
        "invert": (255 - levels).expand(len(images), -1),
        "posterise": levels >> lost << lost,
        "solarise": torch.where(levels >= threshold, 255 - levels, levels),
        "solarise-add": torch.where(levels < HALF, brighter, levels),
        "brightness": (_strength(share).float() * levels).clamp(0, 255).long(),
    }
    table = levels.expand(len(images), -1)
    for name, own in tables.items():
        table = own.where((operation == OPERATIONS.index(name))[:, None], table)
    return colour.replaced(images, table)
