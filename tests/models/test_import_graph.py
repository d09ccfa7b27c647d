"""Who imports whom in the room of networks: no circle, not even of imports for types or inside functions."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import incrlt.models

FOLDER = Path(incrlt.models.__file__).parent
ROOM = "incrlt.models"


def _name(file):
    parts = file.relative_to(FOLDER).with_suffix("").parts
    return ".".join([ROOM, *(part for part in parts if part != "__init__")])


MODULES = {_name(file): file for file in sorted(FOLDER.rglob("*.py"))}


def _imported(source):
    """Modules of the room that a source names in an import, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name for name in inside if name in MODULES]
            yield from found
            if len(found) < len(inside):
                yield node.module


def _order(sources):
    graph = {name: set(_imported(source)) for name, source in sources.items()}
    return list(TopologicalSorter(graph).static_order())


def test_there_is_no_circle():
    order = _order({name: file.read_text() for name, file in MODULES.items()})
    assert order.index("incrlt.models.inference") < order.index("incrlt.models.network")
    assert order[-1] == ROOM


def test_a_circle_for_types_alone_would_be_found():
    sources = {name: file.read_text() for name, file in MODULES.items()}
    sources["incrlt.models.inference"] += (
        "\nif TYPE_CHECKING:\n    from incrlt.models.network import ExpertNetwork\n"
    )
    with pytest.raises(CycleError):
        _order(sources)
