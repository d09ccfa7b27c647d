"""How a number is written for people, on pages, in tables and on the console: one sign where it is undefined."""

from __future__ import annotations

from typing import Final

UNDEFINED: Final = "–"
"""A number that does not exist. Files leave it empty (CSV) or say ``null`` (JSON)."""


def written(value: float | None, digits: int = 2, sign: str = "") -> str:
    """Return a number as people read it: a dash where it is undefined, and never a negative zero.

    Args:
        value: The number.
        digits: Places behind the point.
        sign: "+" for a difference, which always shows its sign.

    Example:
        >>> written(34.586), written(-0.001), written(-0.001, sign="+"), written(None)
        ('34.59', '0.00', '+0.00', '–')
    """
    if value is None:
        return UNDEFINED
    return f"{round(value, digits) + 0.0:{sign},.{digits}f}"  # -0.0 + 0.0 is 0.0


def cut(text: str, most: int) -> str:
    """Return a text, cut in its middle where it is longer than ``most``.

    Example:
        >>> cut("abcdefghij", 7), cut("abc", 7)
        ('abc…hij', 'abc')
    """
    left = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - left]}…{text[len(text) - left :]}"
