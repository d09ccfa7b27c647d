"""Everything the program says to the person in front of it; the only file that prints.

On a terminal the progress of a run is one live line; into a file or a pipe it is at most a few plain lines
per stage. The same facts go to ``log.jsonl``; nothing is computed here but the time that is left.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from incrlt.words import clock
from incrlt.words import size as bytes_of
from incrlt.written import UNDEFINED, written

Told = Mapping[str, Any]
"""What a run says of itself by name: an event of its log, a row of its plan or of its table."""
LINES_PER_STAGE: Final = 5
"""Plain lines per stage where there is no terminal; two stages make ten per experience."""
PLAIN_WIDTH: Final = 120
"""Columns where there is no terminal."""
MANY_PICTURES: Final = 5_000
"""Pictures whose decoding is told where there is no terminal: it takes more than seconds."""
MANY_BYTES: Final = 100_000_000
"""Bytes whose transfer is told where there is no terminal."""
GROUPS: Final = ("many", "medium", "few")

COLUMNS: Final = {
    "accuracy/over_tasks": "A over tasks",
    "accuracy/over_classes": "A over classes",
    "accuracy/over_seen_images": "A over images",
    "accuracy/many_over_classes": "many",
    "accuracy/medium_over_classes": "medium",
    "accuracy/few_over_classes": "few",
    "forgetting/chaudhry_over_tasks": "forgetting over tasks",
    "confusion/old_to_new_over_images": "old taken for new",
}
"""Keys of ``incrlt.metrics.experience_rows`` that the table after an experience shows, and their heads."""


class Console:
    """Prints a run to standard output, warnings and errors to standard error.

    Args:
        stream: Where to print; standard output by default.
        errors: Where warnings and errors go; standard error by default.
    """

    def __init__(self, stream: IO[str] | None = None, errors: IO[str] | None = None) -> None:
        self._out = rich_console(stream or sys.stdout)
        self._err = rich_console(errors or sys.stderr)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._tenth: tuple[str, int] | None = None
        self._clock = Clock([])
        self._plan: list[Mapping[str, object]] = []

    def plain(self, text: str) -> None:
        """Print text as it is: no markup, no colour, no line breaks of our own."""
        self._out.print(text, markup=False, highlight=False, soft_wrap=True)

    def warning(self, text: str) -> None:
        """Print one sentence the user should read, above the progress."""
        target = self._progress.console if self._progress else self._err
        target.print(f"warning: {text}", markup=False, highlight=False, soft_wrap=True, style="yellow")

    def error(self, text: str) -> None:
        """Print why the program stops."""
        self.close()
        self._err.print(f"error: {text}", markup=False, highlight=False, soft_wrap=True, style="red")

    def banner(self, facts: Mapping[str, object], plan: Sequence[Told]) -> None:
        """Say what is about to run, on what.

        Args:
            facts: Label to value, printed in this order; entries that are None are left out.
            plan: ``incrlt.experiment.plan.plan``: one mapping per experience.
        """
        self._plan = list(plan)
        self._clock = Clock([row.get("work", 0) for row in plan])
        self._facts({**facts, "classes by group": _groups_line(plan)})

    def dry_run(self, facts: Mapping[str, object], config: str, plan: Sequence[Mapping[str, object]]) -> None:
        """Say what a run would do: the resolved configuration, the plan, and the facts.

        Args:
            facts: As in :meth:`banner`.
            config: The resolved configuration as YAML.
            plan: As in :meth:`banner`.
        """
        self.plain(config)
        self._out.print(_plan_table(plan, self._out.width))
        self._facts({**facts, "classes by group": _groups_line(plan)})

    def reading(self, done: int, number: int) -> None:
        """Show how many pictures are decoded: a bar on a terminal, elsewhere a line for each tenth of very many.

        Args:
            done: So far.
            number: Of how many.
        """
        if self._out.is_terminal:
            self._bar(f"{done:,}/{number:,} pictures", done, number)
        elif number >= MANY_PICTURES and done * 10 // number > (done - 1) * 10 // number:
            self.plain(f"{done:,} of {number:,} pictures decoded")

    def transfer(self, what: str, done: int, number: int) -> None:
        """Show how many bytes are fetched, checked or unpacked: a bar, or a line for each tenth of what takes minutes.

        Args:
            what: Of what.
            done: So far.
            number: Of how many.
        """
        told = f"{what}: {bytes_of(done)} of {bytes_of(number)}"
        if self._out.is_terminal:
            self._bar(told, done, number)
            return
        known, tenth = self._tenth, (what, done * 10 // max(number, 1))
        if number >= MANY_BYTES and tenth != known:
            self._tenth = tenth
            if known is not None and tenth[0] == known[0]:
                self.plain(told)

    def _bar(self, text: str, done: int, number: int) -> None:
        """Move the live bar; what is done ends it."""
        if self._progress is None:
            columns = (BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
            self._progress = Progress(*columns, console=self._out, transient=True)
            self._task = self._progress.add_task(text, total=number)
            self._progress.start()
        assert self._task is not None
        self._progress.update(self._task, description=text, completed=done, total=number)
        if done == number:
            self.close()

    def epoch(self, event: Told) -> None:
        """Show that an epoch is over.

        Args:
            event: The epoch's line of ``log.jsonl``; ``epoch`` counts finished epochs from 1.
        """
        left = self._clock.advance(event)
        text, remaining = self._epoch_line(event), "" if left is None else f"eta {clock(left)}"
        if self._out.is_terminal:
            self._show_live(text, remaining)
        elif _is_due(event["epoch"], event["epochs"]):
            self.plain(" | ".join(filter(None, [text, remaining])))

    def experience(self, row: Told, table: Mapping[str, Told]) -> None:
        """Print the table of an experience that is over.

        Args:
            row: Its line of ``log.jsonl``.
            table: Read-out (``cnn``, ``nme``) to its row of ``incrlt.metrics.experience_rows``, in percent.
        """
        title = f"after experience {row['experience']}{self._of_all(row['experience'])}"
        notes = [f"{row['classes_seen']} classes"] if "classes_seen" in row else []
        notes += [f"{row['memory_images']} exemplars"] if row.get("memory_images") else []
        notes += [f"trained in {clock(row['train_seconds'])}"] if "train_seconds" in row else []
        notes += [f"evaluated in {clock(row['eval_seconds'])}"] if "eval_seconds" in row else []
        heads = ["read-out, %", *COLUMNS.values()]
        rows = [
            [readout, *(self._known(percent(values.get(key))) for key in COLUMNS)]
            for readout, values in table.items()
        ]
        printer = self._printer()
        if _width(heads, rows) > printer.width:  # a line per number and a column per read-out
            heads, *rows = ([*line] for line in zip(heads, *rows, strict=True))
        printer.print(" | ".join([title, *notes]), markup=False, highlight=False, soft_wrap=True)
        printer.print(_table(heads, rows, left=1))

    def finished(
        self,
        run_folder: Path | str,
        report_path: Path | str | None,
        next_command: str,
        published_line: str | None,
        numbers: str | None = None,
    ) -> None:
        """Print what came out, where everything is, how far from the published row, and what to do next.

        Args:
            run_folder: The run folder.
            report_path: The report, if it was written.
            next_command: A command worth running now.
            published_line: Distance to the published row of the same protocol, if there is one.
            numbers: The average and the last accuracy, as :func:`headline` writes them.
        """
        self.close()
        facts = {
            "result": numbers,
            "published": published_line,
            "run folder": run_folder,
            "report": report_path,
            "next": next_command,
        }
        self._facts(facts)

    def close(self) -> None:
        """Take the live line away; safe to call at any time."""
        if self._progress:
            self._progress.stop()
            self._progress = None

    def _known(self, text: str) -> str:
        return text.replace(UNDEFINED, "-") if self._out.options.ascii_only else text

    def _printer(self) -> RichConsole:
        return self._progress.console if self._progress else self._out

    def _facts(self, facts: Mapping[str, object]) -> None:
        shown = {label: str(value) for label, value in facts.items() if value is not None and str(value)}
        width = max(map(len, shown), default=0)
        for label, value in shown.items():
            self.plain(f"{label:<{width}}  {value}")

    def _of_all(self, t: int) -> str:
        """Say how far that is: experiences have numbers from 0, as everywhere, and a count from 1."""
        return f" ({t + 1}/{len(self._plan)})" if self._plan else ""

    def _epoch_line(self, event: Told) -> str:
        t = event["experience"]
        seen = self._plan[t].get("classes_seen") if t < len(self._plan) else None
        parts = [
            f"exp {t}{self._of_all(t)}{f' {seen} cls' if seen else ''}",
            f"{event.get('stage', 'train')} epoch {event['epoch']}/{event['epochs']}",
            _loss(event),
            f"lr {event['lr']:.3g}" if event.get("lr") is not None else "",
            f"{quantity(event['images_per_second'])} img/s" if event.get("images_per_second") else "",
        ]
        return " | ".join(part for part in parts if part)

    def _show_live(self, text: str, remaining: str) -> None:
        if self._progress is None:
            time_left = TextColumn(
                "{task.fields[remaining]}"
            )  # a column of its own: a narrow window cuts the text
            columns = (BarColumn(bar_width=20), time_left, TextColumn("{task.description}", markup=False))
            self._progress = Progress(*columns, console=self._out, transient=True)
            self._task = self._progress.add_task(text, total=self._clock.total or None, remaining=remaining)
            self._progress.start()
        assert self._task is not None
        self._progress.update(self._task, description=text, completed=self._clock.done, remaining=remaining)


class Clock:
    """Estimates the time that is left from the images that are still to come.

    Args:
        work: Images times epochs of every experience, as planned.
    """

    def __init__(self, work: Sequence[float]) -> None:
        self.work = list(work)
        self.total = sum(work)
        self.done = 0.0
        self._stage: tuple[object, object] | None = None
        self._before = 0.0
        self._first: tuple[float, float] | None = None

    def advance(self, event: Told) -> float | None:
        """Take note of a finished epoch.

        Returns:
            Seconds left, or None while too little is known.
        """
        t, stage = event["experience"], event.get("stage")
        images = event.get("images_per_second", 0) * event.get("seconds", 0)
        if self._stage is None or self._stage[0] != t:
            self._before = sum(self.work[:t])
        elif self._stage[1] != stage:
            self._before = self.done
        self._stage = (t, stage)
        self.done = min(self._before + event["epoch"] * images, sum(self.work[: t + 1]))
        now = time.monotonic()
        if self._first is None:
            self._first = (now, self.done)
            return None
        speed = (self.done - self._first[1]) / max(now - self._first[0], 1e-9)
        return (self.total - self.done) / speed if speed > 0 else None


def quantity(number: float) -> str:
    """Return a number with three digits and a unit.

    Example:
        >>> quantity(950), quantity(3120), quantity(1_735_000)
        ('950', '3.12k', '1.74M')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def percent(value: float | None) -> str:
    """Return a value in percent with two digits, a dash where there is none.

    Example:
        >>> percent(34.586), percent(None), percent(-0.001)
        ('34.59', '–', '0.00')
    """
    return written(value)


