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

from incrlt.errors import UserError
from incrlt.experiment import methods
from incrlt.experiment.methods import Kind
from incrlt.files import Plain
from incrlt.written import UNDEFINED, written

COMPARED_WITH = {
    "average": "average_incremental_accuracy/over_tasks",
    "last": "last_accuracy/over_tasks",
    "overall": "last_accuracy/over_seen_images",
    "many": "last_accuracy/many_over_classes",
    "medium": "last_accuracy/medium_over_classes",
    "few": "last_accuracy/few_over_classes",
}
"""Published figure -> our number under the same convention."""

OFFLINE = "offline"
"""The protocol of one experience; its rows are plain top-1 and come from code without a hold-out."""

INCREMENTAL_EPOCHS = 160
"""Epochs of each experience in Long-Tailed-CIL's code (ECCV 2022), which incremental rows share unless they say so."""

OWN_TABLES = (
    "imagenet-lt",
    "inaturalist2018",
    "places-lt",
    "imagenet-subset-lt",
    "food101-lt",
    "tiny-imagenet",
)
"""Data sets with rows of their own, ``imagenet-subset-lt/lfh-shuffled-10``; those of all others are CIFAR-100's."""

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
    epochs: int | None = None
    """Epochs of each experience; None where the source does not say."""


@cache
def rows() -> tuple[PublishedRow, ...]:
    """Return all published rows, in the order of the file."""
    text = resources.files("incrlt.metrics").joinpath("published.yaml").read_text(encoding="utf-8")
    return parse(text)


def parse(text: str) -> tuple[PublishedRow, ...]:
    """Return the rows in the text of ``published.yaml``.

    Raises:
        UserError: A row has a key that means nothing here, as the rest of an unquoted note with a comma is one.
    """
    return tuple(_row(row) for row in yaml.safe_load(text))


def _row(row: Plain) -> PublishedRow:
    known = {"protocol", "method", "status", "note", "epochs", *COMPARED_WITH}
    unknown = [str(key) for key in row if key not in known]
    if unknown:
        raise UserError(
            f"published.yaml, row {row.get('method')} of {row.get('protocol')}: unknown {', '.join(unknown)}; allowed "
            f"are {', '.join(sorted(known))}. Quote a note that holds a comma."
        )
    return PublishedRow(
        protocol=row["protocol"],
        method=row["method"],
        figures={name: float(row[name]) for name in COMPARED_WITH if name in row},
        status=row["status"],
        note=row.get("note", ""),
        epochs=row.get("epochs", INCREMENTAL_EPOCHS if _is_cifars(row["protocol"]) else None),
    )


def _is_cifars(table: str) -> bool:
    return table != OFFLINE and "/" not in table


def table_of(protocol: Mapping[str, object]) -> str:
    """Return under which protocol name the rows stand that a run may be set beside.

    Args:
        protocol: ``ResolvedProtocol.describe()``: its name and data set.

    Example:
        >>> table_of({"name": "offline", "dataset": "imagenet-lt@bb26d19097"}), table_of({"name": "lfs-10"})
        ('imagenet-lt/offline', 'lfs-10')
    """
    name, dataset = str(protocol.get("name")), str(protocol.get("dataset")).partition("@")[0]
    return f"{dataset}/{name}" if dataset in OWN_TABLES else name


def for_protocol(protocol_name: str) -> tuple[PublishedRow, ...]:
    """Return the rows of one protocol, named as :func:`table_of` does, empty where nothing is published."""
    return tuple(row for row in rows() if row.protocol == protocol_name)


def differences(row: PublishedRow, summary: Mapping[str, Any]) -> dict[str, float | None]:
    """Return, per published figure, ours minus theirs in percentage points; None where ours is undefined."""
    ours = {name: summary["numbers"].get(COMPARED_WITH[name]) for name in row.figures}
    return {name: None if ours[name] is None else ours[name] - row.figures[name] for name in row.figures}


def same_method(one: str, other: str) -> bool:
    """Say whether two names mean one method; case, spaces, hyphens and underscores do not matter."""
    return _plain(one) == _plain(other)


