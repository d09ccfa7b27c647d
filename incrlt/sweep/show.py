"""What a sweep shows: one live table of all runs on a terminal, a line per change and a minute where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import IO, Final

from rich.live import Live
from rich.table import Table

from incrlt.console import rich_console
from incrlt.sweep.work import DONE, ELSEWHERE, FAILED, RUNNING, STOPPED, WAITING, Item, counts, seconds_left
from incrlt.words import clock, duration

SHOWN: Final = 24
"""Rows of the live table; of more runs those under way come first."""
EVERY: Final = 60.0
"""Seconds between two lines on how far all is, where there is no terminal."""
ORDER: Final = (RUNNING, ELSEWHERE, FAILED, WAITING, STOPPED, DONE)


class Show:
    """Shows a queue.

    Args:
        lanes: Runs at a time, for the time that is left.
        stream: Where to; standard output by default.
    """

    def __init__(self, lanes: int, stream: IO[str] | None = None) -> None:
        self._out = rich_console(stream or sys.stdout)
        self._lanes = lanes
        self._live: Live | None = None
        self._next = 0.0

    def plain(self, text: str) -> None:
        """Print a line as it is."""
        self._out.print(text, markup=False, highlight=False, soft_wrap=True)

    def tell(self, item: Item) -> None:
        """Say that a run has changed its state."""
        self.plain(f"{item.state:<9} {item.task.label}")

    def look(self, items: Sequence[Item]) -> None:
        """Show how far all runs are."""
        if self._out.is_terminal:
            self._show_live(items)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY
            self.plain(summary(items, self._lanes))

    def table(self, items: Sequence[Item]) -> None:
        """Print all runs, once."""
        self.close()
        self._out.print(table(items, self._lanes, most=len(items)))

    def close(self) -> None:
        """Take the live table away; safe to call at any time."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show_live(self, items: Sequence[Item]) -> None:
        view = table(items, self._lanes, SHOWN)
        if self._live is None:
            self._live = Live(view, console=self._out, transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(view, refresh=True)


def table(items: Sequence[Item], lanes: int, most: int) -> Table:
    """Return the runs as a table.

    Args:
        items: All runs, in the order in which they are wanted.
        lanes: Runs at a time.
        most: Rows; of more runs those under way are shown first.
    """
    view = Table(caption=summary(items, lanes), caption_justify="left")
    view.add_column("run", overflow="fold")
    for head in ("state", "epochs", "s per epoch", "validation", "left"):
        view.add_column(head, justify="right", no_wrap=True)
    chosen = items if len(items) <= most else sorted(items, key=lambda item: ORDER.index(item.state))[:most]
    for item in chosen:
        view.add_row(*_cells(item))
    if len(items) > len(chosen):
        view.add_row(f"and {len(items) - len(chosen)} more", *[""] * 5)
    return view


def _cells(item: Item) -> tuple[str, ...]:
    found, rate = item.progress, item.progress.seconds_per_epoch
    figure = found.figures[-1].get("validation/average") if found.figures else None
    return (
        item.task.label,
        item.state,
        f"{found.epochs} of {item.task.epochs}",
        f"{rate:.3g}" if rate is not None else "",
        f"{figure:.2f}" if figure is not None else "",
        clock(item.left * rate) if item.left and rate is not None else "",
    )


def summary(items: Sequence[Item], lanes: int) -> str:
    """Return one line on all runs: states, epochs, speed, the time that is left."""
    states = ", ".join(f"{number} {state}" for state, number in counts(items).items())
    wanted = [item for item in items if item.state not in (STOPPED, FAILED)]
    done, total = (
        sum(values) for values in ([i.progress.epochs for i in wanted], [i.task.epochs for i in wanted])
    )
    rates = [item.progress.seconds_per_epoch for item in items if item.state == RUNNING]
    speed = sum(1 / rate for rate in rates if rate)
    left = seconds_left(items, lanes)
    parts = [
        f"{len(items)} runs: {states}",
        f"{done:,} of {total:,} epochs",
        f"{speed:.3g} epochs/s" if speed else "",
        f"spent {duration(spent)}" if (spent := sum(item.progress.seconds for item in items)) else "",
        f"eta {clock(left)}" if left is not None else "",
    ]
    return " | ".join(part for part in parts if part)
