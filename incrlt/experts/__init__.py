"""The tail axis: how rare classes are served inside one experience; one file per method."""

from __future__ import annotations

import importlib
from typing import Any

_CLASSES = {"ExpertMethod": "base", "NCL": "ncl", "RIDE": "ride", "SHIKE": "shike", "Single": "single"}

__all__ = sorted(_CLASSES)


def __getattr__(name: str) -> Any:
    """Load a method when it is first asked for: importing torch takes seconds."""
    if name in _CLASSES:
        return getattr(importlib.import_module(f"incrlt.experts.{_CLASSES[name]}"), name)
    raise AttributeError(f"module 'incrlt.experts' has no attribute {name!r}")
