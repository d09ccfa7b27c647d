"""Stand-alone Avalanche plugins; each attaches to any supervised strategy, ours or not.

The names below load their module at first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "ExemplarMemory": "incrlt.plugins.memory",
    "ConfusionRecorder": "incrlt.plugins.confusion",
    "EvaluationRecorder": "incrlt.plugins.evaluation",
    "RoutingRecorder": "incrlt.plugins.routing",
    "SchedulerFactory": "incrlt.plugins.scheduler",
    "cosine": "incrlt.schedules",
    "features_of": "incrlt.plugins.features",
    "multistep_with_warmup": "incrlt.schedules",
}

__all__ = [
    "ConfusionRecorder",
    "EvaluationRecorder",
    "ExemplarMemory",
    "RoutingRecorder",
    "SchedulerFactory",
    "cosine",
    "features_of",
    "multistep_with_warmup",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
