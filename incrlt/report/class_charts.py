"""Which class is taken for which: the matrix of the classes of chosen experiences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from incrlt.files import Plain
from incrlt.metrics import StreamRecord
from incrlt.metrics.tasks import most_forgotten, task_rows
from incrlt.report.charts import Figure, figure
from incrlt.report.reading import Run
from incrlt.written import cut

MOST_KEPT = 100
"""Classes that the page keeps of what a class is taken for; a matrix of others has zeros there."""
ABSORBERS = 2
"""Experiences beside its own that the most forgotten one is set against at first."""
LONGEST, LONGEST_TICK = 40, 18
"""Letters of a name where one hovers, and beside the matrix."""
MOST_TICKS = 60
"""Classes that are named beside the matrix."""

MOST_WRITTEN = 20
"""Columns up to which every cell has its number."""

Experiences = Sequence[int]


def first_choice(record: StreamRecord) -> tuple[list[int], list[int]]:
    """Return the experiences to begin with: the one that was forgotten most, and what its images are taken for now.

    Where nothing was forgotten it is the newest beside itself.
    """
    row = most_forgotten(task_rows(record))
    if row is None:
        return [record.num_experiences - 1], [record.num_experiences - 1]
    absorbers = [experience for experience, _ in row["to_experiences"] if experience != row["experience"]]
    return [row["experience"]], sorted([row["experience"], *absorbers[:ABSORBERS]])


def confused(
    record: StreamRecord, readout: str, of: Experiences | None = None, taken_for: Experiences | None = None
) -> Figure | None:
    """Return the matrix: a row per class of the experiences ``of``, a column per class of ``taken_for``.

    Cells are percent of the row's test images after the last experience, right answers and wrong ones on a scale each.

    Args:
        record: The counts.
        readout: Their read-out, by which the page finds the counts to draw another choice.
        of: Experiences of the rows; None for those of :func:`first_choice`.
        taken_for: Experiences of the columns; None likewise.
    """
    if record.num_seen < 2:
        return None
    first = first_choice(record)
    rows, columns = (
        np.flatnonzero(
            np.isin(record.experience_of_class[: record.num_seen], first[side] if asked is None else asked)
        )
        for side, asked in enumerate((of, taken_for))
    )
    tested = np.maximum(record.tested_after(-1)[rows][:, None], 1)
    shares = np.round(100 * record.tables.block(-1, rows, columns) / tested, 1)
    same = rows[:, None] == columns[None, :]
    names = [cut(record.name_of(index), LONGEST) for index in range(record.num_seen)]
    written = {"texttemplate": "%{z:.0f}"} if len(columns) <= MOST_WRITTEN else {}
    return figure(
        [
            {**_cells(np.where(same | (shares == 0), np.nan, shares), "lost", "taken for"), **written},
            {**_cells(np.where(same, shares, np.nan), "seq", "right"), **written},
        ],
        "taken for",
        "class",
        xaxis={**_axis(columns, names), "side": "bottom"},
        yaxis={**_axis(rows, names), "autorange": "reversed"},
        height=height(len(rows)),
        hovermode="closest",
        showlegend=False,
        # a name per row and column, not per cell
        meta={
            "confusion": readout,
            **{k: [names[c] for c in v] for k, v in (("rows", rows), ("columns", columns))},
        },
    )


def height(num: int) -> int:
    """Return the pixels of a matrix with as many rows; the page's script has the same rule."""
    return min(900, 190 + 16 * num)


def _cells(values: np.ndarray, scale: str, name: str) -> Figure:
    z = [[None if np.isnan(value) else value for value in row] for row in values.tolist()]
    known = values[~np.isnan(values)]
    return {
        "type": "heatmap",
        "name": name,
        "z": z,
        "zmin": 0,
        "zmax": 100 if scale == "seq" else max(1.0, float(known.max(initial=1.0))),
        "colorscale": [[step / 4, f"@{scale}:{step / 4}"] for step in range(5)],
        "showscale": False,
        "hovertemplate": "%{text}<br><b>%{z:.1f} %</b><extra></extra>",
        "hoverongaps": False,
        "xgap": 1,
        "ygap": 1,
    }


def _axis(classes: np.ndarray, names: Sequence[str]) -> Figure:
    """A place per class, with its name where there are few."""
    axis: Figure = {"showgrid": False, "zeroline": False}
    if len(classes) > MOST_TICKS:
        return {**axis, "showticklabels": False}
    places = list(range(len(classes)))
    return axis | {"tickvals": places, "ticktext": [cut(names[index], LONGEST_TICK) for index in classes]}


def counted(run: Run) -> Plain | None:
    """Return the last counts of all read-outs for the page, each class by :func:`sparse`.

    ``most`` is set where a class was taken for more classes than are kept.
    """
    record = next(iter(run.records.values()), None)
    if record is None or record.num_seen < 2:
        return None
    of, taken_for = first_choice(record)
    rows = {readout: [sparse(row) for row in one.tables.rows(-1)] for readout, one in run.records.items()}
    lost = any(
        np.bincount(one.hits_after(-1).true).max(initial=0) > MOST_KEPT for one in run.records.values()
    )
    return {
        "names": [cut(record.name_of(index), LONGEST) for index in range(record.num_seen)],
        "experiences": record.experience_of_class[: record.num_seen].tolist(),
        "images": {name: one.tested_after(-1).tolist() for name, one in run.records.items()},
        "rows": rows,
        "of": ", ".join(map(str, of)),
        "taken_for": ", ".join(map(str, taken_for)),
        "most": MOST_KEPT if lost else None,
    }


def sparse(row: np.ndarray) -> list[int | list[int]]:
    """Return a row of counts shortly: a number of images, then the classes that got as many, and so on.

    Classes are written as their distance from the one before, since most images go to neighbours of one count.

    Example:
        >>> sparse(np.array([1, 0, 7, 1, 0, 1]))  # 7 images for class 2; 1 each for 0, 3 and 5
        [7, [2], 1, [0, 3, 2]]
    """
    kept = np.flatnonzero(row)  # those alone are put in order
    kept = kept[np.argsort(-row[kept], kind="stable")[:MOST_KEPT]]
    found: list[int | list[int]] = []
    for images in sorted({int(row[index]) for index in kept}, reverse=True):
        classes = np.sort(kept[row[kept] == images])
        found += [images, np.diff(classes, prepend=0).tolist()]
    return found
