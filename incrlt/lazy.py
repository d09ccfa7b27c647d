"""Public classes of a folder, found by reading its files: nothing has to be registered, nothing is imported early."""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


@functools.cache
def classes_in(folder: Path) -> dict[str, str]:
    """Return public class to the name of its file, for every file of a folder that does not begin with ``_``."""
    found: dict[str, str] = {}
    for file in sorted(folder.glob("[!_]*.py")):
        for node in ast.parse(file.read_bytes()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name] = file.stem
    return found


def exports(package: str, folder: Path) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__`` and ``__dir__``: its classes are loaded when they are first asked for.

    Importing torch and Avalanche takes seconds, and a command line that only checks a file must not wait for them.

    Args:
        package: Its name, ``__name__``.
        folder: Where its files are.
    """

    def get(name: str) -> Any:
        classes = {} if name.startswith("_") else classes_in(folder)
        if name not in classes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{classes[name]}"), name)

    return get, lambda: sorted(classes_in(folder))
