"""Classes as their source files have them: found by module and name, with the classes they inherit from.

Nothing is imported or executed: files are parsed, and names are followed through imports, packages that export
their files' classes, and aliases, in incrlt's folders as in a user's own.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from incrlt.errors import UserError
from incrlt.experiment.expressions import is_plain, plain
from incrlt.files import Plain

PACKAGE: Final = Path(__file__).resolve().parent.parent
NO_BASES: Final = frozenset({"object", "ABC", "Generic", "Protocol"})
"""Bases that bring no argument."""
MOST_CLASSES: Final = 60
"""Ancestors that are followed; more means a circle."""


@dataclass(frozen=True, eq=False)
class Module:
    """A parsed file and the name it is imported by."""

    name: str
    file: Path
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        """It is an ``__init__.py``."""
        return self.file.name == "__init__.py"


@dataclass(frozen=True, eq=False)
class ClassSource:
    """A class as its file has it; two are equal when they stand in one place."""

    module: str
    name: str
    file: Path
    node: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClassSource) and (self.file, self.name) == (other.file, other.name)

    def __hash__(self) -> int:
        return hash((self.file, self.name))

    @property
    def path(self) -> str:
        """``module:Class``."""
        return f"{self.module}:{self.name}"

    @property
    def facts(self) -> Mapping[str, Any]:
        """Class attributes with a plain value."""
        return facts(self.node)

    def has_method(self, name: str) -> bool:
        """Say whether the class itself, not a base, defines a function of this name."""
        return method(self.node, name) is not None


@dataclass(frozen=True)
class Lineage:
    """A class and all it inherits from, in the order in which Python looks attributes up."""

    classes: tuple[ClassSource, ...]
    unknown: tuple[str, ...] = ()
    """Bases whose source was not found, as they are spelled."""


def parse(file: Path) -> ast.Module:
    """Parse a file, once per version of it.

    Raises:
        UserError: It is not Python.
    """
    status = file.stat()
    return _parse_version(file, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=512)
def _parse_version(file: Path, modified: int, size: int) -> ast.Module:
    """Parse once per version of the file; ``modified`` and ``size`` are the cache key."""
    try:
        return ast.parse(file.read_bytes(), filename=str(file))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{file} is not valid Python: {error}. Mend the file.") from error


def classes(tree: ast.Module) -> Iterator[ast.ClassDef]:
    """Yield the public classes at a file's top level."""
    return (node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))


def class_named(tree: ast.Module, name: str) -> ast.ClassDef | None:
    """Return the public class whose class attribute ``name`` is this name."""
    return next((node for node in classes(tree) if facts(node).get("name") == name), None)


@functools.lru_cache(maxsize=1024)
def facts(node: ast.ClassDef) -> Mapping[str, Any]:
    """Return the class attributes that have a plain value; fields of a dataclass are those of its objects."""
    found, fields = {}, is_dataclass(node)
    for line in node.body:
        if not isinstance(line, (ast.Assign, ast.AnnAssign)) or not is_plain(line.value):
            continue
        if fields and isinstance(line, ast.AnnAssign) and not is_class_variable(line.annotation):
            continue
        target = line.targets[0] if isinstance(line, ast.Assign) else line.target
        if isinstance(target, ast.Name):
            found[target.id] = plain(line.value)
    return MappingProxyType(found)


def is_dataclass(node: ast.ClassDef) -> bool:
    """Say whether a class is decorated as one."""
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def is_class_variable(annotation: ast.expr) -> bool:
    """Say whether an annotation is a ``ClassVar``, which no object has as a field."""
    return "ClassVar" in ast.unparse(annotation)


def method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    """Return the function of this name that a class defines itself."""
    found = (line for line in node.body if isinstance(line, ast.FunctionDef) and line.name == name)
    return next(found, None)


def docstring(node: ast.ClassDef) -> str:
    """Return the docstring of a class, empty without one."""
    return ast.get_docstring(node) or ""


