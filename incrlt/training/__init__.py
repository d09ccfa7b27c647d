"""What happens inside one experience: the template that every strategy fills, and the values it works with."""

from pathlib import Path

from incrlt.lazy import exports

__getattr__, __dir__ = exports(__name__, Path(__file__).parent)
