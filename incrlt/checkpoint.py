"""Checkpoints that are whole or refused: the name carries the content's digest, and the one before is kept.

A checkpoint holds tensors and plain data only and is read with ``weights_only=True``: loading it runs no code.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from incrlt.errors import UserError
from incrlt.files import write_atomic

KEPT = 2
"""Checkpoints that stay on disk: the newest, and one to fall back to when it is damaged."""


class CheckpointFolder:
    """Numbered checkpoints ``<number>-<digest>.pt`` in a folder.

    Args:
        folder: Made when the first checkpoint is saved.

    Attributes:
        damaged: Names of files that :meth:`newest` refused, newest first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: list[str] = []

    def save(self, state: dict[str, Any]) -> Path:
        """Write a checkpoint and delete all but the last :data:`KEPT`.

        Raises:
            UserError: The disk is full or the folder cannot be written to.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        files = self._files()
        number = int(files[-1].name.split("-")[0]) + 1 if files else 0
        self.folder.mkdir(parents=True, exist_ok=True)
        path = write_atomic(self.folder / f"{number:08d}-{_digest(content)}.pt", content)
        for old in [*files, path][:-KEPT]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> dict[str, Any] | None:
        """Return the newest checkpoint that is whole, or None; refused files are listed in :attr:`damaged`.

        Raises:
            UserError: A file is whole but holds more than tensors and plain data; none of it was run.
        """
        self.damaged = []
        for path in reversed(self._files()):
            content = path.read_bytes()
            if _digest(content) == path.stem.split("-")[1]:
                return _read(path, content)
            self.damaged.append(path.name)
            path.unlink()  # its number must be free again, and it will never be whole
        return None

    def clear(self) -> None:
        """Delete all checkpoints and what interrupted writes left."""
        for path in [*self._files(), *self._leftovers()]:
            path.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Delete what interrupted writes left."""
        for path in self._leftovers():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*-*.pt"))

    def _leftovers(self) -> Iterator[Path]:
        return self.folder.glob(".*.tmp")


def _read(path: Path, content: bytes) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {path} was not written by this program: it is not tensors and plain data alone. "
            "Delete it, or start the run anew with --restart."
        ) from error
    return state


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
