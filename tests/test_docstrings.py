"""Examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
FILES = [
    path.relative_to(REPOSITORY)
    for path in sorted((REPOSITORY / "incrlt").rglob("*.py"))
    if ">>> " in path.read_text() and "_triton" not in path.parts
]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_examples_give_what_they_say(file):
    module = importlib.import_module(".".join(file.with_suffix("").parts).removesuffix(".__init__"))
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    runner = doctest.DocTestRunner(
        verbose=False, optionflags=flags
    )  # else the -v of pytest would speak here too
    said: list[str] = []
    for test in doctest.DocTestFinder().find(module, extraglobs={"torch": torch}):
        runner.run(test, out=said.append)
    assert not said, "".join(said)
    assert runner.tries


def test_the_losses_that_everybody_reads_have_an_example():
    found = {file.stem for file in FILES if file.parts[:2] == ("incrlt", "losses")}
    assert {"classification", "distillation", "margins", "ranking", "diversity", "norms", "routing"} <= found
