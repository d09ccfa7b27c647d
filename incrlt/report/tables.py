"""Rows of the page's tables: strings and numbers, ready for the template."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from incrlt.files import Plain
from incrlt.metrics import CONVENTIONS, StreamRecord, class_accuracy, class_rows, published
from incrlt.metrics.confusion import negatives
from incrlt.metrics.groups import GROUPS
from incrlt.metrics.tasks import expert_class_accuracy, lost_by_group, task_rows
from incrlt.metrics.yardsticks import CEILINGS, YARDSTICKS
from incrlt.report.expert_charts import calibrations as diagrams
from incrlt.report.reading import Run, number, section_name
from incrlt.report.thumbnails import Sheet
from incrlt.words import counted, duration
from incrlt.written import cut

LONGEST_NAME = 60
"""Letters of a class's name in a list of names."""
MOST_NAMED = 3
"""Experiences and classes that are named as what absorbed an experience."""
_READOUTS = {
    "cnn": "the head (cnn)",
    "nme": "the nearest mean (nme)",
    "routed": "routed: few experts on easy images",
}
MOST_TAKEN = 3
"""Wrong classes that are named as what a class is taken for."""
COARSE = 16
"""A thumbnail of fewer pixels a side is shown with hard edges."""
SPARK_WIDTH, SPARK_HEIGHT, SPARK_POINTS = 96, 22, 24


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    label: str
    convention: str
    values: Sequence[tuple[str, float | None]]
    """(read-out, value) pairs, the main read-out first."""
    unit: str


_TILES = (
    ("average_incremental_accuracy/over_tasks", "Average incremental accuracy", "%"),
    ("last_accuracy/over_tasks", "Last accuracy", "%"),
    ("last_accuracy/over_classes", "Last accuracy", "%"),
    ("forgetting/chaudhry_over_tasks", "Forgetting", "points"),
)


def tiles(run: Run) -> list[Tile]:
    """Return the four headline numbers, each with the name of its convention, and how far an unfinished run got."""
    so_far = "" if run.complete else f", {run.progress}"
    return [
        Tile(
            label=label,
            convention=name.split("/")[1].replace("_", " ").replace("chaudhry", "Chaudhry,") + so_far,
            values=[
                (readout, number(summary["numbers"].get(name))) for readout, summary in run.summaries.items()
            ],
            unit=unit,
        )
        for name, label, unit in _TILES
    ]


def group_bars(summaries: Mapping[str, Plain], record: StreamRecord | None) -> list[Plain]:
    """Return many, medium and few with their last accuracies, for the strip under the headline numbers."""
    sizes = {}
    if record is not None:
        names = [row["group"] for row in class_rows(record)]
        sizes = {group: names.count(group) for group in GROUPS}
    return [
        {
            "group": group,
            "num_classes": sizes.get(group),
            "values": [
                (readout, number(summary["numbers"].get(f"last_accuracy/{group}_over_classes")))
                for readout, summary in summaries.items()
            ],
        }
        for group in GROUPS
    ]


def numbers(summaries: Mapping[str, Plain]) -> list[Plain]:
    """Return every number: name, what it means, one value per read-out."""
    return [
        {
            "kind": name.split("/")[0].replace("_", " "),
            "convention": name.split("/")[1],
            "meaning": meaning,
            "values": [number(summary["numbers"].get(name)) for summary in summaries.values()],
        }
        for name, meaning in CONVENTIONS.items()
    ]


def published_table(run: Run) -> str:
    """Return under which protocol name the rows stand that the run may be set beside."""
    return published.table_of({**run.protocol, "name": run.protocol_name})


def row_name(run: Run) -> str:
    """Return what the published rows call the run's method."""
    experts = run.config.get("experts")
    return published.row_name(
        run.protocol_name, run.method, experts if isinstance(experts, Mapping) else None
    )


def published_figures(protocol_name: str) -> list[Plain]:
    """Return the figures that the rows of a protocol give, each with our number of the same convention."""
    rows = published.for_protocol(protocol_name)
    return [
        {"name": name, "ours": ours}
        for name, ours in published.COMPARED_WITH.items()
        if any(name in row.figures for row in rows)
    ]


