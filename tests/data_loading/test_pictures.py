"""Rotation, hiding, jitter, greying and blur against torchvision for the same numbers, and their laws."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms import functional as F

from incrlt.data import pictures
from incrlt.data.augment import (
    CROPPED,
    NAMED,
    Augmentation,
    Pad,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
    build,
)
from incrlt.data.draw import Draw
from incrlt.data.pictures import ColourJitter, Cutout, RandomBlur, RandomGrey, RandomRotation
from incrlt.data.policy import AutoAugment
from incrlt.errors import UserError

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def images(batch: int, channels: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    shape = (batch, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def draw(batch: int, seed: int = 0) -> Draw:
    return Draw(batch, CPU, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 20), (7, 9)])
@pytest.mark.parametrize("fill", [0, 77])
def test_rotation_equals_torchvision_for_given_angles(height: int, width: int, fill: int) -> None:
    angles = torch.cat([torch.tensor([0.0, 15.0, -15.0, 1e-4, 89.0, 200.0]), draw(40).between(-15, 15)])
    batch = images(len(angles), 3, height, width)
    ours = RandomRotation(15, fill).turn(batch, angles)
    for image, turned, angle in zip(batch, ours, angles, strict=True):
        assert torch.equal(turned, F.rotate(image, float(angle), fill=[float(fill)]))
    assert torch.equal(ours[0], batch[0])
    assert torch.equal(RandomRotation(15, fill).turn(batch.float(), angles), ours.float())


def test_rotation_is_close_to_pil() -> None:
    angles = draw(60, seed=1).between(-15, 15)
    batch = images(len(angles))
    ours = RandomRotation(15).turn(batch, angles)
    theirs = [
        F.pil_to_tensor(F.rotate(F.to_pil_image(x), float(a))) for x, a in zip(batch, angles, strict=True)
    ]
    differing = (ours != torch.stack(theirs)).any(1).float().mean()
    assert differing < 0.001


def test_angles_are_uniform_either_way() -> None:
    class Spy(RandomRotation):
        def turn(self, images: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
            return angle

    angles = Spy(15).paint(torch.zeros(1), draw(40_000))
    assert -15 <= angles.min() < -14.9 and 14.9 < angles.max() <= 15
    assert abs(angles.mean()) < 5 * 15 / math.sqrt(3) / 200
    counts = torch.histc(angles, 10, -15, 15)
    assert (counts - 4000).abs().max() < 5 * 4000**0.5


def test_cutout_equals_the_plain_loop_of_the_definition() -> None:
    batch = images(32 * 20, 3, 32, 20).clamp(min=1)
    row, column = torch.meshgrid(torch.arange(32), torch.arange(20), indexing="ij")
    hidden = Cutout(8).hide(batch, row.flatten(), column.flatten())
    for k, image in enumerate(batch):
        y, x = divmod(k, 20)
        expected = image.clone()
        expected[:, max(y - 4, 0) : y + 4, max(x - 4, 0) : x + 4] = 0
        assert torch.equal(hidden[k], expected)


def test_cutout_is_black_before_normalisation_and_its_centres_are_uniform() -> None:
    white = torch.full((20_000, 1, 8, 8), 255, dtype=torch.uint8)
    shown = Augmentation((Cutout(4),), (0.5,), (0.25,))(white, generator=torch.Generator().manual_seed(0))
    assert shown.unique().tolist() == [-2.0, 2.0]
    assert (white == 255).all()
    # A pixel is hidden by the centres from two before to one after it... on each axis, clipped at the borders.
    share = (shown < 0).float().mean((0, 1))
    axis = torch.tensor([sum(0 <= c < 8 for c in range(i - 1, i + 3)) for i in range(8)]) / 8
    expected = axis[:, None] * axis
    assert (share - expected).abs().max() < 5 * 0.5 / len(white) ** 0.5


def reference_jitter(
    image: torch.Tensor, wanted: bool, strengths: list[float], order: list[int]
) -> torch.Tensor:
    image = image.float() / 255
    changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for k in order if wanted else []:
        image = changes[k](image, strengths[k])
    return image * 255


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_equals_torchvision_for_given_numbers(channels: int) -> None:
    count = 48
    batch = images(count, channels, 9, 11)
    batch[0], batch[1], batch[2, 0] = 0, 93, 255  # no chroma; a saturated channel
    source = draw(count)
    strengths = [source.between(0.6, 1.4) for _ in range(3)] + [source.between(-0.5, 0.5)]
    order = source.uniform(4).argsort(0)
    wanted = source.uniform() < 0.8
    ours = ColourJitter(0.4, 0.4, 0.4, 0.5).change(batch, wanted, strengths, order)
    for k in range(count):
        numbers = [float(values[k]) for values in strengths]
        expected = reference_jitter(batch[k], bool(wanted[k]), numbers, order[:, k].tolist())
        torch.testing.assert_close(ours[k], expected, atol=2e-3, rtol=1e-5)
    assert torch.equal(ours[~wanted], batch[~wanted].float())


def test_jitter_draws_ranges_orders_and_share() -> None:
    seen: dict[str, object] = {}

    class Spy(ColourJitter):
        def change(self, images, wanted, strengths, order):  # type: ignore[no-untyped-def]
            seen.update(wanted=wanted, strengths=torch.stack(strengths), order=order)
            return images

    count = 48_000
    Spy(0.4, 0.3, 0.2, 0.1, p=0.8).paint(torch.zeros(1), draw(count))
    assert abs(seen["wanted"].float().mean() - 0.8) < 5 * 0.4 / count**0.5
    for values, middle, reach in zip(seen["strengths"], (1, 1, 1, 0), (0.4, 0.3, 0.2, 0.1), strict=True):
        assert abs(values.min() - (middle - reach)) < 1e-3 and abs(values.max() - (middle + reach)) < 1e-3
        assert abs(values.mean() - middle) < 5 * reach / 3**0.5 / count**0.5
    _, counts = seen["order"].unique(dim=1, return_counts=True)
    assert len(counts) == 24 and (counts - 2000).abs().max() < 5 * 2000**0.5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_grey_equals_torchvision_and_chooses_with_its_probability(dtype: torch.dtype) -> None:
    batch = images(4000, 3, 4, 4).to(dtype)
    out = RandomGrey(0.2).paint(batch.clone(), draw(len(batch)))
    assert out.dtype == dtype
    chosen = (out != batch).flatten(1).any(1)
    assert abs(chosen.float().mean() - 0.2) < 5 * 0.4 / len(batch) ** 0.5
    scale = 1 if dtype == torch.uint8 else 255
    expected = F.rgb_to_grayscale(batch[chosen] / scale if scale > 1 else batch[chosen], 3) * scale
    torch.testing.assert_close(out[chosen], expected, atol=0 if scale == 1 else 1e-3, rtol=0)


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 13), (9, 12, 5), (7, 8, 13)])
def test_blur_equals_torchvision_for_given_widths(height: int, width: int, size: int) -> None:
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0, 1.37])
    batch = images(len(sigma), 3, height, width).float()
    ours = RandomBlur(size).blur(batch, sigma)
    for image, blurred, s in zip(batch, ours, sigma, strict=True):
        torch.testing.assert_close(blurred, F.gaussian_blur(image, size, float(s)), atol=1e-3, rtol=1e-5)


def test_blur_chooses_with_its_probability_and_leaves_the_others() -> None:
    batch = images(4000, 1, 6, 6)
    out = RandomBlur(5, (1.0, 2.0), p=0.3).paint(batch, draw(len(batch)))
    same = (out == batch).flatten(1).all(1)
    assert abs((~same).float().mean() - 0.3) < 5 * 0.46 / len(batch) ** 0.5


def test_autocast_does_not_touch_the_second_view() -> None:
    view = build("simclr", (3, 32, 32), MEAN, STD, True)
    plain = view(images(16), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain, view(images(16), generator=torch.Generator().manual_seed(1)))


def test_computing_all_images_gives_the_same_values_as_the_chosen_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    view, batch = build("simclr", (3, 32, 32), MEAN, STD, True), images(24)
    expected = view(batch, generator=torch.Generator().manual_seed(1))

    def dense(x, chosen, change, *parameters):  # type: ignore[no-untyped-def]
        return torch.where(chosen[:, None, None, None], change(x, *parameters), x)

    monkeypatch.setattr(pictures, "on_chosen", dense)
    torch.testing.assert_close(view(batch, generator=torch.Generator().manual_seed(1)), expected)


def test_the_names_hold_the_published_recipes() -> None:
    crop = (Pad(4, 4, 4, 4), RandomCrop(32, 32), RandomFlip(0.5))
    assert NAMED["crop-rotate-flip"](32, 32) == (*crop, RandomRotation(15))
    assert NAMED["autoaugment-cutout"](32, 32) == (*crop, AutoAugment(128), Cutout(16))
    assert NAMED["simclr"](32, 32) == (
        RandomResizedCrop(32, 32, (0.2, 1.0)),
        RandomFlip(0.5),
        ColourJitter(0.4, 0.4, 0.4, 0.1, 0.8),
        RandomGrey(0.2),
        RandomBlur(13, (0.1, 2.0), 0.5),
    )


def test_operations_act_in_their_order() -> None:
    batch = images(5, 3, 16, 16)

    class Quarter(RandomRotation):
        def paint(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
            return self.turn(images, torch.full((len(images),), 90.0))

    ops = (Pad(2, 0, 0, 0), RandomFlip(1.0), Quarter(90), Pad(0, 3, 0, 0), RandomFlip(1.0))
    ours = Augmentation(ops, (0.0,), (1 / 255,), fill=40)(batch)
    expected = F.hflip(F.pad(batch, [2, 0, 0, 0], fill=40))
    expected = F.hflip(F.pad(F.rotate(expected, 90.0), [0, 3, 0, 0], fill=40))
    assert torch.equal(ours, expected.float())


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 20, 28)])
def test_every_name_serves_digits_and_photographs_and_keeps_the_images(
    name: str, shape: tuple[int, int, int]
) -> None:
    batch = images(64, *shape)
    before = batch.clone()
    view = build(name, shape, MEAN[: shape[0]], STD[: shape[0]], True)
    out = view(batch, generator=torch.Generator().manual_seed(2))
    assert torch.equal(batch, before)
    mean, std = (torch.tensor(v[: shape[0]])[:, None, None] for v in (MEAN, STD))
    levels = (out * std + mean) * 255
    sides = [side * 7 // 8 for side in shape[1:]] if name in CROPPED else list(shape[1:])
    assert list(out.shape) == [64, shape[0], *sides] and levels.min() >= -0.01 and levels.max() <= 255.01
    assert torch.equal(out, view(batch, generator=torch.Generator().manual_seed(2)))
    assert name == "none" or not torch.equal(out, view(batch, generator=torch.Generator().manual_seed(3)))


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="even"):
        Cutout(3)
    with pytest.raises(UserError, match="odd"):
        RandomBlur(4)
    with pytest.raises(UserError, match="does not fit"):
        RandomBlur(13).paint(images(2, 3, 6, 8), draw(2))
    with pytest.raises(UserError, match="1 or 3 channels"):
        RandomGrey(1.0).paint(images(2, 2, 4, 4), draw(2))


def test_the_schema_offers_exactly_the_names() -> None:
    from typing import get_args

    from incrlt.experiment import sections

    assert set(get_args(sections.Augmentation)) == set(NAMED)
