"""What a run is told beside its experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RunOptions:
    """What a run is told beside its experiment; nothing here changes results."""

    resume: Literal["auto", "restart"] = "auto"
    """``auto`` goes on with an unfinished run of the same experiment; ``restart`` begins anew."""
    command: str = ""
    """The command line, for the record."""
