"""Files are read within limits, wherever they are read: size, depth, pipes, number of lines; tables hold no formula."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy
import pytest
import torch

from incrlt import files, weights
from incrlt.benchmarks import datasets, listing, surveying
from incrlt.benchmarks import large as lists
from incrlt.benchmarks.looking import _noted, opened
from incrlt.errors import UserError
from incrlt.experiment import rates
from incrlt.files import event_of, parsed_json, read_json
from incrlt.lifecycle import versions
from incrlt.lifecycle.answers import Row, as_csv
from incrlt.models import pretrained
from incrlt.runner import kept
from incrlt.runner.folder import RunFolder
from incrlt.sweep import spaces, table
from incrlt.sweep.work import _known

PACKAGE = Path(files.__file__).parent
DEEP = "[" * 200_000


def pipe(path: Path) -> None:
    os.mkfifo(path)  # to open it for reading waits for a writer that never comes


def deep(path: Path) -> None:
    path.write_text(DEEP)


def large(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 43)  # 8 TiB of nothing


BOMBS = pytest.mark.parametrize("bomb", [pipe, deep, large], ids=lambda bomb: bomb.__name__)


def test_json_is_read_in_one_place():
    """``json.loads(path.read_text())`` waits for pipes, takes any size, and raises a RecursionError, no ValueError."""
    own = {
        "files.py",
        "lifecycle/example.py",
    }  # the second is copied beside an exported model, and stands alone
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.loads", "json.load"):
                reads = {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
                if name not in own and reads & {"read_text", "read_bytes", "load"}:
                    found.append(f"{name}:{node.lineno}")
    assert not found, "read_json of incrlt.files has the limits"


@pytest.mark.timeout(60)
@BOMBS
def test_a_file_is_refused_before_it_goes_off(tmp_path, bomb):
    bomb(tmp_path / "x.json")
    with pytest.raises(
        ValueError, match=r"^it (is no ordinary file|is nested too deeply|has more than [\d,]+ bytes)$"
    ):
        read_json(tmp_path / "x.json")
    assert parsed_json("[1]") == [1]


@pytest.mark.timeout(60)
@BOMBS
def test_what_can_be_made_again_is_made_again(tmp_path, bomb, monkeypatch):
    """What a sweep decided, notes of pictures, rates of this machine: a bomb in their place is no file at all."""
    bomb(tmp_path / "x.json")
    assert _known(tmp_path / "x.json") == {"stopped": {}, "seen": {}}
    assert _noted(tmp_path / "x.json") is None
    monkeypatch.setattr(rates, "_file", lambda experiment: tmp_path / "x.json")
    assert rates.told(None, 1.0) == {}


@pytest.mark.timeout(60)
@BOMBS
def test_what_cannot_is_one_sentence(tmp_path, bomb):
    (tmp_path / versions.FOLDER).mkdir()
    bomb(tmp_path / versions.FOLDER / "1.json")
    with pytest.raises(UserError, match=r"1.json is damaged \(it "):
        versions.all_of(tmp_path)
    bomb(tmp_path / kept.KEPT_FILE)
    with pytest.raises(UserError, match=r"is damaged \(it |does not hold what a run needs"):
        kept.read_facts(tmp_path)


def test_a_line_of_a_log_that_is_a_bomb_is_passed_over(tmp_path):
    """Before: a RecursionError ended the sweep that looked how far its runs are, and the run that goes on."""
    assert event_of(DEEP) is None
    folder = RunFolder.__new__(RunFolder)
    folder.log_path = tmp_path / "log.jsonl"
    (tmp_path / "log.jsonl").write_text(f'{{"event": "epoch"}}\n{DEEP}\n{json.dumps({"event": "end"})}\n')
    assert [event["event"] for event in folder._events()] == ["epoch", "end"]


def test_answers_hold_no_formula_and_their_files_are_found():
    """Names of pictures and classes stand in a table that people open in a spreadsheet."""
    rows = [Row("=cmd|x.png", "@SUM(A1)", 0.5, None, "-cat", 0.25, "+1"), Row("a/b.png", "cat")]
    table = list(csv.DictReader(as_csv(rows, 1).splitlines()))
    assert [row["file"] for row in table] == ["./=cmd|x.png", "a/b.png"]
    assert [table[0][name] for name in ("class", "second", "problem")] == ["'@SUM(A1)", "'-cat", "'+1"]
    assert table[0]["confidence"] == "0.500000" and table[1]["class"] == "cat"


# ------------------------------------------------------------------------------------------------ files of users


@pytest.mark.timeout(60)
@BOMBS
def test_a_sweep_is_read_like_an_experiment(tmp_path, bomb):
    """Before: any size was read, and a pipe was waited for."""
    bomb(tmp_path / "x.yaml")
    with pytest.raises(UserError, match=r"not a regular file|nested too deeply|is larger than 1000000 bytes"):
        table.read(tmp_path / "x.yaml")


LONG = "k" * 400_000


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"experiment": LONG}, "cannot be read"),
        ({"experiment": "a\0b"}, "no file can be called"),
        ({LONG: 1}, "a row takes experiment"),
        ({"metric": LONG}, "never on test images"),
        ({"overrides": [LONG]}, "not of the form"),
        ({"seeds": LONG}, "seeds.all"),
        ({"grid": {LONG: [1]}}, "is not a key of an experiment"),
        ({"grid": {"training.lr": list(range(20_000))}}, "more than 10000 values"),
        ({"grid": {"training.lr": [f"{n}0000..{n}9999" for n in range(1, 100)]}}, "more than 10000 values"),
        ({"grid": {f"a.b{n}": "0..99" for n in range(900)}}, "more than a thousand million runs"),
        ({"search": {"a.b": "log(1, 2)"}, "trials": 10**4000, "seeds": "0..999"}, "a thousand million runs"),
        ({"search": {"a.b": "log(1, 2)"}, "trials": -3}, "has -3 trials; give 1 or more"),
    ],
)
def test_a_sweep_that_is_a_bomb_is_one_short_sentence(tmp_path, row, said):
    """Before: a grid of 20,000 values took minutes, a name with NUL or a number of 4,301 digits was a traceback."""
    (tmp_path / "x.yaml").write_text("seeds: {all: 0}\n")
    with pytest.raises(UserError, match=said) as refused:
        table.from_file(tmp_path / "s.yaml", {"experiment": "x.yaml", **row}).tasks(tmp_path)
    assert len(str(refused.value)) < 3_000


@pytest.mark.timeout(60)
def test_a_grid_of_the_most_values_is_told_apart_at_once():
    """Before: each value was compared with all before it."""
    values = [*range(10_000), *range(10_000), *map(float, range(0, 10_000, 2))]
    assert spaces.grid_values("a.b", values[:20_000]) == tuple(range(10_000))
    assert spaces.grid_values("a.b", [1, 1.0, True, 1, [1], [1], [1.0]]) == (1, 1.0, True, [1])
    rows = [table.Row(Path("x.yaml"), ("a.b=1", f"c.d={n}")) for n in range(5_000)]
    assert table.apart(rows)[4_999] == ("x", "c.d=4999")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("suffix", listing.LISTS)
@pytest.mark.parametrize("bomb", [pipe, large], ids=lambda bomb: bomb.__name__)
def test_a_list_of_pictures_is_an_ordinary_file_of_some_size(tmp_path, suffix, bomb):
    bomb(tmp_path / f"list{suffix}")
    for read in (listing.labelled_pictures, listing.pictures_in):
        with pytest.raises(UserError, match=r"cannot be read|needs pyarrow"):
            read(tmp_path / f"list{suffix}")


@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_a_list_has_so_many_lines_and_labels_so_many_letters(tmp_path, monkeypatch, name):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / name).write_text(
        f"path,label\n# a\na.png,heron\na.png,{LONG[:2000]}\n".replace(
            ",", "\t" if name == "list.txt" else ","
        )
    )
    found = listing.labelled_pictures(tmp_path / name)
    assert f"{name}:4: a label has 2,000 letters" in [item.sentence for item in found.left_out]
    monkeypatch.setattr(listing, "MOST_LISTED", 3)
    with pytest.raises(UserError, match="it has more than 3 lines"):
        listing.labelled_pictures(tmp_path / name)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (large, "has more than 1,000,000,000 bytes"),
        (b"a/b.jpg 0\xff\n", "codec can't decode"),
        (b"a/b.jpg zero\n", "its lines are PATH LABEL"),
        (b"b.jpg 0\n", "'b.jpg', whose folders do not tell its class"),
    ],
)
def test_an_official_list_is_one_sentence(tmp_path, content, said):
    """Before: a path without folders was an IndexError, a list of 8 TiB was read whole."""
    names = ("ImageNet_LT_train.txt", "ImageNet_LT_test.txt")
    for name in names:
        content(tmp_path / name) if callable(content) else (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        lists._of_lists("imagenet-lt", tmp_path, *names, lambda _, path: path, 2)


@pytest.mark.timeout(60)
def test_official_files_that_are_no_text_are_one_sentence(tmp_path):
    """Before: a UnicodeDecodeError, and a line without a class a ValueError."""
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "train.txt").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match=r"train\.txt cannot be read"):
        lists._food(tmp_path, "shuffled")
    (tmp_path / "val").mkdir()
    (tmp_path / "wnids.txt").write_text("n1\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("a.jpg\n")
    (tmp_path / "train" / "n1" / "images").mkdir(parents=True)
    with pytest.raises(UserError, match="has lines without a class"):
        lists._tiny(tmp_path, "shuffled")


@pytest.mark.timeout(60)
def test_a_picture_is_a_file_of_some_size(tmp_path):
    large(tmp_path / "a.png")
    entry = listing.Entry(tmp_path / "a.png", "a.png")
    _, found = opened(entry, (3, 8, 8))
    assert found.sentence == "a.png: it cannot be read (it has more than 1,000,000,000 bytes)"
    pixels, _, _ = surveying._one(entry.path, (3, 8, 8))
    assert "has more than 1,000,000,000 bytes" in pixels


@pytest.mark.timeout(60)
def test_a_file_of_a_data_set_or_of_weights_is_not_hashed_for_hours(tmp_path):
    large(tmp_path / "data_batch_1")
    assert not datasets._intact(tmp_path / "data_batch_1", "0" * 32)
    large(tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"has 8.19e[+]03 GiB, and at most 20 GiB are read"):
        weights.located(str(tmp_path / "net.pth"))


def archive(path: Path, index: str, *pictures: tuple[str, bytes], packing: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as file:
        file.writestr(kept.INDEX, index)
        for name, content in pictures:
            file.writestr(name, content)
    return path


def png_of(width: int, height: int) -> bytes:
    head = struct.pack(">4sIIBBBBB", b"IHDR", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def npy_of(*shape: int) -> bytes:
    buffer = io.BytesIO()
    numpy.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("index", "pictures", "packing", "said"),
    [
        (DEEP, [], zipfile.ZIP_STORED, "nested too deeply"),
        (" " * 50_000_000 + "{}", [], zipfile.ZIP_DEFLATED, "holds more than it has bytes"),
        ("a.png", [("a.png", png_of(100_000, 100_000))], zipfile.ZIP_STORED, "not of the size of its run"),
        (
            "a.npy",
            [("a.npy", npy_of(1 << 20, 1 << 20, 1 << 10))],
            zipfile.ZIP_STORED,
            "not of the size of its run",
        ),
    ],
    ids=["depth", "compression", "pixels", "numbers"],
)
def test_kept_pictures_are_no_larger_than_their_run(tmp_path, index, pictures, packing, said):
    """Before: a RecursionError, a gigabyte from a megabyte, Pillow's own error, and memory for 2^50 numbers."""
    if pictures:
        index = json.dumps({"pictures": [{"file": index, "class": "a", "content": ""}]})
    facts = kept.Facts(("a",), (1,), kept.Preparation(8, 8, 1, (0.5,), (0.5,)), "")
    path = archive(tmp_path / "exemplars.zip", index, *pictures, packing=packing)
    with pytest.raises(UserError, match=said):
        kept.read_pictures(path, facts)


@pytest.mark.timeout(60)
def test_weights_are_no_larger_unpacked_than_packed(tmp_path):
    """torch.load unpacks whatever the parts say; a state of old torch, which is no archive, is read as before."""
    torch.save({"weight": torch.zeros(4_000_000)}, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in whole.namelist():
            packed.writestr(member, whole.read(member))
    with pytest.raises(UserError, match=r"NotTensorsError: has compressed parts"):
        pretrained.read(tmp_path / "packed.pt")
    assert pretrained.read(tmp_path / "whole.pt")["weight"].shape == (4_000_000,)
    torch.save({"weight": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert pretrained.read(tmp_path / "old.pth")["weight"].tolist() == [1, 1, 1]
    (tmp_path / "deep.pt").write_bytes(b"\x80\x02" + b"(" * 10_000)
    with pytest.raises(UserError, match="cannot be read as weights"):
        pretrained.read(tmp_path / "deep.pt")


def test_no_message_is_longer_than_anybody_reads():
    text = str(UserError("a" * 10_000 + "b" * 10_000))
    assert (
        text.startswith("aaa") and text.endswith("bbb") and "(4000 characters)" in text and len(text) < 16_100
    )
