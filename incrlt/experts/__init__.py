"""The tail axis: how rare classes are served inside one experience; one file per method."""

from pathlib import Path

from incrlt.lazy import exports

__getattr__, __dir__ = exports(__name__, Path(__file__).parent)
