"""Published numbers of the named protocols, and a run's distance to them under the same convention.

The rows stand in ``published.yaml`` with their sources. Incremental rows are means over tasks (the base
experience counts as one), so they are compared with ``.../over_tasks`` and with nothing else; the ``offline``
rows are plain top-1, which is ``last_accuracy/over_seen_images``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

COMPARED_WITH = {
    "average": "average_incremental_accuracy/over_tasks",
    "last": "last_accuracy/over_tasks",
    "overall": "last_accuracy/over_seen_images",
    "many": "last_accuracy/many_over_classes",
    "medium": "last_accuracy/medium_over_classes",
    "few": "last_accuracy/few_over_classes",
}
"""Published figure -> our number under the same convention."""

_SETTING = {"dataset": "cifar100", "imbalance_ratio": 100, "exemplars per class": 20}


@dataclass(frozen=True)
class PublishedRow:
    """One published result."""

    protocol: str
    method: str
    figures: Mapping[str, float]
    """Keys of :data:`COMPARED_WITH` that the source gives, in percent."""
    status: str
    """"ok", "unverified" (single source, out of line) or "rerun" (independent re-run)."""
    note: str = ""


@cache
def rows() -> tuple[PublishedRow, ...]:
    """Return all published rows, in the order of the file."""
    text = resources.files("incrlt.metrics").joinpath("published.yaml").read_text(encoding="utf-8")
    return tuple(
        PublishedRow(
            protocol=row["protocol"],
            method=row["method"],
            figures={name: float(row[name]) for name in COMPARED_WITH if name in row},
            status=row["status"],
            note=row.get("note", ""),
        )
        for row in yaml.safe_load(text)
    )


def for_protocol(protocol_name: str) -> tuple[PublishedRow, ...]:
    """Return the rows of one protocol, empty where nothing is published."""
    return tuple(row for row in rows() if row.protocol == protocol_name)


def differences(row: PublishedRow, summary: Mapping[str, Any]) -> dict[str, float | None]:
    """Return, per published figure, ours minus theirs in percentage points; None where ours is undefined."""
    ours = {name: summary["numbers"].get(COMPARED_WITH[name]) for name in row.figures}
    return {name: None if ours[name] is None else ours[name] - row.figures[name] for name in row.figures}


def distance(protocol_name: str, method: str, summary: Mapping[str, Any]) -> str | None:
    """Say in one line how far a run is from the published row of its protocol and method.

    Args:
        protocol_name: E.g. "lfh-shuffled-10".
        method: E.g. "LUCIR+LWS"; case, spaces, hyphens and underscores do not matter.
        summary: What :func:`incrlt.metrics.summarise` returned.

    Returns:
        The line, or None where no row is published. Where several are, the first whose status is "ok" is
        taken.
    """
    found = [row for row in for_protocol(protocol_name) if _plain(row.method) == _plain(method)]
    if not found:
        return None
    row = min(found, key=lambda row: row.status != "ok")
    parts = [
        f"{COMPARED_WITH[name]} {_figure(row.figures[name], difference)}"
        for name, difference in differences(row, summary).items()
    ]
    remark = "".join(f" ({text})" for text in (row.status if row.status != "ok" else "", row.note) if text)
    return f"{row.method} on {row.protocol}, ours - published: " + "; ".join(parts) + remark


def _figure(published: float, difference: float | None) -> str:
    if difference is None:
        return f"none - {published:.2f}"
    return f"{published + difference:.2f} - {published:.2f} = {difference:+.2f}"


def _plain(method: str) -> str:
    return "".join(letter for letter in method.casefold() if letter not in " _-")


def differing_setting(protocol: Mapping[str, Any]) -> list[str]:
    """Say in which respects a resolved protocol departs from the setting of the published rows.

    Args:
        protocol: ``ResolvedProtocol.describe()``; keys that are missing are not judged.

    Returns:
        Phrases such as "imbalance_ratio 50 instead of 100"; empty when nothing known differs.
    """
    memory = protocol.get("memory")
    per_class = memory.get("per_class") if isinstance(memory, Mapping) else None
    given = {
        "dataset": str(protocol["dataset"]).lower().replace("-", "") if protocol.get("dataset") else None,
        "imbalance_ratio": protocol.get("imbalance_ratio"),
        "exemplars per class": per_class,
    }
    return [
        f"{name} {given[name]} instead of {value}"
        for name, value in _SETTING.items()
        if given[name] not in (None, value)
    ]
