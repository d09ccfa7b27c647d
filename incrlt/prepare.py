"""Get data sets, checked and where the experiments look for them: ``incrlt prepare NAMES --data DIR``.

Fetches what may be fetched, compares checksums, unpacks, and lets each data set's own reader look at it; says what must
be got by hand, and where it goes. ``--dry-run`` prints the plan with sizes alone. For a machine without network:
``--pack FILE`` on one that has it, ``--unpack FILE`` on the other. Stopped, the same command goes on where it was.
Exit codes: 0 whole, or packed; 1 something must still be got by hand; 2 bad input, no network, damage; 130 Ctrl-C,
143 SIGTERM.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from incrlt.endings import DONE, SOME_FAILED, ended
from incrlt.errors import UserError
from incrlt.fetching.sources import RECIPES, recipe

if TYPE_CHECKING:
    from incrlt.console import Console


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    command = argparse.ArgumentParser(
        prog="incrlt prepare",
        description="Fetch data sets, check and unpack them, or pack them for a machine without network.",
        epilog=f"data sets: {', '.join(RECIPES)}",
        allow_abbrev=False,
    )
    command.add_argument(
        "datasets", metavar="DATASET", nargs="*", help="which; with --unpack by default all in FILE"
    )
    command.add_argument(
        "--data", metavar="DIR", help="folder of the datasets; by default INCRLT_DATA, else data"
    )
    way = command.add_mutually_exclusive_group()
    way.add_argument(
        "--pack", metavar="FILE", type=Path, help="write what is fetched to one file; unpack nothing"
    )
    way.add_argument(
        "--unpack", metavar="FILE", type=Path, help="take it from such a file; no network is used"
    )
    command.add_argument("--dry-run", action="store_true", help="print the plan with sizes and stop")
    command.add_argument(
        "--remove-archives",
        action="store_true",
        help="remove what was downloaded once it is unpacked or packed",
    )
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    given = parser().parse_args(arguments)
    return ended(lambda: _prepare(given))


def _prepare(given: argparse.Namespace) -> int:
    from incrlt.benchmarks.folder import data_root
    from incrlt.console import Console

    _check(given)
    console, root = Console(), data_root(given.data)
    if given.unpack is not None:
        return _unpack(given, root, console)
    return _fetch(given, tuple(dict.fromkeys(given.datasets)), root, console)


def _check(given: argparse.Namespace) -> None:
    """Refuse what cannot be meant, before anything is looked at."""
    for dataset in given.datasets:
        recipe(dataset)
    if not given.datasets and given.unpack is None:
        raise UserError(f"say which data sets: one or more of {', '.join(RECIPES)}.")
    if given.unpack is not None and given.remove_archives:
        raise UserError("--remove-archives goes with downloads, and --unpack makes none; leave it out.")


def _fetch(given: argparse.Namespace, datasets: Sequence[str], root: Path, console: Console) -> int:
    from incrlt.fetching import preparing

    planned = preparing.steps(datasets, root)
    for line in preparing.account(datasets, planned, root, given.pack):
        console.plain(line)
    if given.dry_run:
        return DONE
    if given.pack is None:
        preparing.prepare(datasets, root, console.transfer, given.remove_archives)
        return _told(datasets, root, console)
    preparing.pack(datasets, root, given.pack, console.transfer, given.remove_archives)
    console.close()
    console.plain(
        f"{given.pack} holds {', '.join(datasets)}. There: incrlt prepare --unpack {given.pack.name}"
    )
    return DONE


def _unpack(given: argparse.Namespace, root: Path, console: Console) -> int:
    from incrlt.fetching import packs, preparing

    if given.dry_run:
        with packs.opened(given.unpack) as pack:
            console.plain(f"{given.unpack} holds {', '.join(pack.datasets)}")
        return DONE
    return _told(preparing.unpack_pack(given.unpack, given.datasets, root, console.transfer), root, console)


def _told(datasets: Sequence[str], root: Path, console: Console) -> int:
    """Say of each data set whether it is whole; what must be got by hand stands in its recipe."""
    from incrlt.fetching import preparing

    console.close()
    code = DONE
    for dataset in datasets:
        whole, what = preparing.told(dataset, root)
        console.plain(f"{dataset} is {'whole' if whole else 'not whole'}: {what}")
        if not whole:
            code = SOME_FAILED
            if by_hand := recipe(dataset).by_hand:
                console.plain(f"by hand: {by_hand.format(root=root)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
