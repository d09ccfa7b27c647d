"""Checkpoints that are whole or refused: the name carries the content's digest, and the one before is kept.

A checkpoint holds tensors and plain data only and is read with ``weights_only=True``: loading it runs no code. Reading
deletes nothing; a run that goes on puts what is damaged aside.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import pickle
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import torch

from incrlt import tensorfile
from incrlt.errors import UserError
from incrlt.files import remove_leftovers, sync, write_atomic
from incrlt.roles import State
from incrlt.words import size

KEPT: Final = 2
"""Checkpoints that stay on disk: the newest, and one to fall back to when it is damaged."""
NAME: Final = re.compile(r"(\d{8,18})-([0-9a-f]{32})\.pt")
"""Names of checkpoints: number and digest. Files of any other name are somebody else's and stay as they are."""
ASIDE: Final = "damaged"
"""Folder beside the checkpoints for those that cannot be read."""
CHUNK: Final = 1 << 24
"""Bytes read at a time."""
MISFITS: Final = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    AssertionError,
)
"""What reading a checkpoint of another structure may raise."""
NOT_FINITE: Final = frozenset({"extra", "calibration"})
"""Parts of a state that may hold what is not finite on purpose: what a method keeps beside the network, and a router's
scores, NaN where none was recorded."""


class NotFiniteError(UserError):
    """A state was not saved, since a tensor in it is not finite.

    Args:
        tensor: Its place in the state.
    """

    def __init__(self, tensor: str) -> None:
        super().__init__(f"nothing was saved: {tensor} is not finite; the checkpoint before stays.")
        self.tensor = tensor


class CheckpointFolder:
    """Numbered checkpoints ``<number>-<digest>.pt`` in a folder.

    Args:
        folder: Made when the first checkpoint is saved.

    Attributes:
        damaged: Names of files that :meth:`newest` could not use, newest first, each with the reason.
        chosen: The file that :meth:`newest` has read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: dict[str, str] = {}
        self.chosen: Path | None = None

    def save(self, state: dict[str, object]) -> Path:
        """Write a checkpoint; :meth:`drop_old` then deletes all but the last :data:`KEPT`.

        Raises:
            NotFiniteError: A tensor is not finite; the last good checkpoint stays the newest.
            UserError: The disk is full, or the folder cannot be written to.
        """
        name = first_non_finite(state)
        if name is not None:
            raise NotFiniteError(name)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        files = self._files()
        number = _number(files[-1]) + 1 if files else 0
        try:
            self.folder.mkdir(exist_ok=True)  # not its parents: a run folder that was removed stays removed
        except OSError as error:
            raise UserError(
                f"cannot make {self.folder}: {error.strerror}. Free some space or choose another folder with --out."
            ) from error
        return write_atomic(self.folder / f"{number:08d}-{_digest(content)}.pt", content)

    def drop_old(self) -> None:
        """Delete all but the last :data:`KEPT`; what could not be read does not count as one of them."""
        files = [path for path in self._files() if path.name not in self.damaged]
        for old in files[:-KEPT]:
            with contextlib.suppress(OSError):  # it costs space, no more
                old.unlink(missing_ok=True)

    def newest(self, put_aside: bool = False) -> State | None:
        """Return the newest checkpoint that can be read, or None; the others are listed in :attr:`damaged`.

        Args:
            put_aside: Move what is damaged to a folder of its own, so that it is told once and its number is free; a
                run that goes on does so, a reader changes nothing.

        Raises:
            UserError: A file is whole but holds more than tensors and plain data, or sizes that contradict its bytes;
                none of it was run.
        """
        self.damaged, self.chosen = {}, None
        for path in reversed(self._files()):
            try:
                content = _content(path)
            except OSError as error:
                self.damaged[path.name] = error.strerror or str(error)
                if put_aside:
                    self._put_aside(path)
                continue
            self.chosen = path
            return _read(path, content)
        return None

    def _put_aside(self, path: Path) -> None:
        aside = self.folder / ASIDE
        with contextlib.suppress(OSError):  # on a disk that cannot be written to it stays where it is
            aside.mkdir(exist_ok=True)
            target = aside / path.name
            if os.path.lexists(target):
                target = aside / f"{path.name}.{secrets.token_hex(4)}"
            path.rename(target)
            sync(self.folder)

    def clear(self) -> None:
        """Delete all checkpoints and what interrupted writes left; what was put aside stays.

        Raises:
            UserError: One cannot be deleted.
        """
        for path in self._files():
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(
                    f"cannot delete {path}: {error.strerror}. Delete it by hand or choose another folder with --out."
                ) from error
        self.tidy()

    def tidy(self) -> None:
        """Delete what interrupted writes left."""
        remove_leftovers(self.folder)

    def _files(self) -> list[Path]:
        try:
            found = [path for path in self.folder.iterdir() if NAME.fullmatch(path.name)]
        except OSError:
            return []
        return sorted(found, key=_number)


def _number(path: Path) -> int:
    return int(path.name.split("-")[0])


def _content(path: Path) -> bytes:
    """Return the bytes of a checkpoint.

    Raises:
        OSError: It cannot be read, is no file, is too large for this machine, or is not what its name says; the reason
            stands in ``strerror``.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, for ever
        raise OSError(0, "it is not a file")
    if found.st_size > _memory():
        raise OSError(0, f"it has {size(found.st_size)}, more than this machine has memory")
    digest, content = hashlib.sha256(), io.BytesIO()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            content.write(chunk)
    match = NAME.fullmatch(path.name)
    if match is None or digest.hexdigest()[:32] != match[2]:
        raise OSError(0, "its content is not what was written")
    return content.getvalue()


