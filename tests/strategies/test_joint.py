"""The upper bound knows images by what they are: streams restart, experiences are cut, classes come again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import toy
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import as_classification_dataset

from incrlt.errors import UserError
from incrlt.strategies import Joint


def stream_of(*labels, per_class=4):
    """Experiences with these classes, numbered from 0 as in any stream."""
    data = [as_classification_dataset(toy.floats(True, per_class, part)) for part in labels]
    return benchmark_from_datasets(train=data).train_stream


def trained(experiences):
    """Images per epoch of each experience."""
    images = []
    strategy = toy.make(Joint, memory=0, train_epochs=1)
    strategy.on_epoch_end = lambda s: images.append(s.epoch_images)
    toy.train(strategy, experiences)
    return strategy, images


def test_streams_that_restart_their_numbers():
    """Before: the second stream's first experience took the place of the first one's, [8, 16, 16, 16]."""
    strategy, images = trained([*stream_of((0, 1), (2, 3)), *stream_of((4, 5), (6, 7))])
    assert images == [8, 16, 24, 32]
    assert strategy.class_counts.tolist() == [4] * 8


def test_one_experience_cut_into_many_and_one_that_comes_again():
    parts = list(split_online_stream(stream_of((0, 1)), experience_size=3, shuffle=False))
    assert trained(parts)[1] == [3, 6, 8]
    first, second = stream_of((0, 1), (2, 3))
    assert trained([first, second, first, second])[1] == [8, 16, 16, 16]


def test_a_resumed_run_has_the_images_of_all_streams():
    experiences = [*stream_of((0, 1)), *stream_of((2, 3)), *stream_of((4, 5))]
    strategy, _ = trained(experiences[:2])
    again = toy.make(Joint, memory=0, train_epochs=1)
    again.load_state_dict(strategy.state_dict(trained=True), experiences)
    again.train(experiences[2])
    assert again.class_counts.tolist() == [4] * 6


def named(stream, names):
    stream.benchmark = SimpleNamespace(class_names=names)
    return stream[0]


def test_one_label_with_two_names_is_refused_by_strategy_and_network():
    first, second = (
        named(stream_of((0, 1)), ["cat", "dog"]),
        named(stream_of((1, 2)), ["cat", "truck", "ship"]),
    )
    strategy = trained([first])[0]
    assert strategy.model.class_names == {0: "cat", 1: "dog"}
    with pytest.raises(UserError, match=r"label 1 is 'dog' .* 'truck' in this experience"):
        strategy.train(second)
    fresh = toy.make(Joint, memory=0)
    fresh.model.load_state_dict(strategy.model.state_dict())
    with pytest.raises(UserError, match=r"label 1 is 'dog' .* 'truck'"):
        fresh.train(second)
