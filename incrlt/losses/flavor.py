"""The two readings of a published loss."""

from __future__ import annotations

from typing import Literal

Flavor = Literal["sane", "published"]
"""``published`` reproduces the official code with its accidents; ``sane`` does what the code set out to do."""
