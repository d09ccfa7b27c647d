"""Pictures that are read when asked for give the batches of the tensor they stand for, to the bit."""

from __future__ import annotations

import pickle
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from avalanche.benchmarks.utils import as_classification_dataset
from torch.utils.data import DataLoader

from incrlt.data.augment import build
from incrlt.data.avalanche import convert
from incrlt.data.stores import AHEAD, JoinedPictures, MappedPictures, PictureStore, StreamedPictures
from incrlt.data.tensors import Group, ImageTensors, TensorBatches
from incrlt.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 3, 9, 9), dtype=np.uint8)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def decode(row: int) -> np.ndarray:
    return PIXELS[row]


def streamed(workers: int) -> StreamedPictures:
    return StreamedPictures(range(60), (3, 9, 9), decode, workers)


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def in_file(workers: int) -> MappedPictures:
    """The pictures behind three that are not asked for."""
    file = Path(tempfile.mkstemp(suffix=".pixels")[1])
    file.write_bytes(bytes(3 * PIXELS[0].size) + PIXELS.tobytes())
    return MappedPictures(file, range(3, 63), (3, 9, 9), workers)


def joined() -> JoinedPictures:
    tail = torch.from_numpy(PIXELS[40:])
    return JoinedPictures([(streamed(2), np.arange(40)), (tail, np.arange(20))])


STORES = {
    "streamed": lambda: streamed(0),
    "streamed by two": lambda: streamed(2),
    "mapped": lambda: in_file(0),
    "mapped, read by two": lambda: in_file(2),
    "joined": joined,
}


def batches(images, **options) -> TensorBatches:
    made = {
        "groups": [Group(torch.arange(0, 60, 2), 7), Group(torch.arange(1, 30, 2), 3)],
        "oversample_small": True,
        "rows": torch.arange(59, -1, -1),
        "augmentation": build("simclr", (3, 9, 9), MEAN, STD, True),
        "permutation_generator": torch.Generator().manual_seed(0),
        "augmentation_generator": torch.Generator().manual_seed(1),
    }
    return TensorBatches(images, torch.arange(60) % 4, **made | options)


def epoch(loader: TensorBatches) -> list[torch.Tensor]:
    """Two epochs, with a second view of every batch."""
    torch.manual_seed(0)  # loaders in order have no generators of their own
    shown = []
    for _ in range(2):
        for images, labels in loader:
            shown += [images, labels, loader.second_view("crop-flip")]
    return shown


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda loader: loader, id="groups"),
        pytest.param(lambda loader: loader.with_sampler("class_aware", 8), id="class-aware"),
        pytest.param(lambda loader: loader.in_order(13), id="in order"),
    ],
)
def test_batches_and_second_views_are_those_of_the_tensor(name, change):
    expected = epoch(change(batches(torch.from_numpy(PIXELS))))
    found = epoch(change(batches(STORES[name]())))
    assert len(found) == len(expected)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", STORES)
def test_rows_are_picked_as_from_a_tensor(name):
    store, tensor = STORES[name](), torch.from_numpy(PIXELS)
    assert store.shape == tensor.shape and len(store) == 60 and store.numel() == tensor.numel()
    mask = torch.arange(60) % 7 == 0
    for key in (slice(3, 40, 5), [5, 5, 1], np.array([59, 0]), torch.tensor([2, 1]), mask, mask.numpy()):
        assert torch.equal(store[key], tensor[key])
    assert torch.equal(store[7], tensor[7]) and torch.equal(store[-1], tensor[-1])
    assert torch.equal(torch.stack(list(store)), tensor)
    assert torch.equal(pickle.loads(pickle.dumps(store))[:], tensor)
    with pytest.raises(IndexError):
        store[60]


@pytest.mark.parametrize("name", STORES)
def test_a_loader_of_avalanche_is_cut_from_a_store(name):
    """Half the samples of two stored data sets, as when exemplars of another stream join new pictures."""

    def loader(images) -> TensorBatches:
        transform = build("crop-flip", (3, 9, 9), MEAN, STD, True)
        parts = [
            as_classification_dataset(ImageTensors(own, torch.arange(60) % 4), transform_groups=groups)
            for own in (images, torch.from_numpy(255 - PIXELS))
            for groups in [{"train": (transform, None), "eval": (transform, None)}]
        ]
        whole = parts[0].subset(range(0, 60, 2)).concat(parts[1].subset(range(10)))
        plain = DataLoader(whole, 8, shuffle=True, collate_fn=whole.collate_fn)
        return convert(plain, "cpu", torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))

    store = loader(STORES[name]())
    assert isinstance(store.images, PictureStore)
    for ours, theirs in zip(store, loader(torch.from_numpy(PIXELS)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_no_more_is_read_than_a_few_batches_ahead():
    seen: list[int] = []

    def watched(row: int) -> np.ndarray:
        seen.append(row)
        return PIXELS[row]

    reader = StreamedPictures(range(60), (3, 9, 9), watched, 2).read_ahead([np.arange(6)] * 9)
    for used in range(1, 10):
        next(reader)
        assert len(seen) <= 6 * min(9, used + AHEAD)
    assert len(seen) == 54


def test_workers_end_with_the_epoch_even_one_that_is_left_half_way():
    def workers() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("incrlt-pictures")]

    reader = iter(batches(streamed(2)))
    next(reader)
    assert workers()
    reader.close()
    assert not workers()
    list(batches(streamed(2)))
    assert not workers()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_is_gone_stops_the_epoch_with_its_sentence(workers):
    def lost(row: int) -> np.ndarray:
        raise UserError(f"the picture {row} is gone")

    with pytest.raises(UserError, match="is gone"):
        list(batches(StreamedPictures(range(60), (3, 9, 9), lost, workers)))
