"""Large tables are held by their cells that are not 0: every number is that of the whole table."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from incrlt.errors import UserError
from incrlt.metrics import (
    StreamRecord,
    class_rows,
    counts,
    experience_rows,
    load_confusions,
    save_confusions,
    summarise,
)
from incrlt.metrics.confusion import group_confusion, negatives
from incrlt.metrics.counts import Cells, Tables, held
from incrlt.metrics.tasks import task_rows
from incrlt.plugins import ConfusionRecorder, counting


def records(monkeypatch):
    """The same counts, whole and by their cells: eight classes in three experiences, one of them never tested."""
    draw = np.random.default_rng(0)
    matrices = []
    for size in (3, 5, 8):
        matrix = draw.integers(0, 4, (size, size)) * (draw.random((size, size)) < 0.4) + np.diag([5] * size)
        matrix[1] = 0
        matrices.append(matrix)
    facts = [0, 0, 0, 1, 1, 2, 2, 2], [500, 90, 30, 10, 7, 200, 3, 50]
    whole = StreamRecord(tuple(matrices), *facts)
    monkeypatch.setattr(counts, "LARGE", 0)
    by_cells = StreamRecord(tuple(matrices), *facts)
    assert not any(isinstance(one, Cells) for one in whole.tables.held)
    assert all(isinstance(one, Cells) for one in by_cells.tables.held)
    return matrices, whole, by_cells


def test_every_number_is_the_same(monkeypatch):
    matrices, whole, by_cells = records(monkeypatch)
    for number in (
        summarise, class_rows, experience_rows, task_rows, group_confusion, lambda r: negatives(r, 2),
        lambda r: [row.tolist() for t in range(3) for row in r.tables.rows(t)],
        lambda r: r.tables.block(-1, np.array([0, 2, 5]), np.array([1, 2, 7])).tolist(),
    ):  # fmt: skip
        assert number(by_cells) == number(whole)
    for matrix, one, other in zip(matrices, whole.confusions, by_cells.confusions, strict=True):
        assert np.array_equal(matrix, one) and np.array_equal(matrix, other)
        assert one.dtype == other.dtype == np.int64 and not one.flags.writeable and not other.flags.writeable


def test_hits_by_hand(monkeypatch):
    monkeypatch.setattr(counts, "LARGE", 3)
    table = np.array([[0, 2, 0], [0, 3, 1], [0, 0, 0]])
    tables = Tables([held(table, "x")])
    assert [part.tolist() for part in tables.hits(0)] == [[0, 1, 1], [1, 1, 2], [2, 3, 1]]
    assert tables.right(0).tolist() == [0, 3, 0] and tables.tested(0).tolist() == [2, 4, 0]
    assert len(tables[:1]) == 1 and tables.shape(0) == (3, 3)


@pytest.mark.parametrize(
    ("table", "said"), [(-np.eye(2, dtype=int), "negative"), (np.eye(2), "whole numbers")]
)
def test_a_large_table_of_other_numbers_is_refused(monkeypatch, table, said):
    monkeypatch.setattr(counts, "LARGE", 0)
    with pytest.raises(UserError, match=said):
        held(table, "x")


def test_a_file_holds_the_same_array_in_the_smallest_type(monkeypatch, tmp_path):
    matrices, _, by_cells = records(monkeypatch)
    path = save_confusions(tmp_path / "confusions.npz", {"cnn": by_cells.confusions})
    with np.load(path) as arrays:
        assert arrays["cnn_002"].dtype == np.uint8 and np.array_equal(arrays["cnn_002"], matrices[2])
    for one, read in zip(matrices, load_confusions(path)["cnn"], strict=True):
        assert np.array_equal(one, read)


def recorded():
    """Three batches of two evaluations, an unseen class among them; then what a checkpoint of them holds."""
    recorder = ConfusionRecorder()
    recorder.load_state_dict(
        {
            "class_ids": [2, 0, 1], "experience_of_class": [0] * 3, "images_of_class": [4] * 3, "experience": 0,
            "confusions": {},
        }
    )  # fmt: skip
    strategy = SimpleNamespace(device="cpu", model=SimpleNamespace(), mb_scores={})
    recorder.before_eval(strategy)
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        strategy.mb_y = torch.randint(4, (9,), generator=draw)
        strategy.mb_output = torch.rand(9, 4, generator=draw)
        recorder.after_eval_iteration(strategy)
    recorder.after_eval(strategy)
    return recorder


def test_a_recorder_of_many_classes_counts_the_same(monkeypatch):
    """Before: a table of C x C was filled, kept and saved in each checkpoint; 800 MB at 10,000 classes."""
    whole = recorded()
    for module in (counts, counting):
        monkeypatch.setattr(module, "LARGE", 0)
    by_cells = recorded()
    state = by_cells.state_dict()
    assert isinstance(by_cells.confusions["cnn"].held[0], Cells) and set(state["confusions"]["cnn"][0]) == {
        "size", "places", "images",
    }  # fmt: skip
    again = ConfusionRecorder()
    again.load_state_dict(state)
    older = ConfusionRecorder()
    older.load_state_dict(whole.state_dict())  # saved whole
    for one in (by_cells, again, older):
        assert np.array_equal(one.confusions["cnn"][0], whole.confusions["cnn"][0])
    assert isinstance(older.confusions["cnn"].held[0], Cells)
    assert whole.confusions["cnn"][0].sum() > 10


def test_what_is_worked_out_once_is_found_from_both_ends_and_cannot_be_changed(monkeypatch):
    """Sums and cells are kept with the table: whoever changed them would change every later number."""
    matrices, *both = records(monkeypatch)
    for record in both:
        tables = record.tables
        assert tables.hits(-1) is tables.hits(2)
        assert tables.tested(-3) is tables.tested(0)
        assert np.array_equal(tables.tested(0), matrices[0].sum(axis=1))
        with pytest.raises(ValueError, match="read-only"):
            tables.tested(0)[0] = 1
        with pytest.raises(ValueError, match="read-only"):
            tables.hits(0).images[0] = 1
        with pytest.raises(IndexError):
            tables.hits(3)
