"""Files that are either whole or not there: write beside, flush to disk, rename. And reading with limits."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from incrlt.errors import UserError

Plain = dict[str, Any]
"""Data as YAML and JSON have them, by name; whoever reads a value checks what it is."""

LEFTOVER = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")
"""Names of the files that an interrupted :func:`write_atomic` leaves; another program's files have other names."""
LARGEST_JSON: Final = 20_000_000
"""Bytes of a JSON file of ours: far above what any holds, and read within a second."""
LARGEST_LOG: Final = 200_000_000
"""Bytes of a log; ten times what the largest runs write."""
LARGEST_LIST: Final = 1_000_000_000
"""Bytes of a list of pictures; that of iNaturalist 2018, as JSON, has two hundred million."""
MOST_LISTED: Final = 20_000_000
"""Lines of a list of pictures; ImageNet-21k has fourteen million."""
LARGEST_PICTURE: Final = 1_000_000_000
"""Bytes of a picture's file: more than those of the most pixels that are decoded, however they are stored."""
SHOWN_OF_NAME = 40
"""Letters of a file's name that stand in the name beside it: with them whole, a long name would become too long."""


def cache_folder(kind: str) -> Path:
    """Return the folder of a user's files that can be made again: ``INCRLT_CACHE``, else ``incrlt`` among all caches.

    Args:
        kind: Its own folder in there, such as ``pictures``.
    """
    own, above = os.environ.get("INCRLT_CACHE"), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own or f"{above}/incrlt").expanduser() / kind


def write_atomic(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write ``content`` to ``path`` so that a reader sees the old file or the new one, never a part.

    Args:
        path: Target file; its folder must exist.
        content: Text is written as UTF-8; what UTF-8 cannot hold, as half a character, becomes a question mark.

    Returns:
        The path written.

    Raises:
        UserError: The disk is full or the folder cannot be written to.
    """
    path = Path(path)
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    beside = path.with_name(f".{path.name[:SHOWN_OF_NAME]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # the rename must not reach the disk before the bytes do
        os.replace(beside, path)
        sync(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}. "
            "Free some space or choose another folder with --out."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it is gone, or the disk that failed to write fails to delete too
            beside.unlink()
    return path


def sync(path: Path) -> None:
    """Bring to the disk what was written to a file, or the renames in a folder.

    File systems that cannot do it for a folder do without.
    """
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Delete what interrupted writes left in a folder; what cannot be deleted stays and does no harm."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            if LEFTOVER.fullmatch(path.name):
                path.unlink(missing_ok=True)


def read_text(path: str | os.PathLike[str], most: int, errors: str = "strict") -> str:
    """Return the text of an ordinary file of at most ``most`` bytes.

    Args:
        path: The file.
        most: Bytes.
        errors: As for :meth:`bytes.decode`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no UTF-8, no ordinary file (a pipe would be waited for), or too large.
    """
    return read_bytes(path, most).decode("utf-8", errors)


def git_blob(size: int) -> hashlib._Hash:
    """Return what becomes git's id of a file of ``size`` bytes, once it has hashed them."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def read_lines(path: str | os.PathLike[str], most: int, lines: int) -> list[str]:
    """Return the lines of an ordinary text file, without their ends.

    Raises:
        As :func:`read_listing`.
    """
    return [line.rstrip("\n") for line in io.StringIO(read_listing(path, most, lines), newline=None)]


def read_listing(path: str | os.PathLike[str], most: int, lines: int) -> str:
    """Return the text of an ordinary file of lines, each of which becomes some hundred bytes of objects.

    Raises:
        OSError: It cannot be read.
        ValueError: As for :func:`read_text`; or it has more lines than ``lines``.
    """
    text = read_text(path, most).removeprefix("\ufeff")
    if text.count("\n") + text.count("\r") > lines:
        raise ValueError(f"it has more than {lines:,} lines")
    return text


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """Return the content of an ordinary file of at most ``most`` bytes.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no ordinary file, or too large, which is known before it is read.
    """
    with ordinary(path) as file:
        large = os.fstat(file.fileno()).st_size > most
        content = b"" if large else file.read(most + 1)  # of some files, the size is told as 0
    if large or len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return content


@contextlib.contextmanager
def ordinary(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open an ordinary file for reading; a pipe is not waited for.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no ordinary file.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no ordinary file")
        yield file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_json(path: str | os.PathLike[str], most: int = LARGEST_JSON) -> Any:
    """Return what a JSON file holds.

    Raises:
        OSError: It cannot be read.
        ValueError: As for :func:`read_text`; or it is no JSON, or nested too deeply.
    """
    return parsed_json(read_text(path, most))


def parsed_json(text: str) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: It is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def event_of(line: str) -> Plain | None:
    """Return what a line of a log says; None where it is damaged, or the last one of a run that is writing."""
    try:
        event = parsed_json(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
