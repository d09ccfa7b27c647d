"""What must agree before a run goes on: the checkpoint with the experiment, the folder with its manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypedDict

import yaml

from incrlt import manifest
from incrlt.errors import UserError
from incrlt.experiment.sections import DOES_NOT_CHANGE_RESULTS, Experiment
from incrlt.experiment.yamlfile import leaves
from incrlt.experiment.yamltext import BROKEN
from incrlt.files import read_json, read_text
from incrlt.manifest import Manifest
from incrlt.metrics.routing import SWEEP_FILE
from incrlt.words import counted

SAME_ROUNDING: Final = (
    "incrlt", "python", "torch", "torchvision", "avalanche", "numpy", "device", "gpu", "processor", "threads",
    "precision",
)  # fmt: skip
"""Facts of the environment that may change the last digits of a number, and with them everything after."""
WRITTEN_AGAIN: Final = frozenset(
    {
        "confusions.npz", "evaluations.npz", "classes.json", "results.json", "results.csv", "per_class.csv",
        "routing.csv", "routing_sweep.csv", "published.txt", "cost.json",
    }
)  # fmt: skip
"""Files written anew at the end of each experience: a kill between them and the commit is no damage."""
SHOWN: Final = 4
"""Differences that a sentence names."""
VERSIONS: Final = "versions"
"""Folder of the versions that ``incrlt update`` makes of a run."""
LARGEST: Final = 1_000_000
"""Bytes of the largest configuration or environment that is read."""


class Binding(TypedDict):
    """What a checkpoint says of the run it belongs to: hashes, and the values that are told where they differ."""

    config: str
    protocol: str
    values: dict[str, object]


def binding(experiment: Experiment, protocol_hash: str) -> Binding:
    """Return what a checkpoint says of the run it belongs to, as plain data."""
    return {"config": experiment.hash(), "protocol": protocol_hash, "values": experiment.resolved()}


def check_same_run(saved: Mapping[str, object], own: Binding, path: Path) -> None:
    """Refuse a checkpoint of another run.

    Args:
        saved: Content of the checkpoint; those of older versions do not say what they belong to, and pass.
        own: :func:`binding` of the run that goes on.
        path: The checkpoint's file.

    Raises:
        UserError: Another seed, learning rate, protocol, ...
    """
    theirs = saved.get("run")
    if not isinstance(theirs, Mapping):
        return
    if (theirs.get("config"), theirs.get("protocol")) == (own["config"], own["protocol"]):
        return
    values = theirs.get("values")
    found = what_differs(values if isinstance(values, Mapping) else {}, own["values"])
    more = "" if len(found) <= SHOWN else f" and {len(found) - SHOWN} more"
    which = ", ".join(found[:SHOWN]) + more or "its images are others"
    raise UserError(
        f"checkpoint {path} is of another run: {which}. Put it back where it was, or start this run anew with "
        "--restart."
    )


def what_differs(theirs: Mapping[str, object], ours: Mapping[str, object]) -> list[str]:
    """Return a phrase for each value that changes results and differs.

    Args:
        theirs: Nested values, as :meth:`~incrlt.experiment.sections.Experiment.resolved` gives them.
        ours: The same of this run.

    Example:
        >>> what_differs({"training": {"lr": 0.1, "threads": 1}}, {"training": {"lr": 0.2, "threads": 2}})
        ['training.lr is 0.1 there and 0.2 here']
    """
    left, right = _of_results(theirs), _of_results(ours)
    keys = [key for key in {**left, **right} if left.get(key) != right.get(key)]
    return [f"{key} is {_shown(left, key)} there and {_shown(right, key)} here" for key in keys]


def _of_results(values: Mapping[str, object]) -> dict[str, object]:
    kept: dict[str, object] = {}
    for name, value in leaves(values):
        section, _, key = name.partition(".")
        passed = DOES_NOT_CHANGE_RESULTS.get(section, frozenset())
        if passed is not None and key.split(".")[0] not in passed:
            kept[name] = list(value) if isinstance(value, tuple) else value
    return kept


def _shown(values: Mapping[str, object], key: str) -> str:
    return repr(values[key])[:60] if key in values else "not set"


def check_no_versions(folder: Path) -> None:
    """Refuse to begin a run anew that versions were made from: they would stand beside another parent.

    Raises:
        UserError: There are versions.
    """
    found = sorted(path.name for path in (folder / VERSIONS).glob("[0-9]*") if path.is_dir())
    if found:
        raise UserError(
            f"{folder} has been updated ({counted(len(found), 'version')} in {VERSIONS}/), and running it anew would "
            f"take their parent away. Choose another folder with --out, or delete {folder / VERSIONS}."
        )


def is_own_config(folder: Path, experiment: Experiment) -> bool:
    """Tell whether ``config.yaml`` says what this run does; paths, device and threads may be others."""
    try:
        text = read_text(folder / "config.yaml", LARGEST)
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            return False  # we write none, and a few can stand for more values than time allows
        content = yaml.safe_load(text)
        return isinstance(content, dict) and not what_differs(content, experiment.resolved())
    except (OSError, *BROKEN):
        return False


def is_own_protocol(folder: Path, description: Mapping[str, object]) -> bool:
    """Tell whether ``protocol.json`` is the protocol of this run on its data."""
    found = read_mapping(folder / "protocol.json")
    return bool(found == json.loads(json.dumps(description)))


def read_mapping(path: Path) -> dict[str, Any]:
    """Return a mapping in a small JSON file, {} where there is none or it is damaged."""
    try:
        content = read_json(path, LARGEST)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def look_at(folder: Path) -> tuple[Manifest | None, list[str]]:
    """Return the manifest of a run that goes on and what differs from it, a sentence each without full stop.

    Left out are files that the run writes again anyway, and checkpoints, whose names say what they hold.
    """
    try:
        found = manifest.read(folder)
    except UserError as error:
        return None, [str(error)]
    if found is None:
        return None, []
    names = [
        name for name in found.files if name not in WRITTEN_AGAIN and not name.startswith("checkpoints/")
    ]
    return found, found.differences(folder, names)


def sweep_differs(folder: Path, found: Manifest | None) -> list[str]:
    """Return a sentence if the router's sweep is not what was written: a run with nothing left to do has no new one."""
    return [] if found is None else found.differences(folder, [SWEEP_FILE])


def names_checkpoints(folder: Path) -> bool:
    """Tell whether the manifest names checkpoints, whether or not they are there."""
    try:
        found = manifest.read(folder)
    except UserError:
        return False
    return found is not None and any(name.startswith("checkpoints/") for name in found.files)


def other_machine(first: Mapping[str, object], now: Mapping[str, object]) -> str | None:
    """Say what of the environment differs from the run's beginning and may change rounding, or None.

    Example:
        >>> other_machine({"torch": "2.11.0", "threads": 1}, {"torch": "2.12.0", "threads": 1})
        'torch was 2.11.0 and is 2.12.0'
    """
    found = [
        f"{name} was {first[name]} and is {now[name]}"
        for name in SAME_ROUNDING
        if name in first and name in now and first[name] != now[name]
    ]
    return ", ".join(found) or None
