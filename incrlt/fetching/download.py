"""Downloads that go on where they stopped and are there only when their checksum is right.

What has come so far is ``NAME.part``; a later call asks the server for the rest (HTTP Range). The part becomes ``NAME``
by renaming, after its checksum. Nothing that a server sends is trusted: not its length, not its status.
"""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

import incrlt
from incrlt.errors import UserError, short
from incrlt.fetching.checksums import BLOCK, Progress, matches, silent
from incrlt.fetching.sources import SLACK, Source
from incrlt.files import sync
from incrlt.words import size as bytes_of

TRIES: Final = 4
"""Attempts in a row in which nothing came; then the rest is left to a later call."""
TIMEOUT: Final = 60.0
"""Seconds without a byte after which a connection is given up."""
PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that may be others in a moment."""


class _AgainError(Exception):
    """This attempt failed in a way that another may not; the message says why, without a full stop."""


def fetch(
    source: Source, folder: Path, progress: Progress = silent, pause: Callable[[float], None] = time.sleep
) -> Path:
    """Return the file of a source, downloaded where it is not there yet.

    Args:
        source: What.
        folder: Where downloads lie; must exist. A file of the right name that was put there by hand is taken.
        progress: Told how far it is.
        pause: Waits some seconds between attempts; a test's own does not.

    Raises:
        UserError: No network, another file than the known one, no room: with what was got so far and what to do.
    """
    target, part = folder / source.name, folder / f"{source.name}.part"
    if target.exists():
        if matches(target, source.checksum, progress):
            return target
        raise UserError(
            f"{target} is damaged or another file ({source.checksum} is the checksum of {source.whence}); remove it, "
            "or put the right one there."
        )
    begun = part.exists()
    _receive(source, part, progress, pause)
    right = matches(part, source.checksum, progress)
    if begun and not right:  # perhaps it went on from the beginning of another file
        part.unlink()
        _receive(source, part, progress, pause)
        right = matches(part, source.checksum, progress)
    if not right:
        part.unlink()
        raise UserError(
            f"{source.url} gives another file than the known one ({source.checksum} is the checksum of "
            f"{source.whence}); it was not kept. Try later, or get {source.name} elsewhere and put it at {target}."
        )
    sync(part)
    os.replace(part, target)
    sync(folder)
    return target


def got(source: Source, folder: Path) -> int:
    """Return the bytes of a source that are in the folder of downloads."""
    for name in (source.name, f"{source.name}.part"):
        if (folder / name).is_file():
            return (folder / name).stat().st_size
    return 0


def _receive(source: Source, part: Path, progress: Progress, pause: Callable[[float], None]) -> None:
    """Bring ``part`` to its full length, in as many attempts as bring something."""
    failures = 0
    while True:
        before = _length(part)
        try:
            _attempt(source, part, progress)
            return
        except _AgainError as error:
            problem = str(error)
        failures = 0 if _length(part) > before else failures + 1
        if failures == TRIES:
            raise UserError(
                f"{source.url} could not be fetched: {problem}. {bytes_of(_length(part))} of about "
                f"{bytes_of(source.size)} are in {part}, and the same command goes on from there. Without network "
                f"here, get it on another machine by --pack, or put the file at {part.with_suffix('')}."
            )
        pause(2.0**failures)


def _attempt(source: Source, part: Path, progress: Progress) -> None:
    """Ask for what is missing and append it."""
    start = _length(part)
    headers = {"User-Agent": f"incrlt/{incrlt.__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(source.url, headers=headers), timeout=TIMEOUT
        ) as answer:
            _take(source, part, start, answer, progress)
    except urllib.error.HTTPError as error:
        _refused(source, part, start, error)
    except (OSError, http.client.HTTPException) as error:
        raise _AgainError(short(getattr(error, "reason", None) or error)) from error


def _take(source: Source, part: Path, start: int, answer: Any, progress: Progress) -> None:
    """Write what a server sends: to the end of the part, or over it where the server sends all."""
    rest = answer.status == http.HTTPStatus.PARTIAL_CONTENT
    if rest and not str(answer.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
        raise _AgainError("the server sent another range than the one that was asked for")
    done = start if rest else 0
    whole = None if answer.length is None else done + answer.length
    _check_length(source, whole)
    if not rest and whole is not None and whole < start:  # such as the page of a hotel's network
        raise _AgainError(f"the server sent {bytes_of(whole)}, less than is here already")
    with _opened(part, "ab" if rest else "wb") as file:
        while block := answer.read(BLOCK):
            done += len(block)
            _check_length(source, done)
            _write(file, block, part)
            progress(source.name, done, whole or source.size)
    if whole is not None and done < whole:
        raise _AgainError(f"the connection ended after {bytes_of(done)} of {bytes_of(whole)}")


def _check_length(source: Source, length: int | None) -> None:
    if length is not None and length > SLACK * source.size:
        raise UserError(
            f"{source.url} has {bytes_of(length)} or more, and about {bytes_of(source.size)} are known: another file. "
            f"Get {source.name} elsewhere."
        )


def _refused(source: Source, part: Path, start: int, error: urllib.error.HTTPError) -> None:
    """Say what a status of refusal means; nothing after the end of a whole part is no failure."""
    if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
        if str(error.headers.get("Content-Range", "")) != f"bytes */{start}":
            part.unlink()  # longer than the file is
            raise _AgainError("what was here was longer than the file") from error
        return
    if error.code in PASSING:
        raise _AgainError(f"the server said {error.code} {error.reason}") from error
    raise UserError(
        f"{source.url} could not be fetched: the server said {error.code} {error.reason}. Get {source.name} elsewhere "
        f"and put it at {part.with_suffix('')}; the same command goes on with it."
    ) from error


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _opened(part: Path, mode: str) -> BinaryIO:
    try:
        return open(part, mode)  # type: ignore[return-value]
    except OSError as error:
        raise UserError(f"cannot write {part}: {error.strerror or error}; choose another --data.") from error


def _write(file: BinaryIO, block: bytes, part: Path) -> None:
    """Write a block; a full disk is no fault of the network."""
    try:
        file.write(block)
    except OSError as error:
        raise UserError(
            f"cannot write {part}: {error.strerror or error}. Free some space; the same command goes on from there."
        ) from error
