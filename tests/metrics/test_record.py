from __future__ import annotations

import numpy as np
import pytest

from incrlt.errors import UserError
from incrlt.metrics import StreamRecord, load_confusions, load_records, save_classes, save_confusions


def test_saved_counts_come_back(worked_example, tmp_path):
    record = worked_example
    save_confusions(tmp_path / "confusions.npz", {"cnn": record.confusions, "nme": record.confusions[:2]})
    save_classes(
        tmp_path / "classes.json",
        record.experience_of_class,
        record.images_of_class,
        record.class_names,
        [7, 3, 1, 0],
    )
    loaded = load_records(tmp_path)
    assert list(loaded) == ["cnn", "nme"]
    assert loaded["nme"].num_experiences == 2
    for saved, read in zip(record.confusions, loaded["cnn"].confusions, strict=True):
        np.testing.assert_array_equal(saved, read)
        assert read.dtype == np.int64
    assert loaded["cnn"].class_names == record.class_names


def test_large_counts_keep_their_value(tmp_path):
    save_confusions(tmp_path / "c.npz", {"cnn": [np.array([[70_000, 0], [1, 2**40]])]})
    np.testing.assert_array_equal(load_confusions(tmp_path / "c.npz")["cnn"][0], [[70_000, 0], [1, 2**40]])


def test_read_out_is_cut_at_a_gap(tmp_path):
    np.savez(tmp_path / "c.npz", cnn_000=[[1]], cnn_002=[[1]], other=[[3]])
    assert {name: len(steps) for name, steps in load_confusions(tmp_path / "c.npz").items()} == {"cnn": 1}


def test_read_out_names_may_have_underscores(tmp_path):
    save_confusions(tmp_path / "c.npz", {"expert_2": [[[1]]]})
    assert list(load_confusions(tmp_path / "c.npz")) == ["expert_2"]


def test_unfinished_stream_knows_classes_that_have_not_arrived():
    record = StreamRecord(([[1, 0], [0, 1]],), [0, 0, 1, 2], [5, 5, 5, 5])
    assert (record.num_experiences, record.num_seen) == (1, 2)


def test_record_does_not_freeze_the_callers_array():
    counts = np.ones((1, 1), np.int64)
    StreamRecord((counts,), [0], [1])
    counts[0, 0] = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confusions": (np.zeros((3, 3), int),)}, "must be 2 x 2"),
        ({"confusions": (np.full((2, 2), -1),)}, "must not be negative"),
        ({"confusions": (np.full((2, 2), 0.5),)}, "whole numbers"),
        ({"experience_of_class": [1, 0]}, "in order of arrival"),
        ({"experience_of_class": [1, 1]}, "starting at 0"),
        ({"images_of_class": [1]}, "must name 2 classes"),
        ({"class_names": ("a",)}, "must name 2 classes"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    fields = {"confusions": (np.eye(2, dtype=int),), "experience_of_class": [0, 0], "images_of_class": [5, 5]}
    with pytest.raises(UserError, match=message):
        StreamRecord(**{**fields, **change})


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", b"{}"])
def test_damaged_counts_are_one_sentence(tmp_path, damage):
    (tmp_path / "c.npz").write_bytes(damage)
    with pytest.raises(UserError, match="cannot read the counts"):
        load_confusions(tmp_path / "c.npz")


def test_every_truncation_of_the_counts_is_noticed(worked_example, tmp_path):
    path = save_confusions(tmp_path / "c.npz", {"cnn": worked_example.confusions})
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            load_confusions(path)


def test_every_flipped_bit_of_the_counts_is_noticed(worked_example, tmp_path):
    """Also those that make the archive say it is encrypted, or of an unknown compression."""
    path = save_confusions(tmp_path / "c.npz", {"cnn": worked_example.confusions})
    whole, expected = path.read_bytes(), load_confusions(path)["cnn"]
    for place in range(len(whole)):
        for bit in (1, 8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            try:
                found = load_confusions(path)
            except UserError:
                continue
            for matrix, right in zip(found.get("cnn", ()), expected, strict=False):
                np.testing.assert_array_equal(matrix, right)  # a date, or the name of a step, has changed


def test_missing_classes_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the classes in .*classes\.json"):
        load_records(tmp_path)
