"""The charts of a page as plotly figures, for a notebook: ``incrlt.report.figures(run)["forgetting"]``."""

from __future__ import annotations

import os
import re
from functools import cache
from typing import TYPE_CHECKING

from incrlt.errors import UserError
from incrlt.files import Plain
from incrlt.report.page import _FOLDER, contents
from incrlt.report.reading import Run, read_run

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_VARIABLE = re.compile(r"--([a-z-]+):\s*(#[0-9a-f]{6})")
_COLOUR = re.compile(r"color(scale)?$")


def figures(run: Run | str | os.PathLike[str]) -> dict[str, Figure]:
    """Return every chart that the page of a run shows, in the colours of its light theme.

    Args:
        run: A run, or its folder.

    Returns:
        Name -> figure: "accuracy", "forgetting", "groups", "losses", ..., and per read-out "matrix-cnn", "lost-cnn",
        "curves-cnn", ...; the names are those of the addresses on the page, without "chart-".

    Raises:
        UserError: Not a run folder, or plotly's figures are not installed.
    """
    try:
        from plotly.graph_objects import Figure
    except ImportError as error:
        raise UserError("plotly is needed for figures; install it with pip install plotly.") from error
    charts = contents(run if isinstance(run, Run) else read_run(run))["charts"]
    return {name: Figure(_concrete(_with_texts(chart))) for name, chart in charts.items()}


def _with_texts(chart: Plain) -> Plain:
    """Give every cell of a heat map the text of its column, and of its row, as the page's script does."""
    meta = chart["layout"].get("meta", {})
    columns, rows = meta.get("columns"), meta.get("rows")
    if not columns:
        return chart
    text = [[f"{row} → {column}" for column in columns] for row in rows] if rows else None
    return {**chart, "data": [{**one, "text": text or [columns] * len(one["z"])} for one in chart["data"]]}


def _concrete(value: object, is_colour: bool = False) -> object:
    """Replace names of colours by the light theme's, under keys that hold colours alone."""
    if isinstance(value, dict):
        return {key: _concrete(inner, bool(_COLOUR.search(key))) for key, inner in value.items()}
    if isinstance(value, list):
        return [_concrete(inner, is_colour) for inner in value]
    if not is_colour or not isinstance(value, str) or not value.startswith("@"):
        return value
    name, _, share = value[1:].partition(":")
    if not share:
        return _light()[name]
    low, high = (_channels(_light()[f"{name}-{end}"]) for end in ("low", "high"))
    mixed = [round(start + (end - start) * float(share)) for start, end in zip(low, high, strict=True)]
    return f"rgb({','.join(map(str, mixed))})"


def _channels(colour: str) -> list[int]:
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]


@cache
def _light() -> dict[str, str]:
    """Return the variables of the page's light theme, the first block of its style."""
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    return dict(_VARIABLE.findall(style[: style.index("}")]))
