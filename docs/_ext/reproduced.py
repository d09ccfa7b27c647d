"""The table of reproducibility, ``{reproduced}``: method x protocol, and how near our runs come to the published rows.

A run counts where nothing told in its report sets it apart from the published rows: hold-out, data, memory and epochs.
Everything is read from the gallery, from ``published.yaml`` and from the experiment files when the site is built: a new
run or file needs no line here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from docutils import nodes
from gallery import PAGES, Shown, runs
from links import FILES, experiments
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from incrlt.metrics import published
from incrlt.report import tables
from incrlt.written import written

PROTOCOLS = ("lfh-shuffled-10", "lfh-shuffled-5", "lfh-ordered-10", "lfh-ordered-5", published.OFFLINE)
DATASET = "cifar100"
WITHIN = 1.0
"""Points by which re-runs of the official code scatter: a full-length run this near is a reproduction."""

Cell = tuple[str, str]
"""What a published row calls a method, and its protocol."""


@cache
def written_down() -> dict[Cell, str]:
    """Return the first experiment file of every method and protocol on CIFAR-100 that a published row names."""
    found: dict[Cell, str] = {}
    by_recipe = sorted(
        experiments().items(), key=lambda item: "_published" not in item[0]
    )  # that data, if a file has it
    for file, one in by_recipe:
        if one.benchmark.dataset != DATASET:
            continue
        protocol = one.protocol().name
        row = published.row_of(
            protocol, published.row_name(protocol, one.method, one.experts.hyper_parameters)
        )
        if row is not None:
            found.setdefault((row.method, protocol), file)
    return found


def compared() -> dict[Cell, list[Shown]]:
    """Return the gallery's runs by published row, full-length runs first, then the longest."""
    found: dict[Cell, list[Shown]] = {}
    for one in runs():
        row = published.row_of(tables.published_table(one.run), tables.row_name(one.run))
        if row is not None and one.run.complete:
            found.setdefault((row.method, one.run.protocol_name), []).append(one)
    for own in found.values():
        own.sort(key=lambda one: (bool(sets_apart(one)), -one.length[1], one.seed))
    return found


def row_of(one: Shown) -> published.PublishedRow:
    """Return the published row beside a run; :func:`compared` keeps the runs that have one."""
    row = published.row_of(tables.published_table(one.run), tables.row_name(one.run))
    assert row is not None
    return row


def sets_apart(one: Shown) -> list[str]:
    """Say why a run is no reproduction whatever it reaches, empty where nothing known differs."""
    unstated = [] if row_of(one).epochs else ["The row does not say how long it trained."]
    return [*tables.published_remarks(one.run), *unstated]


def distances(one: Shown) -> Mapping[str, float | None]:
    """Return ours minus published, per figure that the row gives, in percentage points."""
    return published.differences(row_of(one), one.run.summaries[one.readout])


def verdict(one: Shown) -> str:
    """Say what a run shows: "reproduced", "short by 2.31", "above by 3.10", or that it is not of full length."""
    if sets_apart(one):
        return "other length or data"
    away = [value for value in distances(one).values() if value is not None]
    worst = min(away, default=0.0)
    if worst < -WITHIN:
        return f"short by {written(-worst, 2)}"
    return f"above by {written(max(away), 2)}" if max(away, default=0.0) > WITHIN else "reproduced"


def lines(up: str) -> Iterator[str]:
    """Yield the Markdown: the table of verdicts, then every run behind it; ``up`` is the way to the site's root."""
    own = compared()
    methods = list(dict.fromkeys(method for method, _ in (*written_down(), *own)))
    yield from (f"| method | {' | '.join(PROTOCOLS)} |", f"|---|{'---|' * len(PROTOCOLS)}")
    for method in methods:
        yield f"| {method} | {' | '.join(_cell(method, protocol, own, up) for protocol in PROTOCOLS)} |"
    yield ""
    yield (
        f"*Reproduced*: at full length, with the published data and memory, no figure of the row is further than "
        f"{WITHIN:g} point from ours. Figures: average / last, ours minus published, in points. A dash: no row. "
        "*Not run* leads to the file, where there is one."
    )
    yield from (
        "",
        "| run | published row | ours − published | verdict | seed | epochs | commit | machine | hash | command |",
    )
    yield "|---|---|---|---|--:|---|---|---|---|---|"
    for (method, protocol), shown in own.items():
        for one in shown:
            yield _run(one, method, protocol, up)
    yield ""


def _cell(method: str, protocol: str, own: Mapping[Cell, list[Shown]], up: str) -> str:
    if published.row_of(protocol, method) is None:
        return "–"
    shown = own.get((method, protocol), [])
    if not shown:
        file = written_down().get((method, protocol))
        return f'<a href="{up}{FILES}/{file}">not run</a>' if file else "not run"
    best = shown[0]
    if sets_apart(best):
        return f"{_report(best, 'short run', up)} alone"
    full = sum(not sets_apart(one) for one in shown)
    return f"{_report(best, verdict(best), up)}: {_points(best)} (n = {full})"


def _report(one: Shown, text: str, up: str) -> str:
    return f'<a href="{up}{PAGES}/{one.page}#verdict">{text}</a>'


def _points(one: Shown) -> str:
    return " / ".join(written(value, 2, sign="+") for value in distances(one).values())


def _run(one: Shown, method: str, protocol: str, up: str) -> str:
    told: dict[str, Any] = {
        "run": _report(one, one.run.method, up),
        "row": f"{method}, {protocol}{_status(one)}",
        "points": _points(one), "verdict": verdict(one), "seed": one.seed, "epochs": one.epochs,
        "commit": f"`{one.commit}`", "machine": one.device, "hash": f"`{one.run.protocol_hash}`",
        "command": f"`{one.command}`",
    }  # fmt: skip
    return f"| {' | '.join(str(value) for value in told.values())} |"


def _status(one: Shown) -> str:
    status = row_of(one).status
    return "" if status == "ok" else f" ({status})"


class Reproduced(SphinxDirective):
    """The table, on the page that has it."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        return self.parse_text_to_nodes("\n".join(lines("../" * self.env.docname.count("/"))))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("reproduced", Reproduced)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
