"""What an annotation admits, as a type that pydantic holds values to; read from source or from a live class.

Understood are the words of ``incrlt.experiment.fields``, ``None``, ``|``, ``Literal``, tuples of these
(``tuple[Positive, ...]``, ``tuple[int, int]``) and ``Annotated[int, Field(ge=2, le=8)]``. Anything else (a network, an
optimizer) is no hyper-parameter.
"""

from __future__ import annotations

import ast
import types
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import Field
from pydantic.fields import FieldInfo

from incrlt.experiment.expressions import NotPlainError, is_plain, plain
from incrlt.experiment.fields import ALIASES, LONGEST_TUPLE
from incrlt.files import Plain

BOUNDS: Final = frozenset({"ge", "gt", "le", "lt", "min_length", "max_length"})
"""Arguments of ``Field`` that are read from source."""


def spelled(annotation: str | ast.expr | None) -> Any | None:
    """Return the type that an annotation spells, None where it uses a word that is not ours.

    Args:
        annotation: Its source, as ``from __future__ import annotations`` keeps it, or parsed.

    Example:
        >>> spelled("int | None")
        int | None
    """
    try:
        node = ast.parse(annotation, mode="eval").body if isinstance(annotation, str) else annotation
        kind = None if node is None else _spelled(node)
    except (SyntaxError, RecursionError, NotPlainError, TypeError):
        return None
    return None if kind is type(None) else kind


def live(annotation: object) -> Any | None:
    """Return the type of an annotation of a class in memory, text or not; None where it is no hyper-parameter's."""
    if isinstance(annotation, str):
        return spelled(annotation)
    return _live(annotation)


def _live(annotation: object) -> object | None:
    if annotation in (*ALIASES.values(), type(None)) or get_origin(annotation) is Literal:
        return annotation
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        known = [_live(part) for part in parts]
        return None if any(part is None for part in known) else Union[tuple(known)]  # noqa: UP007
    if origin is tuple:
        variadic = len(parts) == 2 and parts[1] is ...
        known = [_live(part) for part in (parts[:1] if variadic else parts)]
        return None if any(part is None for part in known) else _tuple(known, variadic)
    plain_rules = all(isinstance(rule, FieldInfo) for rule in parts[1:])
    return annotation if origin is Annotated and plain_rules and _live(parts[0]) is not None else None


def _spelled(node: ast.expr) -> Any | None:
    if isinstance(node, ast.Constant):
        if node.value is None:
            return type(None)
        return _spelled(ast.parse(node.value, mode="eval").body) if isinstance(node.value, str) else None
    if isinstance(node, (ast.Name, ast.Attribute)):
        return ALIASES.get(last_word(node))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = _spelled(node.left), _spelled(node.right)
        return None if left is None or right is None else left | right
    return _subscript(last_word(node.value), node.slice) if isinstance(node, ast.Subscript) else None


def _subscript(word: str, inner: ast.expr) -> Any | None:
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if word == "Literal":
        return Literal[plain(inner)] if is_plain(inner) else None
    if word == "Optional":
        kind = _spelled(inner)
        return None if kind is None else kind | None
    if word in ("tuple", "Tuple"):
        variadic = len(parts) == 2 and isinstance(parts[1], ast.Constant) and parts[1].value is ...
        kinds = [_spelled(part) for part in (parts[:1] if variadic else parts)]
        return None if any(kind is None for kind in kinds) else _tuple(kinds, variadic)
    if word == "Annotated" and len(parts) == 2:
        kind, rules = _spelled(parts[0]), _rules(parts[1])
        return None if kind is None or rules is None else Annotated[kind, Field(**rules)]
    return None


def _tuple(kinds: list[object], variadic: bool) -> Any:
    """A tuple that YAML may give as a list; its items are still held strictly."""
    if not variadic:
        return Annotated[types.GenericAlias(tuple, tuple(kinds)), Field(strict=False)]
    many = types.GenericAlias(tuple, (kinds[0], ...))
    return Annotated[many, Field(strict=False, max_length=LONGEST_TUPLE)]


def _rules(node: ast.expr) -> Plain | None:
    """Return the bounds that ``Field(ge=1)`` spells; None for any other call."""
    if not isinstance(node, ast.Call) or last_word(node.func) != "Field" or node.args:
        return None
    known = all(word.arg in BOUNDS and is_plain(word.value) for word in node.keywords)
    return {str(word.arg): plain(word.value) for word in node.keywords} if known else None


def last_word(node: ast.expr) -> str:
    """Return ``C`` of ``a.b.C``, an empty text for anything but a name."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
