"""Charts as plain plotly figures (``{"data": [...], "layout": {...}}``).

Colours are names such as ``"@many"``; the page's script replaces them by the CSS variables of the current
theme, so one figure serves light, dark and print. ``"@seq:0.4"`` is 40 % of the way through the sequential
colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from incrlt.files import Plain
from incrlt.metrics import StreamRecord, class_rows
from incrlt.metrics.confusion import group_confusion as confusion_by_group
from incrlt.metrics.forgetting import drop_from_best
from incrlt.metrics.groups import GROUPS
from incrlt.metrics.numbers import nested
from incrlt.report.reading import Run, number

Figure = Plain
Series = Sequence[float | None]

DASHES = ("solid", "dash", "dot", "dashdot")
MAX_POINTS = 1500
MOST_LINES = 20
"""Experiences that are drawn as a line each; more are drawn as bands."""
BANDS = (10, 25, 50, 75, 90)
"""Percentiles."""
PALETTE = ("@ink", "@teal", "@violet", "@few", "@medium", "@many", "@soft")
"""Colours of lines that stand for nothing in particular."""
SYMBOLS = {
    "@ink": "circle", "@many": "square", "@medium": "diamond", "@few": "triangle-up", "@teal": "x",
    "@violet": "triangle-down", "@soft": "cross",
}  # fmt: skip
"""Marks of lines: they are told apart in grey as well."""
PATTERNS = {"@ink": "-", "@medium": "/", "@few": ".", "@right": "\\", "@same": "/", "@cross": "x"}
"""Patterns of bars; others are plain."""
MOST_MARKS = 30
"""Points of a line up to which each has its mark."""
_CONVENTION_COLOURS = {"over_tasks": "@ink", "over_classes": "@teal", "over_seen_images": "@violet"}


def figure(data: list[Figure], x: str, y: str, **layout: Any) -> Figure:
    """Return a chart with titled axes; ``layout`` adds to plotly's layout."""
    base: Figure = {
        "xaxis": {"title": {"text": x}, **layout.pop("xaxis", {})},
        "yaxis": {"title": {"text": y}, **layout.pop("yaxis", {})},
        "hovermode": "x unified",
        "height": 340,
    }
    return {"data": data, "layout": {**base, **layout}}


def line(name: str, y: Series, colour: str, dash: str = "solid", **rest: object) -> Figure:
    """Return a line over 0, 1, ... with gaps where values are None."""
    values = [None if value is None else round(value, 2) for value in y]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": list(range(len(values))),
        "y": values,
        "line": {"color": colour, "dash": dash, "width": 2.2},
        "marker": mark(colour, len(values)),
        "cliponaxis": False,
        "hovertemplate": "%{y:.1f}",
        **rest,
    }


def mark(colour: str, num: int) -> Figure:
    """Return the marks of a line of ``num`` points; a long line has some of them alone."""
    return {"size": 7, "symbol": SYMBOLS.get(colour, "circle")} | (
        {"maxdisplayed": 12} if num > MOST_MARKS else {}
    )


def filled(colour: str) -> Figure:
    """Return what fills a bar: its colour, with the pattern that tells it from others in grey."""
    pattern = {"shape": PATTERNS.get(colour, ""), "fillmode": "overlay", "fgopacity": 0.35, "size": 7}
    return {"color": colour, "pattern": pattern, "line": {"width": 0}}


def lone(chart: Figure) -> list[tuple[str, float]]:
    """Return name and value of every line or bar of a chart that has one place alone, else nothing.

    What is one point is read sooner as a number than as a picture.
    """
    places = {x for trace in chart["data"] for x in trace.get("x", (None, None))}
    if len(places) != 1 or chart["layout"]["hovermode"] != "x unified":
        return []
    return [(trace["name"], value) for trace in chart["data"] for value in trace["y"] if value is not None]


def whole_ticks(num: int) -> Figure:
    """Axis settings for what is counted up to ``num``: every number where they fit, whole numbers always."""
    return {"dtick": 1, "tick0": 0} if num <= 21 else {"tickformat": ",d"}


