"""The tutorials run as they stand: files are written, commands executed, code run, its assertions hold.

A block whose first line is a comment with a file name is that file; ``$ python -m incrlt.run``, ``incrlt.report`` and
``$ incrlt VERB`` in console blocks are run, other commands are not; all other Python is run in one namespace.
"""

from __future__ import annotations

import glob
import re
import shlex
from pathlib import Path

import pytest

import incrlt.report.__main__
import incrlt.run
from incrlt import predict, rollback, update

REPOSITORY = Path(__file__).resolve().parent.parent
TUTORIALS = sorted((REPOSITORY / "docs" / "tutorials").glob("*.md"))
FENCE = re.compile(r"^```(python|yaml|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w/]+\.(?:py|yaml))\n")
MODULES = {"incrlt.run": incrlt.run.main, "incrlt.report": incrlt.report.__main__.main}
MODULES |= {"incrlt.predict": predict.main, "incrlt.update": update.main, "incrlt.rollback": rollback.main}


def execute(line: str) -> None:
    """Run one command of a console block, as a shell in this folder would."""
    words = shlex.split(line, comments=True)
    if words[0] == "incrlt":
        words = ["python", "-m", f"incrlt.{words[1]}", *words[2:]]
    if words[:2] != ["python", "-m"]:
        return
    arguments = [path for word in words[3:] for path in (sorted(glob.glob(word)) if "*" in word else [word])]
    assert MODULES[words[2]](arguments) == 0, line


def follow(page: Path) -> int:
    """Do what a tutorial says, block by block; return how many things were done."""
    namespace: dict = {"__name__": "__main__"}
    done = 0
    for language, body in FENCE.findall(page.read_text()):
        named = FILE.match(body)
        if named:
            Path(named[1]).write_text(body)
        elif language == "console":
            for line in re.findall(r"^\$ (.+)$", body, re.MULTILINE):
                execute(line)
        elif language == "python":
            exec(compile(body, f"{page.name}, block {done}", "exec"), namespace)
        done += 1
    return done


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_tutorial_runs(page, tmp_path, monkeypatch):
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert follow(page) >= 3


def test_the_worked_example_of_the_metrics_holds():
    assert follow(REPOSITORY / "docs" / "metrics.md") == 1


def test_tutorials_are_found():
    assert {"first_run", "avalanche_script", "own_images", "new_strategy", "new_expert_method"} <= {
        page.stem for page in TUTORIALS
    }


def test_a_tutorial_that_is_wrong_fails(tmp_path, monkeypatch):
    """The runner must notice a false assertion, a command that fails and a name of a block before."""
    monkeypatch.chdir(tmp_path)
    for body in (
        "```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n",
        "```console\n$ python -m incrlt.run missing.yaml\n```\n",
    ):
        (tmp_path / "page.md").write_text(body)
        with pytest.raises(AssertionError):
            follow(tmp_path / "page.md")