def rich_console(stream: IO[str]) -> RichConsole:
    """Return what prints to a stream: no line breaks of a terminal's width in a file, and ``:bird:`` stays text."""
    console = RichConsole(file=stream, emoji=False)
    if not console.is_terminal:
        console = RichConsole(file=stream, emoji=False, width=PLAIN_WIDTH)
    return console


def _is_due(epoch: int, epochs: int) -> bool:
    """Tell whether a plain line is printed after this epoch: evenly spread, always after the last."""
    step = -(-epochs // LINES_PER_STAGE)
    return epoch == epochs or (epoch % step == 0 and epochs - epoch >= step)


def _loss(event: Told) -> str:
    terms = event.get("terms") or {}
    total = event.get("loss", sum(terms.values()) if terms else None)
    if total is None:
        return ""
    listed = " ".join(f"{name} {value:.3g}" for name, value in terms.items())
    return f"loss {total:.4g}" + (f" ({listed})" if len(terms) > 1 else "")


def _groups_line(plan: Sequence[Told]) -> str | None:
    """Return how many classes and images are many, medium and few, over the whole stream."""
    if not plan or "classes_by_group" not in plan[0]:
        return None
    parts = []
    for group in GROUPS:
        classes = sum(row["classes_by_group"][group] for row in plan)
        images = sum(row["images_by_group"][group] for row in plan)
        parts.append(f"{group} {classes} ({images} images)")
    return ", ".join(parts)


def _plan_table(plan: Sequence[Mapping[str, object]], width: int) -> Table:
    """Return the plan as a table of at most ``width`` columns where that can be, one row per experience and a total."""
    wide = _plan_rows(plan, False)
    if _width(*wide) <= width:
        return _table(*wide)
    return _table(*_plan_rows(plan, True), narrow=True)


def _plan_rows(plan: Sequence[Told], narrow: bool) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of the plan; the groups are one column where room is short."""
    many = ["many/med/few"] if narrow else list(GROUPS)
    heads = ["exp.", "new", "seen", "images", "kept", *many, "epochs", "work"]
    if not narrow:
        heads = ["experience", "new classes", "seen", "images", "exemplars", *many, "epochs", "image-epochs"]

    def groups(rows: Sequence[Told]) -> list[str]:
        found = [str(sum(row["classes_by_group"][group] for row in rows)) for group in GROUPS]
        return ["/".join(found)] if narrow else found

    plus = "+" if narrow else " + "
    lines = [
        [
            str(row["experience"]), str(len(row["classes"])), str(row["classes_seen"]), str(row["images"]),
            str(row["exemplars"]), *groups([row]),
            f"{row['epochs']}" + (f"{plus}{row['later_epochs']}" if row["later_epochs"] else ""), quantity(row["work"]),
        ]
        for row in plan
    ]  # fmt: skip
    if len(plan) > 1:
        images, classes = sum(row["images"] for row in plan), sum(len(row["classes"]) for row in plan)
        epochs = sum(row["epochs"] + row["later_epochs"] for row in plan)
        work = quantity(sum(row["work"] for row in plan))
        lines.append(["total", str(classes), "", str(images), "", *groups(plan), str(epochs), work])
    return heads, lines


def _least(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Return how narrow each column may be: its numbers stay whole, its head may be broken between words."""
    return [max(map(len, [*head.split(), *(row[place] for row in rows)])) for place, head in enumerate(heads)]


def _width(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Return the columns that a table with lines takes at least."""
    return sum(_least(heads, rows)) + 3 * len(heads) + 1


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 0, narrow: bool = False) -> Table:
    """Return a table in which no number is cut.

    Args:
        heads: Of the columns.
        rows: Texts. A last one that begins with "total" stands below a line.
        left: Columns of words, which stand at the left; all others stand at the right.
        narrow: No lines, and a space between the columns.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0)) if narrow else Table()
    for place, (head, least) in enumerate(zip(heads, _least(heads, rows), strict=True)):
        table.add_column(head, justify="left" if place < left else "right", min_width=least)
    for row, after in zip(rows, [*rows[1:], [""]], strict=True):
        table.add_row(*row, end_section=after[0] == "total")
    return table


def headline(readout: str, numbers: Told) -> str:
    """Return the two numbers that experiment files expect of a run, by the read-out that it answers with.

    Args:
        readout: Its name.
        numbers: Of a summary, in percent.

    Example:
        >>> average, last = "average_incremental_accuracy/over_tasks", "last_accuracy/over_tasks"
        >>> headline("cnn", {average: 93.08, last: 87.2})
        '93.08 / 87.20 % (average over tasks / last, cnn)'
    """
    average, last = (
        percent(numbers.get(f"{name}/over_tasks"))
        for name in ("average_incremental_accuracy", "last_accuracy")
    )
    return f"{average} / {last} % (average over tasks / last, {readout})"
