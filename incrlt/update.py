"""Let a finished run learn new pictures and classes: ``incrlt update RUN FOLDER|LIST [section.key=value ...]``.

Nothing is needed but the run folder: it holds its exemplars and test pictures. Classes are told apart by name; new
ones are appended, known ones learned further. A new version is made beside the old ones and judged; answers come from
it once it is accepted. The same command goes on with an update that was stopped. Exit codes: 0 the version is accepted,
2 bad input, 3 it is rejected, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from incrlt.endings import DONE, REJECTED, ended

EPILOG: Final = """\
examples:
  incrlt update RUN monday/
  incrlt update RUN monday.csv training.epochs=20 --accept "old_drop<=2, few>=30"
  incrlt update RUN monday/ --compare joint      # what did it cost and save against training anew?
  incrlt update RUN monday/ --accept none        # take a version whatever it shows

--accept asks for all, old, new, many, medium, few (percent, every class counts the same) and old_drop, many_drop,
medium_drop, few_drop (points that known classes lose). A rejected version stays; 'incrlt rollback RUN N' takes it.
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    command = argparse.ArgumentParser(
        prog="incrlt update",
        description="Let a finished run learn new pictures and classes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run")
    command.add_argument(
        "source", metavar="FOLDER|LIST", type=Path, help="pictures: a folder per class, or a list with labels"
    )
    command.add_argument(
        "settings", metavar="section.key=value", nargs="*", help="change a setting of the run"
    )
    command.add_argument(
        "--accept", metavar="RULE", help="what the new version must show; none takes it anyway"
    )
    command.add_argument(
        "--golden",
        metavar="FOLDER",
        type=Path,
        help="judge on these pictures, not on all test pictures so far",
    )
    command.add_argument("--skip-broken", action="store_true", help="go on without files that cannot be used")
    command.add_argument(
        "--seed", metavar="N", type=int, default=0, help="seed of the test part that is split off"
    )
    command.add_argument(
        "--restart", action="store_true", help="begin anew where an update is unfinished or was rejected"
    )
    command.add_argument(
        "--compare",
        choices=("joint",),
        help="also train anew on every picture at hand, and say what updating cost and saved",
    )
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    given = parser().parse_intermixed_args(arguments)
    return ended(lambda: _update(given))


def _update(given: argparse.Namespace) -> int:
    from incrlt.console import Console
    from incrlt.lifecycle import gate, update

    console = Console()
    asked = update.Asked(
        run=given.run,
        source=given.source,
        settings=tuple(given.settings),
        accept=gate.DEFAULT if given.accept is None else given.accept,
        golden=given.golden,
        skip_broken=given.skip_broken,
        seed=given.seed,
        restart=given.restart,
        compare=given.compare is not None,
    )
    version = update.update(asked, console)
    for line in update.told(given.run, version):
        console.plain(line)
    return DONE if version.accepted else REJECTED


if __name__ == "__main__":
    sys.exit(main())
