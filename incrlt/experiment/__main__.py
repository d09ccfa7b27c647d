"""Write the JSON schema of experiment files: ``python -m incrlt.experiment > experiments/schema.json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from incrlt.console import Console
from incrlt.experiment.json_schema import json_schema


def main(arguments: Sequence[str]) -> int:
    """Write the schema to the terminal; it takes no arguments."""
    if arguments:
        Console().error("usage: python -m incrlt.experiment > experiments/schema.json")
        return 2
    Console().plain(json.dumps(json_schema(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
