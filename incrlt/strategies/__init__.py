"""The time axis: what happens within and across experiences so that the old is not forgotten; one file per method."""

from pathlib import Path

from incrlt.lazy import exports

__getattr__, __dir__ = exports(__name__, Path(__file__).parent)