def published_rows(run: Run) -> list[Plain]:
    """Return the published rows of the run's protocol with our difference per read-out, none before the run's end."""
    own = row_name(run)
    ours = [summary if run.complete else {"numbers": {}} for summary in run.summaries.values()]
    return [
        {
            "method": row.method,
            "same": published.same_method(row.method, own),
            "figures": row.figures,
            "differences": [published.differences(row, summary) for summary in ours],
            "status": row.status,
            "note": row.note,
        }
        for row in published.for_protocol(published_table(run))
    ]


def published_remarks(run: Run) -> list[str]:
    """Return what must be known before comparing with the published rows."""
    training = run.config.get("training")
    length = training if isinstance(training, Mapping) else {}
    differs = published.what_differs({**run.protocol, "name": run.protocol_name}, row_name(run), length)
    remarks = [f"This run has {text}." for text in differs]
    # the rows of several experiences come from one code base, the offline ones from others
    if run.protocol.get("holdout") == "none" and run.protocol_name != published.OFFLINE:
        remarks.append(
            "The published rows train without a held-out 10 % of the images; this run trains on all of them."
        )
    if not run.complete:
        remarks.append(
            f"{run.progress}: the published numbers are those of the whole stream, so none is compared."
        )
    return remarks


def experiences(run: Run) -> list[Plain]:
    """Return one row per experience: classes, images, memory, seconds, accuracies of the main read-out."""
    summary = next(iter(run.summaries.values()), None)
    if summary is None:
        return []
    costs = {event.get("experience"): event for event in run.events("experience")}
    plan = run.protocol.get("experiences")
    steps = summary["per_experience"]
    return [
        {
            "experience": t,
            **_planned(plan, t),
            **{key: number(costs.get(t, {}).get(key)) for key in ("classes_seen", "memory_images")},
            **{key: number(costs.get(t, {}).get(key)) for key in ("train_seconds", "eval_seconds")},
            "over_tasks": number(steps["accuracy/over_tasks"][t]),
            "over_classes": number(steps["accuracy/over_classes"][t]),
            "over_seen_images": number(steps["accuracy/over_seen_images"][t]),
            "forgetting": number(steps["forgetting/chaudhry_over_tasks"][t]),
        }
        for t in range(summary["num_experiences"])
    ]


def _planned(plan: object, t: int) -> Plain:
    if not isinstance(plan, list) or t >= len(plan) or not isinstance(plan[t], dict):
        return {"new_classes": None, "images": None}
    classes = plan[t].get("classes")
    return {
        "new_classes": len(classes) if isinstance(classes, list) else None,
        "images": number(plan[t].get("images")),
    }


def classes(run: Run) -> list[Plain]:
    """Return one row per class with a curve and what the memory holds; other read-outs add their last accuracy."""
    if not run.records:
        return []
    main, *others = run.records.values()
    kept = list(run.evaluations.series("memory").values())[-1:]
    accuracy = class_accuracy(main)
    rows = class_rows(main)
    last_of_others = [[row["accuracy_last"] for row in class_rows(other)] for other in others]
    taken_for = negatives(main, MOST_TAKEN)
    for index, row in enumerate(rows):
        row["curve"] = sparkline(accuracy[row["experience"] :, index])
        row["points"] = points(accuracy[row["experience"] :, index], row["experience"])
        row["negatives"] = taken_for[index]
        row["kept"] = int(kept[0][index]) if kept and index < len(kept[0]) else None
        row["relative"] = _share(row["forgetting"], accuracy[:-1, index])
        row["others"] = [values[index] if index < len(values) else None for values in last_of_others]
    return rows


def _share(dropped: float | None, earlier: np.ndarray) -> float | None:
    """Return a drop in percent of the best earlier accuracy; None where there is none, or nothing was learned."""
    best = np.fmax.reduce(earlier) if earlier.size else np.nan
    return None if dropped is None or not best > 0 else 100 * dropped / float(best)


