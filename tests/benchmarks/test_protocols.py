"""Splits, orders, the content hash, and what is said when something cannot be."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from incrlt.benchmarks import facts, protocols
from incrlt.benchmarks.protocols import Protocol, resolve
from incrlt.errors import UserError

IMAGES = {
    "lfh-shuffled-10": [5244, 378, 513, 519, 803, 671, 679, 530, 964, 202, 344],
    "lfh-ordered-10": [9901, 220, 174, 137, 110, 85, 67, 54, 41, 32, 26],
    "lfh-shuffled-5": [5244, 891, 1322, 1350, 1494, 546],
    "lfh-ordered-5": [9901, 394, 247, 152, 95, 58],
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_per_experience_are_the_published_ones(name):
    plan = Protocol.named(name, "cifar100").plan()
    assert [step["images"] for step in plan] == IMAGES[name]
    assert all(step["held_out"] == 0 for step in plan)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("lfh-shuffled-5", [50] + [10] * 5),
        ("lfh-shuffled-10", [50] + [5] * 10),
        ("lfh-ordered-5", [50] + [10] * 5),
        ("lfh-ordered-10", [50] + [5] * 10),
        ("lfs-10", [10] * 10),
        ("lfs-20", [5] * 20),
        ("lfs-ordered-10", [10] * 10),
        ("lfs-ordered-20", [5] * 20),
    ],
)
def test_named_splits(golden, name, sizes):
    protocol = Protocol.named(name, "cifar100")
    assert list(protocol.classes_per_experience) == sizes
    order = range(100) if "ordered" in name else golden("lucir_class_order")["order"]
    np.testing.assert_array_equal(protocol.class_order, order)
    assert name in protocols.NAMES


def test_the_same_ids_on_other_class_counts():
    assert Protocol.named("lfh-shuffled-5", "digits").classes_per_experience == (5, 1, 1, 1, 1, 1)
    assert Protocol.named("lfh-shuffled-5", "cifar10").classes_per_experience == (5, 1, 1, 1, 1, 1)
    food = Protocol.named("lfh-ordered-10", "food101", 101, max_images=750, augmentation="none")
    assert food.classes_per_experience == (51, *[5] * 10)
    assert Protocol.named("lfs-reverse-5", "digits").class_order == tuple(range(9, -1, -1))


def test_free_form():
    digits = Protocol.free("digits", 4, 2)
    assert digits.classes_per_experience == (4, 2, 2, 2)
    assert Protocol.free("cifar100", 0, 10).classes_per_experience == (10,) * 10
    assert Protocol.free("digits", 10, 1).classes_per_experience == (10,)
    assert Protocol.free("digits", 4, 2, "reverse").classes[0] == (9, 8, 7, 6)
    explicit = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    assert Protocol.free("digits", 4, 2, explicit).class_order == tuple(explicit)
    assert Protocol.free("digits", 4, 2, order_seed=7).class_order != digits.class_order


def test_memory_is_a_copy():
    memory = {"per_class": 20}
    protocol = Protocol.named("lfs-10", "cifar100", memory=memory)
    memory["per_class"] = 5
    assert protocol.memory == {"per_class": 20}


# ------------------------------------------------------------------------------------------ resolved


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.random.RandomState(2).permutation(np.repeat(np.arange(10), 130))


def digits(**rule) -> Protocol:
    return Protocol.named("lfh-shuffled-5", "digits", **{"imbalance_ratio": 10, **rule})


@given(
    st.sampled_from(["lfh-shuffled-5", "lfh-ordered-5", "lfh-reverse-1", "lfs-2", "lfs-ordered-10"]),
    st.sampled_from(["exponential", "step", "pareto"]),
    st.sampled_from([1, 5, 130, 1000]),
    st.sampled_from(["none", "long-tailed-cil"]),
    st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_every_resolved_protocol_is_sound(name, profile, ratio, rule, seed):
    labels = np.random.RandomState(2).permutation(np.repeat(np.arange(10), 130))
    resolved = resolve(
        Protocol.named(
            name,
            "digits",
            profile=profile,
            imbalance_ratio=ratio,
            holdout=rule,
            order_seed=seed,
            image_seed=seed,
        ),
        labels,
    )
    everything = np.concatenate([*resolved.train_indices, *resolved.holdout_indices])
    assert len(set(everything.tolist())) == len(everything), "no image is used twice"
    assert resolved.counts.min() >= 1, "every class keeps an image"
    for t, classes in enumerate(resolved.protocol.classes):
        assert set(labels[resolved.train_indices[t]]) == set(classes)
        assert set(labels[resolved.holdout_indices[t]]) <= set(classes)
    trained = labels[np.concatenate(resolved.train_indices)]
    by_class = np.bincount(trained, minlength=10)
    np.testing.assert_array_equal(by_class[list(resolved.protocol.class_order)], resolved.counts)
    # class id 0 is the head in every order
    head = resolved.protocol.class_order.index(0)
    assert resolved.counts_before_holdout[head] == resolved.counts_before_holdout.max() == 130
    plan = resolved.plan()
    assert plan == resolved.protocol.plan(), "the plan without data is the real one"
    assert sum(step["images"] for step in plan) == resolved.counts.sum()
    for step in plan:
        assert sum(step["images_by_group"].values()) == step["images"]
        assert sum(step["classes_by_group"].values()) == len(step["classes"])


def test_experience_of_class_and_groups(labels):
    resolved = resolve(digits(), labels)
    assert resolved.experience_of_class.tolist() == [0] * 5 + [1, 2, 3, 4, 5]
    assert resolved.counts_before_holdout[list(np.argsort(resolved.protocol.class_order))].tolist() == [
        130, 100, 77, 60, 46, 36, 28, 21, 16, 13,
    ]  # fmt: skip
    by_class_id = dict(zip(resolved.protocol.class_order, resolved.groups, strict=True))
    assert [by_class_id[c] for c in range(10)] == ["many"] + ["medium"] * 7 + ["few"] * 2


def test_description_is_plain_json(labels):
    resolved = resolve(digits(holdout="long-tailed-cil"), labels)
    description = resolved.describe()
    assert json.loads(json.dumps(description)) == description
    assert description["hash"] == resolved.hash == resolved.digest[:12]
    assert description["class_order"] == list(resolved.protocol.class_order)


# ---------------------------------------------------------------------------------------------- hash


DIFFERENT = [
    {"memory": {"per_class": 5}},
    {"memory": {"total": 20}},
    {"augmentation": "none"},
    {"image_seed": 1},
    {"image_choice": "file-order"},
    {"order_seed": 1994},
    {"imbalance_ratio": 20},
    {"profile": "step"},
    {"holdout": "long-tailed-cil"},
]


@pytest.mark.parametrize("change", DIFFERENT, ids=lambda change: next(iter(change)))
def test_hash_changes_with_content(labels, change):
    assert resolve(digits(**change), labels).hash != resolve(digits(), labels).hash
    assert digits(**change).rule_hash != digits().rule_hash


def test_hash_changes_with_order_split_and_dataset(labels):
    base = resolve(Protocol.free("digits", 4, 2, "ordered", imbalance_ratio=10), labels)
    swapped = [1, 0, *range(2, 10)]  # the same images in the same experiences, in another order
    others = [
        Protocol.free("digits", 4, 2, swapped, imbalance_ratio=10),
        Protocol.free("digits", 4, 3, "ordered", imbalance_ratio=10),
        Protocol.free("mine", 4, 2, "ordered", 10, max_images=130, imbalance_ratio=10, augmentation="shift"),
    ]
    assert base.hash not in [resolve(other, labels).hash for other in others]


def test_hash_is_of_content_not_of_words(labels):
    """The free form of a named protocol, an order spelt out, and 20.0 for 20 are the same protocol."""
    named = digits(memory={"per_class": 20, "selection": "herding"})
    free = Protocol.free(
        "digits", 5, 1, list(named.class_order), imbalance_ratio=10.0,
        memory={"selection": "herding", "per_class": 20.0}, name="mine",
    )  # fmt: skip
    assert resolve(named, labels).hash == resolve(free, labels).hash
    assert named.rule_hash != free.rule_hash


def test_hash_survives_copies_and_integer_types(labels):
    protocol = digits(image_seed=np.int64(0), holdout="long-tailed-cil")
    expected = resolve(protocol, labels).digest
    for same in (
        pickle.loads(pickle.dumps(protocol)),
        copy.deepcopy(protocol),
        dataclasses.replace(protocol),
    ):
        assert same == protocol
        assert resolve(same, labels.astype(np.int32)).digest == expected
    resolved = resolve(protocol, labels)
    assert pickle.loads(pickle.dumps(resolved)).digest == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, "effb6f9ff57b"),
        ({"holdout": "long-tailed-cil", "augmentation": "resized-crop-flip"}, "ac9aacf42625"),
    ],
)
def test_hash_of_the_main_protocol_never_changes(cifar100_labels, rule, expected):
    """It stands in every run folder: a change here makes all earlier runs incomparable."""
    assert resolve(Protocol.named("lfh-shuffled-10", "cifar100", **rule), cifar100_labels).hash == expected


# -------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Protocol.named("lfh-shufled-10", "cifar100"), "Did you mean 'lfh-shuffled-10'"),
        (lambda: Protocol.named("lfs-shuffled", "cifar100"), "choose one of"),
        (lambda: Protocol.named("lfh-shuffled-10", "digits"), "5 classes after the base of 5 .* 1, 5"),
        (lambda: Protocol.named("lfs-3", "cifar100"), "possible are 1, 2, 4, 5, 10, 20, 25, 50, 100"),
        (lambda: Protocol.named("lfs-0", "cifar100"), "into 0 equal"),
        (lambda: Protocol.named("lfs-10", "cifar1000"), "Did you mean 'cifar10"),
        (lambda: Protocol.named("lfs-10", "cifar100", 10), "has 100 classes, not 10"),
        (lambda: Protocol.named("lfs-10", "cifar100", imbalance_ratio=0.01), "Did you mean 100"),
        (lambda: Protocol.named("lfs-10", "cifar100", max_images=501), "has 500 training images per class"),
        (lambda: Protocol.named("lfs-10", "cifar100", holdout="yes"), "choose one of none, long-tailed-cil"),
        (lambda: Protocol.named("lfs-10", "cifar100", image_seed=-1), "whole number from 0"),
        (lambda: Protocol.named("lfs-10", "cifar100", order_seed=1.5), "whole number from 0"),
        (lambda: Protocol.named("lfs-10", "cifar100", memory={"per_class": object()}), "plain values"),
        (lambda: Protocol.named("lfs-10", "cifar100", memory={"per_class": float("nan")}), "plain values"),
        (lambda: Protocol.free("cifar100", 50, 7), "50 remain after the base; .* 1, 2, 5, 10, 25, 50"),
        (lambda: Protocol.free("cifar100", 101, 1), "must be 0 to 100"),
        (lambda: Protocol.free("cifar100", 50, 0), "increments that fit"),
        (lambda: Protocol.free("digits", 4, 2, "orderd"), "Did you mean 'ordered'"),
        (lambda: Protocol.free("digits", 4, 2, [0, 1, 1, *range(3, 10)]), "missing: 2; twice: 1"),
        (lambda: Protocol.free("digits", 4, 2, [*range(9), "9"]), "missing: 9; unknown: 9"),
        (lambda: dataclasses.replace(digits(), classes_per_experience=(5, 0, 5)), "at least one class"),
        (lambda: resolve(digits(), np.arange(10)), "class 0 has 1 training images"),
        (lambda: resolve(digits(), np.repeat(np.arange(11), 130)), "labels run from 0 to 10"),
    ],
)
def test_bad_input_is_explained(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_facts_are_known_by_name():
    assert facts.names()[:3] == ("digits", "cifar10", "cifar100")
    with pytest.raises(UserError, match="Did you mean 'digits'"):
        facts.info("digit")


def test_rules_load_neither_torch_nor_avalanche():
    code = (
        "import sys, incrlt.benchmarks.protocols as p; p.Protocol.named('lfs-10', 'cifar100').plan(); "
        "print([m for m in ('torch', 'avalanche', 'sklearn', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("holdout", ["none", "long-tailed-cil"])
def test_first_images_are_trained_on_and_of_their_class(holdout):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 130))
    rule = Protocol.free("digits", 4, 3, imbalance_ratio=100, holdout=holdout)
    resolved = resolve(rule, labels)
    trained = set(np.concatenate(resolved.train_indices).tolist())
    chosen = resolved.first_images(labels, 4)
    assert [len(own) for own in chosen] == np.minimum(resolved.counts, 4).tolist()
    assert min(resolved.counts) < 4, "the rarest class must be rarer than that for this test to tell"
    for own, label in zip(chosen, rule.class_order, strict=True):
        assert set(labels[own]) == {label}
        assert set(own.tolist()) <= trained
