"""The pages stay true: code compiles, links lead somewhere, every method has a page, files named exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from incrlt.benchmarks import facts

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [
    *sorted(REPOSITORY.glob("*.md")),
    *(page for page in sorted((REPOSITORY / "docs").rglob("*.md")) if "_build" not in page.parts),
    *sorted((REPOSITORY / "perf").rglob("*.md")),
    *sorted((REPOSITORY / "experiments").rglob("*.md")),
]
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
RUN = [REPOSITORY / "docs" / "extending.md"]
"""Pages beside the tutorials whose blocks test_tutorials.py runs."""
NAMED_FILE = re.compile(r"`((?:incrlt|experiments|examples|docs|perf|tests)/[\w./-]*)`")


def name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def blocks(language: str) -> list:
    """All fenced blocks of a language, as pytest parameters; those that test_tutorials.py runs are left to it."""
    return [
        pytest.param(body, id=f"{name(page)}-{number}")
        for page in PAGES
        if page.parent.name != "tutorials" and page not in RUN
        for number, (found, body) in enumerate(FENCE.findall(page.read_text()))
        if found == language
    ]


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_compile(block):
    compile(block, "<documentation>", "exec")


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_import_what_exists(block):
    """Names imported from incrlt on a page are there, under that path."""
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "incrlt":
            module = __import__(node.module, fromlist=[alias.name for alias in node.names])
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{node.module} has no {missing}"


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_blocks_parse(block):
    assert isinstance(yaml.safe_load(block), dict)


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_blocks_are_valid_experiments(block, tmp_path):
    """What a page shows is accepted as it stands; a fragment is laid over a small experiment."""
    from incrlt.experiment import schema as config

    small = {
        "benchmark": {"dataset": "digits", "protocol": "lfh-shuffled-5"},
        "strategy": {"name": "finetune"},
    }
    (tmp_path / "page.yaml").write_text(yaml.safe_dump(small | yaml.safe_load(block)))
    config.load(tmp_path / "page.yaml", with_data=False)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_pages_resolve(page):
    text = FENCE.sub("", page.read_text())
    targets = [target.split("#")[0] for target in LINK.findall(text) if "://" not in target]
    missing = [target for target in targets if target and not (page.parent / target).exists()]
    assert not missing, f"{name(page)} links to {missing}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_named_on_a_page_exist(page):
    text = FENCE.sub("", page.read_text())
    named = [path for path in NAMED_FILE.findall(text) if "foo" not in path and "_build" not in path]
    missing = sorted({path for path in named if not (REPOSITORY / path).exists()})
    assert not missing, f"{name(page)} names files that are not there: {missing}"


def test_tests_named_on_the_page_of_faults_exist():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (REPOSITORY / "docs" / "faults.md").read_text())
    tests = {
        file: {
            node.name
            for node in ast.parse((REPOSITORY / "tests" / file).read_text()).body
            if isinstance(node, ast.FunctionDef)
        }
        for file, _ in named
    }
    assert len(named) > 60
    assert [f"{file}::{test}" for file, test in named if test not in tests[file]] == []


def methods() -> list[str]:
    """Names of the methods: classes of the rooms of methods that say ``name = "..."``."""
    found = set()
    rooms = [REPOSITORY / "incrlt" / room for room in ("strategies", "stages", "experts")]
    for path in sorted(path for room in rooms for path in room.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found |= {value for value in map(name_given, node.body) if value}
    return sorted(found)


def name_given(statement: ast.stmt) -> str | None:
    """``x`` of the statement ``name = "x"``, annotated or not."""
    target = statement.target if isinstance(statement, ast.AnnAssign) else None
    target = statement.targets[0] if isinstance(statement, ast.Assign) else target
    if isinstance(target, ast.Name) and target.id == "name" and isinstance(statement.value, ast.Constant):
        return str(statement.value.value)
    return None


@pytest.mark.parametrize("method", methods())
def test_every_method_has_a_page_that_is_listed(method):
    page = REPOSITORY / "docs" / "methods" / f"{method}.md"
    assert page.is_file(), f"write {name(page)}"
    assert f"methods/{method}" in (REPOSITORY / "docs" / "index.md").read_text()


def test_methods_are_found():
    assert {"finetune", "joint", "replay", "icarl", "lucir", "lws", "shike"} <= set(methods())


def test_every_data_set_has_a_page_that_is_listed():
    contents = (REPOSITORY / "docs" / "index.md").read_text()
    for dataset in facts.names():
        assert (REPOSITORY / "docs" / "datasets" / f"{dataset}.md").is_file(), (
            f"write docs/datasets/{dataset}.md"
        )
        assert f"datasets/{dataset}\n" in contents


def test_every_page_is_in_the_table_of_contents():
    docs = REPOSITORY / "docs"
    contents = (docs / "index.md").read_text()
    pages = [str(page.relative_to(docs).with_suffix("")) for page in PAGES if docs in page.parents]
    assert not [page for page in pages if page != "index" and page not in contents]


def test_every_experiment_opens_with_its_page():
    """The first lines of a YAML are its page: what it is, what to expect, what it costs, the command."""
    for path in sorted((REPOSITORY / "experiments").glob("*.yaml")):
        comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
        text = "\n".join(comment)
        assert len(comment) >= 3, f"{path.name} needs an opening comment"
        assert f"experiments/{path.name}" in text, f"{path.name}: give the command"


def test_readme_begins_with_the_two_commands():
    first_screen = "\n".join((REPOSITORY / "README.md").read_text().splitlines()[:60])
    assert "make run" in first_screen
    assert "make test" in first_screen
