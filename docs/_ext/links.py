"""Method <-> protocol <-> report <-> YAML: from each there is a way to the others.

Every page of ``docs/methods`` ends with the runs of the gallery and the experiment files that have the method; a
protocol's page does so for its hashes; a report leads back to both and to its file. What belongs together is read
from the configurations, so that a new run, method or file needs no line here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from gallery import AVERAGE, DOCS, LAST, PAGES, Shown, by_protocol, labels, runs
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from incrlt.experiment import schema
from incrlt.experiment.sections import FROM_FILES, Experiment
from incrlt.report import Run
from incrlt.written import written

EXPERIMENTS = DOCS.parent / "experiments"
FILES = "experiments"
"""Where the experiment files lie on the site."""
SECTIONS = ("strategy", "experts", "rebalance", "router")
"""Sections of a configuration that name a method with a page."""


def methods(config: Mapping[str, Any]) -> list[str]:
    """Return the pages of ``docs/methods`` on what a configuration names, time axis first."""
    named = [(config.get(section) or {}).get("name") for section in SECTIONS]
    return [name for name in named if name and (DOCS / "methods" / f"{name}.md").is_file()]


@cache
def experiments() -> dict[str, Experiment]:
    """Return every experiment file, read without its data, by file name."""
    return {path.name: schema.load(path, with_data=False) for path in sorted(EXPERIMENTS.glob("*.yaml"))}


@cache
def files() -> dict[str, tuple[list[str], str]]:
    """Return per experiment file the pages of its methods, and its protocol."""
    return {name: (methods(one.resolved()), _protocol(one)) for name, one in experiments().items()}


def dataset_files(name: str) -> tuple[str, ...]:
    """Return the experiment files that train on a data set."""
    return tuple(file for file, one in experiments().items() if one.benchmark.dataset == name)


def _protocol(experiment: Experiment) -> str:
    """Return a protocol's name; of pictures from files as it is written, since the files are not here."""
    written = experiment.benchmark
    return str(written.protocol) if written.dataset in FROM_FILES else experiment.protocol().name


def file_of(run: Run) -> str | None:
    """Return the experiment file of a run: the one its command names; None where it is not in the repository."""
    words = str(run.environment.get("command", "")).split()
    named = [Path(word).name for word in words if word.endswith(".yaml")]
    return next((name for name in named if (EXPERIMENTS / name).is_file()), None)


def back(run: Run) -> list[tuple[str, str]]:
    """Return where a report leads to on the site: words and address, relative to the report."""
    up = "../" * (PAGES.count("/") + 1)
    found = [(f"method {name}", f"{up}methods/{name}.html") for name in methods(run.config)]
    if (DOCS / "protocols" / f"{run.protocol_name}.md").is_file():
        found.append((f"protocol {run.protocol_name}", f"{up}protocols/{run.protocol_name}.html"))
    found.append(("gallery", f"{up}gallery/index.html#protocol-{(run.protocol_hash or '')[:8]}"))
    file = file_of(run)
    return [*found, (file, f"{up}{FILES}/{file}")] if file else found


def run_lines(shown: Iterable[Shown], up: str) -> Iterator[str]:
    """Yield a Markdown table of runs, one a protocol hash; ``up`` is the way from the page to the site's root."""
    for (protocol, hash), own in by_protocol(list(shown)).items():
        yield from ("", f'On <a href="{up}protocols/{protocol}.html">{protocol}</a>, `{hash}`:', "")
        yield "| run | average | last | last few | epochs | seed | file |"
        yield "|---|--:|--:|--:|---|--:|---|"
        for one, name in zip(own, labels(own), strict=True):
            yield _row(one, name, up)


def _row(one: Shown, name: str, up: str) -> str:
    numbers = [one.numbers[key] for key in (AVERAGE, LAST, "last_accuracy/few_over_classes")]
    file = file_of(one.run)
    cells = [
        f'<a href="{up}{PAGES}/{one.page}#verdict">{name}</a>', *(written(value) for value in numbers),
        one.epochs, one.seed, file_link(file, up) if file else "–",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def file_link(name: str, up: str) -> str:
    """Return a link to an experiment file on the site."""
    return f'<a href="{up}{FILES}/{name}">{name}</a>'


def method_lines(name: str) -> Iterator[str]:
    """Yield the Markdown on the runs and files that have a method."""
    own = [one for one in runs() if name in methods(one.run.config)]
    if own:
        yield "Reports of the [gallery](../gallery/index.md), percent over tasks; n = 1 in every row."
        yield from run_lines(own, "../")
    named = [file for file, (pages, _) in files().items() if name in pages]
    if named:
        yield from ("", f"Files that have it: {', '.join(file_link(file, '../') for file in named)}.")
    elif not own:
        yield "No run of the gallery and no file of `experiments/` has it yet."


def protocol_run_lines(name: str) -> Iterator[str]:
    """Yield the Markdown on the runs of a protocol."""
    own = [one for one in runs() if one.run.protocol_name == name]
    if own:
        yield from run_lines(own, "../")
    else:
        yield "None in the [gallery](../gallery/index.md) yet."


@cache
def class_names(dataset: str) -> dict[int, str]:
    """Return the names of a dataset's classes by id, as the runs of the gallery have written them down."""
    for one in runs():
        if one.run.protocol.get("dataset") == dataset:
            known = json.loads((one.run.folder / "classes.json").read_text("utf-8"))
            return dict(zip(known["label_of_class"], known["class_names"], strict=True))
    return {}


def order_lines(classes: Sequence[Sequence[int]], dataset: str) -> Iterator[str]:
    """Yield a Markdown table of the classes by arrival, with their names where they are known."""
    names = class_names(dataset)
    yield from ("", "| experience | classes, by name and id of the dataset |", "|--:|---|")
    for t, own in enumerate(classes):
        told = (
            f"{names[index].replace('_', ' ')}&nbsp;{index}" if index in names else str(index)
            for index in own
        )
        yield f"| {t} | {', '.join(told)} |"
    yield ""


class MethodRuns(SphinxDirective):
    """Runs and files of a method."""

    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        return self.parse_text_to_nodes("\n".join(method_lines(self.arguments[0])))


def _end_with_runs(_: Sphinx, page: str, source: list[str]) -> None:
    """Give every page of a method its last section."""
    folder, _, name = page.rpartition("/")
    if folder == "methods":
        source[0] = f"{source[0].rstrip()}\n\n## Runs and files\n\n```{{method-runs}} {name}\n```\n"


def _copy_files(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        target = Path(app.outdir) / FILES
        target.mkdir(parents=True, exist_ok=True)
        for name in files():
            shutil.copyfile(EXPERIMENTS / name, target / name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive, the last section of methods, and the copies of the files."""
    app.add_directive("method-runs", MethodRuns)
    app.connect("source-read", _end_with_runs)
    app.connect("build-finished", _copy_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
