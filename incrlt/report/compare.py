"""The page of several runs: one table per protocol hash, never two protocols in one table."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from incrlt.files import Plain, write_atomic
from incrlt.metrics.groups import GROUPS
from incrlt.report import compare_charts, seeds
from incrlt.report.charts import Figure
from incrlt.report.export import distinct_labels, write_tables
from incrlt.report.page import render
from incrlt.report.reading import Run, number
from incrlt.report.seeds import Line
from incrlt.words import counted

COLUMNS = (
    ("average_incremental_accuracy/over_tasks", "average incremental", "over tasks"),
    ("average_incremental_accuracy/over_classes", "average incremental", "over classes"),
    ("average_incremental_accuracy/over_seen_images", "average incremental", "over seen images"),
    ("last_accuracy/over_tasks", "last", "over tasks"),
    ("last_accuracy/over_classes", "last", "over classes"),
    ("last_accuracy/many_over_classes", "last, many", "over classes"),
    ("last_accuracy/medium_over_classes", "last, medium", "over classes"),
    ("last_accuracy/few_over_classes", "last, few", "over classes"),
    ("forgetting/chaudhry_over_tasks", "forgetting", "Chaudhry, over tasks"),
    ("forgetting/few_over_classes", "forgetting, few", "over classes"),
    ("backward_transfer/over_tasks", "backward transfer", "over tasks"),
)

_GROUPS = ("over_classes", *GROUPS)
OWN = "own"
"""Stands beside the read-out that a run answers with."""
_DOTTED = {
    "average_incremental_accuracy/over_tasks": "average incremental accuracy over tasks, %",
    "last_accuracy/over_tasks": "last accuracy over tasks, %",
    "last_accuracy/few_over_classes": "last accuracy of few classes, %",
    "forgetting/few_over_classes": "forgetting of few classes, points",
}
"""Numbers of which every seed is drawn."""

_DECIDING = {
    "dataset": "dataset",
    "classes_per_experience": "classes per experience",
    "class_order": "class order",
    "profile": "long-tail profile",
    "max_images": "images of the head class",
    "imbalance_ratio": "imbalance ratio",
    "image_seed": "seed of the kept images",
    "image_choice": "choice of the kept images",
    "holdout": "hold-out rule",
    "holdout_seed": "seed of the hold-out",
    "memory": "memory rule",
    "augmentation": "augmentation",
}
"""What enters the protocol hash, in words."""


@dataclass(frozen=True)
class Group:
    """Runs of one protocol hash."""

    hash: str | None
    name: str
    runs: Sequence[tuple[Run, str]]
    """Each run with the link to its page."""
    reason: str
    """Why these runs stand apart from the first table's, or ""."""


def write_index(pages: Sequence[tuple[Run, Path]], folder: Path, plotly_file: str | None = None) -> Path:
    """Write ``index.html``: the runs by protocol hash, each with a link to its page.

    Args:
        pages: Runs with the paths of their pages, in ``folder``.
        folder: Where to write.
        plotly_file: As in :func:`incrlt.report.page.render`.
    """
    groups = grouped(pages)
    content = [_content(group, folder) for group in groups]
    biases = seeds.bias_rows([run for run, _ in pages])
    names = dict.fromkeys(name for run, _ in pages for name in run.summaries)
    page = render(
        "index.html", plotly_file, groups=content, columns=COLUMNS, biases=biases, parts=_GROUPS,
        readouts=list(names) if len(names) > 1 else [],
    )  # fmt: skip
    return write_atomic(folder / "index.html", page)


def _content(group: Group, folder: Path) -> Plain:
    """Return what the index shows of one protocol, its tables written beside it."""
    lines = seeds.lines([run for run, _ in group.runs], [name for name, _, _ in COLUMNS])
    labels = dict(zip(lines, distinct_labels(lines), strict=True))
    curves = chart(group)
    return {
        "group": group,
        "rows": _rows(group),
        "lines": [_over_seeds(line, labels) for line in lines],
        "tables": write_tables(folder, group.name, group.hash, lines),
        "left_out": _left_out([run for run, _ in group.runs]),
        "chart": curves,
        "legend": compare_charts.legend(curves) if curves else [],
        "dots": [figure for name, title in _DOTTED.items() if (figure := _dots(lines, labels, name, title))],
    }


def _dots(lines: Sequence[Line], labels: Mapping[Line, str], name: str, title: str) -> Figure | None:
    many = len({line.readout for line in lines}) > 1
    values = {
        f"{labels[line]} · {line.readout}" if many else labels[line]: (
            _shown_with(line.readout, line.own), line.values[name], line.estimate(name),
        )
        for line in lines
    }  # fmt: skip
    return compare_charts.over_seeds(values, title)


def _shown_with(readout: str, own: bool) -> str:
    """Return the choices on the page with which a read-out is shown."""
    return f"{readout} {OWN}" if own else readout


def _left_out(runs: Sequence[Run]) -> list[str]:
    """Say which runs no mean over seeds takes in."""
    found = {
        "unfinished": sum(not run.finished for run in runs),
        "with gaps in their counts": sum(run.finished and not run.complete for run in runs),
        "of a configuration and seed that an earlier run has": seeds.repeats(runs),
    }
    return [f"{counted(num, 'run')} {which}" for which, num in found.items() if num]


