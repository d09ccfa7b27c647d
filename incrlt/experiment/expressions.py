"""Small Python expressions worked out without running Python: computed defaults, and what methods declare.

``1 / 3``, ``2 * 5`` and ``(1.0, -0.5)`` are defaults as good as a literal; ``objective == 'ldam'`` and
``class_balanced_finetune if num_old else 0`` are conditions and lengths that a class tells as text. Numbers, text,
tuples, names, comparisons, ``and``/``or``/``not`` and ``if ... else`` are understood; calls are not, so that nothing
of a user's file is executed.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

from incrlt.files import Plain

LARGEST_POWER: Final = 64
"""Largest exponent in a default; ``10 ** 10 ** 10`` would take all memory."""

ARITHMETIC: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
COMPARISONS: Final[dict[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda one, many: one in many,
    ast.NotIn: lambda one, many: one not in many,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}


class NotPlainError(ValueError):
    """An expression uses what only Python itself could work out."""


class UnknownNameError(NotPlainError):
    """An expression uses a name that has no value; the message is that name."""


def plain(node: ast.expr | None, names: Mapping[str, object] | None = None) -> Any:
    """Return the value of an expression.

    Args:
        node: As parsed.
        names: Values of names; a mapping as a value is asked by attribute, ``experts.scale``.

    Raises:
        NotPlainError: It uses what is not understood here.

    Example:
        >>> plain(ast.parse("(-1, 1 / 4)", mode="eval").body)
        (-1, 0.25)
    """
    try:
        return _value(node, names or {})
    except (TypeError, ArithmeticError, ValueError, RecursionError) as error:
        raise error if isinstance(error, NotPlainError) else NotPlainError(str(error)) from error


def is_plain(node: ast.expr | None) -> bool:
    """Say whether an expression has a value without names."""
    try:
        plain(node)
    except NotPlainError:
        return False
    return True


def evaluate(text: str, names: Mapping[str, object]) -> Any:
    """Return the value of an expression that is given as text.

    Raises:
        NotPlainError: It is no expression, or uses what is not understood here.

    Example:
        >>> evaluate("epochs if num_old else 0", {"epochs": 20, "num_old": 50})
        20
    """
    return plain(_parsed(text), names)


def grounds(text: str, names: Mapping[str, object]) -> Plain:
    """Return which names made a true condition true, with their values: those of the first true part of an ``or``.

    Example:
        >>> grounds("margin_ranking or mimic_scores", {"margin_ranking": 0, "mimic_scores": 2})
        {'mimic_scores': 2}
    """
    node = _parsed(text)
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
        node = next((part for part in node.values if plain(part, names)), node)
    inside = {id(part.value) for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    used = [
        part
        for part in ast.walk(node)
        if isinstance(part, (ast.Name, ast.Attribute)) and id(part) not in inside
    ]
    return {ast.unparse(part): plain(part, names) for part in used}


@functools.lru_cache(maxsize=512)
def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise NotPlainError(f"{text!r} is no expression") from error


def _value(node: ast.expr | None, names: Mapping[str, object]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.Tuple, ast.List)):
        items = [_value(item, names) for item in node.elts]
        return tuple(items) if isinstance(node, ast.Tuple) else items
    if isinstance(node, ast.Dict):
        return {
            _value(key, names): _value(value, names)
            for key, value in zip(node.keys, node.values, strict=True)
        }
    if isinstance(node, (ast.Name, ast.Attribute)):
        return _named(node, names)
    if isinstance(node, (ast.UnaryOp, ast.BinOp)):
        return _computed(node, names)
    if isinstance(node, (ast.BoolOp, ast.Compare, ast.IfExp)):
        return _decided(node, names)
    raise NotPlainError(f"{ast.unparse(node) if node else 'nothing'} is not plain")


def _named(node: ast.Name | ast.Attribute, names: Mapping[str, object]) -> object:
    holder, key = (names, node.id) if isinstance(node, ast.Name) else (_value(node.value, names), node.attr)
    if not isinstance(holder, Mapping) or key not in holder:
        raise UnknownNameError(ast.unparse(node))
    return holder[key]


def _computed(node: ast.UnaryOp | ast.BinOp, names: Mapping[str, object]) -> Any:
    if isinstance(node, ast.UnaryOp):
        value = _value(node.operand, names)
        if isinstance(node.op, ast.Not):
            return not value
        if isinstance(node.op, ast.Invert):
            raise NotPlainError("~ is not understood")
        return -_number(value) if isinstance(node.op, ast.USub) else _number(value)
    left, right = _number(_value(node.left, names)), _number(_value(node.right, names))
    if type(node.op) not in ARITHMETIC:
        raise NotPlainError(f"{ast.unparse(node)} is not understood")
    if isinstance(node.op, ast.Pow) and abs(right) > LARGEST_POWER:
        raise NotPlainError(f"{ast.unparse(node)} is too large")
    return _number(ARITHMETIC[type(node.op)](left, right))


def _number(value: object) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise NotPlainError(f"{value!r} is no number")
    if isinstance(value, float) and not math.isfinite(value):
        raise NotPlainError(f"{value!r} is not finite")
    return value


def _decided(node: ast.BoolOp | ast.Compare | ast.IfExp, names: Mapping[str, object]) -> object:
    if isinstance(node, ast.IfExp):
        return _value(node.body if _value(node.test, names) else node.orelse, names)
    if isinstance(node, ast.BoolOp):
        stop = isinstance(node.op, ast.Or)
        for part in node.values:
            value = _value(part, names)
            if bool(value) is stop:
                break
        return value
    left = _value(node.left, names)
    for compare, part in zip(node.ops, node.comparators, strict=True):
        right = _value(part, names)
        if not COMPARISONS[type(compare)](left, right):
            return False
        left = right
    return True
