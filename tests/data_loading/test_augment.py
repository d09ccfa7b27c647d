"""Batched augmentation against torchvision, given the same parameters, and the law of the random ones."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import RandomResizedCrop as Reference
from torchvision.transforms import functional as F

from incrlt.data import augment, policy
from incrlt.data.augment import (
    CROPPED,
    NAMED,
    Augmentation,
    Axis,
    Draw,
    Pad,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
    build,
    crop,
    flip,
    from_pil,
    identity_axes,
    interpolation,
    render,
)
from incrlt.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CPU = torch.device("cpu")


def images(batch: int = 6, channels: int = 3, height: int = 12, width: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def padded_axes(batch: torch.Tensor, border: int) -> tuple[Axis, Axis]:
    return Pad(border, border, border, border).apply(*identity_axes(batch), Draw(len(batch), CPU, None))


@pytest.mark.parametrize("fill", [0, 77])
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_and_flip_equal_torchvision_for_given_offsets(channels: int, fill: int) -> None:
    batch = images(6, channels)
    top, left = torch.tensor([0, 1, 2, 3, 4, 6]), torch.tensor([6, 4, 3, 2, 1, 0])
    mirrored = torch.tensor([True, False, True, False, True, False])
    rows, columns = crop(*padded_axes(batch, 3), top, left, 12, 10)
    ours = render(batch, rows, flip(columns, mirrored), fill)
    for k, image in enumerate(batch):
        expected = F.crop(F.pad(image, [3], fill=fill), int(top[k]), int(left[k]), 12, 10)
        expected = F.hflip(expected) if mirrored[k] else expected
        assert torch.equal(ours[k], expected.float())


def test_unequal_pad_sides_equal_torchvision() -> None:
    batch = images(2)
    rows, columns = Pad(1, 2, 3, 4).apply(*identity_axes(batch), Draw(2, CPU, None))
    assert torch.equal(render(batch, rows, columns, 9), F.pad(batch, [1, 2, 3, 4], fill=9).float())


def resized(
    batch: torch.Tensor, boxes: list[list[int]], border: int, antialias: bool, fill: int
) -> torch.Tensor:
    top, left, height, width = (torch.tensor(values) for values in zip(*boxes, strict=True))
    rows, columns = padded_axes(batch, border)
    down = interpolation(top, height, batch.shape[2], len(rows), antialias)
    across = interpolation(left, width, batch.shape[3], len(columns), antialias)
    return render(batch, rows.blend(down), columns.blend(across), fill)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("fill", [0, 50])
def test_resized_crop_equals_torchvision_for_given_boxes(antialias: bool, fill: int) -> None:
    batch = images(6)
    # Whole padded image (shrinks), inside, across the border, one pixel, only border, tall and thin.
    boxes = [[0, 0, 20, 18], [5, 5, 9, 7], [1, 9, 8, 9], [10, 9, 1, 1], [0, 0, 3, 3], [2, 8, 17, 2]]
    ours = resized(batch, boxes, 4, antialias, fill)
    for k, (image, box) in enumerate(zip(batch, boxes, strict=True)):
        wide = F.pad(image, [4], fill=fill).float()
        expected = F.resized_crop(wide, *box, [12, 10], InterpolationMode.BILINEAR, antialias=antialias)
        torch.testing.assert_close(ours[k], expected, atol=2e-3, rtol=1e-5)


def test_resized_crop_is_within_one_grey_level_of_pil() -> None:
    batch = images(6, height=32, width=32)
    boxes = [
        [0, 0, 40, 40],
        [5, 3, 29, 37],
        [3, 2, 36, 30],
        [10, 9, 11, 13],
        [20, 20, 12, 15],
        [0, 0, 33, 25],
    ]
    ours = resized(batch, boxes, 4, True, 0)
    for k, (image, box) in enumerate(zip(batch, boxes, strict=True)):
        picture = F.pad(F.to_pil_image(image), [4])
        expected = F.pil_to_tensor(F.resized_crop(picture, *box, [32, 32], InterpolationMode.BILINEAR))
        assert (ours[k] - expected).abs().max() <= 1.1  # PIL rounds after each of the two passes


def test_flip_after_resize_mirrors_the_resized_image() -> None:
    batch = images(4)
    rows, columns = identity_axes(batch)
    weights = interpolation(torch.tensor([1, 2, 0, 3]), torch.tensor([5, 6, 9, 4]), 10, 10, True)
    across = columns.blend(weights)
    down = rows.blend(interpolation(torch.zeros(4).long(), torch.full((4,), 12), 12, 12, True))
    mirrored = torch.tensor([True, False, False, True])
    plain, turned = render(batch, down, across, 0), render(batch, down, flip(across, mirrored), 0)
    assert torch.equal(turned[mirrored], plain[mirrored].flip(3))
    assert torch.equal(turned[~mirrored], plain[~mirrored])


@given(
    start=st.integers(0, 20),
    length=st.integers(1, 20),
    outputs=st.integers(1, 24),
    antialias=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_interpolation_weights_are_an_average_inside_the_box(
    start: int, length: int, outputs: int, antialias: bool
) -> None:
    weights = interpolation(torch.tensor([start]), torch.tensor([length]), outputs, 40, antialias)[0]
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(outputs))
    assert weights[:, :start].sum() == 0 and weights[:, start + length :].sum() == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_equals_torchvision(channels: int) -> None:
    batch = images(3, channels)
    ours = build("none", (channels, 12, 10), MEAN[:channels], STD[:channels], train=True)(batch)
    expected = F.normalize(batch.float() / 255, MEAN[:channels], STD[:channels])
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)
    assert ours.dtype == torch.float32


def test_eval_is_normalisation_only() -> None:
    for name in NAMED.keys() - CROPPED:
        assert build(name, (3, 12, 10), MEAN, STD, train=False).ops == ()


@pytest.mark.parametrize("name", sorted(CROPPED))
def test_large_pictures_are_evaluated_by_their_central_seven_eighths(name: str) -> None:
    batch = images(4, 3, 32, 32)
    found = build(name, (3, 32, 32), MEAN, STD, train=False)(batch)
    torch.testing.assert_close(
        found, F.normalize(batch[..., 2:30, 2:30].float() / 255, MEAN, STD), atol=1e-6, rtol=1e-5
    )


def boxes(count: int = 40_000, size: int = 40, **kwargs: tuple[float, float]) -> tuple[torch.Tensor, ...]:
    draw = Draw(count, CPU, torch.Generator().manual_seed(1))
    return RandomResizedCrop(32, 32, **kwargs).boxes(size, size, draw)


def test_boxes_stay_inside_and_have_torchvisions_moments() -> None:
    top, left, height, width = boxes()
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 40).all() and (left + width <= 40).all()
    area, ratio = (height * width) / 1600, width / height
    # Rounding to pixels may leave the ranges by a fraction of a pixel.
    assert 0.06 < area.min() < 0.1 and area.max() <= 1
    assert 0.68 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.45
    torch.manual_seed(0)
    blank = torch.zeros(1, 40, 40)
    theirs = [Reference.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(6000)]
    expected = np.array(theirs, dtype=float)
    ours = torch.stack([top, left, height, width], 1).double().numpy()
    error = expected.std(0) / math.sqrt(len(expected))
    assert (np.abs(ours.mean(0) - expected.mean(0)) < 5 * error).all()
    np.testing.assert_allclose(ours.std(0), expected.std(0), rtol=0.05)


def test_impossible_boxes_fall_back_to_torchvisions_central_crop() -> None:
    for ratio in ((5.0, 6.0), (0.1, 0.2), (1.0, 1.0)):
        ours = boxes(3, scale=(1.2, 1.5), ratio=ratio)
        expected = Reference.get_params(torch.zeros(1, 40, 40), [1.2, 1.5], list(ratio))
        assert [int(values[0]) for values in ours] == list(expected)


def test_offsets_and_flips_are_uniform() -> None:
    draw = Draw(45_000, CPU, torch.Generator().manual_seed(2))
    counts = torch.bincount(draw.below(9), minlength=9)
    assert len(counts) == 9 and (counts - 5000).abs().max() < 350
    gradient = torch.arange(8, dtype=torch.uint8).expand(4000, 1, 4, 8)
    out = Augmentation((RandomFlip(0.3),), (0.0,), (1.0,))(
        gradient, generator=torch.Generator().manual_seed(3)
    )
    mirrored = (out[:, 0, 0, 0] > 0).float().mean()
    assert abs(mirrored - 0.3) < 0.03


def test_limit_is_never_reached_when_the_product_rounds_up() -> None:
    class High(Draw):
        def uniform(self, *shape: int) -> torch.Tensor:
            return torch.full((*shape, self.batch), 1 - 2**-24)

    assert High(3, CPU, None).below(9).tolist() == [8, 8, 8]


@pytest.mark.parametrize("name", NAMED)
def test_single_samples_and_pil_images_take_the_same_path(name: str) -> None:
    batch = images(1, height=32, width=32)
    augmentation = build(name, (3, 32, 32), MEAN, STD, train=True)
    picture = Image.fromarray(batch[0].permute(1, 2, 0).numpy())
    seeded = [torch.Generator().manual_seed(5) for _ in range(3)]
    whole = augmentation(batch, generator=seeded[0])
    assert torch.equal(whole[0], augmentation(batch[0], generator=seeded[1]))
    assert torch.equal(whole[0], augmentation(picture, generator=seeded[2]))


@pytest.mark.parametrize("name", NAMED)
def test_torchs_default_type_changes_nothing(name: str) -> None:
    """Before: resized crops failed and others drew other numbers where a script computes in double precision."""
    batch = images(4, height=32, width=32)

    def augmented() -> torch.Tensor:
        generator = torch.Generator().manual_seed(5)
        return build(name, (3, 32, 32), MEAN, STD, train=True)(batch, generator=generator)

    caches = augment._scale_and_shift, policy._tables
    expected = augmented()
    try:
        torch.set_default_dtype(torch.float64)
        for cache in caches:  # as in a script that begins so
            cache.cache_clear()
        found = augmented()
    finally:
        torch.set_default_dtype(torch.float32)
        for cache in caches:
            cache.cache_clear()
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_grey_pil_image_has_one_channel() -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert torch.equal(from_pil(Image.fromarray(pixels))[0], torch.from_numpy(pixels))


def test_generator_decides_and_none_is_the_global_one() -> None:
    batch, augmentation = (
        images(8, height=32, width=32),
        build("resized-crop-flip", (3, 32, 32), MEAN, STD, True),
    )
    first = augmentation(batch, generator=torch.Generator().manual_seed(7))
    state = torch.get_rng_state()
    assert torch.equal(first, augmentation(batch, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(7)
    assert torch.equal(first, augmentation(batch))


def test_images_of_a_batch_get_their_own_parameters() -> None:
    batch = images(1, height=32, width=32).expand(64, -1, -1, -1)
    out = build("crop-flip", (3, 32, 32), MEAN, STD, True)(batch, generator=torch.Generator().manual_seed(0))
    assert len(out.flatten(1).unique(dim=0)) > 40
    assert torch.equal(batch, images(1, height=32, width=32).expand(64, -1, -1, -1))  # input untouched


def test_autocast_does_not_blur_resized_images() -> None:
    batch, augmentation = (
        images(8, height=32, width=32),
        build("resized-crop-flip", (3, 32, 32), MEAN, STD, True),
    )
    plain = augmentation(batch, generator=torch.Generator().manual_seed(7))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain, augmentation(batch, generator=torch.Generator().manual_seed(7)))


def test_value_semantics() -> None:
    one, two = (build("crop-flip", (3, 32, 32), MEAN, STD, True) for _ in range(2))
    assert one == two and hash(one) == hash(two) and repr(one) == repr(two)
    assert pickle.loads(pickle.dumps(one)) == one and copy.deepcopy(one) == one
    assert one != build("shift", (3, 32, 32), MEAN, STD, True)
    assert repr(build("shift", (1, 8, 8), (0.5,), (0.25,), True)) == (
        "Augmentation(ops=(Pad(left=1, top=1, right=1, bottom=1), RandomCrop(height=8, width=8)), "
        "mean=(0.5,), std=(0.25,), fill=0)"
    )


def test_errors_say_what_to_do() -> None:
    with pytest.raises(UserError, match="Did you mean 'crop-flip'"):
        build("crop-flipp", (3, 32, 32), MEAN, STD, True)
    with pytest.raises(UserError, match="uint8"):
        build("none", (3, 8, 8), MEAN, STD, True)(torch.rand(2, 3, 8, 8))
    with pytest.raises(UserError, match="channels"):
        build("none", (3, 8, 8), MEAN, STD, True)(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="does not fit"):
        Augmentation((RandomCrop(9, 9),), MEAN, STD)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="positive"):
        Augmentation((), (0.0,), (0.0,))
    with pytest.raises(UserError, match=r"convert\('RGB'\)"):
        from_pil(Image.new("RGBA", (4, 4)))
