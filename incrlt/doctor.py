"""Look at this machine: ``python -m incrlt.doctor [--data DIR] [--out DIR] [--json]``.

Says what is here and whether it computes what it should: machine, versions, data, free disk and memory, kernels.
Exit codes: 0 all is well, 1 something is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    command = argparse.ArgumentParser(
        prog="python -m incrlt.doctor",
        description="Tell what this machine has and whether it computes what it should.",
        allow_abbrev=False,
    )
    command.add_argument(
        "--data", metavar="DIR", help="folder of the datasets; by default INCRLT_DATA, else data"
    )
    command.add_argument("--out", metavar="DIR", default="runs", help="folder of the run folders")
    command.add_argument("--json", action="store_true", help="print it as JSON, to be sent with a report")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; those of the process by default.

    Returns:
        The exit code: 1 if anything is wrong.
    """
    given = parser().parse_args(arguments)
    from incrlt.console import Console
    from incrlt.runner import doctor

    found = doctor.examine(given.data, Path(given.out))
    console = Console()
    console.plain(json.dumps(found.as_json(), indent=1) if given.json else found.as_text())
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
