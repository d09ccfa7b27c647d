"""The page of one run: one HTML file with everything in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

import incrlt
from incrlt.files import Plain, write_atomic
from incrlt.metrics import StreamRecord, published
from incrlt.report import charts, class_charts, expert_charts, tables
from incrlt.report.charts import Figure
from incrlt.report.reading import Run, read_run
from incrlt.report.spending import spending
from incrlt.report.verdict import verdict
from incrlt.written import cut, written

_FOLDER = Path(__file__).parent
HOVERED, LONGEST = 8, 40
"""Classes that a hover names, and letters of a name."""
LONGEST_SOURCE = 100_000
"""Letters of a file that are shown."""
PLOTLY_FILE = "plotly.min.js"
"""Name of plotly's script where pages share it."""
_UNEXPECTED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a file of another version can provoke: fields that are missing, of another type or of another size."""


def write(run_folder: str | os.PathLike[str], to: str | os.PathLike[str] | None = None) -> Path:
    """Write the report of a run, in whatever state it is.

    Args:
        run_folder: The run's folder.
        to: The file to write; ``<run folder>/report.html`` by default.

    Returns:
        The page's path.

    Raises:
        UserError: Not a run folder, or the page cannot be written.
    """
    return write_page(read_run(run_folder), Path(to) if to is not None else Path(run_folder) / "report.html")


def write_page(
    run: Run, path: Path, plotly_file: str | None = None, leads: Sequence[tuple[str, str]] = ()
) -> Path:
    """Write the page of a run that has been read.

    Args:
        run: The run.
        path: The file to write.
        plotly_file: As in :func:`render`.
        leads: Words and address of each page that this one leads to.
    """
    return write_atomic(path, render("run.html", plotly_file, **contents(run), leads=leads))


def write_plotly(folder: Path) -> Path:
    """Write plotly's script, 4.6 MB, into a folder, for pages that share it."""
    return write_atomic(folder / PLOTLY_FILE, get_plotlyjs())


def contents(run: Run) -> Plain:
    """Return everything the template shows, with what could not be made added to the problems."""
    problems = list(run.problems)

    def made(what: str, make: Callable[[], Any], otherwise: object) -> Any:
        try:
            return make()
        except _UNEXPECTED as error:
            reason = cut(f"{type(error).__name__}: {error}", 300)
            problems.append(f"{what} could not be made from these files ({reason}).")
            return otherwise

    main = next(iter(run.records.values()), None)
    parts = {
        "facts": made("The head", lambda: tables.facts(run), []),
        "tiles": made("The headline numbers", lambda: tables.tiles(run), []),
        "group_bars": made("The group numbers", lambda: tables.group_bars(run.summaries, main), []),
        "numbers": made("The table of numbers", lambda: tables.numbers(run.summaries), []),
        "published": made("The published rows", lambda: tables.published_rows(run), []),
        "figures": tables.published_figures(tables.published_table(run)),
        "distance": made("The distance to published rows", lambda: distance(run), None),
        "remarks": made("The remarks", lambda: tables.published_remarks(run), []),
        "calibrations": made("The calibration", lambda: tables.calibrations(run), []),
        "experiences": made("The table of experiences", lambda: tables.experiences(run), []),
        "spending": made("The table of costs", lambda: spending(run), []),
        "routing": made("The table of routing", lambda: tables.routing(run), []),
        "yardsticks": made("The table beside the router", lambda: tables.yardsticks(run), []),
        "classes": made("The table of classes", lambda: tables.classes(run), []),
        "taken_for": made("What classes are taken for", lambda: class_charts.counted(run), None),
        "verdict": made("The verdict", lambda: verdict(run), []),
        "lost": made("What each group lost", lambda: tables.lost(run), []),
        "tasks": {
            readout: made("The table of forgetting", partial(tables.tasks, record), [])
            for readout, record in run.records.items()
        },
        "thumbnails": made("The pictures of the classes", lambda: tables.thumbnails(run), None),
        "charts": {
            name: chart
            for name, (what, make) in _charts(run).items()
            if (chart := made(what, partial(_drawn, make), None)) is not None
        },
    }
    return {
        **parts,
        "run": run,
        "most_lines": charts.MOST_LINES,
        "readouts": list(run.summaries),
        "problems": problems,
        "sources": _sources(run),
    }


def _drawn(make: Callable[[], Figure | None]) -> Figure | None:
    """Make a chart and see that it can be written: a value that is not finite cannot."""
    chart = make()
    if chart is not None:
        figure_json(chart)
    return chart


def _charts(run: Run) -> dict[str, tuple[str, Callable[[], Figure | None]]]:
    """Return per chart its name in messages and how to make it; ``<chart>-<readout>`` for one each."""
    made: dict[str, tuple[str, Callable[[], Figure | None]]] = {
        "accuracy": ("The accuracy curves", lambda: charts.accuracy(run.summaries)),
        "groups": ("The group curves", lambda: charts.groups(run.summaries)),
        "forgetting": ("The forgetting curves", lambda: charts.forgetting_over_time(run.summaries)),
        "losses": ("The loss curves", lambda: charts.losses(run)),
        "rate": ("The learning rate", lambda: charts.learning_rate(run)),
        "sweep": ("The routing curve", lambda: charts.routing_curve(run.sweep)),
        "routing-group": ("Routing by group", lambda: expert_charts.experts_used(run.routing, "group")),
        "routing-age": ("Routing by age", lambda: expert_charts.experts_used(run.routing, "age")),
        "calibration-error": ("The calibration error", lambda: expert_charts.calibration_error(run)),
        "experts": ("The experts", lambda: expert_charts.expert_bars(run)),
        "experts-time": ("The experts over time", lambda: expert_charts.experts_over_time(run)),
        "disagreement": ("The experts' disagreement", lambda: expert_charts.disagreements(run)),
        "experts-curve": ("The curve over experts", lambda: expert_charts.expert_curve(run)),
        "memory": ("The memory", lambda: expert_charts.memory(run)),
    }
    for readout, summary in run.summaries.items():
        names = class_names(run.records.get(readout))
        made |= {f"{name}-{readout}": value for name, value in _charts_of(summary, names).items()}
    for readout in run.records:
        made |= {f"{name}-{readout}": value for name, value in _charts_of_counts(run, readout).items()}
    return made


