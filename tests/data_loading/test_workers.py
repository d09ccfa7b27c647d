"""Kept loaders are closed, the cache has one limit, and a batch of one image is told apart."""

from __future__ import annotations

import multiprocessing
import pickle

import pytest
import torch
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.benchmarks.utils.data_loader import SingleDatasetDataLoader
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import CIFAR100

from incrlt.data.stored import NotExactError, TensorCache
from incrlt.data.tensors import ImageTensors, TensorBatches
from incrlt.data.workers import close_loader, last_batch, lone_image, no_lone_image


class TestCloseLoader:
    def test_persistent_workers_end_and_the_loader_can_be_saved_and_used_again(self):
        loader = DataLoader(
            TensorDataset(torch.arange(6.0)), batch_size=2, num_workers=1, persistent_workers=True,
            multiprocessing_context="fork" if "fork" in multiprocessing.get_all_start_methods() else None,
        )  # fmt: skip
        before = len(multiprocessing.active_children())
        assert len(list(loader)) == 3
        assert len(multiprocessing.active_children()) == before + 1
        with pytest.raises(NotImplementedError):
            pickle.dumps(loader)
        close_loader([loader])
        assert len(multiprocessing.active_children()) == before
        close_loader(loader)
        assert len(pickle.loads(pickle.dumps(loader))) == 3

    def test_loaders_inside_avalanches_are_found_and_others_left_alone(self):
        data = as_classification_dataset(ImageTensors(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), [0] * 4))
        outer = SingleDatasetDataLoader(data, batch_size=2)
        outer.kept = DataLoader(data, batch_size=2)
        stopped = []
        outer.kept._iterator = type("Iterator", (), {"_shutdown_workers": lambda self: stopped.append(1)})()
        close_loader(outer)
        assert stopped == [1] and outer.kept._iterator is None
        for other in (
            None,
            3,
            "text",
            TensorBatches(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), batch_size=1),
        ):
            close_loader(other)


def files(count, side=4):
    """A packaged data set whose images lie in files, or would."""
    made = CIFAR100.__new__(CIFAR100)
    made.data = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8).numpy()
    made.targets, made.transform, made.target_transform, made.transforms = [0] * count, None, None, None
    return made


class TestCache:
    def test_one_limit_holds_for_all_and_the_least_recently_used_leaves(self, monkeypatch):
        """Before: each data set had the limit to itself, and none ever left."""
        sets = [files(5) for _ in range(3)]
        rows, size = torch.arange(5).numpy(), 5 * 48
        read = []
        fetch = CIFAR100.__getitem__
        monkeypatch.setattr(
            CIFAR100, "__getitem__", lambda self, i: read.append(id(self.data)) or fetch(self, i)
        )
        cache = TensorCache("cpu", max_bytes=2 * size)
        for index in (0, 1, 0, 2):  # 1 leaves
            stored = cache.get(sets[index], rows)
            assert (stored.images.permute(0, 2, 3, 1).numpy() == sets[index].data).all()
            assert cache.held_bytes <= 2 * size
        read.clear()
        cache.get(sets[0], rows), cache.get(sets[2], rows)
        assert not read, "used last, and still here"
        cache.get(sets[1], rows)
        assert set(read) == {id(sets[1].data)}
        assert cache.held_bytes == 2 * size

    def test_what_one_loader_needs_at_once_must_fit_together(self):
        sets, rows = [files(5) for _ in range(3)], torch.arange(5).numpy()
        cache = TensorCache("cpu", max_bytes=2 * 5 * 48)
        assert len(cache.take([(sets[0], rows), (sets[1], rows), (sets[0], rows)])) == 3
        with pytest.raises(NotExactError, match="GiB"):
            cache.take([(part, rows) for part in sets])
        assert len(cache.take([(sets[2], rows), (sets[1], rows)])) == 2, "and works again afterwards"

    def test_tensors_on_the_device_cost_nothing(self):
        cache = TensorCache("cpu", max_bytes=0)
        own = ImageTensors(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), [0] * 4)
        assert cache.get(own, torch.arange(4).numpy()).images.data_ptr() == own.images.data_ptr()
        assert cache.held_bytes == 0
        copied = TensorCache("meta", max_bytes=15)  # any other device
        with pytest.raises(NotExactError, match="GiB"):
            copied.get(own, torch.arange(4).numpy())


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_last_batch_is_what_the_loader_gives(drop_last):
    for samples in range(1, 14):
        for size in range(1, 7):
            batches = list(DataLoader(torch.zeros(samples, 1), size, drop_last=drop_last))
            assert last_batch(samples, size, drop_last) == (len(batches[-1]) if batches else 0)


@pytest.mark.parametrize(
    ("samples", "size"), [(129, 128), (5, 2), (5, 4), (3, 2), (25, 2), (61, 3), (13, 12), (7, 1), (1, 8)]
)
def test_a_lone_image_is_explained(samples, size):
    assert lone_image(samples, size)
    text = str(no_lone_image(samples, size))
    assert f"batches of {size}" in text and (size == 1 or f"has {samples} image" in text)
    assert ("size (training.batch_size, train_mb_size) of 2 or more" in text) == (size == 1)
    if samples > 1 < size:
        better = int(text.split(") to ")[1].split(",")[0])
        assert not lone_image(samples, better)


def test_ours_keeps_a_last_batch_of_one_as_the_published_loaders_do():
    ours = TensorBatches(torch.zeros(5, 1), torch.zeros(5, dtype=torch.long), batch_size=2)
    assert [len(y) for _, y in ours] == [2, 2, 1]
