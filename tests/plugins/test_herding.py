"""Herding against arrays of the official codes, a plain loop, and its invariants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from incrlt.errors import UserError
from incrlt.plugins.herding import herding

GOLDEN = [
    ("lucir", "lucir_herding_main"),
    ("lucir", "lucir_herding_nonneg"),  # takes images again
    ("lucir", "lucir_herding_few"),  # 12 images, 25 steps
    ("lucir", "lucir_herding_short"),  # 20 wanted, 12 there
    ("long-tailed-cil", "ltcil_herding_main"),
    ("long-tailed-cil", "ltcil_herding_few"),
]


@pytest.mark.parametrize(("flavor", "case"), GOLDEN)
def test_order_is_the_official_one(golden, flavor, case):
    arrays = golden(case)
    (order,) = herding([torch.from_numpy(arrays["features"])], 20, flavor)
    assert order.tolist() == arrays["order"].tolist()


@pytest.mark.parametrize("flavor", ["lucir", "long-tailed-cil"])
def test_classes_in_one_batch_do_not_disturb_each_other(golden, flavor):
    """All golden classes of one width at once, among others of other sizes, give the golden orders."""
    cases = {
        "lucir": ["lucir_herding_main", "lucir_herding_short"],
        "long-tailed-cil": ["ltcil_herding_main"],
    }
    arrays = [golden(case) for case in cases[flavor]]
    noise = torch.randn(150, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    classes = [torch.from_numpy(array["features"]) for array in arrays]
    mixed = [noise, *classes, noise[:1], noise[:9], noise[:0], noise[:130]]
    orders = herding(mixed, 20, flavor)
    for array, order in zip(arrays, orders[1:], strict=False):
        assert order.tolist() == array["order"].tolist()
    assert [len(order) for order in orders[-4:]] == [1, 9, 0, 20]


def plain_lucir(features: np.ndarray, k: int) -> list[int]:
    """LUCIR's rule as a loop over one class (from the description in reference/methods.md 1.8)."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean = unit.mean(0)
    direction, picks = mean.copy(), []
    for _ in range(1000):
        best = int(np.argmax(unit @ direction))
        if best not in picks:
            picks.append(best)
        if len(picks) == min(k, len(unit)):
            break
        direction = direction + mean - unit[best]
    return picks


def plain_nearest_mean(features: np.ndarray, k: int) -> list[int]:
    """Take the image that brings the mean of the taken ones nearest to the class mean, without repeats."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean, picks = unit.mean(0), []
    for _ in range(min(k, len(unit))):
        distance = [
            np.inf if i in picks else np.linalg.norm(mean - unit[[*picks, i]].mean(0))
            for i in range(len(unit))
        ]
        picks.append(int(np.argmin(distance)))
    return picks


@pytest.mark.parametrize(
    ("flavor", "plain"), [("lucir", plain_lucir), ("long-tailed-cil", plain_nearest_mean)]
)
def test_batched_equals_plain_loops(flavor, plain):
    generator = np.random.default_rng(3)
    classes = [generator.normal(size=(n, 7)) for n in (40, 33, 5, 3, 17, 64, 65)]
    takes = [10, 33, 5, 1, 16, 20, 0]
    orders = herding([torch.from_numpy(features) for features in classes], takes, flavor)
    expected = [plain(features, take) if take else [] for features, take in zip(classes, takes, strict=True)]
    assert [order.tolist() for order in orders] == expected


@pytest.mark.parametrize("flavor", ["lucir", "long-tailed-cil"])
def test_ties_go_to_the_lowest_index(flavor):
    """Two images are equally near to their mean; so are copies. Rounding must not choose."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        pair = torch.randn(2, 33, generator=generator)
        copies = torch.randn(1, 33, generator=generator).expand(11, 33)
        first, second = herding([pair, copies], 3, flavor)
        assert first.tolist() == [0, 1]
        assert second.tolist() == [0, 1, 2]


@pytest.mark.parametrize("flavor", ["lucir", "long-tailed-cil"])
def test_all_zero_features_and_single_images_are_ranked(flavor):
    orders = herding([torch.zeros(3, 4), torch.ones(1, 4)], 5, flavor)
    assert [order.tolist() for order in orders] == [[0, 1, 2], [0]]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    k=st.integers(0, 35),
    flavor=st.sampled_from(["lucir", "long-tailed-cil"]),
    seed=st.integers(0, 1000),
)
def test_properties(sizes, k, flavor, seed):
    generator = torch.Generator().manual_seed(seed)
    classes = [torch.randn(size, 5, generator=generator) for size in sizes]
    orders = herding(classes, k, flavor)
    for size, order in zip(sizes, orders, strict=True):
        assert len(order) == min(size, k)
        assert len(set(order.tolist())) == len(order)
        assert all(0 <= index < size for index in order.tolist())
    shorter = herding([3.0 * features for features in classes], k // 2, flavor)  # length of features is moot
    for order, prefix in zip(orders, shorter, strict=True):
        assert prefix.tolist() == order[: k // 2].tolist()


def test_wrong_arguments_are_explained():
    with pytest.raises(UserError, match="Did you mean 'lucir'"):
        herding([torch.ones(2, 2)], 1, "lucirr")
    with pytest.raises(UserError, match="one number or one per class"):
        herding([torch.ones(2, 2)], [1, 2])
