"""Arguments by position, as Avalanche's examples give them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from incrlt.errors import UserError

FIRST = ("model", "optimizer", "criterion")
"""Arguments that may be given by position, in this order."""


def by_name(init: Callable[..., None]) -> Callable[..., None]:
    """Return a constructor that takes model, optimizer and criterion by position too.

    Args:
        init: ``__init__`` of a strategy. One with positional arguments of its own stays as it is.
    """
    _, *rest = inspect.signature(init).parameters.values()
    if any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) for p in rest):
        return init

    @functools.wraps(init)
    def naming(self: Any, *args: Any, **settings: Any) -> None:
        name = type(self).__name__
        if len(args) > len(FIRST):
            raise UserError(
                f"{name} takes {', '.join(FIRST)} by position, in this order; got {len(args)} values. Give the others "
                "by name: train_mb_size=128."
            )
        placed = dict(zip(FIRST, args, strict=False))
        if twice := [key for key in placed if key in settings]:
            raise UserError(f"{name} was given {twice[0]} by position and by name. Give it once.")
        init(self, **placed, **settings)

    return naming
