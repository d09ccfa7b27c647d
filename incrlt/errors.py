"""The one error class whose message is meant for the person who runs incrlt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

LONGEST: Final = 16_000
"""Characters of a message; what is longer has a file's text in it."""


class UserError(ValueError):
    """Bad input: the message says what was given, what is allowed, and what to do.

    The command line prints it as one sentence without a traceback; everything else that escapes is a bug. A message
    of more than :data:`LONGEST` characters loses its middle.
    """

    def __init__(self, message: str) -> None:
        super().__init__(cut(message, LONGEST))


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return ``" Did you mean 'lucir'?"``, or an empty string when nothing is near.

    Args:
        given: The name that was not found.
        allowed: The names that exist.
    """
    near = difflib.get_close_matches(str(given), [str(name) for name in allowed], n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def cut(text: str, longest: int) -> str:
    """Return a text of at most about this many characters; what is left out in the middle is counted.

    Example:
        >>> cut("abcdefghij", 6)
        'abc ... (4 characters) ... hij'
    """
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} ... ({len(text) - 2 * half} characters) ... {text[-half:]}"


def shown(value: object, longest: int = 80) -> str:
    """Return ``repr(value)`` for a message, cut where it is long: files and checkpoints may hold anything.

    Example:
        >>> shown("resnet" + 99 * "9", 20)
        "'resnet999999999...'"
    """
    text = repr(value)
    return text if len(text) <= longest else f"{text[: longest - 4]}...{text[-1]}"


def short(error: BaseException, letters: int = 300) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:letters]
