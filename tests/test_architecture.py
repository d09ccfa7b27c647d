"""The house keeps its shape: who imports whom, who prints, what an import costs."""

from __future__ import annotations

import ast
import functools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "incrlt"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Statement whose import must stay cheap, and what it must leave out.
LIGHT = [
    "incrlt",
    "incrlt.experiment.schema",
    "incrlt.experiment.methods",
    "incrlt.metrics",
    "incrlt.report",
    "incrlt.console",
]
LIGHT += [
    "incrlt.console",
    "incrlt.run",
    "incrlt.sweep.__main__",
    "incrlt.benchmarks.longtail",
    "incrlt.benchmarks.protocols",
    "incrlt.benchmarks.facts",
    "incrlt.benchmarks.folder",
]
HEAVY = ["torch", "torchvision", "avalanche", "sklearn", "triton"]


def lint_imports(folder: Path, package_parent: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the contracts of ``folder/pyproject.toml``."""
    code = (
        f"import sys; sys.path.insert(0, {str(package_parent)!r}); "
        "from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(is_debug_mode=False, no_cache=True))"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120
    )


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.fixture(scope="module")
def toy_package(tmp_path_factory) -> Path:
    """A package with our rooms and contracts, which is in order."""
    pytest.importorskip("importlinter")
    folder = tmp_path_factory.mktemp("toy")
    rooms = (
        "runner strategies stages training plugins experts experiment models benchmarks data losses kernels"
    )
    rooms += " metrics report"
    for room in rooms.split():
        (folder / "incrlt" / room).mkdir(parents=True)
        (folder / "incrlt" / room / "__init__.py").touch()
    (folder / "incrlt" / "__init__.py").touch()
    (folder / "incrlt" / "plugins" / "memory.py").touch()
    (folder / "incrlt" / "data" / "tensors.py").write_text("import torch\n")
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    assert lint_imports(folder, folder).returncode == 0, "the toy package is in order before"
    return folder


def test_import_contracts_hold():
    pytest.importorskip("importlinter")
    result = lint_imports(REPOSITORY, REPOSITORY)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("losses/wrong.py", "from incrlt import models"),  # upwards
        ("experts/wrong.py", "from incrlt.plugins import memory"),  # sideways
        ("models/wrong.py", "from incrlt import strategies"),
        ("metrics/wrong.py", "import torch"),
        ("report/wrong.py", "from incrlt.data import tensors"),  # torch by way of another module
        ("benchmarks/protocols.py", "import torch"),
        ("models/wrong.py", "import avalanche"),
        ("strategies/wrong.py", "from avalanche.training import Naive"),
        ("losses/wrong.py", "import triton"),
    ],
)
def test_import_contracts_bite(toy_package, tmp_path, module, statement):
    """A contract that nothing can break protects nothing: break each on purpose in a toy package."""
    shutil.copytree(toy_package, tmp_path, dirs_exist_ok=True)
    (tmp_path / "incrlt" / module).write_text(statement + "\n")
    result = lint_imports(tmp_path, tmp_path)
    assert result.returncode == 1, f"{statement!r} in {module} went unnoticed\n{result.stdout}{result.stderr}"
    assert "BROKEN" in result.stdout


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_neither_torch_nor_avalanche(module):
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert not result.stdout.strip(), f"import {module} loads {result.stdout.strip()}"


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The tree of a source file, which no test changes."""
    return ast.parse(path.read_text())


def calls_to(tree: ast.AST, function: str) -> list[int]:
    """Lines on which ``function`` is called by its bare name."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function
    ]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_only_the_console_prints(path):
    if path == PACKAGE / "console.py":
        return
    lines = calls_to(parsed(path), "print")
    assert not lines, f"{name(path)} prints on lines {lines}: use incrlt.console"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_star_imports(path):
    stars = [
        node.lineno
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    assert not stars, f"{name(path)} imports * on lines {stars}"


def functions(tree: ast.AST):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body: neither signature nor docstring count."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_functions_are_short(path):
    def limit(function):  # one launch is one function, whatever it calls: flags alone take a third of it
        if path.parent.name != "_triton":
            return 60
        return 200 if function.name.endswith("_kernel") else 70

    long = {f.name: length(f) for f in functions(parsed(path)) if length(f) > limit(f)}
    assert not long, f"{name(path)}: longer than 60 lines: {long}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_functions_are_annotated(path):
    if path.parent.name == "_triton":  # there an annotation is an instruction to the compiler
        return
    bare = [
        f"{f.name}({argument.arg})"
        for f in functions(parsed(path))
        for argument in [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
        if argument.annotation is None and argument.arg not in ("self", "cls")
    ]
    assert not bare, f"{name(path)}: arguments without a type: {bare}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_compat_comes_before_avalanche(path):
    """Whoever imports Avalanche at module level imports the repairs first."""
    seen_compat = path == PACKAGE / "_compat.py"
    for node in parsed(path).body:
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "incrlt":
            modules += [f"incrlt.{alias.name}" for alias in node.names]
        seen_compat |= "incrlt._compat" in modules
        if any(module.split(".")[0] == "avalanche" for module in modules):
            assert seen_compat, f"{name(path)}:{node.lineno} imports avalanche before incrlt._compat"
