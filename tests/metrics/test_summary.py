from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from incrlt.metrics import CONVENTIONS, StreamRecord, class_rows, experience_rows, summarise

SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=6)
SEEDS = st.integers(0, 2**32 - 1)


def flat(values):
    """All leaves of nested lists and dicts."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        return [leaf for value in values for leaf in flat(value)]
    return [values]


def test_numbers_of_the_worked_example(worked_example):
    assert summarise(worked_example)["numbers"] == {
        "average_incremental_accuracy/over_tasks": pytest.approx(190 / 3),
        "average_incremental_accuracy/over_classes": pytest.approx((70 + 200 / 3 + 50) / 3),
        "average_incremental_accuracy/over_seen_images": pytest.approx((70 + 200 / 3 + 50) / 3),
        "last_accuracy/over_tasks": pytest.approx(50),
        "last_accuracy/over_classes": pytest.approx(50),
        "last_accuracy/over_seen_images": pytest.approx(50),
        "last_accuracy/many_over_classes": pytest.approx(80),
        "last_accuracy/medium_over_classes": pytest.approx(30),
        "last_accuracy/few_over_classes": pytest.approx(60),
        "forgetting/chaudhry_over_tasks": pytest.approx(30),
        "forgetting/chaudhry_over_classes": pytest.approx(80 / 3),
        "forgetting/many_over_classes": pytest.approx(10),
        "forgetting/medium_over_classes": pytest.approx(35),
        "forgetting/few_over_classes": None,
        "backward_transfer/over_tasks": pytest.approx(-30),
        "confusion/old_to_new_over_images": pytest.approx(100 * 11 / 30),
        "confusion/new_to_old_over_images": pytest.approx(40),
    }


def test_every_number_has_its_convention_explained(worked_example):
    assert set(summarise(worked_example)["numbers"]) == set(CONVENTIONS)


def test_single_experience_has_accuracies_but_no_forgetting(uneven_example):
    numbers = summarise(uneven_example)["numbers"]
    undefined = {name for name, value in numbers.items() if value is None}
    assert undefined == {"last_accuracy/medium_over_classes"} | {
        name for name in CONVENTIONS if name.startswith(("forgetting", "backward", "confusion"))
    }


def test_class_rows_of_the_worked_example(worked_example):
    rows = class_rows(worked_example)
    assert rows[1] == {
        "class": 1, "name": "bear", "experience": 0, "images": 100, "group": "medium", "age": 2,
        "accuracy_on_arrival": 50.0, "accuracy_best": 50.0, "accuracy_last": 20.0, "forgetting": 30.0,
    }  # fmt: skip
    assert rows[3]["age"] == 0
    assert rows[3]["forgetting"] is None


def test_experience_rows_name_the_classes_seen(worked_example):
    assert [row["classes_seen"] for row in experience_rows(worked_example)] == [2, 3, 4]


@settings(max_examples=50, deadline=None)
@given(SIZES, SEEDS)
def test_never_nan_and_always_json(random_stream, sizes, seed):
    record = random_stream(np.random.default_rng(seed), sizes, most_images=3)  # many empty classes
    text = json.dumps([summarise(record), class_rows(record), experience_rows(record)], allow_nan=False)
    assert "NaN" not in text


@settings(max_examples=50, deadline=None)
@given(SIZES, SEEDS)
def test_relabelling_classes_inside_an_experience_changes_nothing(random_stream, sizes, seed):
    generator = np.random.default_rng(seed)
    record = random_stream(generator, sizes)
    firsts = np.cumsum([0, *sizes])
    order = np.concatenate(
        [first + generator.permutation(n) for first, n in zip(firsts, sizes, strict=False)]
    )
    relabelled = StreamRecord(
        tuple(counts[np.ix_(order[: len(counts)], order[: len(counts)])] for counts in record.confusions),
        record.experience_of_class,
        record.images_of_class[order],
    )
    assert flat(summarise(relabelled)) == pytest.approx(flat(summarise(record)))


@settings(max_examples=50, deadline=None)
@given(SIZES, SEEDS)
def test_equal_experiences_and_equal_test_sets_make_the_conventions_agree(sizes, seed):
    """Ten images per class and two classes per experience: nothing is left to weigh differently."""
    generator = np.random.default_rng(seed)
    num = 2 * len(sizes)
    confusions = [generator.multinomial(10, np.full(n, 1 / n), size=n) for n in range(2, num + 1, 2)]
    record = StreamRecord(tuple(confusions), np.repeat(np.arange(len(sizes)), 2), np.full(num, 9))
    numbers = summarise(record)["numbers"]
    for kind in ("average_incremental_accuracy", "last_accuracy"):
        over_tasks = numbers[f"{kind}/over_tasks"]
        assert numbers[f"{kind}/over_classes"] == pytest.approx(over_tasks)
        assert numbers[f"{kind}/over_seen_images"] == pytest.approx(over_tasks)


def same_predictions(num_seen: int) -> np.ndarray:
    """Counts that depend only on how many classes have been seen; accuracies halve at 40."""
    counts = np.zeros((num_seen, num_seen), int)
    for index in range(num_seen):
        right = (10 + index % 7) // (2 if num_seen >= 40 else 1)
        counts[index, index] += right
        counts[index, (index + 1) % num_seen] += 20 - right
    return counts


def split(increment: int) -> StreamRecord:
    images = np.tile([500, 60, 7, 120, 15], 8)
    confusions = tuple(same_predictions(seen) for seen in range(increment, 41, increment))
    return StreamRecord(confusions, np.arange(40) // increment, images)


@pytest.mark.parametrize("increment", [2, 5, 10])
def test_size_of_the_increments_does_not_change_per_class_figures(increment):
    """A toolbox in wide use cuts the classes into fixed tens: wrong for increments of 5. Never here."""
    ours, reference = split(increment), split(20)
    last, expected = summarise(ours)["numbers"], summarise(reference)["numbers"]
    for name in CONVENTIONS:
        if name.startswith("last_accuracy") and "over_tasks" not in name:
            assert last[name] == pytest.approx(expected[name]), name
    for row, want in zip(class_rows(ours), class_rows(reference), strict=True):
        assert row["accuracy_last"] == want["accuracy_last"]
        if want["experience"] == 0:  # seen at 20 classes under every split, hence the same best
            assert row["forgetting"] == pytest.approx(want["forgetting"])


@pytest.mark.parametrize("increment", [2, 5, 10])
def test_size_of_the_increments_does_not_change_accuracy_at_the_same_number_of_classes(increment):
    ours = {row["classes_seen"]: row for row in experience_rows(split(increment))}
    for want in experience_rows(split(20)):
        got = ours[want["classes_seen"]]
        for name in want:
            if name.startswith("accuracy/") and "over_tasks" not in name:
                assert got[name] == pytest.approx(want[name]), name