def arguments(node: ast.ClassDef) -> frozenset[str]:
    """Return the names of the arguments of a class's own ``__init__``, ``self`` left out."""
    init = method(node, "__init__")
    if init is None:
        return frozenset()
    named = [*init.args.posonlyargs, *init.args.args][1:] + init.args.kwonlyargs
    return frozenset(argument.arg for argument in named)


def source_of(module: str) -> Path | None:
    """Return the ``.py`` file of a dotted module; parents are looked up, not imported."""
    if module == "incrlt" or module.startswith("incrlt."):
        return _file_in([PACKAGE.parent], module.split("."))
    top, *rest = module.split(".")
    spec = _top(top)
    if spec is None:
        return None
    if rest:
        return _file_in([Path(folder) for folder in spec.submodule_search_locations or []], rest)
    origin = Path(spec.origin) if spec.origin else None
    return origin if origin and origin.suffix == ".py" else None


def _file_in(folders: list[Path], parts: list[str]) -> Path | None:
    """Return the file of a module below folders; a folder without ``__init__.py`` is a package too."""
    for part in parts[:-1]:
        folders = [folder / part for folder in folders if (folder / part).is_dir()]
    places = [folder / parts[-1] for folder in folders]
    files = [
        file for place in places for file in (place / "__init__.py", place.with_name(f"{place.name}.py"))
    ]
    return next((file for file in files if file.is_file()), None)


def missing_imports(cls: ClassSource) -> list[str]:
    """Return the packages that a class's file imports first thing and that are not installed."""
    wanted: list[str] = []
    for line in parse(cls.file).body:
        if isinstance(line, ast.Import):
            wanted += [alias.name for alias in line.names]
        elif isinstance(line, ast.ImportFrom) and not line.level:
            wanted.append(line.module or "")
    packages = dict.fromkeys(module.partition(".")[0] for module in wanted)
    return [package for package in packages if _top(package) is None]


def find_class(module: str, name: str) -> ClassSource | None:
    """Return the class that ``module.name`` is, followed through imports; None where it is not found."""
    holder = _module(module)
    return None if holder is None else _lookup(holder, name, frozenset())


def lineage(cls: ClassSource, roots: frozenset[str] = frozenset()) -> Lineage:
    """Return a class and all it inherits from.

    Args:
        cls: The class.
        roots: ``module:Class`` of classes whose own bases do not matter.

    Raises:
        UserError: A base's file is not Python.
    """
    unknown: list[str] = []
    try:
        order = _merged_order(cls, roots, unknown, ())
    except RecursionError:
        order = [cls]
    return Lineage(tuple(order), tuple(unknown))


def _merged_order(
    cls: ClassSource, roots: frozenset[str], unknown: list[str], below: tuple[ClassSource, ...]
) -> list[ClassSource]:
    """Python's own method resolution order (C3)."""
    if cls.path in roots or cls in below or len(below) > MOST_CLASSES:
        return [cls]
    bases = []
    for expression in cls.node.bases:
        base = _base(cls, expression)
        if base is not None:
            bases.append(base)
        elif (spelled := _dotted(expression)).rpartition(".")[2] not in NO_BASES:
            unknown.append(spelled)
    queues = [_merged_order(base, roots, unknown, (*below, cls)) for base in bases] + [bases]
    order = [cls]
    while queues := [queue for queue in queues if queue]:
        tails = [item for queue in queues for item in queue[1:]]
        head = next((queue[0] for queue in queues if queue[0] not in tails), queues[0][0])
        order.append(head)
        queues = [[item for item in queue if item != head] for queue in queues]
    return order


def _base(cls: ClassSource, expression: ast.expr) -> ClassSource | None:
    holder = Module(cls.module, cls.file, parse(cls.file))
    return _lookup(holder, _dotted(expression), frozenset())


def _dotted(expression: ast.expr) -> str:
    """Return ``a.b.C`` as it is spelled; the brackets of a generic base say nothing about arguments."""
    return ast.unparse(expression.value if isinstance(expression, ast.Subscript) else expression)


