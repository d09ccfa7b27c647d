"""Classes by name, ``my_pkg.my_mod:MyClass``: how a saved network finds what is not numbers."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from typing import Any

from incrlt.errors import UserError, shown
from incrlt.models.layout import Combination
from incrlt.types import Combine

NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def name_of(cls: type) -> str:
    """Return the name by which :func:`class_named` finds a class.

    Raises:
        UserError: It was made inside a function: nothing could find it again.
    """
    if "<" in cls.__qualname__:
        raise UserError(
            f"class {cls.__qualname__} is made inside a function, where a saved network cannot find it again; "
            "define it at the top of a module."
        )
    return f"{cls.__module__}:{cls.__qualname__}"


def class_named(name: str, wanted: str) -> type:
    """Import and return a class.

    Args:
        name: ``my_pkg.my_mod:MyClass``.
        wanted: What it is to be, for messages.

    Raises:
        UserError: The name has another form, its module cannot be imported, or has no such class.
    """
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise UserError(f"{wanted} {shown(name)} is not of the form my_pkg.my_mod:MyClass.")
    module, _, path = name.partition(":")
    try:
        found: Any = sys.modules.get(module) or importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{wanted} {shown(name)} was not found: {error}. Install its package, or start in the folder that holds it."
        ) from error
    if not isinstance(found, type):
        raise UserError(f"{wanted} {shown(name)} is a {type(found).__name__}, not a class.")
    return found


def combine_of(combination: Combination | None) -> Combine | None:
    """Return the ``combine`` of the method that a combination names; None where there is none.

    Raises:
        UserError: The class is not there, is no expert method, or does not take these settings.
    """
    if combination is None:
        return None
    cls: Any = class_named(combination.method, "the method that combines the experts")
    if not all(callable(getattr(cls, name, None)) for name in ("combine", "loss", "stages")):
        raise UserError(f"{shown(combination.method)} is no expert method: it combines no experts.")
    settings = combination.settings
    if not isinstance(settings, Mapping):
        raise UserError(
            f"settings of {shown(combination.method)} are {shown(settings)}; they must be names with values."
        )
    try:
        method = cls(**settings)
    except TypeError as error:
        raise UserError(
            f"{shown(combination.method)} does not take the settings it was saved with: {error}."
        ) from error
    combine: Combine = method.combine
    return combine