def _series(summaries: Mapping[str, Plain], names: Mapping[str, tuple[str, str]]) -> list[Figure]:
    """One line per read-out (dash) and per series of ``names`` (key -> label, colour).

    ``meta`` names the read-out, so that the page can show one of them.
    """
    lines = []
    for (readout, summary), dash in zip(summaries.items(), DASHES * len(summaries), strict=False):
        for key, (label, colour) in names.items():
            values = summary["per_experience"].get(key, [])
            if any(value is not None for value in values):
                label_of = f"{readout} · {label}" if len(summaries) > 1 else label
                lines.append({**line(label_of, values, colour, dash), "meta": readout})
    return lines


def experience_chart(traces: list[Figure], y: str, barmode: str = "group", **yaxis: object) -> Figure | None:
    """Return a chart over experience numbers, or None where there is nothing to draw."""
    if not traces:
        return None
    ticks = whole_ticks(max(len(trace["x"]) for trace in traces))
    return figure(traces, "experience", y, xaxis=ticks, yaxis=yaxis, barmode=barmode)


def accuracy(summaries: Mapping[str, Plain]) -> Figure | None:
    """Accuracy on all seen classes after each experience, one line per convention."""
    names = {
        f"accuracy/{name}": (name.replace("_", " "), colour) for name, colour in _CONVENTION_COLOURS.items()
    }
    lines = _series(summaries, names)
    for trace in lines:  # a pale band under a line: both are seen where they coincide
        if trace["line"]["color"] == "@teal":
            trace["line"] |= {"width": 7, "dash": "solid"}
            trace |= {"opacity": 0.4, "mode": "lines"}
    return experience_chart(lines, "accuracy, %", rangemode="tozero")


def groups(summaries: Mapping[str, Plain]) -> Figure | None:
    """Accuracy of the seen many, medium and few classes after each experience."""
    names = {f"accuracy/{group}_over_classes": (group, f"@{group}") for group in GROUPS}
    return experience_chart(_series(summaries, names), "accuracy, %", rangemode="tozero")


def forgetting_over_time(summaries: Mapping[str, Plain]) -> Figure | None:
    """Forgetting after each experience: over tasks, and of the old classes of each group."""
    names = {"forgetting/chaudhry_over_tasks": ("over tasks", "@ink")}
    names |= {f"forgetting/{group}_over_classes": (group, f"@{group}") for group in GROUPS}
    return experience_chart(_series(summaries, names), "forgetting, points", rangemode="tozero")


def matrix(summary: Plain, names: Sequence[str] = ()) -> Figure | None:
    """The accuracy matrix: row t after experience t, column j the classes of experience j.

    Args:
        summary: Of one read-out.
        names: Per experience the names of its classes, shown on hover.
    """
    return _heat(summary.get("accuracy_matrix"), "seq", "%", names)


def lost(summary: Plain, names: Sequence[str] = ()) -> Figure | None:
    """The forgetting matrix: row t, column j the best accuracy on experience j before t minus that after t."""
    rows = summary.get("accuracy_matrix")
    if not rows or len(rows) < 2:
        return None
    accuracies = np.array([[np.nan if value is None else value for value in row] for row in rows])
    return _heat(nested(drop_from_best(accuracies)), "lost", "points", names)


def _heat(rows: Any, scale: str, unit: str, names: Sequence[str]) -> Figure | None:
    """Return a square table as a heat map over experiences; ``scale`` names its colours."""
    if not rows or len(rows) < 2:
        return None
    values = [[None if value is None else round(value, 1) for value in row] for row in rows]
    hover = f"after experience %{{y}}, classes of %{{x}}<br><b>%{{z:.1f}} {unit}</b>" + "<br>%{text}" * bool(
        names
    )
    heat = {
        "type": "heatmap",
        "z": values,
        "zmin": 0,
        "zmax": max((value for row in values for value in row if value is not None and value > 0), default=1),
        "colorscale": [[step / 4, f"@{scale}:{step / 4}"] for step in range(5)],
        "colorbar": {"thickness": 10, "outlinewidth": 0, "title": {"text": unit}},
        "hovertemplate": f"{hover}<extra></extra>",
        "xgap": int(len(rows) <= 40),  # between a hundred columns gaps are all that is seen
        "ygap": int(len(rows) <= 40),
        "hoverongaps": False,
    }
    if len(rows) <= 12:
        heat |= {"texttemplate": "%{z:.0f}", "textfont": {"size": 11}}
    ticks = whole_ticks(len(rows)) | {"showgrid": False, "zeroline": False}
    return figure(
        [heat],
        "classes of experience",
        "after experience",
        xaxis=ticks,
        yaxis={**ticks, "autorange": "reversed"},
        height=_matrix_height(len(rows)),
        hovermode="closest",
        # a text per column, not per cell: 100 experiences have 10,000 cells
        **({"meta": {"columns": list(names)}} if names else {}),
    )


