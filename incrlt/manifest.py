"""``manifest.json``: size and hash of every file of a run folder, bound to what was run.

A run renews it at each commit point. Whoever reads a run folder asks it what differs: a flipped bit, a log that has
lost its end, a file of another run. Folders of versions before it have none, and nothing is said about them.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from incrlt.errors import UserError
from incrlt.files import Plain, read_json, sync, write_atomic

FILE: Final = "manifest.json"
FORMAT: Final = 1
LARGEST: Final = 10_000_000
"""Bytes of the largest manifest that is read; an ordinary one has a few thousand."""
GROWING: Final = ("log.jsonl", "tensorboard/")
"""Files that are appended to; a manifest speaks of what they held at its commit."""
LEFT_OUT: Final = frozenset({FILE, "report.html", "DONE"})
"""Files that are written after the last commit, or again by whoever likes."""
CHUNK: Final = 1 << 22
"""Bytes hashed at a time."""


@dataclass(frozen=True)
class FileEntry:
    """What a file held at the commit."""

    size: int
    """Bytes."""
    sha256: str
    """Of these bytes, 64 hex characters."""


@dataclass(frozen=True)
class Manifest:
    """What a run folder held at its last commit."""

    config: str
    """Hash of the experiment, :meth:`incrlt.experiment.sections.Experiment.hash`."""
    protocol: str
    """Hash of the protocol on its data."""
    finished: bool = False
    commit: Mapping[str, Any] = field(default_factory=dict)
    """Number and time of the commit, and how many times the run had gone on by then."""
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    """By path inside the folder, with slashes."""
    noticed: tuple[str, ...] = ()
    """What differed whenever the run went on, a sentence each."""

    def differences(self, folder: Path, names: Iterable[str] | None = None) -> list[str]:
        """Return a sentence for each file that is not what was written, without its full stop.

        Args:
            folder: The run folder.
            names: Files to look at; all of the manifest by default.
        """
        wanted = self.files if names is None else [name for name in names if name in self.files]
        found = {
            name: _difference(folder / name, self.files[name], self._may_be_longer(name)) for name in wanted
        }
        return [f"{name} {reason}" for name, reason in sorted(found.items()) if reason]

    def _may_be_longer(self, name: str) -> bool:
        return name.startswith(GROWING) and not self.finished


def read(folder: Path) -> Manifest | None:
    """Return the manifest of a run folder; None where there is none, as in folders of older versions.

    Raises:
        UserError: It is damaged.
    """
    path = folder / FILE
    if not os.path.lexists(path):
        return None
    try:
        content = read_json(path, LARGEST)
        if content["format"] != FORMAT:
            raise ValueError(f"it has format {str(content['format'])[:20]}, this version reads {FORMAT}")
        if content.pop("sha256") != _seal(content):
            raise ValueError("its content is not what was written")
        return _parsed(content)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[:1]
        text = "".join(reason or "")[:200]
        raise UserError(
            f"{FILE} is damaged ({text}): nothing says whether the other files are whole"
        ) from error


def _parsed(content: Plain) -> Manifest:
    files = {}
    for name, (size, sha256) in content["files"].items():
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or type(size) is not int:
            raise ValueError("it names a file outside the folder")
        files[name] = FileEntry(size, str(sha256))
    return Manifest(
        config=str(content["config"]),
        protocol=str(content["protocol"]),
        finished=bool(content["finished"]),
        commit=dict(content["commit"]),
        files=files,
        noticed=tuple(str(sentence)[:500] for sentence in content["noticed"]),
    )


def _seal(content: Mapping[str, object]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _difference(path: Path, entry: FileEntry, may_be_longer: bool) -> str | None:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return "differs from its manifest: it is no file"
        if found.st_size < entry.size or (found.st_size > entry.size and not may_be_longer):
            return f"differs from its manifest: it has {found.st_size:,} bytes, {entry.size:,} were written"
        if _hashed(path, entry.size).hexdigest() != entry.sha256:
            return "differs from its manifest: its content is not what was written"
    except FileNotFoundError:
        return "differs from its manifest: it is missing"
    except OSError as error:
        return f"differs from its manifest: it cannot be read ({error.strerror})"
    return None


def _hashed(path: Path, size: int, begun: Any = None, start: int = 0) -> Any:
    """Return the hash of the bytes up to ``size``, going on from ``begun``, the hash of those before ``start``."""
    hasher = hashlib.sha256() if begun is None else begun
    with open(path, "rb") as file:
        file.seek(start)
        left = size - start
        while left > 0 and (chunk := file.read(min(CHUNK, left))):
            hasher.update(chunk)
            left -= len(chunk)
    return hasher


class Keeper:
    """Keeps the manifest of a run folder while the run writes to it.

    A file is hashed when it has changed since the last look, and one that grows goes on from where it was: what is
    damaged meanwhile on the disk is not taken for what was written.

    Args:
        folder: The run folder.
        config: Hash of the experiment.
        protocol: Hash of the protocol.
        clock: Seconds since 1970; a test's own.
    """

    def __init__(
        self, folder: Path, config: str, protocol: str, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder, self.config, self.protocol, self._clock = folder, config, protocol, clock
        self._entries: dict[str, FileEntry] = {}
        self._marks: dict[str, tuple[int, ...]] = {}
        self._growing: dict[str, tuple[object, int]] = {}
        self._noticed: tuple[str, ...] = ()
        self._number = 0

    def take_over(self, manifest: Manifest) -> None:
        """Go on from the manifest of the run so far: what is not written from now on keeps its entry."""
        self._entries = dict(manifest.files)
        self._noticed = manifest.noticed
        self._number = int(manifest.commit.get("number", 0))
        self._marks = {name: mark for name, mark in _marks(self.folder) if name in self._entries}

    def notice(self, sentences: Iterable[str]) -> None:
        """Remember what differed when the run went on; each sentence once."""
        self._noticed = tuple(dict.fromkeys([*self._noticed, *sentences]))

    def sync(self) -> None:
        """Bring to the disk what was appended, before a checkpoint says that it is there."""
        for name, _ in _marks(self.folder):
            if name.startswith(GROWING):
                sync(self.folder / name)

    def renew(self, finished: bool = False, **about: object) -> None:
        """Write the manifest of what is there now: the commit point.

        Args:
            finished: Nothing will be appended any more.
            about: What else the commit says of itself.

        Raises:
            UserError: The folder cannot be written to.
        """
        marks = dict(_marks(self.folder))
        for name, mark in marks.items():
            if self._marks.get(name) != mark:
                self._entries[name] = self._measured(name, mark[0])
        for name in [name for name in self._entries if name not in marks and "/" in name]:
            del self._entries[name]  # an old checkpoint; a file of the run itself would be missed
        self._marks = marks
        self._number += 1
        content = {
            "format": FORMAT,
            "config": self.config,
            "protocol": self.protocol,
            "finished": finished,
            "commit": {"number": self._number, "time": self._clock(), **about},
            "files": {name: [entry.size, entry.sha256] for name, entry in sorted(self._entries.items())},
            "noticed": list(self._noticed),
        }
        write_atomic(self.folder / FILE, json.dumps({**content, "sha256": _seal(content)}, indent=1) + "\n")

    def _measured(self, name: str, size: int) -> FileEntry:
        path = self.folder / name
        try:
            if not name.startswith(GROWING):
                return FileEntry(size, _hashed(path, size).hexdigest())
            hasher, start = self._growing.get(name, (None, 0))
            if start > size:  # it was cut back
                hasher, start = None, 0
            hasher = _hashed(path, size, hasher, start)
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {error.strerror}. See that the disk is well, then run the same command again."
            ) from error
        self._growing[name] = (hasher, size)
        return FileEntry(size, hasher.hexdigest())


def _marks(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield each file of a run, two folders deep at most, with its size, time of change and number on the disk."""
    for pattern in ("*", "*/*", "*/*/*"):
        for path in sorted(folder.glob(pattern)):
            name = path.relative_to(folder).as_posix()
            if (
                name in LEFT_OUT
                or "/damaged/" in name
                or any(part.startswith(".") for part in name.split("/"))
            ):
                continue
            try:
                found = path.stat()
            except OSError:  # gone since it was listed, or a dangling link
                continue
            if stat.S_ISREG(found.st_mode):
                yield name, (found.st_size, found.st_mtime_ns, found.st_ino)
