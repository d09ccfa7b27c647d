"""The benchmark that comes out is an ordinary Avalanche one with exactly the chosen images in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from incrlt import benchmarks
from incrlt.benchmarks import datasets, streams
from incrlt.benchmarks.identity import class_names
from incrlt.benchmarks.protocols import Protocol, resolve
from incrlt.data import augment
from incrlt.data.tensors import ImageTensors
from incrlt.errors import UserError


@pytest.fixture(scope="module")
def data() -> datasets.ImageData:
    return datasets.load("digits")


def normalised(data, images):
    transform = augment.build("none", tuple(images.shape[1:]), data.mean, data.std, train=False)
    return sorted(map(tuple, transform(images).flatten(1).tolist()))


@pytest.mark.parametrize("rule", ["none", "long-tailed-cil"])
def test_streams_hold_the_chosen_images(data, rule):
    protocol = Protocol.named("lfh-shuffled-5", "digits", imbalance_ratio=10, holdout=rule)
    resolved = resolve(protocol, data.train_labels.numpy())
    benchmark = streams.build(data, resolved)
    assert benchmark.protocol is resolved
    first = 0
    for t, experience in enumerate(benchmark.train_stream):
        size = protocol.classes_per_experience[t]
        assert sorted(experience.classes_in_this_experience) == list(range(first, first + size))
        dataset = experience.dataset.eval()
        images = torch.stack([dataset[i][0] for i in range(len(dataset))])
        expected = data.train_images[resolved.train_indices[t]]
        assert sorted(map(tuple, images.flatten(1).tolist())) == normalised(data, expected)
        counts = np.bincount(np.array(list(experience.dataset.targets)), minlength=10)
        np.testing.assert_array_equal(counts[first : first + size], resolved.counts[first : first + size])
        first += size


def test_labels_are_arrival_positions(data):
    benchmark = streams.build(data, Protocol.named("lfh-shuffled-5", "digits", imbalance_ratio=10))
    order = benchmark.protocol.protocol.class_order
    assert benchmark.class_names == tuple(str(c) for c in order)
    for experience in benchmark.test_stream:
        dataset = experience.dataset
        for label in experience.classes_in_this_experience:
            mine = [i for i in range(len(dataset)) if dataset.targets[i] == label]
            images = torch.stack([dataset[i][0] for i in mine])
            expected = data.test_images[data.test_labels == order[label]]
            assert sorted(map(tuple, images.flatten(1).tolist())) == normalised(data, expected)


def test_the_test_stream_is_whole_and_task_labels_are_zero(data):
    benchmark = benchmarks.digits_lt()
    assert sum(len(e.dataset) for e in benchmark.test_stream) == 497
    assert {e.task_label for e in (*benchmark.train_stream, *benchmark.test_stream)} == {0}
    assert benchmark.n_experiences == 6
    assert len(benchmark.groups) == 10


def test_training_images_are_augmented_and_float(data):
    benchmark = streams.build(data, Protocol.named("lfs-2", "digits", imbalance_ratio=10))
    dataset = benchmark.train_stream[0].dataset
    image, label, task = dataset[0]
    assert image.dtype == torch.float32
    assert image.shape == (1, 8, 8)
    assert (int(label), task) == (int(dataset.targets[0]), 0)
    draws = {tuple(dataset[0][0].flatten().tolist()) for _ in range(30)}
    assert len(draws) > 1, "shift draws anew"


def test_digits_free_form_and_options():
    benchmark = benchmarks.digits_lt(
        base_classes=4, increment=2, order="ordered", augmentation="none", memory={"per_class": 3}
    )
    rule = benchmark.protocol.protocol
    assert rule.classes_per_experience == (4, 2, 2, 2)
    assert rule.augmentation == "none"
    assert rule.memory == {"per_class": 3}
    assert benchmark.protocol.counts.tolist() == [130, 100, 77, 60, 46, 36, 28, 21, 16, 13]


def test_an_augmentation_of_ones_own_changes_the_hash(data):
    protocol = Protocol.named("lfs-2", "digits", imbalance_ratio=10)
    own = augment.build("none", (1, 8, 8), data.mean, data.std, train=True)
    benchmark = streams.build(data, protocol, augmentation=own)
    assert benchmark.protocol.hash != streams.build(data, protocol).protocol.hash
    assert benchmark.protocol.protocol.augmentation == repr(own)


def test_a_protocol_object_decides_everything():
    rule = Protocol.free("digits", 4, 3, imbalance_ratio=5)
    assert benchmarks.digits_lt(rule, imbalance_ratio=77).protocol.protocol is rule


def test_the_wrong_data_are_refused(data):
    with pytest.raises(UserError, match="is for cifar10, but the data are digits"):
        streams.build(data, Protocol.named("lfs-2", "cifar10"))


def test_bad_protocol_is_refused_before_data_are_read(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'lfh-shuffled-10'"):
        benchmarks.cifar100_lt("lfh-shufled-10", root=tmp_path)


def test_cifar10_asks_for_its_files(tmp_path):
    with pytest.raises(UserError, match=r"data_batch_1 is missing"):
        benchmarks.cifar10_lt(root=tmp_path)


def test_cifar100(cifar100_root):
    benchmark = benchmarks.cifar100_lt("lfh-shuffled-10", imbalance_ratio=100, seed=0, root=cifar100_root)
    sizes = [len(experience.dataset) for experience in benchmark.train_stream]
    assert sizes == [5244, 378, 513, 519, 803, 671, 679, 530, 964, 202, 344]
    assert [len(e.dataset) for e in benchmark.test_stream] == [5000] + [500] * 10


def test_images_are_held_once_where_most_are_kept():
    """Before: the stream's copy stood beside the data set through the whole run."""
    from incrlt.benchmarks import datasets
    from incrlt.data.avalanche import stored_parts

    digits = datasets.load("digits")
    for ratio, shared in ((1, True), (1.5, True), (10, False)):
        made = streams.build(digits, Protocol.named("lfh-shuffled-5", "digits", imbalance_ratio=ratio))
        for experience, chosen in zip(made.train_stream, made.protocol.train_indices, strict=True):
            [(stored, rows, _, _)] = stored_parts(experience.dataset)
            assert (stored.images.data_ptr() == digits.train_images.data_ptr()) is shared
            assert (stored.images[rows] == digits.train_images[chosen]).all()


def test_experiences_given_as_they_are_know_the_names_of_their_classes():
    pictures = ImageTensors(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), [0, 2, 2])
    benchmark = streams.of_parts([pictures], pictures, ("swan", "coot", "teal"), "none", (0.5,), (0.5,))
    assert class_names(benchmark.train_stream[0]) == {0: "swan", 2: "teal"}
    assert class_names(benchmark.test_stream[0]) == {0: "swan", 2: "teal"}