def _top(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def _module(name: str) -> Module | None:
    file = source_of(name)
    return None if file is None else Module(name, file, parse(file))


def _lookup(holder: Module, dotted: str, seen: frozenset[tuple[str, str]]) -> ClassSource | None:
    """Return the class that a name means inside a module."""
    if (holder.name, dotted) in seen:  # imports in a circle
        return None
    seen |= {(holder.name, dotted)}
    head, _, rest = dotted.partition(".")
    bound = _bindings(holder).get(head)
    if isinstance(bound, ast.ClassDef):
        return None if rest else ClassSource(holder.name, head, holder.file, bound)
    if isinstance(bound, ast.expr):
        return _lookup(holder, f"{_dotted(bound)}.{rest}".rstrip("."), seen)
    if isinstance(bound, tuple):
        module, name = bound
        return _imported(module, name, rest, seen)
    return _exported(holder, head, rest, seen)


def _imported(module: str, name: str, rest: str, seen: frozenset[tuple[str, str]]) -> ClassSource | None:
    """Follow ``from module import name``, or ``import module`` where ``name`` is empty."""
    wanted = ".".join(filter(None, (name, rest)))
    holder = _module(module)
    while holder is None and "." in wanted:  # folders without __init__.py are packages too
        part, _, wanted = wanted.partition(".")
        module = f"{module}.{part}"
        holder = _module(module)
    return _lookup(holder, wanted, seen) if holder is not None and wanted else None


def _exported(holder: Module, head: str, rest: str, seen: frozenset[tuple[str, str]]) -> ClassSource | None:
    """Look where a module has what it does not bind itself: star imports, files of a package, lazy exports."""
    for star in _stars(holder):
        other = _module(star)
        found = _lookup(other, ".".join(filter(None, (head, rest))), seen) if other else None
        if found is not None:
            return found
    if not holder.is_package:
        return None
    if rest:
        return _imported(f"{holder.name}.{head}", "", rest, seen)
    if "__getattr__" not in _bindings(holder):
        return None
    for file in sorted(holder.file.parent.glob("[!_]*.py")):  # see incrlt.lazy
        node = next((node for node in classes(parse(file)) if node.name == head), None)
        if node is not None:
            return ClassSource(f"{holder.name}.{file.stem}", head, file, node)
    return None


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements at a file's top level, those in ``if`` and ``try`` too."""
    for line in body:
        yield line
        for inner in ("body", "orelse", "finalbody"):
            if isinstance(line, (ast.If, ast.Try)):
                yield from _statements(getattr(line, inner, []))


def _bindings(holder: Module) -> Plain:
    """Return what names mean at a file's top level: a class, (module, name) of an import, or an expression."""
    found: Plain = {}
    for line in _statements(holder.tree.body):
        if isinstance(line, ast.ClassDef):
            found[line.name] = line
        elif isinstance(line, ast.ImportFrom):
            found |= {a.asname or a.name: (_absolute(holder, line), a.name) for a in line.names}
        elif isinstance(line, ast.Import):
            found |= {a.asname or a.name.partition(".")[0]: _import(a) for a in line.names}
        elif isinstance(line, ast.FunctionDef):
            found[line.name] = None
        elif isinstance(line, ast.Assign):
            for target in line.targets:
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                value = line.value if isinstance(line.value, (ast.Name, ast.Attribute)) else None
                found |= {name.id: value for name in names if isinstance(name, ast.Name)}
    return found


def _import(alias: ast.alias) -> tuple[str, str]:
    return (alias.name if alias.asname else alias.name.partition(".")[0]), ""


def _absolute(holder: Module, line: ast.ImportFrom) -> str:
    """Return the module that an import names, dots resolved."""
    if not line.level:
        return line.module or ""
    parts = holder.name.split(".")
    parts = parts[: len(parts) - line.level + holder.is_package]
    return ".".join([*parts, *([line.module] if line.module else [])])


def _stars(holder: Module) -> list[str]:
    return [
        _absolute(holder, line)
        for line in _statements(holder.tree.body)
        if isinstance(line, ast.ImportFrom) and any(alias.name == "*" for alias in line.names)
    ]
