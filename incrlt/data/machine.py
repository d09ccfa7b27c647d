"""How much memory there is for this process: the machine's, or less where a container says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def memory_bytes(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that this process may use; None where the system does not tell.

    Args:
        root: Where ``proc`` and ``sys`` are looked for.
    """
    found = [limit for limit in (_physical(), *_container_limits(root)) if limit is not None]
    return min(found, default=None)


def _physical() -> int | None:
    if not hasattr(os, "sysconf"):  # Windows
        return None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # the name is not known here
        return None


def _container_limits(root: Path) -> Iterator[int]:
    """Yield the limits of this process's control groups and of those around them, versions 1 and 2."""
    for folder, name in _control_groups(root):
        for place in (folder, *folder.parents):
            limit = _read(place / name)
            if limit is not None:
                yield limit
            if place == root:
                break


def _control_groups(root: Path) -> Iterator[tuple[Path, str]]:
    groups = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        inside = path.strip().lstrip("/")
        if ".." in Path(inside).parts:  # outside of what the container sees
            inside = ""
        if controllers == "":
            yield groups / inside, "memory.max"
        elif "memory" in controllers.split(","):
            yield groups / "memory" / inside, "memory.limit_in_bytes"


def _read(path: Path) -> int | None:
    """Return a limit; None where there is none: no file, the word ``max``, or version 1's very large number."""
    try:
        text = path.read_text(encoding="ascii").strip()
        return int(text) if 0 < int(text) < 1 << 60 else None
    except (OSError, ValueError):
        return None
