from __future__ import annotations

import numpy as np
import pytest

from incrlt.errors import UserError
from incrlt.metrics.evaluation import EvaluationRecord, load_evaluations, misfit, save_evaluations


def test_saved_sums_and_answers_come_back(tmp_path):
    steps = {3: {"memory": [5, 300], "confidence_cnn": [[[2**40]]]}, 0: {"memory": [5]}}
    path = save_evaluations(tmp_path / "e.npz", steps, {"labels": [0, 1, 1], "predicted_my_cnn": [1, 1, 0]})
    record = load_evaluations(path)
    assert {t: values.tolist() for t, values in record.series("memory").items()} == {0: [5], 3: [5, 300]}
    assert list(record.series("memory")) == [0, 3]  # in order, whatever the file's
    assert record.series("confidence_cnn")[3].tolist() == [[[2**40]]]
    assert record.series("macs") == {}
    assert {name: values.tolist() for name, values in record.answers.items()} == {
        "labels": [0, 1, 1], "predicted_my_cnn": [1, 1, 0],
    }  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip"])
def test_damaged_file_is_named(tmp_path, content):
    (tmp_path / "e.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read the evaluations in .*e\.npz"):
        load_evaluations(tmp_path / "e.npz")


def test_sums_are_counts(tmp_path):
    np.savez(tmp_path / "e.npz", right_at_000=[0.5])
    with pytest.raises(UserError, match="must hold whole numbers"):
        load_evaluations(tmp_path / "e.npz")


def zeros(**shapes):
    return EvaluationRecord({1: {name: np.zeros(shape, dtype=int) for name, shape in shapes.items()}})


def test_sums_of_these_classes_fit():
    fitting = zeros(
        confidence_cnn=(5, 3, 15), right=(5, 2, 3), disagree=(5, 3, 3), macs=(3,), memory=(5,), new=(9,)
    )
    assert misfit(fitting, [3, 5]) is None


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"memory": (4,)}, r"memory after experience 1 has shape (4,); expected (5,)"),
        ({"right": (5, 2, 3), "macs": (2,)}, r"macs after experience 1 has shape (2,); expected (3,)"),
        ({"right": (5, 2, 1)}, "right after experience 1 has shape (5, 2, 1)"),  # no ensemble
        ({"disagree": (5, 2, 3)}, "disagree after experience 1"),
        ({"confidence_cnn": (5, 3, 10)}, "expected (5, 3, 15)"),
        ({"macs": ()}, "macs after experience 1 has shape ()"),
    ],
)
def test_sums_of_other_classes_are_told(shapes, message):
    assert message in misfit(zeros(**shapes), [3, 5])


def test_evaluations_without_counts_are_told():
    assert misfit(zeros(memory=(5,)), [3]) == "experience 1 has evaluations but no counts"
