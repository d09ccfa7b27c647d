"""Checksums of files of any length, read once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from incrlt.errors import UserError
from incrlt.files import git_blob

BLOCK: Final = 1 << 20
"""Bytes read at a time."""

Progress = Callable[[str, int, int], None]
"""Called with what is going on, the bytes done, and the bytes there are."""


def silent(what: str, done: int, number: int) -> None:
    """Tell nobody: a progress that is not wanted."""


def matches(file: Path, checksum: str, progress: Progress = silent) -> bool:
    """Say whether a file has a checksum.

    Args:
        file: The file.
        checksum: ``md5:``, ``sha256:`` or ``blob:`` and hexadecimal digits.
        progress: Told how far it is.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        with open(file, "rb") as opened:
            return stream_matches(opened, file.stat().st_size, file.name, checksum, progress)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}); see its permissions.") from error


def stream_matches(
    stream: BinaryIO, size: int, name: str, checksum: str, progress: Progress = silent
) -> bool:
    """Say whether the rest of an open file has a checksum.

    Args:
        stream: What is read to its end.
        size: Bytes it should have; git's id begins with them.
        name: For the progress.
        checksum: As for :func:`matches`.
        progress: Told how far it is.
    """
    kind, value = checksum.split(":")
    digest = git_blob(size) if kind == "blob" else hashlib.new(kind, usedforsecurity=False)
    done = 0
    while block := stream.read(BLOCK):
        digest.update(block)
        done += len(block)
        progress(f"checking {name}", done, size)
    return done == size and digest.hexdigest() == value
