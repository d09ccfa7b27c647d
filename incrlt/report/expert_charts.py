"""Charts of what is recorded beyond the counts: calibration, experts, routing over time, and the memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from incrlt.files import Plain
from incrlt.metrics import class_groups
from incrlt.metrics.calibration import Reliability, reliability_by_group
from incrlt.metrics.experts import Values, disagreement, expert_accuracy
from incrlt.metrics.groups import AGE_BUCKETS, GROUPS, age_name
from incrlt.report.charts import PALETTE, SYMBOLS, Figure, experience_chart, figure, filled, line, whole_ticks
from incrlt.report.reading import Run, number

COLOURS = {"over_classes": "@ink", **{group: f"@{group}" for group in GROUPS}}
NAMES = {"over_classes": "over classes", **{group: group for group in GROUPS}}


def calibrations(run: Run, readout: str) -> dict[str, Reliability]:
    """Return the last reliability diagrams of a read-out, of all classes and by group; empty where not recorded."""
    series = run.evaluations.series(f"confidence_{readout}")
    if not series or readout not in run.records:
        return {}
    return reliability_by_group(list(series.values())[-1], run.records[readout].images_of_class)


def calibration(run: Run, readout: str) -> Figure | None:
    """Accuracy against confidence in the last evaluation; on the diagonal the network is as sure as it is right."""
    found = calibrations(run, readout)
    if not found:
        return None
    diagonal = {**line("as sure as right", [0, 100], "@soft", "dot"), "x": [0, 100], "hoverinfo": "skip"}
    diagonal |= {"mode": "lines", "hovertemplate": None}
    lines = [_reliability_line(name, one) for name, one in found.items() if one.images.sum()]
    axis = {"range": [0, 100.5], "constrain": "domain"}
    return figure(
        [diagonal, *lines], "confidence, %", "accuracy, %", xaxis=axis, yaxis=axis, hovermode="closest",
        height=400,
    )  # fmt: skip


def _reliability_line(name: str, found: Reliability) -> Figure:
    filled = np.flatnonzero(found.images)
    colour = "@ink" if name == "all" else f"@{name}"
    return {
        **line(name, found.accuracy[filled].tolist(), colour),
        "x": found.confidence[filled].round(2).tolist(),
        "mode": "lines+markers",
        "line": {"color": colour, "width": 2.2 if name == "all" else 1},
        "customdata": found.images[filled].tolist(),
        "marker": {
            "symbol": SYMBOLS[colour],
            "size": (5 + 9 * np.sqrt(found.images[filled] / found.images.max())).round(1).tolist(),
        },
        "hovertemplate": f"{name}: %{{x:.1f}} % sure, <b>%{{y:.1f}} %</b> right<br>"
        "%{customdata:,} images<extra></extra>",
    }


def calibration_error(run: Run) -> Figure | None:
    """Expected calibration error after each experience, one line per read-out."""
    lines = []
    for readout, record in run.records.items():
        series = run.evaluations.series(f"confidence_{readout}")
        found = {t: reliability_by_group(values, record.images_of_class) for t, values in series.items()}
        for name, colour in {"all": "@ink", **{group: f"@{group}" for group in GROUPS}}.items():
            errors = {t: diagrams[name].error for t, diagrams in found.items()}
            label = f"{readout} · {name}" if len(run.records) > 1 else name
            dash = "solid" if readout == "cnn" else "dash"
            lines += [{**one, "meta": readout} for one in _over_experiences(label, errors, colour, dash)]
    return experience_chart(lines, "calibration error, points", rangemode="tozero")


def _over_experiences(
    label: str, values: Mapping[int, float | None], colour: str, dash: str = "solid"
) -> list[Figure]:
    """Return one line over the experiences that were recorded, none where nothing is defined."""
    if all(value is None for value in values.values()):
        return []
    return [{**line(label, list(values.values()), colour, dash), "x": list(values)}]


def expert_rows(run: Run) -> dict[int, tuple[list[Values], list[Values]]]:
    """Return, per recorded experience, the accuracy of each expert alone and of the first ones together."""
    record = next(iter(run.records.values()), None)
    if record is None:
        return {}
    return {
        t: expert_accuracy(right, record.tested_after(t), record.images_of_class)
        for t, right in run.evaluations.series("right").items()
        if t < record.num_experiences
    }


def expert_bars(run: Run) -> Figure | None:
    """Accuracy of each expert alone and of all together after the last experience, by group."""
    rows = expert_rows(run)
    if not rows:
        return None
    alone, together = rows[max(rows)]
    names = [*(f"expert {k}" for k in range(len(alone))), f"all {len(alone)} together"]
    bars = [
        {
            "type": "bar",
            "name": NAMES[key],
            "x": names,
            "y": [_rounded(row[key]) for row in (*alone, together[-1])],
            "marker": filled(colour),
            "hovertemplate": f"{NAMES[key]}, %{{x}}: <b>%{{y:.1f}} %</b><extra></extra>",
        }
        for key, colour in COLOURS.items()
    ]
    return figure(bars, "", "accuracy, %", barmode="group", xaxis={"type": "category"}, hovermode="closest")


def experts_over_time(run: Run) -> Figure | None:
    """Accuracy over classes of each expert alone, of all together, after each experience."""
    rows = expert_rows(run)
    if not rows:
        return None
    size = len(rows[max(rows)][0])
    palette = PALETTE[1:]  # the first is that of all together
    lines: list[Figure] = []
    for k in range(size):
        values = {t: alone[k]["over_classes"] for t, (alone, _) in rows.items()}
        lines += _over_experiences(f"expert {k}", values, palette[k % len(palette)], "dash")
    values = {t: together[-1]["over_classes"] for t, (_, together) in rows.items()}
    lines += _over_experiences(f"all {size} together", values, "@ink")
    return experience_chart(lines, "accuracy, %, over classes", rangemode="tozero")


def disagreements(run: Run) -> Figure | None:
    """Share of test images on which two experts differ, by group, after each experience."""
    record = next(iter(run.records.values()), None)
    if record is None:
        return None
    found = {
        t: disagreement(differ, record.tested_after(t), record.images_of_class)
        for t, differ in run.evaluations.series("disagree").items()
        if t < record.num_experiences
    }
    lines: list[Figure] = []
    for key, colour in COLOURS.items():
        lines += _over_experiences(NAMES[key], {t: values[key] for t, values in found.items()}, colour)
    return experience_chart(lines, "pairs that differ, %", rangemode="tozero")


def expert_curve(run: Run) -> Figure | None:
    """Accuracy over computation with the first 1, 2, ... K experts on every image."""
    rows, costs = expert_rows(run), run.evaluations.series("macs")
    if not rows or max(rows) not in costs:
        return None
    together = rows[max(rows)][1]
    millions = [round(value / 1e6, 2) for value in costs[max(rows)].tolist()]
    lines = [
        {
            **line(NAMES[key], [row[key] for row in together], colour),
            "x": millions,
            "text": [f"first {k} of {len(together)}" for k in range(1, len(together) + 1)],
            "hovertemplate": f"{NAMES[key]}, %{{text}}: <b>%{{y:.1f}} %</b> for %{{x:.1f}} M<extra></extra>",
        }
        for key, colour in COLOURS.items()
        if any(row[key] is not None for row in together)
    ]
    axis = {"rangemode": "tozero"}
    title = "million multiply-adds per image"
    return figure(lines, title, "accuracy, %", xaxis=axis, yaxis=axis, hovermode="closest")


def experts_used(rows: Sequence[Plain], by: str) -> Figure | None:
    """Experts that the router runs on an image after each experience.

    Args:
        rows: Of routing.csv.
        by: "group" or "age".
    """
    if by == "group":
        names = {group: (f"experts/{group}_over_classes", f"@{group}") for group in GROUPS}
    else:
        ages = ["new", *map(age_name, AGE_BUCKETS)]
        names = {
            age: (f"experts/age_{age}_over_classes", f"@seq:{1 - 0.16 * place:.2f}")
            for place, age in enumerate(ages)
        }
    lines: list[Figure] = []
    for name, (column, colour) in names.items():
        values = {int(row["experience"]): row.get(column) for row in rows}
        lines += [{**one, "hovertemplate": "%{y:.2f}"} for one in _over_experiences(name, values, colour)]
    experts = sum(column.startswith("stopped_after_") for column in (rows[0] if rows else ()))
    scale: Figure = {"range": [0.95, experts + 0.05], "dtick": 0.5} if experts else {}
    return experience_chart(lines, f"experts per image, by {by}", **scale)


def memory(run: Run) -> Figure | None:
    """Exemplars kept after each experience: by group where the run recorded it, else how many there are."""
    record = next(iter(run.records.values()), None)
    kept = run.evaluations.series("memory")
    if record is not None and kept:
        groups = class_groups(record.images_of_class)
        bars = [
            _memory_bar(group, {t: int(n[groups[: len(n)] == group].sum()) for t, n in kept.items()})
            for group in GROUPS
        ]
    else:
        events = run.events("experience")
        kept_after = {number(e.get("experience")): number(e.get("memory_images")) for e in events}
        bars = [_memory_bar("exemplars", {t: n for t, n in kept_after.items() if t is not None})]
    if not any(value for bar in bars for value in bar["y"]):
        return None
    most = max(sum(bar["y"][at] for bar in bars if at < len(bar["y"])) for at in range(len(bars[0]["y"])))
    return experience_chart(bars, "exemplars kept", barmode="stack", **whole_ticks(int(most)))


def _memory_bar(name: str, values: Mapping[int, int] | Mapping[float, float | None]) -> Figure:
    return {
        "type": "bar",
        "name": name,
        "x": list(values),
        "y": list(values.values()),
        "marker": filled(f"@{name}" if name in GROUPS else "@teal"),
        "hovertemplate": "%{y:,}",
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
