"""AutoAugment with its policies for CIFAR-10 and ImageNet, on whole batches of uint8 images."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple

import torch
from torch import Tensor

from incrlt.data import colour, geometry
from incrlt.data.draw import Draw, on_chosen

NOTHING: Final = "nothing"
MOVES: Final = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
REPLACEMENTS: Final = ("brightness", "posterise", "solarise", "invert")
BLENDS: Final = {
    "colour": colour.saturation,
    "contrast": colour.contrast,
    "sharpness": colour.sharpness,
}
WHOLE: Final = {"stretch": colour.stretch, "equalise": colour.equalise}

SubPolicies = tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...]
"""Twice an operation, its probability and its magnitude 0..9."""

CIFAR10: Final[SubPolicies] = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("stretch", 0.5, 0), ("equalise", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterise", 0.3, 7)),
    (("colour", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalise", 0.6, 0), ("equalise", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("colour", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalise", 0.3, 0), ("stretch", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("colour", 0.2, 8)),
    (("solarise", 0.5, 2), ("invert", 0.0, 0)),
    (("equalise", 0.2, 0), ("stretch", 0.6, 0)),
    (("equalise", 0.2, 0), ("equalise", 0.6, 0)),
    (("colour", 0.9, 9), ("equalise", 0.6, 0)),
    (("stretch", 0.8, 0), ("solarise", 0.2, 8)),
    (("brightness", 0.1, 3), ("colour", 0.7, 0)),
    (("solarise", 0.4, 5), ("stretch", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("stretch", 0.9, 0), ("solarise", 0.8, 3)),
    (("equalise", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("stretch", 0.9, 0)),
)
"""The 25 sub-policies of arXiv:1805.09501 for CIFAR-10 (table 7)."""

IMAGENET: Final[SubPolicies] = (
    (("posterise", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarise", 0.6, 5), ("stretch", 0.6, 0)),
    (("equalise", 0.8, 0), ("equalise", 0.6, 0)),
    (("posterise", 0.6, 7), ("posterise", 0.6, 6)),
    (("equalise", 0.4, 0), ("solarise", 0.2, 4)),
    (("equalise", 0.4, 0), ("rotate", 0.8, 8)),
    (("solarise", 0.6, 3), ("equalise", 0.6, 0)),
    (("posterise", 0.8, 5), ("equalise", 1.0, 0)),
    (("rotate", 0.2, 3), ("solarise", 0.6, 8)),
    (("equalise", 0.6, 0), ("posterise", 0.4, 6)),
    (("rotate", 0.8, 8), ("colour", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalise", 0.6, 0)),
    (("equalise", 0.0, 0), ("equalise", 0.8, 0)),
    (("invert", 0.6, 0), ("equalise", 1.0, 0)),
    (("colour", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("colour", 1.0, 2)),
    (("colour", 0.8, 8), ("solarise", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    (("shear_x", 0.6, 5), ("equalise", 1.0, 0)),
    (("colour", 0.4, 0), ("equalise", 0.6, 0)),
    (("equalise", 0.4, 0), ("solarise", 0.2, 4)),
    (("solarise", 0.6, 5), ("stretch", 0.6, 0)),
    (("invert", 0.6, 0), ("equalise", 1.0, 0)),
    (("colour", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalise", 0.8, 0), ("equalise", 0.6, 0)),
)
"""Those for ImageNet (table 9)."""


@dataclass(frozen=True)
class Choice:
    """What was drawn for a batch; the first axis of pairs is the operation of the sub-policy, first or second.

    Attributes:
        policy: int64 [B], sub-policy 0..24.
        chance: float32 [2, B] in [0, 1); an operation is applied where this is at most its probability.
        positive: bool [2, B], sign of the magnitude of the operations that have one.
    """

    policy: Tensor
    chance: Tensor
    positive: Tensor


@dataclass(frozen=True)
class AutoAugment:
    """One of 25 pairs of operations per image (torchvision AutoAugment, policy CIFAR10, mode nearest).

    For the same :class:`Choice` the pixels are those of torchvision on uint8 tensors. On PIL images
    torchvision gives other bits: PIL rounds the luma and the mean contrast otherwise. The official code of NCL
    and SHIKE has the same table, but shears bicubically, always rotates one way, shifts by fractions of a
    pixel (14.5 of 32 instead of 14), takes 256 for the highest threshold and fills with grey level 128.

    Attributes:
        fill: Grey level that geometric operations show outside the image (torchvision's default: 0).
    """

    table: ClassVar[SubPolicies] = CIFAR10

    fill: int = 0

    def paint(self, images: Tensor, draw: Draw) -> Tensor:
        """Return the augmented images, uint8.

        Args:
            images: [B, C, H, W] in 0..255, C 1 or 3; floats are rounded first.
            draw: Random numbers.
        """
        choice = Choice(draw.below(len(self.table)), draw.uniform(2), draw.uniform(2) < 0.5)
        return self.apply(images, choice)

    def apply(self, images: Tensor, choice: Choice) -> Tensor:
        """Return the augmented images for given random numbers.

        Args:
            images: See :meth:`paint`.
            choice: What was drawn.
        """
        images = colour.whole_levels(images)
        tables = _tables(self.table, *images.shape[-2:], images.device)
        for turn in range(2):
            step = tables.step[choice.policy, turn, choice.positive[turn].long()]
            step = step.where(choice.chance[turn] <= tables.probability[choice.policy, turn], 0)
            images = self._operate(images, step, tables)
        return images

    def _operate(self, images: Tensor, step: Tensor, tables: _Tables) -> Tensor:
        """Apply to each image the operation of its step, int64 [B]."""

        def move(some: Tensor, row: Tensor) -> Tensor:
            return geometry.look_up(some, tables.maps[row], self.fill)

        def replace(some: Tensor, row: Tensor) -> Tensor:
            return colour.replaced(some, tables.levels[row])

        group = tables.group[step]
        images = on_chosen(images, group == _GROUPS["move"], move, tables.map_row[step])
        images = on_chosen(images, group == _GROUPS["replace"], replace, tables.level_row[step])
        for name, whole in WHOLE.items():
            images = on_chosen(images, group == _GROUPS[name], whole)
        for name, mix in BLENDS.items():
            images = on_chosen(images, group == _GROUPS[name], mix, tables.strength[step], tables.rest[step])
        return images


@dataclass(frozen=True)
class ImageNetAutoAugment(AutoAugment):
    """The same with the policy for ImageNet (torchvision AutoAugment, policy IMAGENET, mode nearest)."""

    table: ClassVar[SubPolicies] = IMAGENET


_GROUPS: Final = {name: k for k, name in enumerate((NOTHING, "move", "replace", *WHOLE, *BLENDS))}
"""Operations that are computed together: all maps in one gather, all tables of grey levels in another."""


class Step(NamedTuple):
    """An operation with its signed magnitude."""

    name: str
    amount: float


class _Tables(NamedTuple):
    """The policy as tensors; S steps, the first of which does nothing.

    Attributes:
        step: int64 [25, 2, 2]: sub-policy, first or second operation, negative or positive.
        probability: float32 [25, 2].
        group: int64 [S], see ``_GROUPS``.
        map_row: int64 [S], row in ``maps``; 0 for steps that use none.
        level_row: int64 [S], row in ``levels``; 0 for steps that use none.
        strength: float32 [S], of blends.
        rest: float32 [S], 1 - strength.
        maps: int64 [M, H * W].
        levels: uint8 [L, 256].
    """

    step: Tensor
    probability: Tensor
    group: Tensor
    map_row: Tensor
    level_row: Tensor
    strength: Tensor
    rest: Tensor
    maps: Tensor
    levels: Tensor


@functools.lru_cache(maxsize=16)
def _tables(table: SubPolicies, height: int, width: int, device: torch.device) -> _Tables:
    """Return a policy for images of one size, kept on the device."""
    pairs = [
        [[_step(name, magnitude, sign, height, width) for sign in (-1, 1)] for name, _, magnitude in policy]
        for policy in table
    ]
    drawn = dict.fromkeys(step for policy in pairs for both in policy for step in both)
    steps = [Step(NOTHING, 0.0), *drawn]
    moves = [step for step in steps if step.name in MOVES]
    replacements = [step for step in steps if step.name in REPLACEMENTS]
    blends = [1 + step.amount if step.name in BLENDS else 1.0 for step in steps]
    made = _Tables(
        step=torch.tensor([[[steps.index(step) for step in both] for both in policy] for policy in pairs]),
        probability=torch.tensor(
            [[probability for _, probability, _ in policy] for policy in table], dtype=torch.float32
        ),
        group=torch.tensor([_GROUPS[_group(step.name)] for step in steps]),
        map_row=torch.tensor([moves.index(step) if step in moves else 0 for step in steps]),
        level_row=torch.tensor([replacements.index(step) if step in replacements else 0 for step in steps]),
        strength=torch.tensor(blends, dtype=torch.float32),
        # subtracted in double precision
        rest=torch.tensor([1 - strength for strength in blends], dtype=torch.float32),
        maps=geometry.maps(torch.cat([_matrix(move, height, width) for move in moves]), height, width),
        levels=torch.stack([_levels(step) for step in replacements]),
    )
    return _Tables(*(tensor.to(device) for tensor in made))


def _group(name: str) -> str:
    return "move" if name in MOVES else "replace" if name in REPLACEMENTS else name


def _step(name: str, magnitude: int, sign: int, height: int, width: int) -> Step:
    """Return an operation with torchvision's meaning of the magnitudes 0..9."""
    highest = {
        "rotate": 30.0,  # degrees
        "shear_x": 0.3,
        "shear_y": 0.3,
        "translate_x": 150 / 331 * width,  # pixels
        "translate_y": 150 / 331 * height,
    }
    if name in ("stretch", "equalise", "invert"):
        return Step(name, 0.0)
    if name == "posterise":
        return Step(name, 8 - round(magnitude / (9 / 4)))  # bits
    if name == "solarise":
        return Step(name, _level(255.0, 0.0, magnitude))
    amount = sign * _level(0.0, highest.get(name, 0.9), magnitude)
    return Step(name, int(amount) if name.startswith("translate") else amount)


def _level(first: float, last: float, magnitude: int) -> float:
    """Return one of ten evenly spaced values, with the rounding of torch's float32."""
    return float(torch.linspace(first, last, 10, dtype=torch.float32)[magnitude])


def _matrix(move: Step, height: int, width: int) -> Tensor:
    amount, zero = torch.tensor([move.amount], dtype=torch.float64), torch.zeros(1, dtype=torch.float32)
    if move.name == "rotate":
        return geometry.rotation(amount)
    if move.name == "shear_x":
        return geometry.shear_right(amount, height)
    if move.name == "shear_y":
        return geometry.shear_down(amount, width)
    return geometry.shift(amount, zero) if move.name == "translate_x" else geometry.shift(zero, amount)


def _levels(step: Step) -> Tensor:
    """Return what becomes of each grey level, uint8 [256]."""
    levels = torch.arange(256, dtype=torch.uint8)
    if step.name == "brightness":
        strength = torch.tensor([1 + step.amount], dtype=torch.float32)
        return colour.brightness(levels.view(1, 1, 1, 256), strength).flatten()
    if step.name == "posterise":
        return levels & (256 - 2 ** (8 - int(step.amount)))
    threshold = step.amount if step.name == "solarise" else 0
    return torch.where(levels >= threshold, 255 - levels, levels)