def _charts_of_counts(run: Run, readout: str) -> dict[str, tuple[str, Callable[[], Figure | None]]]:
    record = run.records[readout]
    return {
        "size": ("The class sizes", lambda: charts.class_size(record)),
        "negatives": ("The confusion of groups", lambda: charts.group_confusion(record)),
        "confusion": ("The confusion of classes", lambda: class_charts.confused(record, readout)),
        "calibration": ("The calibration", lambda: expert_charts.calibration(run, readout)),
    }


def _charts_of(summary: Plain, names: list[str]) -> dict[str, tuple[str, Callable[[], Figure | None]]]:
    return {
        "matrix": ("The accuracy matrix", lambda: charts.matrix(summary, names)),
        "lost": ("The forgetting matrix", lambda: charts.lost(summary, names)),
        "curves": ("The curves per experience", lambda: charts.accuracy_per_experience(summary)),
        "age": ("Forgetting by age", lambda: charts.forgetting_by_age(summary, "all_steps")),
        "age-last": ("Forgetting by age", lambda: charts.forgetting_by_age(summary, "last")),
        "old": ("The confusion of old classes", lambda: charts.confusion(summary, "old")),
        "new": ("The confusion of new classes", lambda: charts.confusion(summary, "new")),
    }


def class_names(record: StreamRecord | None) -> list[str]:
    """Return per experience the names of its classes, cut where they are many; none without counts."""
    if record is None:
        return []
    found = []
    for t in range(record.num_experiences):
        own = range(record.seen_after(t - 1) if t else 0, record.seen_after(t))
        more = f" and {len(own) - HOVERED} more" if len(own) > HOVERED else ""
        found.append(", ".join(cut(record.name_of(index), LONGEST) for index in own[:HOVERED]) + more)
    return found


def distance(run: Run) -> str | None:
    """Return the line on how far the run's own read-out is from the published row, or None.

    Published numbers are those of a whole stream, so a run that is not whole is said to be so and not compared.
    """
    summary = next(iter(run.summaries.values()), None)
    name = tables.row_name(run)
    if summary is None:
        return None
    if run.complete:
        return published.distance(tables.published_table(run), name, summary)
    row = published.row_of(tables.published_table(run), name)
    return (
        f"{run.progress}: not compared with the published row of {row.method}, the whole stream's."
        if row
        else None
    )


def _sources(run: Run) -> list[tuple[str, str]]:
    """Return the files the run was made with, as text to unfold."""
    sources = [("config.yaml", run.config), ("environment.json", run.environment)]
    found = [(name, _dumped(content)) for name, content in sources if content]
    plan = {key: value for key, value in run.protocol.items() if not isinstance(value, list)}
    return [*found, ("protocol.json, without its lists", _dumped(plan))] if plan else found


def _dumped(content: Plain) -> str:
    """Return a file's content as YAML, of a huge one what fits a page."""
    text = json.dumps(content, default=str)
    if len(text) > LONGEST_SOURCE:
        return f"{text[:LONGEST_SOURCE]}\n… cut: {len(text):,} letters"
    return yaml.safe_dump(content, sort_keys=False)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "cut": cut,
        "figure": figure_json,
        "lone": charts.lone,
        "short": short,
        "value": shown,
        "signed": signed,
        "breakable": breakable,
    }
    return environment


def render(template: str, plotly_file: str | None = None, **context: object) -> str:
    """Fill a template; script and style are inlined, so the page needs no network.

    Args:
        template: Name of the template.
        plotly_file: Plotly's script relative to the page, where pages share one; None writes it into the page.
        **context: What the template shows.
    """
    return (
        _environment()
        .get_template(template)
        .render(
            **context,
            version=incrlt.__version__,
            style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
            script=Markup((_FOLDER / "page.js").read_text(encoding="utf-8")),
            plotly_file=plotly_file,
            plotly=Markup("" if plotly_file else get_plotlyjs()),
        )
    )


def figure_json(figure: Figure) -> Markup:
    """Return a figure as JSON that is safe inside a ``<script>`` element."""
    text = json.dumps(figure, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def breakable(name: str) -> Markup:
    """Return a name that may be broken behind its underscores."""
    return Markup(escape(name).replace("_", Markup("_<wbr>")))


def short(name: str, most: int = 24) -> Markup:
    """Return a name of at most ``most`` letters, the whole of a longer one to be seen by hovering."""
    if len(name) <= most:
        return escape(name)
    return Markup('<span title="{}">{}</span>').format(cut(name, 500), cut(name, most))


def shown(value: float | None, digits: int = 1) -> str:
    """Return a number for a table; an en dash where it is undefined."""
    return written(value, digits).replace("-", "−")


def signed(value: float | None, digits: int = 2) -> str:
    """Return a difference with its sign."""
    return written(value, digits, "+").replace("-", "−")
