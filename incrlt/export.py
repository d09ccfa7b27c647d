"""Write a finished run as ONNX: ``incrlt export RUN -o model/``.

One graph with all experts, and one per expert for an early exit of single pictures; labels, preparation and the
router's threshold as JSON; an example that answers with onnxruntime and NumPy; a model card. The graphs are held to the
network.
Exit codes: 0 done, 2 bad input, 130 Ctrl-C, 143 SIGTERM.
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
        prog="incrlt export",
        description="Write a finished run as ONNX, to answer without incrlt and torch.",
        allow_abbrev=False,
    )
    command.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run")
    command.add_argument(
        "-o", "--out", metavar="FOLDER", type=Path, default=Path("model"), help="where to write"
    )
    command.add_argument(
        "--version", metavar="N", type=int, help="version of the run; by default the one that answers"
    )
    command.add_argument(
        "--int8", action="store_true", help="also a graph with 8-bit convolutions, its accuracy beside it"
    )
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    given = parser().parse_args(arguments)
    return ended(lambda: _export(given))


def _export(given: argparse.Namespace) -> int:
    from incrlt.console import Console
    from incrlt.lifecycle.export import export

    found = export(given.run, given.out, given.version, given.int8)
    console = Console()
    console.plain(
        f"probabilities differ from the network's by {found.difference:.1e} at most ({found.checked} pictures, batches "
        "of several sizes); answers and experts used are the same"
    )
    if found.int8 is not None:
        console.plain(found.int8.sentence)
    console.plain(f"{found.folder}: {', '.join(found.files)}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