def _matrix_height(size: int) -> int:
    return min(620, 220 + 26 * size)


def accuracy_per_experience(summary: Plain) -> Figure | None:
    """The columns of the accuracy matrix as curves: how each experience's classes fare from arrival on."""
    rows = summary.get("accuracy_matrix")
    if not rows or len(rows) < 2:
        return None
    size = len(rows)
    if size > MOST_LINES:
        return _bands_by_age(rows)
    lines = [
        line(f"experience {j}", [row[j] for row in rows], f"@seq:{0.4 + 0.6 * j / max(1, size - 1):.3f}")
        for j in range(size)
    ]
    for trace in lines:
        trace["hovertemplate"] = "%{fullData.name} after %{x}: %{y:.1f} %<extra></extra>"
        # its number stands at the end of every line: eleven shades of one colour are told apart by nobody
        ends = {"mode": "lines+markers+text", "textposition": "middle right", "textfont": {"size": 10}}
        trace |= {**ends, "text": [""] * (size - 1) + [trace["name"].removeprefix("experience ")]}
    ticks = whole_ticks(size)
    layout = {"showlegend": False, "hovermode": "closest", "height": _matrix_height(size)}
    return figure(lines, "experience", "accuracy, %", xaxis=ticks, yaxis={"rangemode": "tozero"}, **layout)


def _bands_by_age(rows: Sequence[Sequence[float | None]]) -> Figure:
    """The same for very many experiences: by age of the classes the median, and where half and four fifths lie."""
    ages = [[rows[j + age][j] for j in range(len(rows) - age)] for age in range(len(rows))]
    found = [np.array([value for value in values if value is not None]) for values in ages]
    shares = {
        name: [round(float(np.percentile(one, name)), 2) if one.size else None for one in found]
        for name in BANDS
    }
    traces = []
    for low, high, label, share in ((10, 90, "four fifths", 0.3), (25, 75, "half", 0.55)):
        edge = {
            "mode": "lines",
            "line": {"width": 0, "color": "@teal"},
            "hoverinfo": "skip",
            "hovertemplate": None,
        }
        traces.append({**line("", shares[low], "@teal"), **edge, "showlegend": False})
        band = {"fill": "tonexty", "fillcolor": f"@seq:{share}"}
        traces.append({**line(f"{label} of the experiences", shares[high], "@teal"), **edge, **band})
    traces.append({**line("median experience", shares[50], "@ink"), "hovertemplate": "median %{y:.1f} %"})
    return figure(
        traces, "experiences since arrival", "accuracy, %",
        xaxis={"tickformat": "d"}, yaxis={"rangemode": "tozero"}, height=_matrix_height(len(rows)),
    )  # fmt: skip


def forgetting_by_age(summary: Plain, which: str) -> Figure | None:
    """Bars of forgetting by age of the class, one colour per group.

    Args:
        summary: Of one read-out.
        which: "last" (after the last experience) or "all_steps".
    """
    table = summary.get("forgetting_by_group_and_age", {}).get(which, {})
    bars = [_age_bar(group, table[group]) for group in GROUPS if group in table]
    if not any(value is not None for bar in bars for value in bar["y"]):
        return None
    layout = {"barmode": "group", "xaxis": {"type": "category"}, "hovermode": "closest"}
    return figure(bars, "age of the class, experiences since it arrived", "forgetting, points", **layout)


