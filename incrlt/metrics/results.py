"""The result files of a run folder: results.json, results.csv (per experience), per_class.csv."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from incrlt.files import Plain, write_atomic
from incrlt.metrics.record import StreamRecord
from incrlt.metrics.summary import CONVENTIONS, class_rows, experience_rows, summarise

FORMAT = 1
"""Version of results.json; raised when a key changes its meaning."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""With what a text must begin that spreadsheets run instead of showing it."""


def write_results(
    folder: str | os.PathLike[str],
    records: Mapping[str, StreamRecord],
    extra: Mapping[str, object] | None = None,
) -> Plain:
    """Write the three result files, each whole or not at all.

    Args:
        folder: The run folder.
        records: One record per read-out, e.g. ``{"cnn": ..., "nme": ...}``.
        extra: Plain data to stand at the top of results.json, e.g. ``{"method": "LUCIR+LWS", "protocol":
            "lfh-shuffled-10", "protocol_hash": "1a2b3c4d5e6f"}``; the report reads ``method`` and
            ``protocol`` to find published rows.

    Returns:
        The content of results.json: ``{"format", **extra, "conventions", "readouts": {name: summary}}``.
    """
    folder = Path(folder)
    content = {
        "format": FORMAT,
        **(extra or {}),
        "conventions": CONVENTIONS,
        "readouts": {readout: summarise(record) for readout, record in records.items()},
    }
    write_atomic(folder / "results.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_atomic(folder / "results.csv", csv_text(_labelled(records, experience_rows)))
    write_atomic(folder / "per_class.csv", csv_text(_labelled(records, class_rows)))
    return content


def _labelled(records: Mapping[str, StreamRecord], rows_of: Any) -> list[dict[str, object]]:
    return [{"readout": readout, **row} for readout, record in records.items() for row in rows_of(record)]


def cell(value: object) -> Any:
    """Return a value for a CSV file; a text that a spreadsheet would run as a formula gets an apostrophe before it.

    Example:
        >>> cell("=1+1"), cell("@import"), cell("cat"), cell(-0.5), cell(None)
        ("'=1+1", "'@import", 'cat', -0.5, None)
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Return CSV text with a header line; None is an empty cell, and no text is a formula."""
    buffer = io.StringIO()
    names: Iterable[str] = rows[0] if rows else ()
    writer = csv.DictWriter(buffer, fieldnames=list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    return buffer.getvalue()
