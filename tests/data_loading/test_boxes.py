"""Large images on a CPU are cropped box by box: the pixels of the matrix products, for the same random numbers."""

from __future__ import annotations

import pytest
import torch

from incrlt.data import boxes
from incrlt.data.augment import Augmentation, Pad, RandomFlip, RandomResizedCrop, build

SHAPES = {"square": (96, 96), "wide": (96, 130)}


def shown(augmentation: Augmentation, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What it shows, and the next random number."""
    generator = torch.Generator().manual_seed(3)
    found = augmentation(images, generator=generator)
    return found, torch.rand(1, generator=generator)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    "ops",
    [
        (RandomResizedCrop(80, 112), RandomFlip()),
        (Pad(4, 9, 2, 1), RandomResizedCrop(96, 96, scale=(0.5, 1.0)), RandomFlip(), Pad(1, 0, 0, 0)),
        (RandomResizedCrop(40, 40, antialias=False),),
        build("simclr", (3, 96, 96), (0.5,) * 3, (0.2,) * 3, True).ops,
    ],
    ids=["crop", "border", "no antialias", "simclr"],
)
def test_the_same_random_numbers_give_the_same_pixels(monkeypatch, shape, ops):
    images = torch.randint(0, 256, (6, 3, *shape), dtype=torch.uint8)
    augmentation = Augmentation(ops, (0.5, 0.4, 0.3), (1 / 255,) * 3, fill=90)
    assert boxes.pays(images) and not boxes.pays(images[..., :95])
    ours, after = shown(augmentation, images)
    monkeypatch.setattr(boxes, "pays", lambda images: False)
    theirs, expected = shown(augmentation, images)
    assert torch.equal(after, expected)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)  # grey levels, the mean apart
