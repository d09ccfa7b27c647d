"""Charts of several runs: a curve per method with its legend as a table, and a dot per seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from incrlt.files import Plain
from incrlt.report.charts import DASHES, PALETTE, SYMBOLS, Figure, Series, experience_chart, figure, line
from incrlt.report.seeds import Estimate
from incrlt.written import cut

LONGEST_TICK = 34
"""Letters of a name beside a chart."""
ROOM = 0.5
"""Share of the dots' span that stays free on both sides of them."""
FEWEST = 3
"""Seeds from which an interval is drawn whole: that of two is 25 times as wide as their distance is from the mean."""
SIGNS = {
    "circle": "●", "square": "■", "diamond": "◆", "triangle-up": "▲", "x": "✖", "triangle-down": "▼", "cross": "✚",
}  # fmt: skip
"""Marks as letters."""
STROKES = {"solid": "", "dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3"}
"""Dashes as SVG has them."""


def compared(
    series: Mapping[str, Sequence[Estimate]], readouts: Mapping[str, str] | None = None
) -> Figure | None:
    """One accuracy curve per method with its standard error over seeds, for the comparison page.

    The number of its row in the :func:`legend` stands at the end of each.

    Args:
        series: Name -> what is known after each experience.
        readouts: Name -> its read-out, of which the page shows one.
    """
    known = {
        name: steps for name, steps in series.items() if sum(step.mean is not None for step in steps) > 1
    }
    lines = []
    for place, (name, steps) in enumerate(known.items()):
        dash = DASHES[place // len(PALETTE) % len(DASHES)]
        trace = line(name, [step.mean for step in steps], PALETTE[place % len(PALETTE)], dash)
        ends = {"mode": "lines+markers+text", "textposition": "middle right", "textfont": {"size": 10}}
        ends |= {"text": [""] * (len(steps) - 1) + [str(place + 1)], "legendgroup": str(place + 1)}
        trace |= {**ends, "meta": (readouts or {}).get(name, "")}
        lines.append(_with_errors(trace, [step.error for step in steps]))
    chart = experience_chart(lines, "accuracy, %, over tasks", rangemode="tozero")
    if chart is not None:
        chart["layout"] |= {"showlegend": False, "hovermode": "closest", "height": 420}
    for trace in lines:
        trace["hovertemplate"] = "%{fullData.name} after %{x}: <b>%{y:.1f} %</b><extra></extra>"
    return chart


def legend(chart: Figure) -> list[Plain]:
    """Return the rows of the table that is the legend of :func:`compared`: number, look, name, first and last value."""
    return [
        {
            "number": trace["legendgroup"],
            "name": trace["name"],
            "shown_with": trace["meta"],
            "colour": trace["line"]["color"].removeprefix("@"),
            "stroke": STROKES[trace["line"]["dash"]],
            "sign": SIGNS[SYMBOLS[trace["line"]["color"]]],
            "first": trace["y"][0],
            "last": trace["y"][-1],
            "steps": len(trace["y"]),
        }
        for trace in chart["data"]
    ]


def _with_errors(trace: Figure, errors: Series) -> Figure:
    """Add error bars where there is an error."""
    if all(error is None for error in errors):
        return trace
    sizes = [round(error or 0.0, 2) for error in errors]
    bars = {"type": "data", "array": sizes, "thickness": 1, "width": 3, "color": trace["line"]["color"]}
    return {**trace, "error_y": bars}


def over_seeds(values: Mapping[str, tuple[str, Mapping[str, float], Estimate]], title: str) -> Figure | None:
    """A row per method: a dot per seed, the mean and its 95 % interval by Student's t.

    Args:
        values: Name -> read-out, seed -> value, their estimate.
        title: What the number is.
    """
    known = {name: one for name, one in values.items() if one[1]}
    if len(known) < 2 or all(len(seeds) < 2 for _, seeds, _ in known.values()):
        return None  # one value a line: the table says it all
    traces = [trace for name, one in known.items() for trace in _row(name, *one)]
    names = list(known)
    y = {"type": "category", "autorange": "reversed", "showgrid": True}
    y |= {"tickvals": names, "ticktext": [cut(name, LONGEST_TICK) for name in names]}
    layout = {"yaxis": y, "xaxis": {"range": _room(known)}, "hovermode": "closest"}
    return figure(traces, title, "", height=110 + 34 * len(known), **layout)


def _row(name: str, readout: str, seeds: Mapping[str, float], found: Estimate) -> list[Figure]:
    row = {"type": "scatter", "mode": "markers", "meta": readout, "showlegend": False, "cliponaxis": True}
    dots = {
        "x": [round(value, 2) for value in seeds.values()], "y": [name] * len(seeds), "name": "seeds",
        "text": [f"seed {seed}" for seed in seeds], "marker": {"color": "@teal", "size": 7, "opacity": 0.7},
        "hovertemplate": "%{y}, %{text}: %{x}<extra></extra>",
    }  # fmt: skip
    told = f"n = {found.n}"
    mean = {
        "x": [round(found.mean or 0.0, 2)], "y": [name], "name": "mean",
        "marker": {"color": "@ink", "size": 11, "symbol": "line-ns-open", "line": {"width": 2}},
        "hovertemplate": "%{y}: mean %{x}, %{text}<extra></extra>",
    }  # fmt: skip
    if found.half is not None:
        size = round(found.half, 2)
        mean["error_x"] = {"type": "data", "array": [size], "thickness": 1.5, "width": 4, "color": "@ink"}
        told += f", 95 % interval ± {size}"
    return [{**row, **dots}, {**row, **mean, "text": [told]}]


def _room(known: Mapping[str, tuple[str, Mapping[str, float], Estimate]]) -> list[float]:
    """Return the ends of the axis: all dots with room around them, and the intervals of enough seeds."""
    dots = [value for _, seeds, _ in known.values() for value in seeds.values()]
    low, high = min(dots), max(dots)
    room = ROOM * (high - low) or 1.0
    low, high = low - room, high + room
    for _, _, found in known.values():
        if found.mean is not None and found.half is not None and found.n >= FEWEST:
            low, high = min(low, found.mean - found.half), max(high, found.mean + found.half)
    return [round(low, 2), round(high, 2)]
