"""Translation of torchvision transforms: equal outputs for given parameters, refusal of the rest."""

from __future__ import annotations

import pytest
import torch
from torchvision import transforms as v1
from torchvision.transforms import v2

from incrlt.data.augment import Augmentation, Pad, RandomCrop, RandomFlip, RandomResizedCrop, build
from incrlt.data.translate import UntranslatableError, from_torchvision, translate

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
FLIP = v1.RandomHorizontalFlip()
NORM = v1.Normalize(MEAN, STD)
CROP_FLIP = build("crop-flip", (3, 32, 32), MEAN, STD, True)
RESIZED = build("resized-crop-flip", (3, 32, 32), MEAN, STD, True)


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (v1.Compose([v1.RandomCrop(32, 4), FLIP, v1.ToTensor(), NORM]), CROP_FLIP),
        (v1.Compose([v1.ToTensor(), v1.RandomCrop(32, 4), FLIP, NORM]), CROP_FLIP),
        (
            v1.Compose([v1.RandomCrop(32, 4), v1.ToTensor(), v1.Compose([NORM]), FLIP]),
            CROP_FLIP,
        ),
        (
            v1.Compose([v1.Pad(4), v1.RandomResizedCrop(32), FLIP, v1.ToTensor(), NORM]),
            RESIZED,
        ),
        (
            v2.Compose(
                [
                    v2.ToImage(),
                    v2.RandomCrop((32, 32), padding=(4, 4)),
                    v2.RandomHorizontalFlip(0.5),
                    v2.ToDtype(torch.float32, scale=True),
                    v2.Normalize(MEAN, STD),
                ]
            ),
            CROP_FLIP,
        ),
        (
            v1.Compose([v1.PILToTensor(), v1.ConvertImageDtype(torch.float32), NORM]),
            build("none", (3, 32, 32), MEAN, STD, True),
        ),
        (v1.ToTensor(), Augmentation((), (0.0,), (1.0,))),
    ],
)
def test_known_pipelines_become_our_own(transform: object, expected: Augmentation) -> None:
    assert from_torchvision(transform) == expected


def test_parameters_are_carried_over() -> None:
    found = from_torchvision(
        v1.Compose(
            [
                v1.RandomCrop((8, 6), padding=[1, 2, 3, 4], fill=7),
                v1.RandomResizedCrop((5, 4), (0.5, 0.9), (0.8, 1.2)),
                v1.RandomHorizontalFlip(0.1),
                v1.ToTensor(),
            ]
        )
    )
    assert found is not None
    assert found.fill == 7
    resize = RandomResizedCrop(5, 4, (0.5, 0.9), (0.8, 1.2), True)
    assert found.ops == (Pad(1, 2, 3, 4), RandomCrop(8, 6), resize, RandomFlip(0.1))


def test_fill_after_to_tensor_is_in_its_units() -> None:
    found = from_torchvision(v1.Compose([v1.ToTensor(), v1.Pad(1, fill=1.0)]))
    assert found is not None and found.fill == 255


def test_fixed_parameters_equal_torchvision_end_to_end() -> None:
    image = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)
    transform = v1.Compose(
        [v1.ToPILImage(), v1.Pad(3, fill=9), v1.RandomHorizontalFlip(1.0), v1.ToTensor(), NORM]
    )
    ours = translate(transform.transforms[1:])(image)
    torch.testing.assert_close(ours, transform(image), atol=1e-6, rtol=1e-5)


class Subclass(v1.RandomCrop):
    """May do anything."""


@pytest.mark.parametrize(
    ("transforms", "reason"),
    [
        ([v1.ColorJitter(0.1), v1.ToTensor()], "ColorJitter"),
        ([v1.AutoAugment(), v1.ToTensor()], "AutoAugment"),
        ([v1.Lambda(lambda x: x), v1.ToTensor()], "Lambda"),
        ([lambda x: x, v1.ToTensor()], "function"),
        ([Subclass(32), v1.ToTensor()], "Subclass"),
        ([v1.RandomCrop(32, 4, padding_mode="reflect"), v1.ToTensor()], "reflect"),
        ([v1.RandomCrop(32, 4, pad_if_needed=True), v1.ToTensor()], "pad_if_needed"),
        ([v1.RandomCrop(32, 4, fill=(1, 2, 3)), v1.ToTensor()], "grey level"),
        ([v2.RandomCrop(32, 4, fill={torch.Tensor: 1}), v1.ToTensor()], "grey level"),
        ([v1.Pad(1), v1.Pad(1, fill=3), v1.ToTensor()], "fill"),
        ([v1.ToTensor(), NORM, v1.RandomCrop(32, 4)], "after Normalize"),
        ([v1.ToTensor(), NORM, NORM], "once"),
        ([NORM], "after the conversion"),
        ([v1.RandomHorizontalFlip()], "float tensor"),
        ([v1.PILToTensor()], "float tensor"),
        ([v2.ToDtype(torch.float32, scale=False)], "float32"),
        ([v1.RandomResizedCrop(32, interpolation=v1.InterpolationMode.BICUBIC), v1.ToTensor()], "bilinear"),
        ([v1.RandomResizedCrop(32, antialias=False), v1.ToTensor()], "antialias"),
        ([CROP_FLIP, v1.ToTensor()], "Augmentation"),
    ],
)
def test_what_is_not_exact_is_refused_with_a_reason(transforms: list[object], reason: str) -> None:
    with pytest.raises(UntranslatableError, match=reason):
        translate(transforms)
    assert from_torchvision(transforms) is None


def test_own_augmentation_passes_through() -> None:
    assert translate([None, CROP_FLIP, torch.nn.Identity()]) is CROP_FLIP
