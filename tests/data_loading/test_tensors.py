"""Batches out of tensors: composition, determinism, resuming, class-aware sampling."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from incrlt.data.augment import build
from incrlt.data.tensors import Group, ImageTensors, TensorBatches, class_aware_order
from incrlt.errors import UserError


def numbered(count: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose every pixel is the sample's number, and labels."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
    return images, torch.arange(count) % classes


def numbers(batches: list[list[torch.Tensor]]) -> list[list[int]]:
    return [batch[0][:, 0, 0, 0].long().tolist() for batch in batches]


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


def generators(seed: int = 0) -> dict[str, torch.Generator]:
    return {
        "permutation_generator": torch.Generator().manual_seed(seed),
        "augmentation_generator": torch.Generator().manual_seed(seed + 1),
    }


@given(count=st.integers(1, 60), size=st.integers(1, 25), drop_last=st.booleans(), shuffle=st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_epoch_shows_each_image_once(count: int, size: int, drop_last: bool, shuffle: bool) -> None:
    loader = TensorBatches(*numbered(count), batch_size=size, drop_last=drop_last, shuffle=shuffle)
    seen = numbers(list(loader))
    full, rest = divmod(count, size)
    assert [len(batch) for batch in seen] == [size] * full + [rest] * (rest > 0 and not drop_last)
    assert len(loader) == len(seen)
    shown = flat(seen)
    assert len(set(shown)) == len(shown)
    if not shuffle:
        assert shown == list(range(len(shown)))


def test_batches_are_lists_that_keep_image_label_and_columns_together() -> None:
    images, targets = numbered(20)
    loader = TensorBatches(images, targets, batch_size=7, columns=[torch.arange(20) * 3], **generators())
    for batch in loader:
        assert isinstance(batch, list) and len(batch) == 3
        number = batch[0][:, 0, 0, 0].long()
        assert torch.equal(batch[1], number % 4) and torch.equal(batch[2], number * 3)
        assert batch[0].dtype == torch.uint8  # no augmentation: as stored


def test_rows_let_samples_share_images() -> None:
    images, _ = numbered(5)
    rows = torch.tensor([4, 4, 0])
    loader = TensorBatches(images, torch.tensor([7, 8, 9]), rows=rows, batch_size=3, shuffle=False)
    (batch,) = list(loader)
    assert numbers([batch]) == [[4, 4, 0]] and batch[1].tolist() == [7, 8, 9]


def groups(sizes: list[tuple[int, int]]) -> list[Group]:
    starts = torch.tensor([0, *(count for count, _ in sizes)]).cumsum(0).tolist()
    return [
        Group(torch.arange(start, start + count), size)
        for start, (count, size) in zip(starts, sizes, strict=False)
    ]


def test_small_groups_start_over_when_oversampled() -> None:
    loader = TensorBatches(
        *numbered(14), groups=groups([(10, 4), (4, 3)]), oversample_small=True, **generators()
    )
    first, second = [], []
    for batch in numbers(list(loader)):
        first.append([n for n in batch if n < 10])
        second.append([n for n in batch if n >= 10])
        assert batch == first[-1] + second[-1]  # groups stay in order
    assert [len(b) for b in first] == [4, 4, 2] and sorted(flat(first)) == list(range(10))
    assert [len(b) for b in second] == [3, 1, 3]
    assert sorted(second[0] + second[1]) == [10, 11, 12, 13] and len(set(second[2])) == 3


def test_small_groups_run_out_otherwise_and_long_ones_are_cut() -> None:
    sizes = groups([(10, 4), (4, 3), (30, 2)])
    seen = numbers(list(TensorBatches(*numbered(44), groups=sizes)))
    assert [[sum(lo <= n < hi for n in b) for lo, hi in ((0, 10), (10, 14), (14, 44))] for b in seen] == [
        [4, 3, 2],
        [4, 1, 2],
        [2, 0, 2],
    ]


@pytest.mark.parametrize("sampler", ["shuffle", "class_aware"])
def test_same_generators_give_the_same_epochs_and_resume_between_them(sampler: str) -> None:
    images = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8)
    targets = torch.arange(30) % 3
    augmentation = build("crop-flip", (3, 8, 8), (0.5,) * 3, (0.2,) * 3, train=True)

    def loader(seed: int) -> tuple[TensorBatches, dict[str, torch.Generator]]:
        made = generators(seed)
        return (
            TensorBatches(images, targets, batch_size=8, sampler=sampler, augmentation=augmentation, **made),
            made,
        )

    def epoch(batches: TensorBatches) -> torch.Tensor:
        return torch.cat([batch[0] for batch in batches])

    one, own = loader(0)
    two, _ = loader(0)
    state = torch.get_rng_state()
    assert torch.equal(epoch(one), epoch(two))
    saved = {name: generator.get_state() for name, generator in own.items()}
    later = [epoch(one), epoch(one)]
    assert not torch.equal(*later)
    resumed, fresh = loader(99)
    for name, generator in fresh.items():
        generator.set_state(saved[name])
    assert all(torch.equal(expected, epoch(resumed)) for expected in later)
    assert torch.equal(state, torch.get_rng_state())  # the global generator is left alone


def test_class_aware_draws_classes_uniformly_and_images_without_repeats() -> None:
    targets = torch.tensor([5] * 3000 + [2] * 300 + [9] * 1 + [7] * 29)
    order = class_aware_order(targets, torch.Generator().manual_seed(0))
    assert len(order) == len(targets)
    counts = targets[order].bincount(minlength=10)[[2, 5, 7, 9]]
    expected = len(targets) / 4
    assert (counts - expected).abs().max() < 5 * (expected * 0.75) ** 0.5
    for label in (2, 5, 7, 9):
        members = (targets == label).nonzero()[:, 0]
        shown = order[targets[order] == label]
        for chunk in shown.split(len(members)):  # each pass over a class shows every image at most once
            assert len(chunk.unique()) == len(chunk)
        assert torch.isin(shown, members).all()


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_class_aware_works_for_any_labels(labels: list[int], seed: int) -> None:
    targets = torch.tensor(labels, dtype=torch.int64)
    order = class_aware_order(targets, torch.Generator().manual_seed(seed))
    assert order.shape == targets.shape
    for label in set(labels):
        members = labels.count(label)
        shown = order[targets[order] == label]
        repeats = shown.bincount()
        assert len(shown) == 0 or repeats.max() == -(-len(shown) // members)


def test_with_sampler_joins_the_groups() -> None:
    loader = TensorBatches(*numbered(14), groups=groups([(10, 4), (4, 3)]), **generators())
    aware = loader.with_sampler("class_aware")
    assert aware.batch_size == 7 and aware.num_images == 14 and len(aware) == 2
    assert len(numbers(list(aware))[0]) == 7
    assert sorted(flat(numbers(list(aware.with_sampler("shuffle", 5))))) == list(range(14))


def test_channels_last_is_a_memory_format() -> None:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    for augmentation in (None, build("crop-flip", (3, 8, 8), (0.5,) * 3, (0.2,) * 3, train=True)):
        loader = TensorBatches(
            images, torch.zeros(4).long(), batch_size=4, augmentation=augmentation, channels_last=True
        )
        (batch,) = list(loader)
        assert batch[0].is_contiguous(memory_format=torch.channels_last) and batch[0].shape == (4, 3, 8, 8)


def test_drop_last_with_fewer_images_than_a_batch_gives_none() -> None:
    assert list(TensorBatches(*numbered(3), batch_size=4, drop_last=True)) == []


def test_image_tensors_are_a_torch_dataset() -> None:
    images, targets = numbered(6)
    dataset = ImageTensors(images, targets.tolist())
    image, label = dataset[5]
    assert len(dataset) == 6 and torch.equal(image, images[5]) and label == 1 and type(label) is int
    assert dataset.images is images
    with pytest.raises(UserError, match="as many labels"):
        ImageTensors(images, targets[:2])
    with pytest.raises(UserError, match="uint8"):
        ImageTensors(images.float(), targets)


def test_wrong_arguments_are_refused() -> None:
    images, targets = numbered(6)
    with pytest.raises(UserError, match="either batch_size or groups"):
        TensorBatches(images, targets)
    with pytest.raises(UserError, match="at least 1"):
        TensorBatches(images, targets, batch_size=0)
    with pytest.raises(UserError, match="one length"):
        TensorBatches(images, targets[:3], batch_size=2)
    with pytest.raises(UserError, match="class_aware"):
        TensorBatches(images, targets, groups=groups([(3, 1), (3, 1)]), sampler="class_aware")
    with pytest.raises(UserError, match="choose shuffle"):
        TensorBatches(images, targets, batch_size=2, sampler="random")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="termination"):
        TensorBatches(images, targets, batch_size=2, termination=1)