def _age_bar(group: str, cells: Mapping[str, Plain]) -> Figure:
    values = [number(cell["forgetting"]) for cell in cells.values()]
    return {
        "type": "bar",
        "name": group,
        "x": list(cells),
        "y": [None if value is None else round(value, 2) for value in values],
        "customdata": [number(cell["num_classes"]) for cell in cells.values()],
        "marker": filled(f"@{group}"),
        "hovertemplate": f"{group}, age %{{x}}<br><b>%{{y:.1f}}</b>, %{{customdata}} classes<extra></extra>",
    }


def class_size(record: StreamRecord) -> Figure | None:
    """Accuracy of each class after the last experience against its training images."""
    rows = [row for row in class_rows(record) if row["accuracy_last"] is not None]
    points = [_points(group, [row for row in rows if row["group"] == group]) for group in GROUPS]
    points = [trace for trace in points if trace["x"]]
    if not points:
        return None
    layout = {"yaxis": {"rangemode": "tozero"}, "hovermode": "closest"}
    layout["xaxis"] = {"type": "log", "tickvals": [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]}
    return figure(points, "training images of the class", "accuracy, %", **layout)


def _points(group: str, rows: Sequence[Plain]) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": group,
        "x": [row["images"] for row in rows],
        "y": [round(row["accuracy_last"], 2) for row in rows],
        "text": [f"{row['name']} · arrived in {row['experience']}, age {row['age']}" for row in rows],
        "marker": {**mark(f"@{group}", 1), "color": f"@{group}", "size": 8, "opacity": 0.75},
        "cliponaxis": False,
        "hovertemplate": "%{text}<br>%{x} images, <b>%{y:.1f} %</b><extra></extra>",
    }


def routing_curve(sweep: Sequence[Plain]) -> Figure | None:
    """Accuracy over computation at rising thresholds: all classes, and those of each group."""
    if len(sweep) < 2:
        return None
    names = {"accuracy/over_classes": ("over classes", "@ink")}
    names |= {f"accuracy/{group}_over_classes": (group, f"@{group}") for group in GROUPS}
    costs = [row["mean_mmacs"] for row in sweep]
    lines = [
        {**line(label, [row.get(name) for row in sweep], colour), "x": costs}
        for name, (label, colour) in names.items()
        if any(row.get(name) is not None for row in sweep)
    ]
    return figure(lines, "million multiply-adds per image", "accuracy, %", hovermode="closest")


def confusion(summary: Plain, side: str) -> Figure | None:
    """Stacked bars: what the test images of the old (or new) classes are taken for after each experience."""
    other = "new" if side == "old" else "old"
    parts = {
        f"{side}_right": ("right", "@right"),
        f"{side}_to_other_{side}": (f"another {side} class", "@same"),
        f"{side}_to_{other}": (f"{'a new' if side == 'old' else 'an old'} class", "@cross"),
    }
    steps = {flow: summary["per_experience"].get(f"confusion/{flow}_over_images", []) for flow in parts}
    if not any(value is not None for values in steps.values() for value in values):
        return None
    bars = [_stack(label, colour, steps[flow]) for flow, (label, colour) in parts.items()]
    ticks = whole_ticks(len(bars[0]["x"]))
    title = f"{side} classes' images, %"
    return figure(bars, "experience", title, barmode="stack", xaxis=ticks, yaxis={"range": [0, 100]})


def group_confusion(record: StreamRecord) -> Figure | None:
    """Stacked bars: what the test images of each group are taken for after the last experience."""
    shares = confusion_by_group(record)
    groups = [group for group in GROUPS if shares[group]["right"] is not None]
    parts = {"right": ("right", "@right")} | {name: (f"→ {name}", f"@{name}") for name in GROUPS}
    bars = [
        {
            "type": "bar",
            "orientation": "h",
            "name": label,
            "y": groups,
            "x": [round(shares[group][key] or 0.0, 2) for group in groups],
            "marker": filled(colour) | {"opacity": 1 if key == "right" else 0.6},
            "hovertemplate": f"%{{y}} classes: <b>%{{x:.1f}} %</b> {label}<extra></extra>",
        }
        for key, (label, colour) in parts.items()
    ]
    if not groups:
        return None
    y = {"type": "category", "autorange": "reversed", "showgrid": False}
    x = {"range": [0, 100]}
    return figure(
        bars, "test images, %", "", barmode="stack", xaxis=x, yaxis=y, hovermode="closest", height=240
    )


