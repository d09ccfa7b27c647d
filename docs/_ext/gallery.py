"""The gallery: committed run folders in, their reports, cards, the table of results and pictures out.

Every number on these pages is read from the files of ``docs/gallery/runs`` when the site is built. Directives:
``{gallery-cards}``, ``{gallery-table}`` and ``{gallery-picture} EXPERIMENT ...``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import jinja2
from docutils import nodes
from markupsafe import Markup
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from incrlt.report import Run, read_run
from incrlt.report.__main__ import page_names, report
from incrlt.report.compare import COLUMNS
from incrlt.words import counted, duration

DOCS = Path(__file__).resolve().parent.parent
RUNS = DOCS / "gallery" / "runs"
PAGES = "gallery/reports"
"""Where the reports lie on the site."""

AVERAGE, LAST = "average_incremental_accuracy/over_tasks", "last_accuracy/over_tasks"
FORGETTING = "forgetting/chaudhry_over_tasks"


@dataclass(frozen=True)
class Shown:
    """A run as the gallery shows it, by its main read-out."""

    run: Run
    page: str
    """File name of its report."""

    @property
    def readout(self) -> str:
        """The read-out that the strategy answers with, where it has several."""
        chosen = self.run.config.get("strategy", {}).get("readout")
        return chosen if chosen in self.run.summaries else next(iter(self.run.summaries))

    @property
    def numbers(self) -> dict[str, float | None]:
        """The metrics of the main read-out."""
        return self.run.summaries[self.readout]["numbers"]

    @property
    def matrix(self) -> list[list[float | None]]:
        """Accuracy after experience t (row) on the classes of experience j (column), percent."""
        return self.run.summaries[self.readout]["accuracy_matrix"]

    @property
    def epochs(self) -> str:
        """Epochs per experience and per stage, and images per step: "40 on the base, then 10; lws 10; batch 128"."""
        training = self.run.config["training"]
        base, later = training.get("base_epochs"), training["epochs"]
        first = f"{base} on the base, then {later}" if base and base != later else str(later)
        stages = [("classifier", self.run.config.get("experts", {}).get("classifier_epochs"))]
        stages += [
            (section.get("name", ""), section.get("epochs"))
            for section in (self.run.config.get("rebalance"), self.run.config.get("router"))
            if section
        ]
        later_stages = [f"{name} {epochs}" for name, epochs in stages if epochs]
        return "; ".join([first, *later_stages, f"batch {training['batch_size']}"])

    @property
    def seed(self) -> int:
        """The seed of everything that has none of its own."""
        return self.run.config["seeds"]["all"]

    @property
    def device(self) -> str:
        """The device, such as "cpu (x86_64), bf16, 1 thread"; runs of older versions do not tell their precision."""
        found = self.run.environment
        precision = f", {found['precision']}" if found.get("precision") else ""
        if found.get("gpu"):
            return f"{found['gpu']}{precision}"
        threads = counted(found.get("threads"), "thread")
        return f"{found.get('device')} ({found.get('processor')}){precision}, {threads}"

    @property
    def seconds(self) -> str:
        """Time of training and evaluation together."""
        return duration(float(self.run.results.get("seconds") or 0))

    @property
    def commit(self) -> str:
        """The commit it ran on; a plus where files were changed."""
        found = self.run.environment
        return str(found.get("git_commit") or "")[:7] + "+" * bool(found.get("git_dirty"))

    @property
    def command(self) -> str:
        """The command that makes the run again."""
        return str(self.run.environment.get("command", ""))

    @property
    def made_with(self) -> str:
        """What must stand below every figure: epochs, seed, number of runs, device."""
        return f"epochs per experience: {self.epochs}; seed {self.seed} (n = 1); {self.device}"


@cache
def runs() -> tuple[Shown, ...]:
    """Return the runs of the gallery: protocols by name and hash, weakest run first, which is then the baseline.

    Raises:
        ExtensionError: A run cannot be read whole.
    """
    found = [read_run(path.parent) for path in sorted(RUNS.glob("*/*/protocol.json"))]
    for run in found:
        if run.problems and not all("was written by incrlt" in problem for problem in run.problems):
            raise ExtensionError(f"gallery: {run.name}: {' '.join(run.problems)}")
    shown = [Shown(run, page) for run, page in zip(found, page_names(found), strict=True)]
    return tuple(sorted(shown, key=lambda one: (*_protocol(one), one.numbers[AVERAGE] or 0)))


def _protocol(one: Shown) -> tuple[str, str]:
    return one.run.protocol_name, one.run.protocol_hash or ""


def by_protocol(shown: Sequence[Shown]) -> dict[tuple[str, str], list[Shown]]:
    """Return the runs by (protocol, hash): only within one may numbers be compared."""
    groups: dict[tuple[str, str], list[Shown]] = {}
    for one in shown:
        groups.setdefault(_protocol(one), []).append(one)
    return groups


def find(experiment: str) -> Shown:
    """Return the first run of an experiment.

    Raises:
        ExtensionError: The gallery has none.
    """
    found = [one for one in runs() if one.run.experiment == experiment]
    if not found:
        known = ", ".join(sorted({one.run.experiment for one in runs()}))
        raise ExtensionError(f"gallery-picture: no run of {experiment!r}; there are: {known}")
    return found[0]


def largest(shown: Sequence[Shown]) -> float:
    """Return the largest entry of the runs' accuracy matrices: the end of their common colour scale."""
    return max(value for one in shown for row in one.matrix for value in row if value is not None)


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["value"] = lambda value, digits=1: "–" if value is None else f"{value:.{digits}f}"
    return environment


def html(template: str, **context: Any) -> str:
    """Fill a template of this folder."""
    columns = [column for column in COLUMNS if "backward" not in column[0]]
    names = {"AVERAGE": AVERAGE, "LAST": LAST, "FORGETTING": FORGETTING, "columns": columns}
    return Markup(_templates().get_template(template).render(**names, **context))


class _Html(SphinxDirective):
    """Base of the directives: a page that has one is read again at every build, as runs may have come."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        depth = self.env.docname.count("/")
        return [nodes.raw("", self.html("../" * depth + PAGES), format="html")]

    def html(self, pages: str) -> str:
        """Return the HTML; ``pages`` is the way to the reports."""
        raise NotImplementedError


class Cards(_Html):
    """One card a run, by protocol."""

    def html(self, pages: str) -> str:
        return html("cards.html", groups=by_protocol(runs()), largest=largest(runs()), pages=pages)


class Table(_Html):
    """The table of results, one a protocol hash."""

    def html(self, pages: str) -> str:
        return html("table.html", groups=by_protocol(runs()), pages=pages)


class Picture(_Html):
    """Accuracy matrices of experiments side by side."""

    required_arguments: ClassVar[int] = 1
    final_argument_whitespace: ClassVar[bool] = True

    def html(self, pages: str) -> str:
        shown = [find(name) for name in self.arguments[0].split()]
        return html("picture.html", shown=shown, largest=largest(shown), pages=pages)


def write_reports(app: Sphinx, error: Exception | None) -> None:
    """Write the report of every run, and the page that compares them, into the site."""
    if error is None and app.builder.format == "html":
        report([one.run.folder for one in runs()], Path(app.outdir) / PAGES, share_plotly=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("gallery-cards", Cards)
    app.add_directive("gallery-table", Table)
    app.add_directive("gallery-picture", Picture)
    app.connect("build-finished", write_reports)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
