"""Pictures from Python make the benchmark that the same pictures in a folder make."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from incrlt.benchmarks import folder_lt, from_dataset
from incrlt.errors import UserError

NAMES = ("swan", "heron", "coot")


def pictures(counts, first=0):
    labels = [label for label, number in enumerate(counts) for _ in range(number)]
    random = np.random.default_rng(first)
    return random.integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8), labels


TRAIN, TEST = pictures((3, 9, 5)), pictures((2, 2, 2), first=1)


class Own(torch.utils.data.Dataset):
    classes = NAMES

    def __init__(self, part):
        self.part = part

    def __len__(self):
        return len(self.part[1])

    def __getitem__(self, index):
        return Image.fromarray(self.part[0][index]), self.part[1][index]


def made(train, test, **options):
    return from_dataset(train, test, "lfs-3", augmentation="none", **options)


def test_arrays_data_sets_and_folders_make_the_same_benchmark(tmp_path):
    for part, (images, labels) in (("train", TRAIN), ("test", TEST)):
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            (tmp_path / part / NAMES[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / part / NAMES[label] / f"{number:03}.png")
    usual = folder_lt(tmp_path, "lfs-3", image_size=8, augmentation="none")
    by_arrays = made(TRAIN, TEST, names=NAMES)
    by_dataset = made(Own(TRAIN), Own(TEST), image_size=8)
    for found in (by_arrays, by_dataset):
        assert found.class_names == usual.class_names
        assert found.protocol.counts.tolist() == usual.protocol.counts.tolist()
        for ours, theirs in zip(found.train_stream, usual.train_stream, strict=True):
            assert torch.equal(ours.dataset[0][0], theirs.dataset[0][0])
    assert by_arrays.protocol.hash == by_dataset.protocol.hash
    assert made((TRAIN[0][:-1], TRAIN[1][:-1]), TEST, names=NAMES).protocol.hash != by_arrays.protocol.hash


def test_a_tail_can_be_cut():
    even = pictures((8, 8, 8))
    assert sorted(made(even, TEST, names=NAMES, imbalance_ratio=4).protocol.counts.tolist()) == [2, 4, 8]


@pytest.mark.parametrize(
    ("train", "options", "said"),
    [
        ((TRAIN[0] / 255.0, TRAIN[1]), {}, "give uint8, 0 to 255"),
        ((TRAIN[0], TRAIN[1][:-1]), {}, "17 pictures and 16 labels"),
        ((TRAIN[0], TRAIN[1]), {"names": ("swan", "heron")}, "the label 2 has no name: names has 2"),
        ((TRAIN[0][:12], TRAIN[1][:12]), {}, "test has pictures of 2 and train has none"),
        ([1, 2], {}, "must be pairs of picture and label; number 0 is a int"),
    ],
)
def test_what_cannot_be_used_is_said(train, options, said):
    with pytest.raises(UserError, match=said):
        made(train, TEST, **options)
