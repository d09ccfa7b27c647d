"""What a look at the machine found, one thing at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "wrong", "absent"]
    """``absent``: this machine has no such thing, which is no fault."""
    detail: str
    """What was found; where it is wrong, what to do."""
    seconds: float = 0.0
    """Time it takes; of a kernel its second call, since the first one compiles."""
