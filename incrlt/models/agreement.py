"""Whether a saved state belongs to this network, where names and shapes of its tensors do not tell."""

from __future__ import annotations

import json
from typing import Any

from incrlt.errors import UserError
from incrlt.files import Plain


def classes_of(class_ids: Any) -> list[int]:
    """Return the classes that a state names.

    Raises:
        UserError: They are no distinct label ids.
    """
    whole = isinstance(class_ids, list) and all(type(label) is int and label >= 0 for label in class_ids)
    if not whole or len(set(class_ids)) != len(class_ids):
        raise UserError("the state of this network is damaged: its classes are not distinct label ids.")
    return list(class_ids)


def check_architecture(saved: Plain | None, own: Plain) -> None:
    """Refuse what would load without a word and answer something else; other differences show in names and shapes.

    Args:
        saved: Arguments of :func:`incrlt.models.build` that made the saved network; empty where none did.
        own: Those of this network.

    Raises:
        UserError: They differ.
    """
    if not saved or not own:  # put together by hand
        return
    theirs, ours = _silent(saved), _silent(own)
    for name in theirs:
        # by way of JSON, which knows no tuples
        if _text(theirs[name]) != _text(ours[name]):
            raise UserError(
                f"the state is of another network: it has {name} {theirs[name]!r}, this one {ours[name]!r}. Build the "
                "network it was saved with."
            )


def written(architecture: Plain) -> Plain:
    """Return an architecture as checkpoints hold it: older code reads those where no method combines its own way."""
    layout = dict(architecture.get("layout") or {})
    if "combination" not in layout or layout["combination"] is not None:
        return architecture
    del layout["combination"]
    return {**architecture, "layout": layout}


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _silent(architecture: Plain) -> Plain:
    name = str(architecture.get("name"))
    return {
        "name": name if ":" in name else "of the package",  # a backbone of the user's own may be anything
        "last_relu": architecture.get("last_relu"),
        "layout.combination": (architecture.get("layout") or {}).get("combination"),
    }
