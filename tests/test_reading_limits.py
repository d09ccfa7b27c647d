"""Small files of ours are read within limits, wherever they are read: size, depth, pipes; tables hold no formula."""

from __future__ import annotations

import ast
import csv
import json
import os
from pathlib import Path

import pytest

from incrlt import files
from incrlt.benchmarks.looking import _noted
from incrlt.errors import UserError
from incrlt.experiment import rates
from incrlt.files import event_of, parsed_json, read_json
from incrlt.lifecycle import versions
from incrlt.lifecycle.answers import Row, as_csv
from incrlt.runner import kept
from incrlt.runner.folder import RunFolder
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


@pytest.mark.timeout(20)
@BOMBS
def test_a_file_is_refused_before_it_goes_off(tmp_path, bomb):
    bomb(tmp_path / "x.json")
    with pytest.raises(
        ValueError, match=r"^it (is no ordinary file|is nested too deeply|has more than [\d,]+ bytes)$"
    ):
        read_json(tmp_path / "x.json")
    assert parsed_json("[1]") == [1]


@pytest.mark.timeout(20)
@BOMBS
def test_what_can_be_made_again_is_made_again(tmp_path, bomb, monkeypatch):
    """What a sweep decided, notes of pictures, rates of this machine: a bomb in their place is no file at all."""
    bomb(tmp_path / "x.json")
    assert _known(tmp_path / "x.json") == {"stopped": {}, "seen": {}}
    assert _noted(tmp_path / "x.json") is None
    monkeypatch.setattr(rates, "_file", lambda experiment: tmp_path / "x.json")
    assert rates.told(None, 1.0) == {}


@pytest.mark.timeout(20)
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
