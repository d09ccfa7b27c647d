"""Expected draws against long simulations of the loaders themselves."""

from __future__ import annotations

import pytest
import torch
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader

from incrlt.data.avalanche import parts_of_loader, tensorise
from incrlt.data.draws import expected_draws, expected_passes
from incrlt.data.tensors import Group, ImageTensors, TensorBatches, class_aware_order
from incrlt.errors import UserError

COUNTS = torch.tensor([9, 4, 2, 1, 1, 1, 0])


def labels_of(counts):
    return torch.arange(len(counts)).repeat_interleave(counts)


def test_class_aware_draws_are_a_fraction_of_an_epoch():
    """18 draws over 6 classes; before: whole images, and as many for a class that has none."""
    labels, epochs = labels_of(COUNTS), 700
    generator = torch.Generator().manual_seed(0)
    drawn = torch.zeros(7)
    for _ in range(epochs):
        drawn += labels[class_aware_order(labels, generator)].bincount(minlength=7)
    expected = expected_draws(COUNTS, "class_aware")
    assert expected.dtype == torch.float64
    assert expected.tolist() == [3.0] * 6 + [0.0]
    spread = (18 * (1 / 6) * (5 / 6) / epochs) ** 0.5
    assert ((drawn / epochs - expected)[:6].abs() < 4 * spread).all()
    assert drawn[6] == 0


def test_eleven_draws_of_ten_classes_are_not_one_each():
    labels, epochs = labels_of(torch.tensor([2] + [1] * 9)), 700
    generator = torch.Generator().manual_seed(1)
    drawn = sum(labels[class_aware_order(labels, generator)].bincount(minlength=10) for _ in range(epochs))
    expected = expected_draws(labels.bincount(), "class_aware")
    assert expected.tolist() == pytest.approx([1.1] * 10)
    assert ((drawn / epochs - expected).abs() < 4 * (11 * 0.09 / epochs) ** 0.5).all()


def test_shuffling_draws_every_image_once():
    assert expected_draws(COUNTS).tolist() == COUNTS.tolist()
    assert expected_draws(COUNTS, passes=0.25).tolist() == [2.25, 1.0, 0.5, 0.25, 0.25, 0.25, 0.0]
    with pytest.raises(UserError, match="unknown sampler"):
        expected_draws(COUNTS, "balanced")


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("oversample", [False, True])
@pytest.mark.parametrize("sizes", [(11, 5), (5, 11), (8, 3), (3, 3), (16, 4)])
def test_passes_of_groups_are_what_the_loader_shows(sizes, oversample, drop_last):
    first, second = sizes
    total, epochs = first + second, 200
    targets = torch.arange(total)
    batches = TensorBatches(
        torch.zeros(total, 1), targets,
        groups=[Group(targets[:first], 3), Group(targets[first:], 2)],
        oversample_small=oversample, drop_last=drop_last,
        permutation_generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    shown = torch.zeros(total)
    for _ in range(epochs):
        for _, y in batches:
            shown += y.bincount(minlength=total)
    for size, batch, images in ((first, 3, shown[:first]), (second, 2, shown[first:])):
        passes = expected_passes(size, batch, len(batches), oversample=oversample, drop_last=drop_last)
        assert images.sum().item() / size / epochs == pytest.approx(passes, abs=1e-6)
        assert (images / epochs - passes).abs().max() < 4 * (0.25 / epochs) ** 0.5 + 1e-9


@pytest.mark.parametrize("oversample", [False, True])
def test_parts_of_avalanches_loaders(oversample):
    """Batches of a rest are smaller: 3 full passes of 5 images and one batch of 2 are 3.4 passes, not 10 / 3."""
    stored = [ImageTensors(torch.zeros(n, 1, 2, 2, dtype=torch.uint8), [0] * n) for n in (30, 5)]
    loader = MultiDatasetDataLoader(
        [as_classification_dataset(images) for images in stored],
        batch_sizes=[3, 2], termination_dataset=0, oversample_small_datasets=oversample, shuffle=True,
    )  # fmt: skip
    passes = [found for _, found in parts_of_loader(loader)]
    assert passes == [1.0, pytest.approx(3.4 if oversample else 1.0)]
    shown = sum(len(y) for _, y, *_ in loader), sum(len(y) for _, y, *_ in tensorise(loader, "cpu"))
    assert shown[0] == shown[1] == round(30 * passes[0] + 5 * passes[1], 9)
