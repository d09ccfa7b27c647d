"""A second view shows the images of the last batch, by the numbers that come next."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import functional as F

from incrlt.data.augment import RandomResizedCrop, build
from incrlt.data.draw import Draw
from incrlt.data.tensors import TensorBatches
from incrlt.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def loader(**options: object) -> TensorBatches:
    images = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8) * 10
    first = build("crop-flip", (3, 8, 8), MEAN, STD, True)
    return TensorBatches(
        images.contiguous(),
        torch.arange(20),
        batch_size=6,
        **{
            "augmentation": first,
            "permutation_generator": torch.Generator().manual_seed(0),
            "augmentation_generator": torch.Generator().manual_seed(1),
            **options,
        },
    )


@pytest.mark.parametrize("rows", [None, torch.arange(19, -1, -1)])
def test_it_shows_the_images_of_the_batch_row_by_row(rows: torch.Tensor | None) -> None:
    batches = loader(rows=rows)
    plain = build("none", (3, 8, 8), MEAN, STD, True)
    for batch in batches:
        shown = batch[1] if rows is None else rows[batch[1]]
        assert torch.equal(batches.second_view("none"), plain(batches.images[shown]))


def test_it_takes_the_next_numbers_of_the_generator_and_names_use_the_loaders_normalisation() -> None:
    batches = loader()
    x, y = next(iter(batches))
    generator = torch.Generator()
    generator.set_state(batches.augmentation_generator.get_state())
    view = build("simclr", (3, 8, 8), MEAN, STD, True)
    expected = view(batches.images[y], generator=generator)
    assert torch.equal(batches.second_view("simclr"), expected)
    again = batches.second_view(view)  # the object itself is as good as its name
    assert not torch.equal(again, expected)
    assert torch.equal(again, view(batches.images[y], generator=generator))
    assert torch.equal(batches.augmentation_generator.get_state(), generator.get_state())
    assert not torch.equal(x, expected)


def large(first: str) -> TensorBatches:
    noise = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=noise)
    return TensorBatches(
        images,
        torch.arange(8),
        batch_size=8,
        augmentation=build(first, (3, 64, 64), MEAN, STD, True),
        permutation_generator=torch.Generator().manual_seed(0),
        augmentation_generator=torch.Generator().manual_seed(1),
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("imagenet-randaugment", "places"),
        ("imagenet-jitter", "places"),
        ("places", "places"),
        ("autoaugment-cutout", "simclr"),
        ("crop-flip", "simclr"),
        ("resized-crop-flip", "simclr"),
        ("none", "simclr"),
    ],
)
def test_ncls_view_is_that_of_its_code_and_as_large_as_the_first(first: str, second: str) -> None:
    batches = large(first)
    x, y = next(iter(batches))
    generator = torch.Generator()
    generator.set_state(batches.augmentation_generator.get_state())
    expected = build(second, (3, 64, 64), MEAN, STD, True)(batches.images[y], generator=generator)
    view = batches.second_view("contrastive")
    assert torch.equal(view, expected) and view.shape == x.shape


def test_ncls_large_view_has_torchvisions_values_for_the_same_draws() -> None:
    """RandomResizedCrop(224), ColorJitter(.4, .4, .4, 0), RandomGrayscale(.2), GaussianBlur(.1..2) at .5, flip."""
    batches = large("imagenet-randaugment")
    _, y = next(iter(batches))
    images, size = batches.images[y], len(y)
    generator = torch.Generator()
    generator.set_state(batches.augmentation_generator.get_state())
    view = batches.second_view("contrastive")
    draw = Draw(size, torch.device("cpu"), generator)
    boxes = RandomResizedCrop(56, 56).boxes(64, 64, draw)
    jittered = draw.uniform() < 1.0
    strengths = [draw.between(0.6, 1.4) for _ in range(3)]
    draw.uniform()  # of a hue that does not turn
    order = draw.uniform(4).argsort(0)
    grey = draw.uniform() < 0.2
    sigma, blurred = draw.between(0.1, 2.0), draw.uniform() < 0.5
    mirrored = draw.uniform() < 0.5
    assert jittered.all() and 0 < grey.sum() < size and 0 < blurred.sum() < size and 0 < mirrored.sum() < size
    changes = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, lambda image, _: image]
    for k in range(size):
        top, left, height, width = (int(side[k]) for side in boxes)
        image = F.resized_crop(images[k] / 255, top, left, height, width, [56, 56], antialias=True)
        for change in order[:, k].tolist():
            image = changes[change](image, float(strengths[change][k]) if change < 3 else 0.0)
        image = F.rgb_to_grayscale(image, 3) if grey[k] else image
        image = F.gaussian_blur(image, [13, 13], [float(sigma[k])] * 2) if blurred[k] else image
        image = F.normalize(F.hflip(image) if mirrored[k] else image, MEAN, STD)
        torch.testing.assert_close(view[k], image, rtol=0, atol=2e-4)


def test_one_mean_for_all_channels_serves_named_views() -> None:
    wide = build("none", (3, 8, 8), (0.5,) * 3, (0.25,) * 3, True)
    batches = loader(augmentation=type(wide)((), (0.5,), (0.25,)))
    _, y = next(iter(batches))
    assert torch.equal(batches.second_view("none"), wide(batches.images[y]))


def test_memory_format_is_that_of_the_batch() -> None:
    batches = loader(channels_last=True)
    next(iter(batches))
    assert batches.second_view("crop-flip").is_contiguous(memory_format=torch.channels_last)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="none was made yet"):
        loader().second_view("none")
    batches = loader()
    next(iter(batches))
    with pytest.raises(UserError, match="simclr"):
        batches.second_view("simcl")
    bare = loader(augmentation=None)
    next(iter(bare))
    with pytest.raises(UserError, match="does not normalise"):
        bare.second_view("simclr")
    view = build("none", (3, 8, 8), MEAN, STD, True)
    assert bare.second_view(view).dtype == torch.float32  # it brings its own mean and std
