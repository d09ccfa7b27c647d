"""Where the time of a run went: one row per stage, with its share."""

from __future__ import annotations

from incrlt.files import Plain
from incrlt.metrics.spent import spent
from incrlt.report.reading import Run
from incrlt.words import duration, size


def spending(run: Run) -> list[Plain]:
    """Return the rows of the table: stage, seconds as people say them, share in percent, images, cost and memory.

    Args:
        run: Its log decides; no log, no rows.

    Returns:
        ``stage``, ``epochs``, ``seconds``, ``share`` (percent of all device-seconds), ``images``, ``tera``
        (10^12 multiply-adds), ``peak``; None or an empty string where it is not known.
    """
    rows = spent(run.log)
    total = sum(row["device_seconds"] for row in rows)
    if total <= 0:
        return []
    return [
        {
            "stage": row["stage"],
            "epochs": row["epochs"] or None,
            "seconds": duration(row["device_seconds"]),
            "share": 100 * row["device_seconds"] / total,
            "images": row["images"],
            "tera": None if row["multiply_adds"] is None else row["multiply_adds"] / 1e12,
            "peak": size(row["peak_bytes"]) if row["peak_bytes"] else "",
        }
        for row in rows
    ]
