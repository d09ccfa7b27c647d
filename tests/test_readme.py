"""The README's Python blocks run as they stand: the estimator learns digits that arrive in four parts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

LEAST = 0.7
"""Share of the test digits; chance is 0.1."""
README = Path(__file__).resolve().parent.parent / "README.md"
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def estimator_block() -> str:
    [block] = [
        body for body in FENCE.findall(README.read_text(encoding="utf-8")) if "LongTailClassifier" in body
    ]
    return block


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_estimator_of_the_readme_learns_the_digits(one_thread, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(estimator_block(), str(README), "exec"), names)
    score = float(capsys.readouterr().out.split()[-1])
    assert sorted(map(int, names["model"].classes_)) == list(range(10))
    assert score > LEAST, "digits of four arrivals are told apart, those of the first among them"