def _memory() -> int:
    """Return the bytes of this machine's memory; 64 GiB where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 64 << 30


def _read(path: Path, content: bytes) -> dict[str, object]:
    try:
        tensorfile.check(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise tensorfile.NotTensorsError("is no mapping")
    except tensorfile.NotTensorsError as error:
        raise _foreign(path, f"it {error}") from error
    except (pickle.UnpicklingError, *MISFITS) as error:
        raise _foreign(path, "it is not tensors and plain data alone") from error
    return state


def _foreign(path: Path, reason: str) -> UserError:
    return UserError(
        f"checkpoint {path} was not written by this program: {reason}. "
        "Delete it, or start the run anew with --restart."
    )


@contextlib.contextmanager
def one_sentence(what: str, then: str) -> Iterator[None]:
    """Make one sentence of whatever a state of another structure provokes inside.

    Args:
        what: What was read, for the head of the sentence.
        then: What to do.

    Raises:
        UserError: In place of the error; one that is raised inside passes.
    """
    try:
        yield
    except UserError:
        raise
    except MISFITS as error:
        detail = (str(error).splitlines() or [""])[0][:200]
        name = type(error).__name__
        raise UserError(
            f"{what} has another structure than this version writes ({name}: {detail}). {then}"
        ) from error


def first_non_finite(state: object, where: str = "") -> str | None:
    """Return the place of the first tensor with a value that is not finite, or None.

    Args:
        state: Tensors and plain data, nested in mappings and sequences; what :data:`NOT_FINITE` names is left
            out.
        where: Place of ``state`` itself.

    Example:
        >>> first_non_finite({"model": {"scale": torch.tensor([1.0, float("nan")])}})
        'model.scale'
    """
    if isinstance(state, torch.Tensor):
        return None if _is_finite(state) else where or "the tensor"
    if isinstance(state, Mapping):
        items = [
            (str(key), value) for key, value in state.items() if str(key).split(".")[-1] not in NOT_FINITE
        ]
    elif isinstance(state, list | tuple):
        items = [(str(index), value) for index, value in enumerate(state)]
    else:
        return None
    found = (first_non_finite(value, f"{where}.{key}" if where else key) for key, value in items)
    return next(filter(None, found), None)


def _is_finite(tensor: torch.Tensor) -> bool:
    if tensor.is_floating_point() and math.isfinite(tensor.detach().sum().item()):
        return True  # one pass: what is not finite stays so in a sum
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(torch.isfinite(tensor).all())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
