"""Files that are either whole or not there: write beside, flush to disk, rename."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from incrlt.errors import UserError


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
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # the rename must not reach the disk before the bytes do
        os.replace(beside, path)
        _sync_folder(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror or error}. "
            "Free some space or choose another folder with --out."
        ) from error
    return path


def _sync_folder(folder: Path) -> None:
    """Bring the rename itself to the disk; file systems that cannot do it for a folder do without."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