def _stack(label: str, colour: str, values: Series) -> Figure:
    known = [(t, round(value, 2)) for t, value in enumerate(values) if value is not None]
    return {
        "type": "bar",
        "name": label,
        "x": [t for t, _ in known],
        "y": [value for _, value in known],
        "marker": filled(colour),
        "hovertemplate": "%{y:.1f} %",
    }


def losses(run: Run) -> Figure | None:
    """Every term of the loss over all epochs of the run; thin lines mark new experiences."""
    epochs = run.events("epoch")
    names = {name: None for event in epochs for name in _terms(event)}  # a dict keeps the order of appearance
    if not names:
        return None
    shown = _thinned(len(epochs))
    data = [
        {
            **line(name, [], PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)]),
            # few epochs: a term of a single one between two stages would not be seen as a line
            "marker": {
                **mark(PALETTE[index % len(PALETTE)], 2 if len(shown) <= 100 else len(shown)),
                "size": 5,
            },
            "x": [position + 1 for position in shown],
            "y": [_significant(_terms(epochs[position]).get(name)) for position in shown],
            "text": [_where(epochs[position]) for position in shown] if not index else None,
            "hovertemplate": "%{y:.4g}<br>%{text}" if not index else "%{y:.4g}",
        }
        for index, name in enumerate(names)
    ]
    layout = {
        "shapes": _boundaries(epochs),
        "yaxis": {"rangemode": "tozero"},
        "xaxis": whole_ticks(len(epochs)),
    }
    return figure(data, "epoch of the run", "mean loss term", **layout)


def learning_rate(run: Run) -> Figure | None:
    """The learning rate over all epochs of the run, on a logarithmic axis."""
    epochs = run.events("epoch")
    shown = _thinned(len(epochs))
    values = [number(epochs[position].get("lr")) for position in shown]
    if not any(values):
        return None
    known = [value for value in values if value]
    ticks = {"dtick": 1} if max(known) >= 10 * min(known) else {"nticks": 6}
    trace = {**line("learning rate", [], "@soft"), "mode": "lines", "hovertemplate": "%{y:.3g}"}
    trace |= {"x": [position + 1 for position in shown], "y": [_significant(value) for value in values]}
    layout: Figure = {"shapes": _boundaries(epochs), "xaxis": whole_ticks(len(epochs))}
    layout["yaxis"] = {"type": "log", "exponentformat": "power", **ticks}
    return figure([trace], "epoch of the run", "learning rate", **layout)


def _terms(event: Plain) -> Plain:
    terms = event.get("terms")
    if isinstance(terms, dict) and terms:
        return terms
    return {"loss": event["loss"]} if "loss" in event else {}


def _thinned(num: int) -> range:
    """Positions to draw: all, or every n-th of a very long run."""
    return range(0, num, max(1, -(-num // MAX_POINTS)))


def _significant(value: object) -> float | None:
    known = number(value)
    return None if known is None else float(f"{known:.4g}")


def _where(event: Plain) -> str:
    stage = f", {event['stage']}" if event.get("stage") else ""
    return f"experience {event.get('experience', '?')}{stage}, epoch {event.get('epoch', '?')}"


def _boundaries(epochs: Sequence[Plain]) -> list[Figure]:
    """Vertical lines where the experience changes."""
    changes = [
        position
        for position in range(1, len(epochs))
        if epochs[position].get("experience") != epochs[position - 1].get("experience")
    ]
    style = {"color": "@line", "width": 1}
    common = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "layer": "below", "line": style}
    return [{**common, "x0": position + 0.5, "x1": position + 0.5} for position in changes]