def _over_seeds(line: Line, labels: Mapping[Line, str]) -> Plain:
    """Return a line of the table over seeds: estimates, and differences to the first line's where it is another."""
    reference = seeds.reference_of(line, list(labels))
    return {
        "label": labels[line],
        "readout": line.readout,
        "shown_with": _shown_with(line.readout, line.own),
        "seeds": line.seeds,
        "reference": labels[reference] if reference else None,
        "paired": len(set(line.seeds) & set(reference.seeds)) if reference else 0,
        "cells": [
            (line.estimate(name), line.minus(reference, name) if reference else None)
            for name, _, _ in COLUMNS
        ],
    }


def grouped(pages: Sequence[tuple[Run, Path]]) -> list[Group]:
    """Return the runs by protocol hash in order of first appearance; a run without a hash stands alone."""
    members: dict[str, list[tuple[Run, str]]] = {}
    for index, (run, path) in enumerate(pages):
        members.setdefault(run.protocol_hash or f"unknown {index}", []).append((run, path.name))
    first = next(iter(members.values()))[0][0]
    return [
        Group(runs[0][0].protocol_hash, runs[0][0].protocol_name, runs, reason(first, runs[0][0]))
        for runs in members.values()
    ]


def reason(first: Run, other: Run) -> str:
    """Say why ``other`` may not stand in the table of ``first``; "" where it may."""
    if other is first:
        return ""
    if other.protocol_hash is None:
        return "The protocol of this run is unknown, so it cannot be compared with any other."
    if first.protocol_hash is None:
        return "The protocol of the first table is unknown, so these runs stand apart."
    found = differences(first, other)
    which = f"the first table ({first.protocol_hash})"
    return f"Not comparable with {which}: the protocols differ in {'; '.join(found)}."


def differences(first: Run, other: Run) -> list[str]:
    """Return in what two protocols of different hash differ, in words: "augmentation (crop-flip there, none here)"."""
    words = [_difference(key, word, first.protocol, other.protocol) for key, word in _DECIDING.items()]
    return [text for text in words if text] or ["the kept images"]


def _difference(key: str, word: str, first: Plain, other: Plain) -> str:
    theirs, ours = first.get(key), other.get(key)
    if theirs == ours:
        return ""
    long = isinstance(ours, list) or isinstance(theirs, list)
    return word if long else f"{word} ({_words(theirs)} there, {_words(ours)} here)"


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items()) or "none"
    return "unknown" if value is None else str(value)


def _rows(group: Group) -> list[Plain]:
    return [row for place, (run, link) in enumerate(group.runs, 1) for row in rows_of(run, link, place)]


def rows_of(run: Run, link: str, place: int) -> list[Plain]:
    """Return one row per read-out: who, how far, and the numbers of :data:`COLUMNS`."""
    planned = run.num_planned
    return [
        {
            "number": place,
            "experiment": run.experiment,
            "folder": run.folder.name,
            "link": link,
            "method": run.method,
            "readout": readout,
            "shown_with": _shown_with(readout, readout == run.readout or not run.summaries),
            "done": run.num_done,
            "planned": planned,
            "finished": run.complete,
            "values": [number(summary["numbers"].get(name)) for name, _, _ in COLUMNS],
        }
        for readout, summary in (run.summaries or {"–": {"numbers": {}}}).items()
    ]


def chart(group: Group) -> Figure | None:
    """Return the accuracy curves of a protocol over tasks: a mean over seeds per line, incomplete runs alone."""
    runs = [run for run, _ in group.runs]
    series: dict[str, list[seeds.Estimate]] = {}
    readouts: dict[str, str] = {}
    for label, readout, own in [*_means(runs), *_alone(runs)]:
        values = [run.summaries[readout]["per_experience"].get("accuracy/over_tasks", []) for run in own]
        key = _new_key(label, series)
        readouts[key] = _shown_with(readout, all(run.readout == readout for run in own))
        series[key] = [
            seeds.estimate([value for value in step if value is not None])
            for step in zip(*values, strict=False)
        ]
    return compare_charts.compared(series, readouts)


def _means(runs: Sequence[Run]) -> list[tuple[str, str, list[Run]]]:
    """Return label, read-out and runs of each line of the table over seeds."""
    of_lines = [(own, readout) for own in seeds.by_setting(runs) for readout in seeds.common_readouts(own)]
    labels = distinct_labels(seeds.lines(runs, []))  # those of the table
    return [
        (f"{label} · {readout}" if len(own[0].summaries) > 1 else label, readout, own)
        for label, (own, readout) in zip(labels, of_lines, strict=True)
    ]


def _alone(runs: Sequence[Run]) -> list[tuple[str, str, list[Run]]]:
    """Return label, read-out and run of each run that is not complete."""
    found = []
    for run in runs:
        state = "counts with a gap" if run.finished else "unfinished"
        for readout in run.summaries if not run.complete else ():
            name = f"{run.method} · {readout}" if len(run.summaries) > 1 else run.method
            found.append((f"{name} ({state})", readout, [run]))
    return found


def _new_key(label: str, taken: Container[str]) -> str:
    """Return the label, numbered where another curve has it."""
    numbered = (label if place == 1 else f"{label} ({place})" for place in count(1))
    return next(name for name in numbered if name not in taken)