def tasks(record: StreamRecord) -> list[Plain]:
    """Return one row per experience: its classes by name, what became of them and what they are taken for."""
    rows = task_rows(record)
    for row in rows:
        curve = np.array([np.nan if value is None else value for value in row["curve"]])
        row["names"] = [cut(record.name_of(index), LONGEST_NAME) for index in row["classes"]]
        row["points"] = points(curve, row["experience"])
        row["line"] = sparkline(curve)
        row["absorbed"] = [(experience, gain) for experience, gain in row["to_experiences"][:MOST_NAMED]]
        row["absorbed_by"] = [(record.name_of(index), gain) for index, gain in row["to_classes"][:MOST_NAMED]]
    return rows


def lost(run: Run) -> list[Plain]:
    """Return what the old classes of each group had and lost, a row per read-out and per expert alone."""
    rows = [
        {"who": _READOUTS.get(name, name), "readout": name, **_lost(class_accuracy(record), record)}
        for name, record in run.records.items()
    ]
    record, right = next(iter(run.records.values()), None), run.evaluations.series("right")
    if record is not None and right:
        for k in range(next(iter(right.values())).shape[2]):
            accuracy = expert_class_accuracy(right, record, k)
            rows.append({"who": f"expert {k} alone", "readout": "", **_lost(accuracy, record)})
    return [row for row in rows if row["groups"]["over_classes"]["best"] is not None]


def _lost(accuracy: np.ndarray, record: StreamRecord) -> Plain:
    old = accuracy[-1][record.experience_of_class[: accuracy.shape[1]] < record.num_experiences - 1]
    known = old[~np.isnan(old)]
    return {
        "groups": lost_by_group(accuracy, record.images_of_class),
        "old": float(known.mean()) if known.size else None,
    }


def sparkline(values: np.ndarray) -> str:
    """Return SVG polyline points of a curve from 0 to 100 %, or "" for fewer than two values."""
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return ""
    values = values[np.linspace(0, len(values) - 1, min(len(values), SPARK_POINTS)).round().astype(int)]
    x = np.linspace(2, SPARK_WIDTH - 2, len(values))
    y = SPARK_HEIGHT - 2 - (SPARK_HEIGHT - 4) * values / 100
    return " ".join(f"{left:.0f},{top:.1f}" for left, top in zip(x, y, strict=True))


def points(values: np.ndarray, first: int) -> str:
    """Return the values of a curve in words, e.g. "after 3: 40, after 4: 35", at most as many as are drawn."""
    shown = np.linspace(0, len(values) - 1, min(len(values), SPARK_POINTS)).round().astype(int)
    return ", ".join(f"after {first + at}: {values[at]:.0f}" for at in shown if not np.isnan(values[at]))


def thumbnails(run: Run) -> Plain | None:
    """Return the sheet of thumbnails for the page, once, and where each seen class lies on it; None without one."""
    sheet, record = run.thumbnails, next(iter(run.records.values()), None)
    if sheet is None or record is None:
        return None
    return {
        "uri": f"data:image/jpeg;base64,{base64.b64encode(sheet.jpeg).decode()}",
        "width": sheet.width,
        "coarse": sheet.side < COARSE,
        "of_class": [_thumbnail(sheet, index) for index in range(record.num_seen)],
    }


def _thumbnail(sheet: Sheet, index: int) -> Plain:
    left, top = sheet.place(index)
    return {"count": sheet.counts[index], "left": left, "top": top}


def calibrations(run: Run) -> list[Plain]:
    """Return the calibration of each read-out that has one: per group error and overconfidence in points."""
    found = {readout: diagrams(run, readout) for readout in run.records}
    return [
        {
            "readout": readout,
            "values": [(name, one.error, one.overconfidence) for name, one in groups.items()],
        }
        for readout, groups in found.items()
        if groups
    ]


LONGEST: Final = {"Pictures": 20_000}
"""Characters of facts that are told in full: every file that was left out is named."""


