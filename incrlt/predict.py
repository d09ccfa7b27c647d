"""Classify pictures: ``incrlt predict RUN PICTURES -o answers.csv``.

PICTURES is a folder, a list (a text file of paths, or a table with the column path), or one picture. Answers come from
the newest accepted version of the run. Every file gets a line; one that cannot be read says why in the column
``problem``. A page with pictures and confidences is written beside the table. Exit codes: 0 done, 2 bad input, 130
Ctrl-C, 143 SIGTERM.
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
        prog="incrlt predict",
        description="Classify pictures with a finished run.",
        epilog="example: incrlt predict runs/birds/0849acf2-2833effc-s0 photos/ -o answers.csv",
        allow_abbrev=False,
    )
    command.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run")
    command.add_argument("pictures", metavar="PICTURES", type=Path, help="a folder, a list, or one picture")
    command.add_argument(
        "-o", "--out", metavar="FILE", type=Path, default=Path("answers.csv"), help="table of the answers"
    )
    command.add_argument(
        "--version", metavar="N", type=int, help="version of the run; by default the one that answers"
    )
    command.add_argument(
        "--budget", metavar="X", type=float, help="experts per picture on average, for a run with a router"
    )
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    given = parser().parse_args(arguments)
    return ended(lambda: _predict(given))


def _predict(given: argparse.Namespace) -> int:
    from incrlt.console import Console
    from incrlt.lifecycle.predict import predict

    console = Console()
    lines, account, page = predict(
        given.run, given.pictures, given.out, version=given.version, budget=given.budget
    )
    lost = sum(bool(row.problem) for row in lines)
    console.plain(account)
    if lost:
        console.warning(f"{lost} of {len(lines)} files have no answer; the column 'problem' says why")
    counts: dict[str, int] = {}
    for row in lines:
        if row.class_name:
            counts[row.class_name] = counts.get(row.class_name, 0) + 1
    most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    told = ", ".join(f"{name} {count}" for name, count in most[:8])
    console.plain(f"answers  {told}{f', and {len(most) - 8} more classes' if len(most) > 8 else ''}")
    console.plain(f"table    {given.out}\npage     {page}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
