"""The time axis: what happens within and across experiences so that the old is not forgotten; one file per method."""

from __future__ import annotations

import importlib
from typing import Any

_CLASSES = {
    "ExpertAssignment": "routers.expert_assignment",
    "Finetune": "finetune",
    "ICaRL": "icarl",
    "IncrTemplate": "template",
    "Joint": "joint",
    "LUCIR": "lucir",
    "LWS": "stages.lws",
    "Replay": "replay",
}

__all__ = sorted(_CLASSES)


def __getattr__(name: str) -> Any:
    """Load a strategy when it is first asked for: importing Avalanche takes seconds."""
    if name in _CLASSES:
        return getattr(importlib.import_module(f"incrlt.strategies.{_CLASSES[name]}"), name)
    raise AttributeError(f"module 'incrlt.strategies' has no attribute {name!r}")
