"""Rotation and AutoAugment of tensors become our own; whatever rounds otherwise is refused."""

from __future__ import annotations

import pytest
import torch
from torchvision import transforms as v1
from torchvision.transforms import v2

from incrlt.data.augment import Augmentation, RandomResizedCrop
from incrlt.data.pictures import RandomRotation
from incrlt.data.policy import AutoAugment, ImageNetAutoAugment
from incrlt.data.translate import UntranslatableError, translate

CIFAR = v1.AutoAugmentPolicy.CIFAR10
FLOAT = v1.ConvertImageDtype(torch.float32)
NORM = v1.Normalize((0.5,) * 3, (0.2,) * 3)


def plain(*ops: object) -> Augmentation:
    return Augmentation(ops, (0.0,), (1.0,))


@pytest.mark.parametrize(
    ("transforms", "expected"),
    [
        ([v1.ToTensor(), v1.RandomRotation(15)], plain(RandomRotation(15))),
        ([v1.ToTensor(), v1.RandomRotation(9, fill=1.0)], plain(RandomRotation(9, 255))),
        ([v1.PILToTensor(), v1.RandomRotation((-5, 5), fill=[7.0] * 3), FLOAT], plain(RandomRotation(5, 7))),
        (
            [v2.ToImage(), v2.RandomRotation(15), v2.ToDtype(torch.float32, scale=True)],
            plain(RandomRotation(15)),
        ),
        ([v1.PILToTensor(), v1.AutoAugment(CIFAR), FLOAT], plain(AutoAugment())),
        ([v1.PILToTensor(), v1.AutoAugment(CIFAR, fill=128), FLOAT], plain(AutoAugment(128))),
        ([v1.PILToTensor(), v1.AutoAugment(), FLOAT], plain(ImageNetAutoAugment())),
        (
            [v1.ToTensor(), v1.RandomResizedCrop(8), v1.RandomRotation(2)],
            plain(RandomResizedCrop(8, 8), RandomRotation(2)),
        ),
    ],
)
def test_exact_ones_are_translated(transforms: list[object], expected: Augmentation) -> None:
    assert translate(transforms) == expected


class Fixed(v2.RandomRotation):
    def make_params(self, flat_inputs: list[object]) -> dict[str, float]:
        return {"angle": 11.3}


def test_v2_turns_like_v1() -> None:
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    assert torch.equal(Fixed(15)(image), RandomRotation(15).turn(image[None], torch.tensor([11.3]))[0])


@pytest.mark.parametrize(
    ("transforms", "reason"),
    [
        ([v1.RandomRotation(15), v1.ToTensor()], "only for tensors"),
        ([v1.ToTensor(), v1.RandomRotation(15, v1.InterpolationMode.BILINEAR)], "nearest"),
        ([v1.ToTensor(), v1.RandomRotation((0, 15))], "either way"),
        ([v1.ToTensor(), v1.RandomRotation(15, expand=True)], "about the centre"),
        ([v1.ToTensor(), v1.RandomRotation(15, center=(0, 0))], "about the centre"),
        ([v1.ToTensor(), NORM, v1.RandomRotation(15)], "after Normalize"),
        ([v1.AutoAugment(CIFAR), v1.ToTensor()], "uint8 tensors"),
        ([v1.PILToTensor(), v1.AutoAugment(v1.AutoAugmentPolicy.SVHN), FLOAT], "CIFAR10 and IMAGENET"),
        ([v1.PILToTensor(), v1.AutoAugment(CIFAR, v1.InterpolationMode.BILINEAR), FLOAT], "nearest"),
        ([v1.PILToTensor(), v1.RandomResizedCrop(8), v1.AutoAugment(CIFAR), FLOAT], "rounding of a resize"),
        ([v2.ToImage(), v2.AutoAugment(CIFAR), v2.ToDtype(torch.float32, scale=True)], "v2"),
        ([v1.ToTensor(), v1.RandomErasing()], "RandomErasing"),
    ],
)
def test_the_rest_is_refused_with_a_reason(transforms: list[object], reason: str) -> None:
    with pytest.raises(UntranslatableError, match=reason):
        translate(transforms)
