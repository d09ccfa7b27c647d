"""Experiment files as plain mappings: read YAML safely, merge the ``base:`` file, apply overrides.

What the keys mean is the business of ``incrlt.experiment.schema``; this module only says what is wrong with a file as
a file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from incrlt.errors import UserError, cut, did_you_mean
from incrlt.experiment.explain import show
from incrlt.experiment.yamltext import parse
from incrlt.files import Plain

LARGEST_FILE: Final = 1_000_000
"""Bytes; an experiment file has a few hundred."""
LONGEST_PATH: Final = 1_000
"""Characters of a path in a message."""
MAX_BASES: Final = 2
"""A file may have a base, and that a base of its own; deeper chains hide where a value comes from."""

ALTERNATIVES: Final[dict[str, tuple[frozenset[str], ...]]] = {
    "benchmark": (frozenset({"protocol"}), frozenset({"base_classes", "increment", "order", "experiences"})),
    "memory": (frozenset({"per_class"}), frozenset({"total"})),
}
"""Keys that replace one another: a child that sets one of a group drops the base's keys of the others."""
NAMED: Final = frozenset({"strategy", "experts", "rebalance", "router"})
"""Sections that start afresh when ``name`` changes: hyper-parameters of another method mean nothing here."""

OVERRIDE: Final = re.compile(r"(?P<path>[A-Za-z_]\w*(\.[A-Za-z_]\w*)?)=(?P<value>.*)", re.DOTALL)


def read(path: str | Path) -> Plain:
    """Read an experiment file and its bases into one mapping; the key ``base`` is gone from it.

    Args:
        path: The file.

    Returns:
        Nested plain data, as YAML has it; nothing is checked but its being a mapping.

    Raises:
        UserError: One sentence on what is wrong with which file.
    """
    return _read_chain(Path(path), ())


def merge(base: Mapping[str, object], child: Mapping[str, object]) -> Plain:
    """Lay ``child`` over ``base``: sections key by key, everything else as a whole.

    A section whose ``name`` changes starts afresh, and of keys that replace one another (``per_class`` and
    ``total``) the child's win.

    Example:
        >>> merge({"training": {"epochs": 160, "lr": 0.1}}, {"training": {"epochs": 2}})
        {'training': {'epochs': 2, 'lr': 0.1}}
    """
    merged = dict(base)
    for section, values in child.items():
        old = merged.get(section)
        if isinstance(values, dict) and isinstance(old, dict):
            merged[section] = _merge_section(section, old, values)
        else:
            merged[section] = values
    return merged


def leaves(settings: Mapping[Any, object], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of nested settings with its name, ``section.key``.

    Example:
        >>> dict(leaves({"training": {"lr": 0.1, "milestones": [3, 5]}, "memory": None}))
        {'training.lr': 0.1, 'training.milestones': [3, 5], 'memory': None}
    """
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def overrides(pairs: Sequence[str]) -> Plain:
    """Turn ``section.key=value`` into a mapping to be merged over a file; values are YAML.

    Raises:
        UserError: A pair is not of that form, or its value is not YAML.

    Example:
        >>> overrides(["training.epochs=2", "strategy={name: icarl}"])
        {'training': {'epochs': 2}, 'strategy': {'name': 'icarl'}}
    """
    given: Plain = {}
    for pair in pairs:
        match = OVERRIDE.fullmatch(pair)
        if match is None or match["path"] == "base":
            raise UserError(
                f"the override {cut(repr(pair), 200)} is not of the form section.key=value; "
                "write, for example, training.epochs=2"
            )
        section, _, key = match["path"].partition(".")
        value = parse(match["value"], f"the value of the override {cut(repr(pair), 200)}")
        if not key:
            given[section] = value
        else:
            earlier = given.get(section)
            given[section] = {**(earlier if isinstance(earlier, dict) else {}), key: value}
    return given


def _merge_section(section: str, old: Plain, new: Plain) -> Plain:
    if section in NAMED and "name" in new and new["name"] != old.get("name"):
        return dict(new)
    dropped: set[str] = set()
    for group in ALTERNATIVES.get(section, ()):
        if group & new.keys():
            dropped |= set().union(*ALTERNATIVES[section]) - group
    return {**{key: value for key, value in old.items() if key not in dropped}, **new}


def _read_chain(path: Path, children: tuple[Path, ...]) -> Plain:
    """Read a file over its base; ``children`` are the files that led here."""
    content = _read_one(path)
    if "base" not in content:
        return content
    base = _base_of(path, content.pop("base"))
    chain = (*children, path)
    if os.path.realpath(base) in map(os.path.realpath, chain):
        raise UserError(
            f"{path}: 'base: {base.name}' leads back to a file that is built on it. Remove one base."
        )
    if len(chain) > MAX_BASES:
        names = " -> ".join(file.name for file in (*chain, base))
        raise UserError(f"{chain[0]} has more than {MAX_BASES} bases in a row: {names}. Merge two of them.")
    return merge(_read_chain(base, chain), content)


def _base_of(path: Path, given: object) -> Path:
    if not isinstance(given, str) or not is_path(given) or Path(given).is_absolute():
        raise UserError(
            f"{path}: 'base' must be the path of one YAML file, relative to this file; got {show(given)}."
        )
    return path.parent / given


def is_path(given: str) -> bool:
    """Say whether a file can have a path."""
    try:
        os.fsencode(given)  # "\ud800" is YAML, but no file can have that name
    except UnicodeEncodeError:
        return False
    return bool(given.strip()) and "\0" not in given


def _read_one(path: Path) -> Plain:
    content = parse(text_of(path), str(path))
    if content is None:
        raise UserError(f"{path} is empty. Start from a file in experiments/.")
    if not isinstance(content, dict):
        raise UserError(
            f"{path} must hold a mapping of sections (benchmark: ..., strategy: ...); "
            f"it holds {_kind(content)}."
        )
    return content


def text_of(path: Path) -> str:
    """Return the text of a YAML file that somebody wrote.

    Raises:
        UserError: It is not there, no ordinary file, larger than anybody would write, or no UTF-8.
    """
    shown = cut(repr(str(path)), LONGEST_PATH)
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; give one of the YAML files in it{_listing(path)}.")
        if not path.exists():
            raise UserError(f"{path} does not exist.{_similar(path)}")
        if not path.is_file():
            raise UserError(f"{path} is not a regular file; give a YAML file.")
        data = path.read_bytes() if path.stat().st_size <= LARGEST_FILE else None
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shown} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if data is None:
        raise UserError(f"{path} is larger than {LARGEST_FILE} bytes; that is no experiment file.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start} is {data[error.start]:#04x}). Save it as UTF-8."
        ) from error


def _similar(path: Path) -> str:
    folder = path.parent
    names = sorted(file.name for file in folder.glob("*.yaml")) if folder.is_dir() else []
    return did_you_mean(path.name, names) or " Check the path."


def _listing(folder: Path) -> str:
    names = sorted(file.name for file in folder.glob("*.yaml"))
    return f": {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else ""


def _kind(value: object) -> str:
    return {"list": "a list", "str": "text"}.get(type(value).__name__, f"the single value {show(value)}")
