"""YAML text as plain data, as its reader thinks of it, and in bounded time and memory.

Scalars are those of YAML 1.2's core schema: ``5e-4`` is a number, ``010`` is ten, ``yes``, ``1:30`` and ``2024-01-01``
are text. Doubled keys are refused, and so are texts that are small and stand for something huge: aliases of aliases,
deep nesting, tens of thousands of keys.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, Final

import yaml

from incrlt.errors import UserError
from incrlt.files import Plain

LARGEST_TEXT: Final = 1_000_000
"""Characters; an experiment file has a few hundred."""
MOST_NODES: Final = 60_000
"""Keys and values of a text: the order of 50,000 classes, and what else there is."""
MOST_NAMED: Final = 20_000
"""Values that aliases may stand for beside what is written."""
MOST_KEYS: Final = 1_000
"""Keys of one mapping."""
DEEPEST: Final = 40
"""Levels of nesting."""

# What a scalar or a collection may raise while it is built: '!!int x', '2024-13-45', '!!bool x', '? [a]' ...
BROKEN: Final = (
    yaml.YAMLError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)

SCALARS: Final = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+", "-+0123456789"),
    (
        "float",
        r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
)
"""Tag, pattern and first letters of what is no text; a whole number comes before a broken one."""
OLD_TAGS: Final = frozenset(f"tag:yaml.org,2002:{tag}" for tag in ("bool", "int", "float", "timestamp"))
"""Tags whose YAML 1.1 patterns (``yes``, octal ``010``, ``1:30`` in base 60, dates) are not what readers think."""


class StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2 and without doubled keys and bombs."""

    # The pure-Python loader is used on purpose: the C one overflows its stack on deeply nested input.
    yaml_implicit_resolvers: Plain = {  # noqa: RUF012  (PyYAML's own name and kind)
        first: [(tag, pattern) for tag, pattern in patterns if tag not in OLD_TAGS]
        for first, patterns in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: Any) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Count what is composed, and stop where nobody would have written it."""
        self._nodes += 1
        self._depth += 1
        problem = self._too_much(parent)
        if problem:
            raise yaml.composer.ComposerError(None, None, problem, self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _too_much(self, parent: object) -> str | None:
        if self._depth > DEEPEST:
            return "it is nested too deeply"
        if isinstance(parent, yaml.MappingNode) and len(parent.value) > MOST_KEYS:
            return f"a mapping has more than {MOST_KEYS} keys"
        return f"it has more than {MOST_NODES} values" if self._nodes > MOST_NODES else None

    def get_single_node(self) -> Any:
        """Refuse a document whose aliases stand for more than anybody would have written out."""
        node = super().get_single_node()
        whole = 0 if node is None else _size(node, {})
        if node is not None and whole > self._nodes + MOST_NAMED:
            raise _refused(node, f"its aliases stand for about {whole:.0e} values; write out what is needed")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping whose keys are all different; keys merged in by ``<<`` may be overridden."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key '{key.value[:100]}' is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Read a whole number: leading zeros say nothing, ``0x``, ``0o`` and ``0b`` name another base."""
        text = str(self.construct_scalar(node)).replace("_", "")
        bases = {"0x": 16, "0o": 8, "0b": 2}
        return int(text, bases.get(text[:2].lower(), 10))


StrictLoader.add_constructor("tag:yaml.org,2002:int", StrictLoader.construct_yaml_int)


class _Dumper(yaml.SafeDumper):
    """Quotes text that this loader, or a loader of YAML 1.1, would take for something else."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Write text; characters that nobody sees are escaped, since PyYAML's other styles lose some line breaks."""
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)

for _tag, _pattern, _first in SCALARS:
    for _class in (StrictLoader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first)
        )


def parse(text: str, what: str) -> Any:
    """Return YAML text as plain data.

    Args:
        text: One document.
        what: What to call it in an error.

    Raises:
        UserError: It is not YAML, or larger than anybody would write.
    """
    if len(text) > LARGEST_TEXT:
        raise UserError(f"{what} is longer than {LARGEST_TEXT} characters; that is no experiment.")
    try:
        return yaml.load(text, Loader=StrictLoader)
    except BROKEN as error:
        raise UserError(f"{what} is not valid YAML: {_reason(error)}.") from error


def dump(values: object) -> str:
    """Return plain data as YAML that :func:`parse` reads back to the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _reason(error: Exception) -> str:
    """Return PyYAML's many-line message as one clause with line and column."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())[:200] or type(error).__name__
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return where + " ".join(filter(None, [error.context, error.problem]))[:200]


def _size(node: yaml.Node, sizes: dict[int, int], above: frozenset[int] = frozenset()) -> int:
    """Return how many values a node stands for, looking once at each, however often it is named.

    Args:
        node: As composed; an alias is the node it names.
        sizes: What is known already, by identity.
        above: Nodes that hold this one.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in above:
        raise _refused(node, "a value holds itself")
    if id(node) not in sizes:
        inside = above | {id(node)}
        parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        sizes[id(node)] = 1 + sum(_size(part, sizes, inside) for part in parts)
    return sizes[id(node)]


def _refused(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
