"""Where the figures of a benchmark go."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def write(figures: dict[str, Any], out: Path | None) -> None:
    """Write figures as JSON to a file, its folder made where needed, or to the terminal."""
    text = json.dumps(figures, indent=1) + "\n"
    if out is None:
        sys.stdout.write(text)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
