"""The page of a sweep, beside the comparison of its runs: what was asked, what was chosen, what it cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from incrlt.files import Plain, write_atomic
from incrlt.report.__main__ import report
from incrlt.report.charts import PALETTE, Figure, figure
from incrlt.report.page import PLOTLY_FILE, render
from incrlt.report.reading import Run
from incrlt.sweep.outcome import (
    NUMBERS,
    Interval,
    Setting,
    chosen,
    finished_runs,
    interval,
    on_test_images,
    paired,
    settings,
)
from incrlt.sweep.table import Sweep
from incrlt.sweep.task import Task
from incrlt.sweep.work import DONE, STOPPED, Item, counts


def write(sweep: Sweep, items: Sequence[Item], folder: Path) -> Path | None:
    """Write the pages of a sweep: ``sweep.html``, ``sweep.json``, and the comparison of its runs.

    Args:
        sweep: What was asked.
        items: Its runs.
        folder: Where to write.

    Returns:
        The path of ``sweep.html``; None before the first run has finished.
    """
    runs = finished_runs(items)
    if not runs:
        return None
    pages = report([run.folder for run in runs.values()], folder, share_plotly=True)
    found = settings(items, sweep.rows)
    best = chosen(found)
    lines = _lines(found, runs, set(best.values()))
    write_atomic(
        folder / "sweep.json",
        json.dumps(_content(sweep, items, lines, _reference(found).changed), indent=1) + "\n",
    )
    page = render(
        "sweep.html",
        PLOTLY_FILE,
        sweep=sweep,
        asked=sweep.yaml(),
        states=counts(items),
        lines=lines,
        heads=list(NUMBERS.values()),
        reference=_reference(found).changed,
        comparison=pages[0].name,
        charts=sensitivity(sweep, found, runs),
        seconds=sum(setting.seconds for setting in found),
    )
    return write_atomic(folder / "sweep.html", page)


def _lines(found: Sequence[Setting], runs: Mapping[Task, Run], best: set[Setting]) -> list[Plain]:
    """Return a line per setting; differences are to one of them, seed by seed."""
    numbers = {setting: on_test_images(setting, runs) for setting in found}
    first = _reference(found)
    return [
        {
            "name": setting.changed,
            "group": setting.group,
            "state": setting.state,
            "chosen": setting in best,
            "metric": setting.metric,
            "validation": setting.validation,
            "cells": [
                (
                    interval(list(own.values())),
                    None if setting is first else paired(own, numbers[first][name]),
                )
                for name, own in numbers[setting].items()
            ],
            "runs": len(setting.items),
            "epochs": setting.epochs,
            "seconds": setting.seconds,
        }
        for setting in found
    ]


def _reference(found: Sequence[Setting]) -> Setting:
    """Return the setting to which differences are taken: the first whose runs have all finished, else the first."""
    return next((setting for setting in found if setting.state == DONE), found[0])


def _content(
    sweep: Sweep, items: Sequence[Item], lines: Sequence[Mapping[str, Any]], reference: str
) -> Plain:
    """Return the table as plain data."""
    plain = [
        {
            **{key: value for key, value in line.items() if key != "cells"},
            "validation": vars(line["validation"]),
            "test": {name: _plain(cell) for name, cell in zip(NUMBERS, line["cells"], strict=True)},
        }
        for line in lines
    ]
    return {
        "sweep": sweep.name,
        "hash": sweep.hash,
        "differences_to": reference,
        "runs": counts(items),
        "settings": plain,
    }


def _plain(cell: tuple[Interval, Interval | None]) -> Plain:
    value, gap = cell
    return {**vars(value), "difference": None if gap is None else vars(gap)}


def sensitivity(sweep: Sweep, found: Sequence[Setting], runs: Mapping[Task, Run]) -> dict[str, Figure]:
    """Return a chart per hyper-parameter that took several values: the figure of every setting over it.

    The figure is that on held-out images where the sweep has one, else the average on test images, which is then shown
    and chooses nothing. Settings that were stopped early have the figure at which they were.
    """
    keys = list(dict.fromkeys(key for setting in found for key, _ in (*setting.cell, *setting.drawn)))
    charts = {key: _sensitivity(key, sweep, found, runs) for key in keys}
    return {key: chart for key, chart in charts.items() if chart is not None}


def _sensitivity(key: str, sweep: Sweep, found: Sequence[Setting], runs: Mapping[Task, Run]) -> Figure | None:
    points: dict[str, list[tuple[Any, float, str]]] = {}
    for setting in found:
        values = dict((*setting.cell, *setting.drawn))
        figure_of, what = _figure(setting, runs)
        if key in values and figure_of is not None:
            rest = ", ".join(f"{name} {value}" for name, value in setting.cell if name != key)
            state = "stopped early" if setting.state == STOPPED else "" if rest else "finished"
            label = ", ".join(part for part in (rest, state) if part)
            points.setdefault(label, []).append((values[key], figure_of, setting.changed))
            title = what
    if len({str(value) for own in points.values() for value, _, _ in own}) < 2:
        return None
    spaces = [row.search[key].kind for row in sweep.rows if key in row.search]
    numeric = all(isinstance(value, int | float) for own in points.values() for value, _, _ in own)
    axis = {"type": "log" if numeric and "log" in spaces else "linear" if numeric else "category"}
    traces = [_trace(label, own, place, numeric) for place, (label, own) in enumerate(points.items())]
    return figure(traces, key, title, xaxis=axis, hovermode="closest")


def _trace(label: str, points: Sequence[tuple[object, float, str]], place: int, numeric: bool) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label,
        "x": [value if numeric else str(value) for value, _, _ in points],
        "y": [round(value, 2) for _, value, _ in points],
        "text": [text for _, _, text in points],
        "marker": {
            "size": 9,
            "color": PALETTE[place % len(PALETTE)],
            "symbol": "x" if label.endswith("stopped early") else "circle",
        },
        "cliponaxis": False,
        "hovertemplate": "%{text}<br><b>%{y:.2f}</b><extra></extra>",
    }


def _figure(setting: Setting, runs: Mapping[Task, Run]) -> tuple[float | None, str]:
    """Return what a setting is shown at, and what that is."""
    if setting.metric is None:
        name = next(iter(NUMBERS))
        return interval(list(on_test_images(setting, runs)[name].values())).mean, "average on test images, %"
    title = f"{setting.metric}, %"
    if setting.state == DONE:
        return setting.validation.mean, title
    stopped = [
        item.progress.figures[-1].get(setting.metric) for item in setting.items if item.progress.figures
    ]
    return (stopped[0] if stopped and setting.state == STOPPED else None), title