def facts(run: Run) -> list[tuple[str, str]]:
    """Return the head's facts: what, on what, where, at what cost."""
    found = [
        ("Protocol", run.protocol_name),
        ("Protocol hash", run.protocol_hash or "unknown"),
        ("Dataset", str(run.protocol.get("dataset", ""))),
        ("Pictures", str(run.environment.get("pictures") or "")),
        ("Imbalance ratio", _plain(run.protocol.get("imbalance_ratio"))),
        ("Hold-out", str(run.protocol.get("holdout", ""))),
        ("Memory", _words(run.protocol.get("memory"))),
        ("Model", section_name(run.config.get("model"))),
        ("Experts", _experts(run.config.get("experts"))),
        ("Size", _size(run.results)),
        ("Seeds", _words(run.config.get("seed", run.config.get("seeds")))),
        *_where(run.environment),
        *_cost(run),
    ]
    return [(name, cut(value, LONGEST.get(name, 400))) for name, value in found if value]


def _experts(section: object) -> str:
    count = section.get("num_experts") if isinstance(section, Mapping) else None
    return f"{section_name(section)}, K = {count}" if count else section_name(section)


def _size(results: Plain) -> str:
    """Return what the network costs: experts are not free, so it stands beside every number."""
    parameters, cost = number(results.get("parameters")), number(results.get("mega_macs"))
    if parameters is None or cost is None:
        return ""
    return f"{parameters / 1e6:.2f} M parameters, {cost:.1f} M multiply-adds an image"


def routing(run: Run) -> list[Plain]:
    """Return the rows of the routing table, one per experience."""
    columns = (
        "mean_experts",
        "mean_mmacs",
        "macs_saved",
        *(f"experts/{name}_over_classes" for name in GROUPS),
    )
    return [
        {"experience": int(row["experience"]), "values": [row.get(key) for key in columns]}
        for row in run.routing
    ]


def yardsticks(run: Run) -> list[Plain]:
    """Return what the router is held against after the last experience, a row each; none of a run that lacks it.

    ``values`` are over classes and by group, in percent; ``weights`` those of the experts, where they were chosen.
    """
    last = run.routing[-1] if run.routing else {}
    means = ("over_classes", *(f"{name}_over_classes" for name in GROUPS))
    values_of = {name: [last.get(f"{name}/{mean}") for mean in means] for name in YARDSTICKS}
    if all(value is None for values in values_of.values() for value in values):
        return []
    return [
        {
            "name": words,
            "ceiling": name in CEILINGS,
            "values": values_of[name],
            "weights": [value for key, value in last.items() if key.startswith(f"{name}/weight_of_expert_")],
        }
        for name, words in YARDSTICKS.items()
    ]


def _plain(value: object) -> str:
    return "" if value is None else f"{value:g}" if number(value) is not None else str(value)


def _words(value: object) -> str:
    """Return ``{"per_class": 20}`` as "per class 20"."""
    if isinstance(value, Mapping):
        known = {key: inner for key, inner in value.items() if inner is not None}
        return ", ".join(f"{str(key).replace('_', ' ')} {_words(inner)}" for key, inner in known.items())
    return _plain(value)


def _where(environment: Plain) -> list[tuple[str, str]]:
    packages = ("incrlt", "torch", "torchvision", "avalanche", "numpy", "python")
    versions = ", ".join(f"{name} {environment[name]}" for name in packages if environment.get(name))
    commit = str(environment.get("git_commit") or "")[:10]
    dirty = " (with uncommitted changes)" if commit and environment.get("git_dirty") else ""
    threads = environment.get("threads")
    threads = counted(threads, "thread") if threads else None
    device = ", ".join(
        str(part) for part in (environment.get("device"), environment.get("precision"), threads) if part
    )
    return [("Device", device), ("Commit", commit + dirty), ("Versions", versions)]


def _cost(run: Run) -> list[tuple[str, str]]:
    events = run.events("experience")
    seconds = {
        key: sum(number(event.get(key)) or 0.0 for event in events)
        for key in ("train_seconds", "eval_seconds")
    }
    speeds = [speed for event in run.events("epoch") if (speed := number(event.get("images_per_second")))]
    return [
        ("Training", duration(seconds["train_seconds"])),
        ("Evaluation", duration(seconds["eval_seconds"])),
        ("Speed", f"{np.median(speeds):,.0f} images per second (median epoch)" if speeds else ""),
        ("Epochs", str(len(run.events("epoch")) or "")),
    ]
