"""The published hold-out against its golden lists and against a slow list-based account of it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from incrlt.benchmarks import holdout
from incrlt.benchmarks.protocols import Protocol, resolve

GOLDEN = {
    "lfh-shuffled-5": "data_ltcil_cifar100_lt_t6_first50_seed0",
    "lfh-ordered-5": "data_ltcil_cifar100_ltio_t6_first50_seed0",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_lists_before_and_after_are_the_published_ones(golden, cifar100_labels, name):
    expected = golden(GOLDEN[name])
    before = resolve(Protocol.named(name, "cifar100"), cifar100_labels)
    after = resolve(Protocol.named(name, "cifar100", holdout="long-tailed-cil"), cifar100_labels)
    np.testing.assert_array_equal(np.concatenate(before.train_indices), expected["before_train_indices"])
    np.testing.assert_array_equal(np.concatenate(after.train_indices), expected["after_train_indices"])
    np.testing.assert_array_equal(np.concatenate(after.holdout_indices), expected["holdout_indices"])
    np.testing.assert_array_equal(after.counts, expected["after_counts_per_class_position"])
    np.testing.assert_array_equal(after.counts_before_holdout, expected["before_counts_per_class_position"])
    sizes = [len(indices) for indices in after.holdout_indices]
    np.testing.assert_array_equal(sizes, expected["holdout_counts_per_task"])


@pytest.mark.parametrize("name", GOLDEN)
def test_counts_need_no_data(golden, name):
    expected = golden(GOLDEN[name])
    plan = Protocol.named(name, "cifar100", holdout="long-tailed-cil").plan()
    assert [step["images"] for step in plan] == expected["after_train_counts_per_task"].tolist()
    assert [step["held_out"] for step in plan] == expected["holdout_counts_per_task"].tolist()


def by_lists(positions, classes, generator):
    """What the published loader does, image by image, on ``(place, class)`` pairs."""
    images, held = list(enumerate(positions)), []
    for position in classes:
        own = [place for place, (_, label) in enumerate(images) if label == position]
        number = round(len(own) / 10)  # half to even, as numpy rounds
        picks = sorted(generator.sample(own, number), reverse=True) if number else [0]
        held += [images.pop(pick) for pick in picks]
    return [place for place, _ in images], [place for place, _ in held]


@pytest.mark.parametrize(
    "name", ["lfh-shuffled-10", "lfh-ordered-10", "lfs-10", "lfs-20", "lfs-ordered-10", "lfs-ordered-20"]
)
def test_other_layouts_follow_the_same_rule(name):
    """Eleven experiences included: no class runs dry there, so the guard against that stays idle."""
    labels = np.repeat(np.arange(100), 500)
    plain = resolve(Protocol.named(name, "cifar100"), labels)
    after = resolve(Protocol.named(name, "cifar100", holdout="long-tailed-cil"), labels)
    position_of = np.argsort(plain.protocol.class_order)
    generator = random.Random(0)
    for t, classes in enumerate(plain.protocol.ranges):
        images = plain.train_indices[t]
        left, held = by_lists(position_of[labels[images]].tolist(), classes, generator)
        np.testing.assert_array_equal(after.train_indices[t], images[left])
        np.testing.assert_array_equal(after.holdout_indices[t], images[held])


def test_the_defect_is_kept():
    """Ordered: class 90 pays for the rarest classes of its task, 7 images become 2."""
    resolved = resolve(
        Protocol.named("lfh-ordered-5", "cifar100", holdout="long-tailed-cil"), np.repeat(np.arange(100), 500)
    )
    assert (resolved.counts_before_holdout[90], resolved.counts[90]) == (7, 2)


@given(
    st.lists(st.lists(st.integers(1, 25), min_size=1, max_size=6), min_size=1, max_size=4), st.integers(0, 99)
)
def test_every_class_keeps_an_image_and_nothing_is_lost(sizes, seed):
    ends = np.cumsum([len(own) for own in sizes]).tolist()
    ranges = [range(end - len(own), end) for own, end in zip(sizes, ends, strict=True)]
    lists = [np.repeat(np.array(r), own) for r, own in zip(ranges, sizes, strict=True)]
    for positions, (kept, held) in zip(
        lists, holdout.split_off("long-tailed-cil", lists, ranges, seed), strict=True
    ):
        assert set(positions[kept]) == set(positions)
        np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(len(positions)))
        assert (np.diff(kept) > 0).all()


def test_global_random_states_stay_untouched():
    random.seed(3)
    expected = random.Random(3).random()
    holdout.split_off("long-tailed-cil", [np.repeat([0, 1], 30)], [range(2)], 0)
    assert random.random() == expected
