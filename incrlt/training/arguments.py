"""Arguments of a strategy: by position, as Avalanche's examples give them, and passed on from class to class."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from incrlt.errors import UserError

FIRST = ("model", "optimizer", "criterion")
"""Arguments that may be given by position, in this order."""


_ARRIVED: list[set[str]] = []
"""Of each constructor at work, what its bases' constructors have been given."""


def by_name(init: Callable[..., None]) -> Callable[..., None]:
    """Return a constructor that takes model, optimizer and criterion by position too, and loses nothing on the way.

    Args:
        init: ``__init__`` of a strategy. One with positional arguments of its own stays as it is.
    """
    parameters = inspect.signature(init).parameters
    _, *rest = parameters.values()
    if any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) for p in rest):
        return init
    needed = [p.name for p in rest if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    passes_on = next((p.name for p in rest if p.kind is p.VAR_KEYWORD), None)

    @functools.wraps(init)
    def naming(self: Any, *args: Any, **settings: Any) -> None:
        name = type(self).__name__
        given = {**_placed(name, args, settings), **settings}
        _check_needed(name, [key for key in needed if key not in given])
        for names in _ARRIVED:
            names.update(given)
        _ARRIVED.append(set())
        try:
            init(self, **given)
        finally:
            arrived = _ARRIVED.pop()
        if passes_on and (lost := [key for key in given if key not in arrived and key not in parameters]):
            raise UserError(
                f"{init.__qualname__} took {', '.join(lost)} and did not pass it on. Write "
                f"super().__init__(**{passes_on})."
            )

    return naming


def _placed(name: str, args: Sequence[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Name the arguments that were given by position."""
    if len(args) > len(FIRST):
        raise UserError(
            f"{name} takes {', '.join(FIRST)} by position, in this order; got {len(args)} values. Give the others "
            "by name: train_mb_size=128."
        )
    placed = dict(zip(FIRST, args, strict=False))
    if twice := [key for key in placed if key in settings]:
        raise UserError(f"{name} was given {twice[0]} by position and by name. Give it once.")
    return placed


def _check_needed(name: str, missing: Sequence[str]) -> None:
    if missing:
        raise UserError(
            f"{name} was made without {' and '.join(missing)}. Give it by name; where the class has an __init__ of its "
            "own that takes **rest, pass it on: super().__init__(**rest)."
        )
