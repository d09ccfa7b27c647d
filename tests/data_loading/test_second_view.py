"""A second view shows the images of the last batch, by the numbers that come next."""

from __future__ import annotations

import pytest
import torch

from incrlt.data.augment import build
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
