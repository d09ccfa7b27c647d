"""From a name in YAML to a class, and to the hyper-parameters it takes, without importing it.

``lucir`` is the class in ``incrlt/strategies/lucir.py`` that declares ``name = "lucir"``; adding a method
is adding a file, no list is edited. ``my_pkg.my_mod:MyClass`` is a class outside the package. The source is
parsed, not executed, so a configuration with a typing error is refused before torch loads. Hyper-parameters
are

- of a strategy: the keyword-only arguments of its own ``__init__``,
- of an expert method or a stage: the fields of its dataclass,

each with a literal default and an annotation made of the names in ``incrlt.experiment.fields``, ``Literal`` and
``| None``. Other arguments (model, optimizer, plugins) are not for YAML and are passed over.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from incrlt.errors import UserError, did_you_mean
from incrlt.experiment.fields import ALIASES

Kind = Literal["strategy", "experts", "rebalance", "router", "model"]

FOLDERS: Final[dict[str, str]] = {
    "strategy": "strategies",
    "experts": "experts",
    "rebalance": "stages",
    "router": "stages",
}
"""Folder below the package for each kind of entry."""

PACKAGE: Final = Path(__file__).resolve().parent.parent
FROM_TRAINING: Final = frozenset(
    {"name", "train_mb_size", "train_epochs", "eval_mb_size", "eval_every", "device", "seed"}
)
"""Arguments the runner fills from other sections; they are no hyper-parameters even if annotated as one."""

EXTERNAL: Final = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")


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
    def hyper_parameters(self) -> dict[str, Any]:
        """Everything but the name, ready to be passed to the class as keyword arguments."""
        return self.model_dump(exclude={"name"})


@dataclass(frozen=True)
class Declared:
    """What a source file says about a method."""

    kind: str
    """``strategy``, ``experts``, ``rebalance`` or ``router``."""
    name: str
    """As written in YAML."""
    module: str
    """Importable module name."""
    class_name: str
    """Class in that module."""
    description: str
    """First line of the class docstring."""
    parameters: MappingProxyType[str, tuple[Any, Any]]
    """Hyper-parameter to (type, default), in the order of the source."""
    help: MappingProxyType[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Hyper-parameter to its line of documentation, where there is one."""
    facts: MappingProxyType[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Literal class attributes, such as ``needs_memory = True``."""


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
    """Return what the source file of ``name`` declares.

    Args:
        kind: Which axis.
        name: File name without ``.py``, or ``my_pkg.my_mod:MyClass``; models are found here by the latter alone.
        root: Package folder; tests give their own.

    Raises:
        UserError: No such name, file or class; the message lists what there is.
    """
    return _external(kind, name) if ":" in name else _internal(kind, name, root)


@functools.lru_cache(maxsize=256)
def schema(kind: Kind, name: str, root: Path = PACKAGE) -> type[Entry]:
    """Return the pydantic model of an entry of this name: one field per hyper-parameter.

    Raises:
        UserError: See ``find``.
    """
    declared = find(kind, name, root)
    fields: dict[str, Any] = {
        key: (annotation, Field(default=default, description=declared.help.get(key)))
        for key, (annotation, default) in declared.parameters.items()
    }
    return create_model(declared.class_name, __base__=Entry, __doc__=declared.description, **fields)


def load_class(kind: Kind, name: str) -> type:
    """Import and return the class behind ``name``; the one function here that loads torch.

    Raises:
        UserError: See ``find``; or the module of an external name fails to import.
    """
    declared = find(kind, name)
    try:
        found: type = getattr(importlib.import_module(declared.module), declared.class_name)
    except ImportError as error:
        if ":" not in name:
            raise
        raise UserError(f"{kind}.name '{name}' cannot be imported: {error}. Check that module.") from error
    return found


def _declares(kind: Kind, file: Path) -> bool:
    """Say whether a file has a method of this kind; two kinds of stages share a folder, and say which they are."""
    node = None if file.stem.startswith("_") else _class_named(_parse(file), file.stem)
    return node is not None and _facts(node).get("kind", kind) == kind


def _internal(kind: Kind, name: str, root: Path) -> Declared:
    allowed = names(kind, root)
    if name not in allowed:
        known = ", ".join(allowed) or "none yet"
        raise UserError(
            f"{kind}.name '{_short(name)}' is not known; allowed: {known}, "
            f"or my_pkg.my_mod:MyClass.{did_you_mean(name, allowed)}"
        )
    file = root / FOLDERS[kind] / f"{name}.py"
    node = _class_named(_parse(file), name)
    assert node is not None, file
    module = ".".join(["incrlt", *FOLDERS[kind].split("/"), name])
    return _declared(kind, name, module, node)


def _external(kind: Kind, name: str) -> Declared:
    match = EXTERNAL.fullmatch(name)
    if match is None:
        raise UserError(
            f"{kind}.name '{_short(name)}' is not of the form my_pkg.my_mod:MyClass. "
            f"Write that, or one of: {', '.join(names(kind))}."
        )
    file = _source_of(match["module"])
    if file is None:
        raise UserError(
            f"{kind}.name '{_short(name)}': no Python file of module '{match['module']}' was found. "
            "Install its package, or start from the folder that holds it."
        )
    classes = {node.name: node for node in _classes(_parse(file))}
    if match["name"] not in classes:
        raise UserError(
            f"{kind}.name '{_short(name)}': {file.name} has no class '{match['name']}'; it has: "
            f"{', '.join(classes) or 'none'}.{did_you_mean(match['name'], classes)}"
        )
    return _declared(kind, name, match["module"], classes[match["name"]])


def _source_of(module: str) -> Path | None:
    """Return the ``.py`` file of a dotted module; parents are looked up, not imported."""
    path, spec, done = None, None, ""
    for part in module.split("."):
        done = f"{done}.{part}" if done else part
        spec = PathFinder.find_spec(done, path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or [])
    origin = Path(spec.origin) if spec and spec.origin else None
    return origin if origin and origin.suffix == ".py" else None


def _parse(file: Path) -> ast.Module:
    status = file.stat()
    return _parse_version(file, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=256)
def _parse_version(file: Path, modified: int, size: int) -> ast.Module:
    """Parse once per version of the file; ``modified`` and ``size`` are the cache key."""
    try:
        return ast.parse(file.read_bytes(), filename=str(file))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{file} is not valid Python: {error}. Mend the file.") from error


def _classes(module: ast.Module) -> Iterator[ast.ClassDef]:
    return (node for node in module.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))


def _class_named(module: ast.Module, name: str) -> ast.ClassDef | None:
    """Return the public class whose class attribute ``name`` is this name."""
    return next((node for node in _classes(module) if _facts(node).get("name") == name), None)


def _facts(node: ast.ClassDef) -> dict[str, Any]:
    """Return the literal class attributes."""
    facts = {}
    for line in node.body:
        if not isinstance(line, (ast.Assign, ast.AnnAssign)) or not _is_literal(line.value):
            continue
        target = line.targets[0] if isinstance(line, ast.Assign) else line.target
        if isinstance(target, ast.Name):
            facts[target.id] = _literal(line.value)
    return facts


def _declared(kind: str, name: str, module: str, node: ast.ClassDef) -> Declared:
    text = ast.get_docstring(node) or ""
    parameters, notes = _dataclass_fields(node) if _is_dataclass(node) else _arguments(node)
    return Declared(
        kind=kind,
        name=name,
        module=module,
        class_name=node.name,
        description=text.partition("\n")[0],
        parameters=MappingProxyType(parameters),
        help=MappingProxyType(_documented(text) | notes),
        facts=MappingProxyType(_facts(node)),
    )


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def _arguments(node: ast.ClassDef) -> tuple[dict[str, tuple[Any, Any]], dict[str, str]]:
    """Return the hyper-parameters among the keyword-only arguments of ``__init__``, and their docs."""
    init = next((line for line in node.body if getattr(line, "name", "") == "__init__"), None)
    if not isinstance(init, ast.FunctionDef):
        return {}, {}
    pairs = zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
    found = {argument.arg: _parameter(argument.annotation, default) for argument, default in pairs}
    return _kept(found), _documented(ast.get_docstring(init) or "")


def _dataclass_fields(node: ast.ClassDef) -> tuple[dict[str, tuple[Any, Any]], dict[str, str]]:
    """Return the hyper-parameters among a dataclass's fields, and the string below each."""
    found, notes = {}, {}
    for line, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            found[line.target.id] = _parameter(line.annotation, line.value)
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                notes[line.target.id] = inspect.cleandoc(str(after.value.value))
    return _kept(found), notes


def _kept(found: dict[str, tuple[Any, Any] | None]) -> dict[str, tuple[Any, Any]]:
    return {key: pair for key, pair in found.items() if pair and is_parameter(key)}


def is_parameter(key: str) -> bool:
    """Say whether an argument of this name may be a hyper-parameter."""
    return key not in FROM_TRAINING and key[0] != "_"


def spelled(annotation: str) -> Any | None:
    """Return the type that an annotation spells, None where it uses a word that is not ours.

    Args:
        annotation: Its source, as ``from __future__ import annotations`` keeps it.
    """
    kind = _type_of(ast.parse(annotation, mode="eval").body)
    return None if kind is type(None) else kind


def _parameter(annotation: ast.expr | None, default: ast.expr | None) -> tuple[Any, Any] | None:
    """Return (type, default) of a hyper-parameter, or None for any other argument."""
    if annotation is None or not _is_literal(default):
        return None
    kind = _type_of(annotation)
    return None if kind is None or kind is type(None) else (kind, _literal(default))


def _literal(node: ast.expr | None) -> Any:
    return ast.literal_eval(node)  # type: ignore[arg-type]  # None raises ValueError, as it should


def _is_literal(node: ast.expr | None) -> bool:
    try:
        _literal(node)
    except (ValueError, TypeError, SyntaxError):
        return False
    return True


def _type_of(node: ast.expr) -> Any | None:
    """Return the type an annotation spells, None where it uses a word that is not ours."""
    if isinstance(node, ast.Constant):
        return _type_of_constant(node)
    if isinstance(node, (ast.Name, ast.Attribute)):
        return ALIASES.get(_last_word(node))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = _type_of(node.left), _type_of(node.right)
        return None if left is None or right is None else left | right
    if isinstance(node, ast.Subscript) and _last_word(node.value) == "Literal" and _is_literal(node.slice):
        return Literal[_literal(node.slice)]
    return None


def _type_of_constant(node: ast.Constant) -> Any | None:
    if node.value is None:
        return type(None)
    return _type_of(ast.parse(node.value, mode="eval").body) if isinstance(node.value, str) else None


def _last_word(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


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


def _short(text: str) -> str:
    shown = repr(text)[1:-1]
    return shown if len(shown) <= 60 else shown[:57] + "..."
