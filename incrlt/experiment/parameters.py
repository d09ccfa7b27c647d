"""The hyper-parameters of a class, its own and those it inherits, read from source.

They are

- of a class with an ``__init__``: its keyword-only arguments; those of its bases too where it passes ``**rest`` on to
  ``super().__init__``, but for arguments that it gives there itself,
- of a dataclass: its fields and those of the dataclasses it inherits from,
- of any other class: those of its base,

each with a plain default (``0.5``, ``1 / 3``, ``(1.0, 2.0)``) and an annotation that ``incrlt.experiment.annotations``
understands. Other arguments (model, optimizer, plugins) are not for YAML and are passed over.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from incrlt.experiment import source
from incrlt.experiment.annotations import last_word, spelled
from incrlt.experiment.expressions import is_plain, plain
from incrlt.experiment.source import ClassSource


@dataclass(frozen=True)
class Parameters:
    """What a class takes."""

    parameters: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Hyper-parameter to (type, default); the default ``...`` has to be given."""
    help: dict[str, str] = field(default_factory=dict)
    """Hyper-parameter to its line of documentation."""
    faults: tuple[str, ...] = ()
    """Why it cannot be made from YAML."""


def parameters_of(ancestors: Sequence[ClassSource], filled: frozenset[str]) -> Parameters:
    """Return the hyper-parameters of a class.

    Args:
        ancestors: The class and its bases, in the order in which Python looks attributes up.
        filled: Arguments that are filled from elsewhere: they are no hyper-parameters.
    """
    if not ancestors:
        return Parameters()
    cls, *rest = ancestors
    if source.method(cls.node, "__init__") is not None:
        return _of_constructor(cls, rest, filled)
    if source.is_dataclass(cls.node):
        return _of_fields([cls, *(base for base in rest if source.is_dataclass(base.node))], filled)
    found = parameters_of(rest, filled)
    return Parameters(found.parameters, found.help | _documented(source.docstring(cls.node)), found.faults)


def _of_constructor(cls: ClassSource, rest: Sequence[ClassSource], filled: frozenset[str]) -> Parameters:
    init = source.method(cls.node, "__init__")
    assert init is not None
    own, faults = {}, []
    pairs = zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
    for argument, default in [*pairs, *_without_default(init)]:
        if argument.arg in filled or argument.arg[0] == "_":
            continue
        found = parameter(argument.annotation, default)
        if found is not None:
            own[argument.arg] = found
        elif default is None:
            faults.append(
                f"its argument '{argument.arg}' has no default, and its annotation is none that YAML can give"
            )
    given, passes_on = _passed_on(init)
    if filled and init.args.kwarg is None and not filled <= source.arguments(cls.node):
        faults.append("its __init__ takes no **template, so that model and optimizer cannot be passed on")
    taken = init.args.kwarg.arg if filled and init.args.kwarg is not None else None
    if taken and not any(isinstance(node, ast.Name) and node.id == taken for node in ast.walk(init)):
        faults.append(
            f"its __init__ takes **{taken} and does not pass it on, so that model and optimizer are lost; write "
            f"super().__init__(**{taken})"
        )
    base = parameters_of(rest, filled) if passes_on else Parameters()
    inherited = {key: pair for key, pair in base.parameters.items() if key not in given}
    notes = base.help | _documented(source.docstring(cls.node)) | _documented(ast.get_docstring(init) or "")
    return Parameters(inherited | own, notes, (*faults, *base.faults))


def _without_default(init: ast.FunctionDef) -> list[tuple[ast.arg, None]]:
    """Return the positional arguments that have to be given; those with a default are left at it."""
    positional = [*init.args.posonlyargs, *init.args.args][1:]
    return [(argument, None) for argument in positional[: len(positional) - len(init.args.defaults)]]


def _passed_on(init: ast.FunctionDef) -> tuple[set[str], bool]:
    """Return what a constructor itself gives to its base's, and whether it passes the rest on."""
    given: set[str] = set()
    passes_on = False
    for call in ast.walk(init):
        if isinstance(call, ast.Call) and last_word(call.func) == "__init__":
            given |= {word.arg for word in call.keywords if word.arg}
            passes_on |= init.args.kwarg is not None and any(word.arg is None for word in call.keywords)
    return given, passes_on


def _of_fields(classes: Sequence[ClassSource], filled: frozenset[str]) -> Parameters:
    """Return what a dataclass takes; a field of a base keeps its place when it is written anew."""
    fields: dict[str, ast.AnnAssign] = {}
    notes: dict[str, str] = {}
    for cls in reversed(classes):
        notes |= _documented(source.docstring(cls.node))
        for line, after in zip(cls.node.body, [*cls.node.body[1:], None], strict=True):
            if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
                continue
            key = line.target.id
            fields[key] = line
            if _is_no_argument(line) or key in filled or key[0] == "_" or key == "name":
                del fields[key]  # also where a base has a field of this name
            elif isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                notes[key] = inspect.cleandoc(str(after.value.value))
    found = {key: parameter(line.annotation, _default_of(line.value)) for key, line in fields.items()}
    faults = [
        f"its field '{key}' has no default, and its annotation is none that YAML can give"
        for key, line in fields.items()
        if line.value is None and found[key] is None
    ]
    return Parameters({key: pair for key, pair in found.items() if pair}, notes, tuple(faults))


def _is_no_argument(line: ast.AnnAssign) -> bool:
    """Say whether a dataclass's constructor passes this over: a ``ClassVar``, or ``field(init=False)``."""
    if source.is_class_variable(line.annotation):
        return True
    words = (
        line.value.keywords
        if isinstance(line.value, ast.Call) and last_word(line.value.func) == "field"
        else []
    )
    return any(
        word.arg == "init" and isinstance(word.value, ast.Constant) and not word.value.value for word in words
    )


def _default_of(value: ast.expr | None) -> ast.expr | None:
    """Return the default of ``field(default=...)``, or the value itself."""
    if isinstance(value, ast.Call) and last_word(value.func) == "field":
        return next((word.value for word in value.keywords if word.arg == "default"), value)
    return value


def parameter(annotation: ast.expr | None, default: ast.expr | None) -> tuple[Any, Any] | None:
    """Return (type, default) of a hyper-parameter, or None for any other argument.

    Args:
        annotation: As parsed.
        default: As parsed; without one the parameter has to be given.
    """
    kind = spelled(annotation)
    if kind is None or not (default is None or is_plain(default)):
        return None
    return kind, ... if default is None else plain(default)


def _documented(docstring: str) -> dict[str, str]:
    """Return argument to description from a Google docstring's ``Args:`` section."""
    _, _, section = docstring.partition("Args:\n")
    found: dict[str, str] = {}
    key = ""
    for line in section.splitlines():
        if line.strip() and not line.startswith(" "):
            break
        start = re.match(r" {4}(\w+)(?: \([^)]*\))?: (.*)", line)
        if start:
            key = start[1]
            found[key] = start[2].strip()
        elif key and line.strip():
            found[key] += " " + line.strip()
    return found
