"""From a name in YAML to a class, and to the hyper-parameters it takes, without importing it.

``lucir`` is the class in ``incrlt/strategies/lucir.py`` that declares ``name = "lucir"``; adding a method
is adding a file, no list is edited. ``my_pkg.my_mod:MyClass`` is a class outside the package. The source is
parsed, not executed, so a configuration with a typing error is refused before torch loads. What is a hyper-parameter
stands in ``incrlt.experiment.parameters``, what else a class tells in ``incrlt.experiment.declared``.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from incrlt.errors import UserError, did_you_mean, shown
from incrlt.experiment import source
from incrlt.experiment.declared import Declared
from incrlt.experiment.parameters import parameters_of
from incrlt.experiment.source import PACKAGE, ClassSource
from incrlt.files import Plain

Kind = Literal["strategy", "experts", "rebalance", "router"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

FOLDERS: Final[dict[str, str]] = {
    "strategy": "strategies",
    "experts": "experts",
    "rebalance": "stages",
    "router": "stages",
}
"""Folder below the package for each kind of entry."""

ROOTS: Final[dict[str, str]] = {
    "strategy": "incrlt.training.template:IncrTemplate",
    "experts": "incrlt.experts.base:ExpertMethod",
}
"""The class that a method of a kind is built on, and is not itself."""
MAKERS: Final[dict[str, str]] = {"rebalance": "stages", "router": "stage"}
"""The method that a stage of a kind has."""

WORDS: Final[dict[str, str]] = {
    "strategy": "strategy",
    "experts": "expert method",
    "rebalance": "rebalancing stage",
    "router": "router",
}
"""What sentences call a kind."""

EXTERNAL: Final = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")
SHOWN: Final = 62
"""Characters of a name in a message, quotes included."""
LONGEST_NAME: Final = 200
"""Characters of a name; longer ones are looked up nowhere."""


class Entry(BaseModel):
    """A chosen method and its hyper-parameters; each method has its own subclass, made by ``schema``."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        protected_namespaces=(),
    )

    name: str = Field(description="Name of the method: its file's name, or my_pkg.my_mod:MyClass.")

    @property
    def hyper_parameters(self) -> Plain:
        """Everything but the name, ready to be passed to the class as keyword arguments."""
        return self.model_dump(exclude={"name"})


def names(kind: Kind, root: Path = PACKAGE) -> list[str]:
    """Return the names that exist in the package, sorted.

    Args:
        kind: Which axis.
        root: Package folder; tests give their own.
    """
    folder = root / FOLDERS[kind]
    files = sorted(folder.glob("*.py")) if folder.is_dir() else []
    return [file.stem for file in files if _declares(kind, file)]


def find(kind: Kind, name: str, root: Path = PACKAGE) -> Declared:
    """Return what the source of ``name``, and of the classes it inherits from, declares.

    Args:
        kind: Which axis.
        name: File name without ``.py``, or ``my_pkg.my_mod:MyClass``.
        root: Package folder; tests give their own.

    Raises:
        UserError: No such name, file or class, or a class of another kind; the message lists what there is.
    """
    cls = external(kind, name, names(kind)) if ":" in name else _internal(kind, name, root)
    line = source.lineage(cls, frozenset(ROOTS.values()))
    if ":" in name:
        _check_kind(kind, name, line)
    ancestors = tuple(ancestor for ancestor in line.classes if ancestor.path not in ROOTS.values())
    facts: Plain = {}
    for ancestor in reversed(line.classes):
        facts |= ancestor.facts
    missing = source.missing_imports(cls) if ":" in name else []
    found = parameters_of(ancestors, _template() if kind == "strategy" else frozenset())
    return Declared(
        kind=kind,
        name=name,
        module=cls.module,
        class_name=cls.name,
        description=(source.docstring(cls.node)).partition("\n")[0],
        parameters=MappingProxyType(found.parameters),
        help=MappingProxyType(found.help),
        facts=MappingProxyType(facts),
        ancestors=ancestors,
        faults=(
            *found.faults,
            *(f"its file imports '{module}', which is not installed" for module in missing),
        ),
    )


def titled(kind: Kind, root: Path = PACKAGE) -> dict[str, Declared]:
    """Return the methods of the package by the title of their class, those whose title is one text."""
    declared = [find(kind, name, root) for name in names(kind, root)]
    return {one.facts["title"]: one for one in declared if isinstance(one.facts.get("title"), str)}


@functools.lru_cache(maxsize=256)
def schema(kind: Kind, name: str, root: Path = PACKAGE) -> type[Entry]:
    """Return the pydantic model of an entry of this name: one field per hyper-parameter.

    Raises:
        UserError: See ``find``; or the class cannot be made from YAML.
    """
    declared = find(kind, name, root)
    if declared.faults:
        raise UserError(
            f"{kind}.name {shown(name, SHOWN)} cannot be made from YAML: {'; '.join(declared.faults)}. Mend that file."
        )
    fields: Plain = {
        key: (annotation, Field(default=default, description=declared.help.get(key)))
        for key, (annotation, default) in declared.parameters.items()
    }

    def fill(values: object) -> Any:
        return {**declared.usual(values), **values} if isinstance(values, dict) else values

    validators: Plain = {"fill": model_validator(mode="before")(fill)}
    return create_model(
        declared.class_name,
        __base__=Entry,
        __doc__=declared.description,
        __validators__=validators,
        **fields,
    )


