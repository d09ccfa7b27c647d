"""What a run is told beside its experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RunOptions:
    """What a run is told beside its experiment; nothing here changes the results of one process."""

    resume: Literal["auto", "restart"] = "auto"
    """``auto`` goes on with an unfinished run of the same experiment; ``restart`` begins anew."""
    batch_norm: Literal["sync", "local"] = "sync"
    """Of several processes, see :class:`incrlt.processes.World`; changes results in ``local``."""
    command: str = ""
    """The command line, for the record."""
