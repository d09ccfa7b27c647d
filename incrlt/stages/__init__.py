"""Second and last stages of an experience, which any strategy can take: one file each."""

from pathlib import Path

from incrlt.lazy import exports

__getattr__, __dir__ = exports(__name__, Path(__file__).parent)