def load_class(kind: Kind, name: str) -> type:
    """Import and return the class behind ``name``; the one function here that loads torch.

    Raises:
        UserError: See ``find``; or the module of an external name fails to import, or has a class of another kind.
    """
    declared = find(kind, name)
    try:
        module = importlib.import_module(declared.module)
        found: type = getattr(module, declared.class_name)
    except ImportError as error:
        if ":" not in name:
            raise
        raise UserError(f"{kind}.name '{name}' cannot be imported: {error}. Check that module.") from error
    if kind in ROOTS:  # the source of a base may have been out of reach
        place, _, root = ROOTS[kind].partition(":")
        if not issubclass(found, getattr(importlib.import_module(place), root)):
            raise UserError(_no_method(kind, name))
    return found


@functools.lru_cache(maxsize=1)
def _template() -> frozenset[str]:
    """Return the arguments of the template: other sections fill them, so that they are no hyper-parameters."""
    cls = source.find_class(*ROOTS["strategy"].split(":"))
    assert cls is not None, "the template is where ROOTS says"
    return source.arguments(cls.node)


def is_parameter(key: str) -> bool:
    """Say whether an argument of a strategy may be a hyper-parameter by its name."""
    return key not in _template() and key != "name" and key[0] != "_"


def _declares(kind: Kind, file: Path) -> bool:
    """Say whether a file has a method of this kind; two kinds of stages share a folder, and say which they are."""
    node = None if file.stem.startswith("_") else source.class_named(source.parse(file), file.stem)
    return node is not None and source.facts(node).get("kind", kind) == kind


def _internal(kind: Kind, name: str, root: Path) -> ClassSource:
    allowed = names(kind, root)
    if name not in allowed:
        known = ", ".join(allowed) or "none yet"
        raise UserError(
            f"{kind}.name {shown(name, SHOWN)} is not known; allowed: {known}, "
            f"or my_pkg.my_mod:MyClass.{did_you_mean(name, allowed)}"
        )
    file = root / FOLDERS[kind] / f"{name}.py"
    node = source.class_named(source.parse(file), name)
    assert node is not None, file
    return ClassSource(".".join(["incrlt", *FOLDERS[kind].split("/"), name]), node.name, file, node)


def external(section: str, name: str, allowed: Sequence[str]) -> ClassSource:
    """Return the source of ``my_pkg.my_mod:MyClass``.

    Args:
        section: Where the name stands, for messages: a kind of method, or ``model``.
        name: What is given.
        allowed: The names without a colon, for messages.

    Raises:
        UserError: It is not of this form, or there is no such file or class.
    """
    match = EXTERNAL.fullmatch(name) if len(name) <= LONGEST_NAME else None
    if match is None:
        raise UserError(
            f"{section}.name {shown(name, SHOWN)} is not of the form my_pkg.my_mod:MyClass. "
            f"Write that, or one of: {', '.join(allowed)}."
        )
    file = source.source_of(match["module"])
    if file is None:
        raise UserError(
            f"{section}.name {shown(name, SHOWN)}: no Python file of module '{match['module']}' was found. "
            "Install its package, or start from the folder that holds it."
        )
    found = source.find_class(match["module"], match["name"])
    if found is None:
        known = [node.name for node in source.classes(source.parse(file))]
        raise UserError(
            f"{section}.name {shown(name, SHOWN)}: {file.name} has no class '{match['name']}'; it has: "
            f"{', '.join(known) or 'none'}.{did_you_mean(match['name'], known)}"
        )
    return found


def _check_kind(kind: Kind, name: str, line: source.Lineage) -> None:
    """Refuse a class that is known to be of another kind, or to be what methods are built on."""
    paths = [cls.path for cls in line.classes]
    built_on = [other for other, root in ROOTS.items() if root in paths]
    if paths[0] in ROOTS.values():
        raise UserError(
            f"{kind}.name {shown(name, SHOWN)} is the class that methods are built on, and trains nothing by itself. "
            f"Give a subclass of it, or one of: {', '.join(names(kind))}."
        )
    told = next((cls.facts["kind"] for cls in line.classes if "kind" in cls.facts), kind)
    made = kind in ROOTS or any(cls.has_method(MAKERS[kind]) for cls in line.classes)
    fits = built_on == [kind] if kind in ROOTS else not built_on and made
    if told != kind or (not fits and (built_on or not line.unknown)):
        raise UserError(_no_method(kind, name))


def _no_method(kind: Kind, name: str) -> str:
    wanted = (
        f"a subclass of {ROOTS[kind].replace(':', '.')}"
        if kind in ROOTS
        else f"a class with a method {MAKERS[kind]}"
    )
    return (
        f"{kind}.name {shown(name, SHOWN)} is no {WORDS[kind]}: that is {wanted}. "
        f"Give one, or one of: {', '.join(names(kind))}."
    )
