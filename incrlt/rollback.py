"""Go back to an earlier version of a run: ``incrlt rollback RUN [VERSION]``.

Nothing is deleted: answers come from that version again, and the next update is made from it. Exit codes: 0 done,
2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from incrlt.endings import DONE, ended


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    command = argparse.ArgumentParser(
        prog="incrlt rollback",
        description="Let answers come from an earlier version of a run again.",
        allow_abbrev=False,
    )
    command.add_argument("run", metavar="RUN", type=Path, help="run folder")
    command.add_argument(
        "version", metavar="VERSION", nargs="?", type=int, help="its number; by default the one before"
    )
    command.add_argument("--list", action="store_true", help="only show which versions there are")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    given = parser().parse_args(arguments)
    return ended(lambda: _roll_back(given))


def _roll_back(given: argparse.Namespace) -> int:
    from incrlt.console import Console
    from incrlt.lifecycle import versions

    console = Console()
    if not given.list:
        before, now = versions.roll_back(given.run, given.version)
        console.plain(f"version {now} answers, before it was {before}")
    for line in versions.table(given.run):
        console.plain(line)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
