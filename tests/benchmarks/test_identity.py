"""Pictures, data sets and classes are told apart by what they are."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from incrlt.benchmarks.identity import PastData, Pictures, check_names, class_names, contents, differ
from incrlt.data.tensors import ImageTensors
from incrlt.errors import UserError

RAMP = 6642605494078128955
"""blake2b, 8 bytes, of ``torch.uint8[1, 4, 4]``, a zero byte and the bytes 0 to 15."""


def images(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, 4, 4), dtype=torch.uint8, generator=generator)


def dataset(stored, transform=None):
    groups = {"train": (transform, None), "eval": (None, None)}
    return as_classification_dataset(stored, transform_groups=groups)


def stored(count=12, seed=0):
    return ImageTensors(images(count, seed), [index % 4 for index in range(count)])


class Own(Dataset):
    """A user's data set: of each sample the picture, or what makes one at each reading."""

    def __init__(self, pictures):
        self.pictures, self.targets = pictures, [0] * len(pictures)

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        picture = self.pictures[index]
        return picture() if callable(picture) else picture, 0


def double(image):
    return image * 2


class Table(TensorDataset):
    """Rows of a table, with the targets that Avalanche wants to see."""

    def __init__(self):
        self.targets = torch.zeros(3, dtype=torch.long)
        super().__init__(torch.eye(3), self.targets)


class TestPictures:
    def test_views_of_one_store_share_keys_and_copies_do_not(self):
        pictures, whole = Pictures(), dataset(stored())
        part = whole.subset([3, 5, 11])
        assert (pictures.keys(part) == pictures.keys(whole)[[3, 5, 11]]).all()
        assert (pictures.keys(whole.eval()) == pictures.keys(whole.train())).all()
        joined = part.concat(whole.subset([0]))
        assert (pictures.keys(joined) == pictures.keys(whole)[[3, 5, 11, 0]]).all()
        assert not set(pictures.keys(dataset(stored()))) & set(pictures.keys(whole))

    def test_another_transform_makes_another_picture(self):
        one = stored()
        plain, doubled = dataset(one), dataset(one, double)
        pictures = Pictures()
        assert not set(pictures.keys(plain)) & set(pictures.keys(doubled))
        assert not pictures.same(plain, doubled)

    def test_an_experience_is_the_same_however_often_it_is_fetched(self):
        train = ImageTensors(images(), [index % 4 for index in range(12)])
        benchmark = nc_benchmark(train, train, n_experiences=2, task_labels=False)
        stream, pictures = benchmark.train_stream, Pictures()
        assert pictures.same(stream[0].dataset, stream[:1][0].dataset)
        assert not pictures.same(stream[0].dataset, stream[1].dataset)

    def test_what_nobody_knows_has_keys_too(self):
        whole = as_classification_dataset(Own([torch.zeros(2)] * 3))
        assert len(set(Pictures().keys(whole))) == 3

    def test_keys_survive_a_pickle_with_their_data(self):
        whole, pictures = dataset(stored()), Pictures()
        keys = pictures.keys(whole.subset([2, 1]))
        again, data = pickle.loads(pickle.dumps((pictures, whole)))
        assert (again.keys(data)[[2, 1]] == keys).all()


class TestPastData:
    def test_every_picture_once_in_order_of_arrival(self):
        one, two = dataset(stored()), dataset(stored(seed=1))
        past = PastData([one, two])
        past.add(one)
        assert [len(part) for part in past.beside(dataset(stored(seed=2)))] == [12, 12]
        assert past.beside(one)[0].targets == two.targets
        assert len(past.beside(one)) == 1
        [rest, other] = past.beside(one.subset([0, 4]))
        assert [int(label) for label in rest.targets] == [
            one.targets[i] for i in range(12) if i not in (0, 4)
        ]
        assert len(other) == 12

    def test_one_experience_cut_into_many(self):
        one = dataset(stored())
        past = PastData([one.subset([0, 1, 2]), one.subset([2, 3])])
        found = past.beside(one.subset([5]))
        assert [len(part) for part in found] == [3, 1]


class TestContents:
    def test_content_is_the_picture_not_its_label_or_place(self):
        first = dataset(ImageTensors(images(), [0] * 12))
        second = dataset(ImageTensors(images().flip(0).contiguous(), [1] * 12))
        one, two = contents(first, np.arange(12)), contents(second, np.arange(12))
        assert one.tolist() == two.flip(0).tolist()
        assert len(set(one.tolist())) == 12
        assert contents(first, np.array([7, 2])).tolist() == one[[7, 2]].tolist()

    def test_the_number_of_a_picture_never_changes(self):
        """Saved states hold it: worked out once, on little-endian bytes, and kept."""
        ramp = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4)
        assert contents(dataset(ImageTensors(ramp, [0])), np.array([0])).tolist() == [RAMP]

    def test_tables_pictures_and_arrays(self):
        pictures = [Image.new("L", (3, 3), 7), np.ones((2, 2)), torch.ones(5)]
        found = contents(as_classification_dataset(Own(pictures)), np.arange(3)).tolist()
        assert len(set(found)) == 3 and 0 not in found
        table = as_classification_dataset(Table())
        assert len(set(contents(table, np.arange(3)).tolist())) == 3

    def test_own_augmentation_is_read_from_one_random_state_and_private_chance_is_unknown(self):
        private = torch.Generator().manual_seed(1)
        readings = [lambda: torch.rand(4) + np.random.rand(), lambda: torch.rand(4, generator=private)]
        torch.manual_seed(3)
        state = torch.get_rng_state()
        whole = as_classification_dataset(Own(readings))
        one, two = contents(whole, np.arange(2)), contents(whole, np.arange(2))
        assert one.tolist() == two.tolist()
        assert one[0] != 0 and one[1] == 0
        assert torch.equal(torch.get_rng_state(), state)


def benchmark_named(names, labels=(0, 1)):
    data = [ImageTensors(images(4), [labels[0], labels[0], labels[1], labels[1]])]
    made = benchmark_from_datasets(train=[as_classification_dataset(part) for part in data])
    stream = made.train_stream
    experience = stream[0]
    experience.origin_stream = SimpleNamespace(benchmark=SimpleNamespace(class_names=names))
    return experience


class TestNames:
    def test_a_label_with_two_names_is_refused_with_both(self):
        known = check_names({}, benchmark_named(["cat", "dog"]))
        assert known == {0: "cat", 1: "dog"}
        with pytest.raises(UserError, match=r"label 1 is 'dog' .* and 'truck' in this experience"):
            check_names(known, benchmark_named(("cat", "truck")))

    def test_names_of_other_classes_and_no_names_are_no_trouble(self):
        known = check_names({}, benchmark_named({0: "cat"}))
        assert known == {0: "cat"}
        assert check_names(known, benchmark_named({1: "dog"})) == {0: "cat", 1: "dog"}
        assert check_names(known, benchmark_named(None)) == known
        assert class_names(benchmark_named(["cat"], labels=(0, 5))) == {0: "cat"}

    def test_several_labels_are_counted(self):
        with pytest.raises(UserError, match=r"label 0 is 'a' here and 'b' there \(2 labels differ\)"):
            differ({0: "a", 1: "b"}, {0: "b", 1: "a"}, "here", "there")
