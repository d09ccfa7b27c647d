"""The table of full-length trainings: ``python -m perf.trainings [TABLE] [--lanes 2] [--data DIR] [--dry-run]``.

A sweep like any other (:mod:`incrlt.sweep`), with a table and a folder of its own. A run that is done is skipped, one
that was cut off goes on where it stopped, so that the same command continues the queue after a restart of the machine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from incrlt.sweep.__main__ import main as sweep

TABLE = Path(__file__).resolve().parent / "trainings.yaml"
USUAL = {"--lanes": "2", "--out": "runs/queue"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Work the table off; words are those of ``python -m incrlt.sweep``, and may leave out what is usual here."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    table = [] if any(word.endswith((".yaml", ".yml")) for word in words) else [str(TABLE)]
    given = {word.split("=")[0] for word in words}
    usual = [word for option, value in USUAL.items() if option not in given for word in (option, value)]
    return sweep([*table, *words, *usual])


if __name__ == "__main__":
    sys.exit(main())
