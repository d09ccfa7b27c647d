"""Arguments of a strategy: by position, as Avalanche's examples give them, and passed on from class to class."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence

from incrlt.errors import UserError

FIRST = ("model", "optimizer", "criterion")
"""Arguments that may be given by position, in this order."""


class _AtWork(threading.local):
    """Of each constructor at work in a thread, what its bases' constructors have been given."""

    def __init__(self) -> None:
        self.arrived: list[set[str]] = []


_AT_WORK = _AtWork()


def by_name(init: Callable[..., None]) -> Callable[..., None]:
    """Return a constructor that takes model, optimizer and criterion by position too, and loses nothing on the way.

    Args:
        init: ``__init__`` of a strategy. One with positional arguments of its own keeps their order.

    A constructor none of whose ``**rest`` arrives at a base dropped it; one that takes something out of it means to.
    """
    parameters = inspect.signature(init).parameters
    _, *rest = parameters.values()
    if any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) for p in rest):
        return _noting(init, list(parameters)[1:])
    needed = [p.name for p in rest if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    passes_on = next((p.name for p in rest if p.kind is p.VAR_KEYWORD), None)

    @functools.wraps(init)
    def naming(self: object, *args: object, **settings: object) -> None:
        name = type(self).__name__
        given = {**_placed(name, args, settings), **settings}
        _check_needed(name, [key for key in needed if key not in given])
        for names in _AT_WORK.arrived:
            names.update(given)
        _AT_WORK.arrived.append(set())
        try:
            init(self, **given)
        finally:
            arrived = _AT_WORK.arrived.pop()
        rest_given = [key for key in given if key not in parameters]
        if rest_given and arrived.isdisjoint(rest_given):
            raise UserError(
                f"{init.__qualname__} took {', '.join(rest_given)} and did not pass it on. Write "
                f"super().__init__(**{passes_on})."
            )

    return naming


def _noting(init: Callable[..., None], places: Sequence[str]) -> Callable[..., None]:
    """Return a constructor that notes what arrived at it.

    Args:
        init: The constructor.
        places: Names of its arguments, positional ones first.
    """

    @functools.wraps(init)
    def noting(self: object, *args: object, **settings: object) -> None:
        for names in _AT_WORK.arrived:
            names.update(settings, places[: len(args)])
        init(self, *args, **settings)

    return noting


def _placed(name: str, args: Sequence[object], settings: Mapping[str, object]) -> dict[str, object]:
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
