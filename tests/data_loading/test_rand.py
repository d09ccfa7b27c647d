"""RandAugment against torchvision's functions for the same draws, and the law of what is drawn."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms import functional as F

from incrlt.data import rand
from incrlt.data.augment import CROPPED, build
from incrlt.data.draw import Draw
from incrlt.data.rand import OPERATIONS, RandAugment, RandChoice

CPU = torch.device("cpu")
FILL = (124, 116, 104)


def sheared(image: torch.Tensor, across: float, down: float) -> torch.Tensor:
    """As torchvision's RandAugment shears: about the corner."""
    angles = [math.degrees(math.atan(across)), math.degrees(math.atan(down))]
    return F.affine(
        image, angle=0.0, translate=[0, 0], scale=1.0, shear=angles, fill=list(FILL), center=[0, 0]
    )


def moved(image: torch.Tensor, right: int, down: int) -> torch.Tensor:
    return F.affine(image, angle=0.0, translate=[right, down], scale=1.0, shear=[0.0, 0.0], fill=list(FILL))


def expected(image: torch.Tensor, name: str, share: float, sign: int) -> torch.Tensor:
    """torchvision's function at timm's meaning of a magnitude, written out."""
    height, width = image.shape[-2:]
    strength = 0.1 + 1.8 * share
    return {
        "stretch": lambda: F.autocontrast(image),
        "equalise": lambda: F.equalize(image),
        "invert": lambda: F.invert(image),
        "rotate": lambda: F.rotate(image, sign * 30 * share, fill=list(FILL)),
        "posterise": lambda: F.posterize(image, int(share * 4)),
        "solarise": lambda: image if share == 1 else F.solarize(image, int(share * 256)),
        "solarise-add": lambda: torch.where(
            image < 128, (image.int() + int(share * 110)).clamp(max=255), image.int()
        ).byte(),
        "colour": lambda: F.adjust_saturation(image, strength),
        "contrast": lambda: F.adjust_contrast(image, strength),
        "brightness": lambda: F.adjust_brightness(image, strength),
        "sharpness": lambda: F.adjust_sharpness(image, strength),
        "shear_x": lambda: sheared(image, sign * 0.3 * share, 0.0),
        "shear_y": lambda: sheared(image, 0.0, sign * 0.3 * share),
        "translate_x": lambda: moved(image, int(sign * 0.45 * width * share), 0),
        "translate_y": lambda: moved(image, 0, int(sign * 0.45 * height * share)),
    }[name]()


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_gives_torchvisions_pixels(name: str) -> None:
    shares = torch.tensor([1.0, 0.97, 0.75, 0.31, 1.0, 0.97, 0.75, 0.31])
    positive = torch.tensor([True] * 4 + [False] * 4)
    noise = torch.Generator().manual_seed(5)
    batch = torch.randint(10, 200, (8, 3, 24, 17), dtype=torch.uint8, generator=noise)
    operation = torch.full((1, 8), OPERATIONS.index(name))
    magnitude = 10 * shares
    choice = RandChoice(operation, torch.ones(1, 8, dtype=torch.bool), magnitude[None], positive[None])
    ours = RandAugment().apply(batch, choice)
    assert not torch.equal(ours, batch)
    for image, own, strong, sign in zip(batch, ours, magnitude.tolist(), positive.tolist(), strict=True):
        assert torch.equal(own, expected(image, name, strong / 10, 1 if sign else -1)), strong


def test_operations_follow_each_other_and_the_others_keep_their_bits() -> None:
    noise = torch.Generator().manual_seed(6)
    batch = torch.randint(0, 256, (3, 3, 12, 12), dtype=torch.uint8, generator=noise)
    turn, solarise = OPERATIONS.index("rotate"), OPERATIONS.index("solarise")
    operation = torch.tensor([[turn, solarise, turn], [solarise, turn, turn]])
    applied = torch.tensor([[True, True, False], [True, True, False]])
    drawn = RandChoice(operation, applied, torch.full((2, 3), 5.0), torch.ones(2, 3, dtype=torch.bool))
    ours = RandAugment().apply(batch, drawn)
    assert torch.equal(ours[0], expected(expected(batch[0], "rotate", 0.5, 1), "solarise", 0.5, 1))
    assert torch.equal(ours[1], expected(expected(batch[1], "solarise", 0.5, 1), "rotate", 0.5, 1))
    assert torch.equal(ours[2], batch[2])


def test_draws_are_those_of_timms_rand_n2_m10_mstd_half() -> None:
    seen: list[RandChoice] = []

    class Spy(RandAugment):
        def apply(self, images: torch.Tensor, choice: RandChoice) -> torch.Tensor:
            seen.append(choice)
            return images

    count = 30_000
    Spy().paint(torch.zeros(1), Draw(count, CPU, torch.Generator().manual_seed(0)))
    drawn = seen[0]
    assert drawn.operation.shape == (2, count)
    each = torch.bincount(drawn.operation.flatten(), minlength=15)
    assert len(each) == 15 and (each - 4000).abs().max() < 5 * 4000**0.5
    for share in (drawn.applied, drawn.positive, drawn.magnitude == rand.HIGHEST):
        assert abs(share.float().mean() - 0.5) < 5 * 0.5 / (2 * count) ** 0.5
    below = 10 - drawn.magnitude[drawn.magnitude < rand.HIGHEST]
    assert abs(below.square().mean().sqrt() - 0.5) < 0.01  # half of a normal distribution of deviation 0.5


def test_ncls_augmentation_is_named_and_seeded() -> None:
    named = build("imagenet-randaugment", (3, 64, 64), (0.5,) * 3, (0.5,) * 3, train=True)
    assert named.ops[-1] == RandAugment(2, 10.0, 0.5, 0.5, FILL)
    assert "imagenet-randaugment" in CROPPED
    noise = torch.Generator().manual_seed(7)
    batch = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8, generator=noise)
    once, again, other = (named(batch, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert once.shape == (6, 3, 56, 56)
    assert torch.equal(once, again) and not torch.equal(once, other)
