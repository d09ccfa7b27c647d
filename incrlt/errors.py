"""The one error class whose message is meant for the person who runs incrlt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: the message says what was given, what is allowed, and what to do.

    The command line prints it as one sentence without a traceback; everything else that escapes is a bug.
    """


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return ``" Did you mean 'lucir'?"``, or an empty string when nothing is near.

    Args:
        given: The name that was not found.
        allowed: The names that exist.
    """
    near = difflib.get_close_matches(str(given), [str(name) for name in allowed], n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


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
