"""Lists as Parquet tables: read like any other; what unpacks to far more than the file is refused before it does."""

from __future__ import annotations

import pytest

from incrlt.benchmarks import parquet
from incrlt.benchmarks.listing import labelled_pictures
from incrlt.errors import UserError

arrow = pytest.importorskip("pyarrow")
tables = pytest.importorskip("pyarrow.parquet")


def repeated(text, times):
    return arrow.DictionaryArray.from_arrays(
        arrow.array([0] * times, type=arrow.int32()), arrow.array([text])
    )


def written(folder, **columns):
    tables.write_table(arrow.table(columns), folder / "list.parquet", compression="zstd")
    return folder / "list.parquet"


def test_texts_and_numbers_are_read_whatever_way_they_are_stored(tmp_path):
    place = written(
        tmp_path, path=["a.png", "b.png"], label=repeated("heron", 2), weight=[0.5, None], box=[[1], [2]]
    )
    assert parquet.read(place) == (
        ["path", "label", "weight"],
        [("a.png", "heron", 0.5), ("b.png", "heron", None)],
    )
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    assert [entry.label for entry in labelled_pictures(place).entries] == ["heron", "heron"]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(lambda: repeated("x" * 200_000, 10_000), id="a long text again and again"),
        pytest.param(
            lambda: arrow.chunked_array([repeated("x" * 600_000, 1_000)] * 2), id="in several chunks"
        ),
    ],
)
def test_a_small_file_of_a_giant_table_is_refused_before_it_is_unpacked(tmp_path, path):
    """Before: 6 kB became 11 GB."""
    column = path()
    place = written(tmp_path, path=column, label=repeated("a", len(column)))
    assert place.stat().st_size < 10_000
    with pytest.raises(UserError, match=r"cannot be read \(it has [0-9,]+ lines of [12],[0-9,]+ bytes"):
        parquet.read(place)


def test_too_many_lines_are_refused_by_what_the_file_says(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MOST_LISTED", 3)
    with pytest.raises(UserError, match="it has 4 lines"):
        parquet.read(written(tmp_path, path=list("abcd"), label=list("aabb")))


def test_a_nested_path_is_no_path(tmp_path):
    with pytest.raises(UserError, match="has the columns label and needs path"):
        labelled_pictures(written(tmp_path, path=[["a.png"], ["b.png"]], label=["a", "b"]))
