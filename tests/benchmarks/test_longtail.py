"""Counts against hand-made numbers, kept images against the lists of the official generators."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from incrlt.benchmarks import longtail
from incrlt.errors import UserError


@pytest.mark.parametrize("ratio", [100, 50, 10])
def test_exponential_counts_are_the_literatures(golden, ratio):
    counts = longtail.class_counts("exponential", 100, 500, ratio)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, golden("data_ldam_split")[f"IF{ratio}_rand0_counts"])


@pytest.mark.parametrize("ratio", [100, 50, 10])
def test_kept_images_are_ldams(golden, cifar100_labels, ratio):
    counts = longtail.class_counts("exponential", 100, 500, ratio)
    kept = longtail.choose_images(cifar100_labels, counts, seed=0)
    np.testing.assert_array_equal(kept, golden("data_ldam_split")[f"IF{ratio}_rand0_indices"])


def test_file_order_is_shikes(golden, cifar100_labels):
    counts = longtail.class_counts("exponential", 100, 500, 100)
    kept = longtail.choose_images(cifar100_labels, counts, seed=0, choice="file-order")
    np.testing.assert_array_equal(kept, golden("data_shike_split")["IF100_indices"])


def test_groups_of_cifar100_lt():
    names = longtail.groups(longtail.class_counts("exponential", 100, 500, 100))
    assert [names.count(name) for name in longtail.GROUPS] == [35, 35, 30]


def test_group_bounds():
    assert longtail.groups([101, 100, 20, 19, 1]) == ["many", "medium", "medium", "few", "few"]


def test_small_profiles_by_hand():
    assert longtail.class_counts("exponential", 3, 100, 100).tolist() == [100, 10, 1]
    assert longtail.class_counts("step", 4, 60, 20).tolist() == [60, 60, 3, 3]
    assert longtail.class_counts("step", 5, 60, 20).tolist() == [60, 60, 3, 3, 3]
    assert longtail.class_counts("pareto", 10, 100, 10).tolist() == [100, 50, 33, 25, 20, 16, 14, 12, 11, 10]
    assert longtail.class_counts("exponential", 1, 7, 100).tolist() == [7]
    assert longtail.class_counts("step", 1, 7, 100).tolist() == [7]
    assert longtail.class_counts("exponential", 3, 5, 1000).tolist() == [5, 1, 1]


profiles = st.sampled_from(sorted(longtail.PROFILES))


@given(profiles, st.integers(1, 60), st.integers(1, 600), st.floats(1, 1000))
def test_counts_fall_from_max_and_every_class_keeps_one(profile, num_classes, max_images, ratio):
    counts = longtail.class_counts(profile, num_classes, max_images, ratio)
    assert counts[0] == max_images
    assert (np.diff(counts) <= 0).all()
    assert counts[-1] >= 1
    if num_classes > 1:
        assert abs(counts[-1] - max(1, max_images / ratio)) <= 1


@given(profiles, st.integers(1, 60), st.integers(1, 600))
def test_ratio_one_is_balanced(profile, num_classes, max_images):
    assert set(longtail.class_counts(profile, num_classes, max_images, 1)) == {max_images}


@given(st.integers(2, 8), st.integers(1, 40), st.integers(0, 2**32 - 1), st.randoms())
@settings(max_examples=50)
def test_chosen_images_are_of_their_class_and_distinct(num_classes, max_images, seed, random):
    labels = [c for c in range(num_classes) for _ in range(max_images)]
    random.shuffle(labels)
    labels = np.array(labels)
    counts = longtail.class_counts("exponential", num_classes, max_images, 10)
    kept = longtail.choose_images(labels, counts, seed)
    assert len(set(kept.tolist())) == len(kept)
    np.testing.assert_array_equal(np.bincount(labels[kept], minlength=num_classes), counts)
    np.testing.assert_array_equal(labels[kept], np.repeat(np.arange(num_classes), counts))


def test_a_rarer_tail_keeps_a_subset(cifar100_labels):
    """The draw does not depend on the ratio, so the sets of ratios nest: a sweep compares like with like."""
    sets = [
        set(longtail.choose_images(cifar100_labels, longtail.class_counts("exponential", 100, 500, r), 0))
        for r in (100, 50, 10)
    ]
    assert sets[0] < sets[1] < sets[2]


def test_choosing_leaves_the_global_generator_alone():
    np.random.seed(5)
    expected = np.random.RandomState(5).rand()
    longtail.choose_images(np.repeat([0, 1], 10), np.array([10, 2]), seed=3)
    assert np.random.rand() == expected


@pytest.mark.parametrize("ratio", [0.01, 0, -3, float("nan"), float("inf"), True, "100", None])
def test_ratios_below_one_and_nonsense_are_refused(ratio):
    with pytest.raises(UserError, match="must be a number >= 1"):
        longtail.class_counts("exponential", 10, 100, ratio)


def test_an_inverted_ratio_is_guessed():
    with pytest.raises(UserError, match=r"Did you mean 100\?"):
        longtail.class_counts("exponential", 10, 100, 0.01)


def test_bad_input_is_explained():
    with pytest.raises(UserError, match="Did you mean 'exponential'"):
        longtail.class_counts("exponental", 10, 100, 10)
    with pytest.raises(UserError, match="0 classes"):
        longtail.class_counts("step", 0, 100, 10)
    with pytest.raises(
        UserError, match="class 1 has 1 training images, but the long-tail profile asks for 2"
    ):
        longtail.choose_images([0, 0, 1], [2, 2], seed=0)
    with pytest.raises(UserError, match="labels run from 0 to 2"):
        longtail.choose_images([0, 1, 2], [1, 1], seed=0)
    with pytest.raises(UserError, match="Did you mean 'shuffled'"):
        longtail.choose_images([0, 1], [1, 1], seed=0, choice="shufled")
