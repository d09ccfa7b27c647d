"""The JSON schema of experiment files, for editors: every key, default, range and meaning."""

from __future__ import annotations

from incrlt.experiment import methods
from incrlt.experiment.methods import KINDS, Kind
from incrlt.experiment.sections import Experiment
from incrlt.files import Plain


def json_schema() -> Plain:
    """Return the JSON schema of an experiment file, with every method's hyper-parameters."""
    document = Experiment.model_json_schema()
    for kind in KINDS:
        described = document["properties"][kind].get("description", "")
        choices: list[Plain] = [_entry_schema(kind, name) for name in methods.names(kind)]
        choices.append(_external_schema())
        if kind in ("rebalance", "router"):
            choices.append({"type": "null"})
        document["properties"][kind] = {"description": described, "anyOf": choices}
    document["$defs"].pop("Entry", None)
    document["required"] = []  # what a file leaves out may stand in its base
    base = {
        "type": "string",
        "description": "Another experiment file, relative to this one, that this one changes.",
    }
    document["properties"] = {"base": base, **document["properties"]}
    return document


def _entry_schema(kind: Kind, name: str) -> Plain:
    entry = methods.schema(kind, name).model_json_schema()
    entry["properties"]["name"] = {"const": name}
    return entry


def _external_schema() -> Plain:
    name = {"type": "string", "pattern": ":", "description": "my_pkg.my_mod:MyClass"}
    return {"type": "object", "properties": {"name": name}, "required": ["name"]}
