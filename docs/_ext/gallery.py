"""The gallery: committed run folders in, their reports, cards, the table of results and pictures out.

Every number on these pages is read from the files of ``docs/gallery/runs`` when the site is built. Directives:
``{gallery-cards}``, ``{gallery-table}`` and ``{gallery-picture} EXPERIMENT/RUN ...``. Tables, charts and scales are of
one protocol hash each.
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

from incrlt.metrics import class_accuracy, published
from incrlt.metrics.groups import GROUPS
from incrlt.metrics.tasks import lost_by_group
from incrlt.report import Run, read_run, tables
from incrlt.report.__main__ import page_names, report
from incrlt.report.compare import differences
from incrlt.report.seeds import options
from incrlt.words import counted, duration
from incrlt.written import written

DOCS = Path(__file__).resolve().parent.parent
RUNS = DOCS / "gallery" / "runs"
PAGES = "gallery/reports"
"""Where the reports lie on the site."""

COLUMNS = (
    ("average_incremental_accuracy/over_tasks", "average", "over tasks"),
    ("last_accuracy/over_tasks", "last", "over tasks"),
    ("last_accuracy/many_over_classes", "last, many", ""),
    ("last_accuracy/medium_over_classes", "last, medium", ""),
    ("last_accuracy/few_over_classes", "last, few", ""),
    ("forgetting/chaudhry_over_tasks", "forgetting", "over tasks"),
)
PANELS = {"over_classes": "all classes", **{name: f"{name} classes" for name in GROUPS}}
"""Small multiples of the scatter."""
AVERAGE, LAST = "average_incremental_accuracy/over_tasks", "last_accuracy/over_tasks"
LAST_FEW = "last_accuracy/few_over_classes"
FORGETTING = "forgetting/chaudhry_over_tasks"


@dataclass(frozen=True)
class Shown:
    """A run as the gallery shows it, by its main read-out."""

    run: Run
    page: str
    """File name of its report."""

    @property
    def readout(self) -> str:
        """The read-out the run answers with."""
        return str(self.run.readout)

    @property
    def numbers(self) -> dict[str, float | None]:
        """The metrics of the main read-out."""
        return self.run.summaries[self.readout]["numbers"]

    @property
    def matrix(self) -> list[list[float | None]]:
        """Accuracy after experience t (row) on the classes of experience j (column), percent."""
        return self.run.summaries[self.readout]["accuracy_matrix"]

    @property
    def lost(self) -> dict[str, dict[str, Any]]:
        """What the old classes of each group had at best and lost, of the main read-out."""
        record = self.run.records[self.readout]
        return lost_by_group(class_accuracy(record), record.images_of_class)

    @property
    def length(self) -> tuple[int, int]:
        """Epochs of the base experience and of each later one: runs of other lengths are not put into one picture."""
        training = self.run.config["training"]
        return training.get("base_epochs") or training["epochs"], training["epochs"]

    @property
    def short(self) -> str:
        """Why the run is a short one, such as "30 epochs per experience instead of 160"; "" at the published length."""
        protocol = tables.published_table(self.run)
        row = published.row_of(protocol, tables.row_name(self.run))
        method = row.method if row and row.epochs else ""  # a row that states no length: those of the others
        return published.differing_epochs(protocol, method, self.run.config["training"]) or ""

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
    """Return the runs of the gallery: by protocol, hashes with a run of full length first.

    In each hash the weakest run is first, which is then the baseline.

    Raises:
        ExtensionError: A run cannot be read whole.
    """
    found = [read_run(path.parent) for path in sorted(RUNS.glob("*/*/protocol.json"))]
    for run in found:
        if run.problems and not all("was written by incrlt" in problem for problem in run.problems):
            raise ExtensionError(f"gallery: {run.name}: {' '.join(run.problems)}")
    shown = [Shown(run, page) for run, page in zip(found, page_names(found), strict=True)]
    whole = {_protocol(one) for one in shown if not one.short}

    def place(one: Shown) -> tuple[str, bool, str, float]:
        name, digest = _protocol(one)
        return name, (name, digest) not in whole, digest, one.numbers[AVERAGE] or 0

    return tuple(sorted(shown, key=place))


def _protocol(one: Shown) -> tuple[str, str]:
    return one.run.protocol_name, one.run.protocol_hash or ""


def by_protocol(shown: Sequence[Shown]) -> dict[tuple[str, str], list[Shown]]:
    """Return the runs by (protocol, hash): only within one may numbers be compared."""
    groups: dict[tuple[str, str], list[Shown]] = {}
    for one in shown:
        groups.setdefault(_protocol(one), []).append(one)
    return groups


def labels(shown: Sequence[Shown]) -> list[str]:
    """Return a name per run of one protocol: the method, and where several share it what differs, at most three."""
    known = [_known(one) for one in shown]
    return [_label(place, shown, known) for place in range(len(shown))]


def _known(one: Shown) -> dict[str, str]:
    """Return what may tell a run from others; an option that is off is as one that is missing."""
    found = {name: value for name, value in options(one.run).items() if value not in ("None", "False")}
    return {**found, "seed": str(one.seed)}


def _label(place: int, shown: Sequence[Shown], known: Sequence[dict[str, str]]) -> str:
    method = shown[place].run.method
    rivals = [own for one, own in zip(shown, known, strict=True) if one.run.method == method]
    names = {name: None for own in rivals for name in own if len({other.get(name) for other in rivals}) > 1}
    chosen = [name for name in ("training.batch_size", "training.epochs", "seed") if name in names]
    chosen += [name for name in names if name not in chosen][: max(0, 2 - len(chosen))]
    told = [
        f"{name.split('.')[-1].replace('_', ' ')} {known[place].get(name, 'none')}" for name in chosen[:3]
    ]
    return ", ".join([method, *told])


def differs(shown: Sequence[Shown], before: Sequence[Shown] | None) -> str:
    """Say in what a protocol differs from the one above it on the page; "" for the first."""
    if before is None:
        return ""
    found = differences(before[0].run, shown[0].run)
    return f"Differs from the table above in {'; '.join(found)}."


def scatter(shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """Return the panels of accuracy against forgetting: per group the points in a square of 100, and its axes' ends.

    A point is (number of the table's row, x, y, accuracy, forgetting); up is less forgotten. No panel is made of fewer
    than two runs, nor of one experience.
    """
    panels = []
    for group, title in PANELS.items():
        name = f"last_accuracy/{group}" if group == "over_classes" else f"last_accuracy/{group}_over_classes"
        found = [
            (place, one.numbers[name], one.lost[group]["forgetting"]) for place, one in enumerate(shown, 1)
        ]
        known = [point for point in found if point[1] is not None and point[2] is not None]
        if len(known) < 2:
            continue
        right = 10 * -(-max(x for _, x, _ in known) // 10)
        low, high = min(0.0, 5 * (min(y for _, _, y in known) // 5)), 5 * -(-max(y for _, _, y in known) // 5)
        points = [
            (place, 100 * x / right, 100 * (y - low) / max(high - low, 1), x, y) for place, x, y in known
        ]
        panels.append({"title": title, "right": right, "low": low, "high": high, "points": points})
    return panels


def tail(shown: Sequence[Shown], names: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Return who forgot least of the tail and who ended best on it: (what, name, page, figures)."""
    known = [
        (one, name, one.lost["few"])
        for one, name in zip(shown, names, strict=True)
        if one.lost["few"]["relative"] is not None
    ]
    if len(known) < 2:
        return []
    least = min(known, key=lambda item: item[2]["relative"])
    best = max(known, key=lambda item: item[0].numbers[LAST_FEW] or 0)
    asked = (("Forgot least of its few classes", least), ("Ended best on few classes", best))
    return [(what, name, one.page, _of_the_tail(one, lost)) for what, (one, name, lost) in asked]


def _of_the_tail(one: Shown, lost: dict[str, Any]) -> str:
    share, had = written(lost["relative"], 0), written(lost["best"], 1)
    return f"lost {share} % of the {had} points it had, {written(one.numbers[LAST_FEW], 1)} % at the end"


def find(name: str) -> Shown:
    """Return the run ``<experiment>/<run>``.

    Raises:
        ExtensionError: The gallery has none of that name.
    """
    found = {one.run.name: one for one in runs()}
    if name not in found:
        raise ExtensionError(f"gallery-picture: no run {name!r}; there are: {', '.join(sorted(found))}")
    return found[name]


def pictured(names: Sequence[str]) -> list[Shown]:
    """Return runs that may stand in one picture, on one scale of colours.

    Raises:
        ExtensionError: They differ in their protocol hash or in their length.
    """
    shown = [find(name) for name in names]
    for what in ("protocol hash", "epochs (base, later)"):
        values = {
            one.run.name: one.run.protocol_hash if what == "protocol hash" else one.length for one in shown
        }
        if len(set(values.values())) > 1:
            given = "; ".join(f"{name}: {value}" for name, value in values.items())
            raise ExtensionError(f"gallery-picture: one {what} a picture; these differ: {given}")
    return shown


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
    environment.filters["value"] = lambda value, digits=1: written(value, digits)
    return environment


def html(template: str, **context: Any) -> str:
    """Fill a template of this folder."""
    names = {
        "AVERAGE": AVERAGE,
        "LAST": LAST,
        "FORGETTING": FORGETTING,
        "columns": COLUMNS,
        "differs": differs,
    }
    names |= {"labels": labels, "scatter": scatter, "tail": tail}
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
        return html("cards.html", groups=by_protocol(runs()), largest=largest, pages=pages)


class Table(_Html):
    """The table of results, one a protocol hash."""

    def html(self, pages: str) -> str:
        return html("table.html", groups=by_protocol(runs()), pages=pages)


class Picture(_Html):
    """Accuracy matrices of runs of one protocol and length side by side."""

    required_arguments: ClassVar[int] = 1
    final_argument_whitespace: ClassVar[bool] = True

    def html(self, pages: str) -> str:
        shown = pictured(self.arguments[0].split())
        return html("picture.html", shown=shown, largest=largest(shown), pages=pages)


def write_reports(app: Sphinx, error: Exception | None) -> None:
    """Write the report of every run, and the page that compares them, into the site."""
    if error is None and app.builder.format == "html":
        from links import back  # which reads this module's runs

        folders = [one.run.folder for one in runs()]
        report(folders, Path(app.outdir) / PAGES, share_plotly=True, leads=back)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("gallery-cards", Cards)
    app.add_directive("gallery-table", Table)
    app.add_directive("gallery-picture", Picture)
    app.connect("build-finished", write_reports)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
