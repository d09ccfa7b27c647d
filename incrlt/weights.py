"""Where pretrained weights lie, and what they are known by: the hash of their bytes. Torch is not needed."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
from pathlib import Path
from typing import Final

from incrlt.errors import UserError, shown
from incrlt.words import size

CACHE: Final = "timm"
"""What stands in ``model.pretrained`` for the weights that timm has fetched before."""
PACKAGE: Final = "package:"
"""What begins the name of an installed package that ships weights."""
LARGEST: Final = 20 << 30
"""Bytes of a file of weights; those of a network of a thousand million parameters have four."""
SUFFIXES: Final = (".safetensors", ".pth", ".pt", ".bin")
"""Endings of files with weights."""


def located(pretrained: str) -> Path | None:
    """Return the file of weights; None where it lies in timm's cache, which timm alone can tell.

    Args:
        pretrained: A file, ``package:NAME`` or ``timm``.

    Raises:
        UserError: There is no such file or package, or not one file of weights in it.
    """
    if pretrained == CACHE:
        return None
    if pretrained.startswith(PACKAGE):
        return _in_package(pretrained.removeprefix(PACKAGE))
    path = Path(pretrained).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"model.pretrained {shown(pretrained)} is no file of weights: those end with {', '.join(SUFFIXES)}. Give "
            f"one, or {PACKAGE}NAME for an installed package that ships weights, or {CACHE} for timm's own cache."
        )
    if not path.is_file():
        raise UserError(f"model.pretrained: there is no file {path}. Say where the weights are.")
    if path.stat().st_size > LARGEST:
        raise UserError(
            f"model.pretrained: {path} has {size(path.stat().st_size)}, and at most {size(LARGEST)} are read. Give "
            "the weights of one network."
        )
    return path


def _in_package(name: str) -> Path:
    if re.fullmatch(r"[^\W\d]\w*", name) is None:
        raise UserError(
            f"model.pretrained names the package {shown(name)}; give its import name, without dots."
        )
    found = importlib.util.find_spec(name)
    if found is None:
        raise UserError(
            f"model.pretrained: the package {shown(name)} is not installed. Install it (pip install "
            f"{name.replace('_', '-')}), or give a file."
        )
    folders = [Path(place) for place in found.submodule_search_locations or ()]
    files = [
        file for place in folders for file in sorted(place.rglob("*")) if file.suffix.lower() in SUFFIXES
    ]
    if len(files) != 1:
        raise UserError(
            f"model.pretrained: the package {name} has {len(files)} files of weights, and one is wanted. Give the file "
            "itself."
        )
    return files[0]


@functools.lru_cache(maxsize=8)
def _digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex characters; computed once as long as it does not change."""
    about = path.stat()
    return _digest(path, about.st_size, about.st_mtime_ns)


def identity(pretrained: str) -> str:
    """Return what stands for weights where experiments are told apart: the hash of the file, wherever it lies.

    Weights that are not here stand for themselves by name: a run folder can be asked without them.
    """
    try:
        path = located(pretrained)
    except UserError:
        return pretrained
    return pretrained if path is None else f"sha256:{digest(path)}"
