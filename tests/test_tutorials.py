"""The tutorials run as they stand: files are written, commands executed, code run, its assertions hold.

A block whose first line is a comment with a file name is that file; ``$ python -m incrlt.run``, ``incrlt.report`` and
``$ incrlt VERB`` in console blocks are run, other commands are not; all other Python is run in one namespace.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import inspect
import re
import runpy
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import incrlt.report.__main__
import incrlt.run
from incrlt import predict, rollback, update
from incrlt.types import ModelOutput

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


EXTENDING, ARCHITECTURE = (REPOSITORY / "docs" / f"{name}.md" for name in ("extending", "architecture"))
TUTORIAL = REPOSITORY / "docs" / "tutorials" / "new_strategy.md"
STOP = re.compile(r"^## (\d+)\. (.+)\n\n(.+)$", re.MULTILINE)
NAMES = re.compile(r"`(incrlt/[\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)")


def stops() -> dict[int, tuple[str, list[tuple[str, str]]]]:
    """The stops of the page on the architecture: number to title, and files with the functions named there."""
    return {
        int(number): (
            title,
            [
                (file, name)
                for file, names in NAMES.findall(line)
                for name in re.findall(r"`([\w.]+)`", names)
            ],
        )
        for number, title, line in STOP.findall(ARCHITECTURE.read_text())
    }


def code_of(file: str, name: str) -> types.CodeType:
    """The code of a function by its file and its name; an error where there is none of that name in that file."""
    found = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        found = getattr(found, part)
    found = inspect.unwrap(found)
    assert found.__code__.co_filename == str(REPOSITORY / file), f"{name} is not written in {file}"
    return found.__code__


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """Do what the page on extending says; functions of the page on the architecture, in the order of first calls."""
    wanted = {code_of(file, name): (file, name) for _, names in stops().values() for file, name in names}
    called: dict[tuple[str, str], None] = {}

    def note(frame: types.FrameType, *_: object) -> None:  # sees calls alone, since it returns None
        if frame.f_code in wanted:
            called.setdefault(wanted[frame.f_code])

    folder = tmp_path_factory.mktemp("extended")
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]  # of another page, that has a file of this name too
    with pytest.MonkeyPatch.context() as patch, own_modules(folder):
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        before = sys.gettrace()
        sys.settrace(note)
        try:
            assert follow(EXTENDING) >= 6
        finally:
            sys.settrace(before)
    return list(called)


@contextlib.contextmanager
def own_modules(folder: Path) -> Iterator[None]:
    """Forget the modules of a folder afterwards: other pages have files of the same names."""
    try:
        yield
    finally:
        for file in folder.glob("*.py"):
            sys.modules.pop(file.stem, None)


def test_a_strategy_experts_a_stage_and_a_backbone_of_the_page_train_together(walk):
    """The files of the page, as they stand; its own assertions look at every term and at what was learned."""
    assert walk


def test_a_run_walks_the_twelve_stops_in_their_order(walk):
    """All functions that the page names are called, and no stop before the first function of the one before it."""
    assert list(stops()) == list(range(1, 13))
    named = [one for _, names in stops().values() for one in names]
    assert not set(named) - set(walk), "named on the page, never called"
    arrivals = [min(walk.index(one) for one in names) for _, names in stops().values()]
    assert arrivals == sorted(arrivals)


def test_the_picture_of_the_architecture_has_the_stops_of_the_page():
    picture = (ARCHITECTURE.parent / "_static" / "architecture.svg").read_text()
    drawn = re.findall(r'class="t">(\d+)\. ([^<]+)<', picture)
    assert [(int(number), title) for number, title in drawn] == [
        (number, title) for number, (title, _) in stops().items()
    ]


@pytest.mark.parametrize(
    ("page", "name", "term"),
    [(EXTENDING, "KeepFeatures", "keep"), (TUTORIAL, "LwF", "distillation")],
    ids=["extending", "tutorial"],
)
def test_a_term_of_a_page_weighs_the_same_beside_sums_over_experts(page, name, term):
    """Where the terms of the expert method are sums over three experts, a strategy's mean over them counts thrice."""
    body = next(body for _, body in FENCE.findall(page.read_text()) if body.startswith("# my_strategies.py"))
    namespace: dict = {"__name__": "page"}
    exec(compile(body, page.name, "exec"), namespace)
    logits, before, features, old = (torch.randn(3, 4, 5) for _ in range(4))
    output = ModelOutput(logits.mean(0), logits, features)
    teacher = ModelOutput(before.mean(0), before, old)

    def value(scale: int) -> float:
        class Probe(namespace[name]):
            keep, distillation, temperature = 2.0, 1.0, 2.0
            experts = types.SimpleNamespace(expert_scale=scale, loss=lambda *_: {})

            def loss_context(self):
                return None

            def teacher_output(self):
                return teacher

        return Probe.__new__(Probe).loss_terms(output, torch.zeros(4, dtype=torch.long))[term].item()

    assert value(1) > 0
    assert value(3) == pytest.approx(3 * value(1))


@pytest.mark.soak
def test_the_classes_of_the_page_keep_their_promises(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for language, body in FENCE.findall(EXTENDING.read_text()):
        if language == "python" and (named := FILE.match(body)):
            Path(named[1]).write_text(body)
    with own_modules(tmp_path):
        tests = runpy.run_path("test_mine.py")
        for name in ("test_keep_features", "test_skills", "test_even_rows", "test_plain"):
            tests[name]()


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