def row_name(protocol_name: str, method: str, experts: Mapping[str, object] | None = None) -> str:
    """Return what the published rows of a protocol call a method.

    Offline rows name the expert method and its number of experts alone: there is no strategy to name.

    Args:
        protocol_name: E.g. "offline".
        method: E.g. "Finetune+RIDE+router".
        experts: The section of the configuration, for the number of experts and RIDE's teacher.

    Example:
        >>> row_name("offline", "Finetune+RIDE+router", {"name": "ride", "num_experts": 3})
        'RIDE-3'
        >>> row_name("offline", "Finetune"), row_name("lfh-shuffled-10", "LUCIR+LWS")
        ('CE', 'LUCIR+LWS')
    """
    strategy, *parts = method.removesuffix("+router").split("+")
    if protocol_name != OFFLINE or len(parts) > 1:
        return method
    alone = _offline("strategy", strategy, {})
    if alone is None or not parts:
        return alone or method
    return _offline("experts", parts[0], experts or {}) or method


def _offline(kind: Kind, title: str, settings: Mapping[str, object]) -> str | None:
    """Return what offline rows call the method that tables call so, as its class tells; None where it has none."""
    declared = methods.titled(kind).get(title)
    return None if declared is None else declared.offline_title(settings)


def row_of(protocol_name: str, method: str) -> PublishedRow | None:
    """Return the row of a method, the first whose status is "ok" where there are several; None without one."""
    found = [row for row in for_protocol(protocol_name) if same_method(row.method, method)]
    return min(found, key=lambda row: row.status != "ok") if found else None


def distance(protocol_name: str, method: str, summary: Mapping[str, object]) -> str | None:
    """Say in one line how far a run is from the published row of its protocol and method.

    Args:
        protocol_name: E.g. "lfh-shuffled-10".
        method: E.g. "LUCIR+LWS"; of an offline run what :func:`row_name` gives.
        summary: What :func:`incrlt.metrics.summarise` returned.

    Returns:
        The line, or None where no row is published.
    """
    row = row_of(protocol_name, method)
    if row is None:
        return None
    parts = [
        f"{COMPARED_WITH[name]} {_figure(row.figures[name], difference)}"
        for name, difference in differences(row, summary).items()
    ]
    remark = "".join(f" ({text})" for text in (row.status if row.status != "ok" else "", row.note) if text)
    return f"{row.method} on {row.protocol}, ours - published: " + "; ".join(parts) + remark


def _figure(published: float, difference: float | None) -> str:
    if difference is None:
        return f"{UNDEFINED} (published {published:.2f})"
    return f"{written(published + difference)} - {published:.2f} = {written(difference, sign='+')}"


def _plain(method: str) -> str:
    return "".join(letter for letter in method.casefold() if letter not in " _-")


def differing_setting(protocol: Mapping[str, object]) -> list[str]:
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
    own = "/" in table_of(protocol)
    found = [
        f"{name} {given[name]} instead of {value}"
        for name, value in _SETTING.items()
        if given[name] not in (None, value) and not (own and name == "dataset")
    ]
    unlike = per_class is None and "memory" in protocol and protocol.get("name") != OFFLINE
    return [*found, _other_memory(memory)] if unlike else found


def _other_memory(memory: object) -> str:
    total = memory.get("total") if isinstance(memory, Mapping) else None
    held = "no exemplars" if total is None else f"{total} exemplars in all"
    return f"{held} instead of {_SETTING['exemplars per class']} per class"


def what_differs(protocol: Mapping[str, object], method: str, training: Mapping[str, object]) -> list[str]:
    """Say in which respects a run departs from the published rows: data, memory and length.

    Args:
        protocol: ``ResolvedProtocol.describe()``.
        method: As the rows call it.
        training: As for :func:`differing_epochs`.
    """
    length = differing_epochs(table_of(protocol), method, training)
    return [*differing_setting(protocol), *([length] if length else [])]


def differing_epochs(protocol_name: str, method: str, training: Mapping[str, object]) -> str | None:
    """Say how long a run trains where the published rows train otherwise.

    Args:
        protocol_name: E.g. "lfh-shuffled-10".
        method: As the rows call it; its own row decides, without one all rows of the protocol.
        training: The section of the configuration: ``epochs``, and ``base_epochs`` where those of the base differ.

    Returns:
        "10 epochs per experience instead of 160", or None where nothing known differs.
    """
    row = row_of(protocol_name, method)
    published = [one.epochs for one in ([row] if row else for_protocol(protocol_name)) if one.epochs]
    base = training.get("base_epochs") or training.get("epochs")
    later = base if protocol_name.endswith(OFFLINE) else training.get("epochs")
    if not published or not isinstance(later, int) or not isinstance(base, int):
        return None
    least, most = min(published), max(published)
    if least <= min(base, later) and max(base, later) <= most:
        return None
    theirs = f"{least}" if least == most else f"{least} to {most}"
    if base != later:
        return f"{base} epochs in the base experience and {later} in each later one instead of {theirs}"
    return f"{later} epochs per experience instead of {theirs}"
