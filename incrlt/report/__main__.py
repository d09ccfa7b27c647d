"""``python -m incrlt.report RUN [RUN ...] [-o FOLDER]``: write the pages, print their paths."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from incrlt.errors import UserError
from incrlt.report.compare import write_index
from incrlt.report.export import file_stem
from incrlt.report.page import write_page, write_plotly
from incrlt.report.reading import Run, read_run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (2 for bad input, said in one sentence)."""
    options = _parser().parse_args(arguments)
    try:
        paths = report(options.run, options.out, options.share_plotly)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write("".join(f"{path}\n" for path in paths))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m incrlt.report",
        description="Write a self-contained HTML page per run, and an index that compares several.",
    )
    parser.add_argument(
        "run", nargs="+", type=Path, metavar="RUN", help="a run folder: runs/<experiment>/<run>"
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FOLDER",
        help="where to write; by default a single run's page goes into its own folder as report.html",
    )  # fmt: skip
    parser.add_argument(
        "--share-plotly", action="store_true",
        help="write plotly.min.js once beside the pages, which then need it, not into each of them (4.6 MB)",
    )  # fmt: skip
    return parser


def report(
    folders: Sequence[Path],
    out: Path | None,
    share_plotly: bool = False,
    leads: Callable[[Run], list[tuple[str, str]]] = lambda run: [],
) -> list[Path]:
    """Write one page per run, and index.html first where there are several.

    Args:
        folders: Run folders.
        out: Folder for the pages; made if it is missing. None writes a single run's page into the run.
        share_plotly: Write plotly's script once, into ``out``, not into every page.
        leads: Words and address of what the page of a run leads to, where it is part of a site.

    Returns:
        The paths of the pages.

    Raises:
        UserError: A folder is no run, or ``out`` is needed or cannot be written.
    """
    runs = _read(list(dict.fromkeys(folder.resolve() for folder in folders)))
    if out is None:
        if len(runs) > 1:
            raise UserError(f"{len(runs)} runs were given and no folder for their pages; add -o FOLDER.")
        if share_plotly:
            raise UserError("--share-plotly needs a folder for the pages and their script; add -o FOLDER.")
        return [write_page(runs[0], runs[0].folder / "report.html")]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}; choose another with -o.") from error
    script = write_plotly(out).name if share_plotly else None
    named = zip(runs, page_names(runs), strict=True)
    pages = [(run, write_page(run, out / name, script, leads(run))) for run, name in named]
    paths = [path for _, path in pages]
    return [write_index(pages, out, script), *paths] if len(pages) > 1 else paths


def _read(folders: Sequence[Path]) -> list[Run]:
    """Read run folders; among several, one that holds nothing yet is said and left out."""
    runs: list[Run] = []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except UserError as error:
            if len(folders) == 1:
                raise
            sys.stderr.write(f"left out: {error}\n")
    if not runs:
        raise UserError("none of these folders holds a run; give folders such as runs/<experiment>/<run>.")
    return runs


def page_names(runs: Sequence[Run]) -> list[str]:
    """Return a file name per run, ``<experiment>-<run>.html``, numbered where two would be the same."""
    names: list[str] = []
    for run in runs:
        stem = file_stem(run.name.replace("/", "-")) or "run"
        taken = sum(name.removesuffix(".html").split("~")[0] == stem for name in names)
        names.append(f"{stem}~{taken + 1}.html" if taken or stem == "index" else f"{stem}.html")
    return names


if __name__ == "__main__":
    sys.exit(main())
