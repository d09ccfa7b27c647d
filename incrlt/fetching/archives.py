"""Archives unpacked so that nothing in them can do harm, and so that a folder is whole or not there.

Only ordinary files and folders, all below the one folder that is expected, none twice, and no more of them, or larger,
than is known about. They are written into a folder beside, which gets its name when the last file is in it.
"""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, Final

from incrlt.errors import UserError, short
from incrlt.fetching.checksums import BLOCK, Progress, silent
from incrlt.fetching.sources import SLACK, Source
from incrlt.words import size as bytes_of

LEAST_FILES, LEAST_BYTES = 100, 1_000_000
"""More than these are wanted before a bound holds."""

_DAMAGED: Final = (
    tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, ValueError,
    RuntimeError,
)  # fmt: skip


@dataclass(frozen=True)
class _Member:
    """A file or folder of an archive; ``content`` opens a file."""

    name: str
    size: int
    is_folder: bool
    content: IO[bytes] | None


def unpack(archive: BinaryIO, source: Source, target: Path, progress: Progress = silent) -> None:
    """Unpack an archive's folder to ``target``, which appears when it is whole.

    Args:
        archive: Its bytes, checked already.
        source: What is known of it: its folder, and how much may be in it.
        target: Path of the folder to come; must not be there.
        progress: Told how far it is, in bytes of the files.

    Raises:
        UserError: It is damaged, holds what it must not, or there is no room.
    """
    beside = target.with_name(f".{target.name}.unpacking")
    if beside.is_symlink() or beside.is_file():
        raise UserError(f"{beside} is in the way; remove it.")
    try:
        shutil.rmtree(beside, ignore_errors=True)  # of a call that was stopped
        beside.mkdir(parents=True)
        with _members(archive, source, beside) as members:
            _write_all(members, source, beside, progress)
        if hasattr(os, "sync"):  # once for all files, before the name says that they are whole
            os.sync()
        os.replace(beside, target)
    except UserError:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    except _DAMAGED as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise UserError(f"{source.name} is damaged ({short(error)}); get it anew.") from error
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise UserError(
            f"{source.name} cannot be unpacked to {target}: {error.strerror or error}. Free some space, or choose "
            "another --data."
        ) from error


def _write_all(members: Iterator[_Member], source: Source, beside: Path, progress: Progress) -> None:
    files = written = 0
    most_files = max(LEAST_FILES, SLACK * source.files)
    most_bytes = max(LEAST_BYTES, SLACK * source.unpacked)
    for member in members:
        path = beside.joinpath(*_inner(member.name, source))
        if member.is_folder:
            path.mkdir(parents=True, exist_ok=True)
            continue
        files += 1
        if files > most_files or written + member.size > most_bytes:
            raise _hostile(
                source,
                f"has more than {most_files:,} files or {bytes_of(most_bytes)}, twice what is known of it",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        assert member.content is not None
        with member.content as content, _new_file(path, member.name, source) as file:
            shutil.copyfileobj(content, file, BLOCK)
            if file.tell() != member.size:
                raise EOFError(f"{member.name} ends early")
        written += member.size
        progress(f"unpacking {source.name}", written, max(source.unpacked, written))
    if not files:
        raise UserError(f"{source.name} holds no files; it is another archive than {source.top}'s.")


def _new_file(path: Path, name: str, source: Source) -> BinaryIO:
    try:
        return open(path, "xb")
    except FileExistsError:
        raise _hostile(source, f"holds {name!r} twice") from None


def _inner(name: str, source: Source) -> tuple[str, ...]:
    """Return the parts of a member's name below the archive's folder."""
    parts = PurePosixPath(name).parts
    parts = parts[1:] if parts[:1] == (".",) else parts
    if parts[:1] != (source.top,) or ".." in parts or "\\" in name or ":" in name or "\0" in name:
        raise _hostile(source, f"holds {name!r}, which is not in its folder {source.top}")
    return parts[1:]


def _hostile(source: Source, what: str) -> UserError:
    return UserError(f"{source.name} {what}; it is not unpacked. Get it anew from {source.url}.")


@contextmanager
def _members(archive: BinaryIO, source: Source, beside: Path) -> Iterator[Iterator[_Member]]:
    if source.name.endswith(".zip"):
        with zipfile.ZipFile(archive) as opened:
            yield _of_zip(opened, source)
    else:
        with tarfile.open(fileobj=archive, mode="r:*") as tar:
            yield _of_tar(tar, source, beside)


def _of_tar(tar: tarfile.TarFile, source: Source, beside: Path) -> Iterator[_Member]:
    for member in tar:
        if not (member.isdir() or member.isreg()) or member.issparse():
            raise _hostile(source, f"holds {member.name!r}, which is a link or no ordinary file")
        try:
            tarfile.data_filter(member, str(beside))
        except tarfile.FilterError as error:
            raise _hostile(source, f"holds what must not be there ({short(error)})") from error
        yield _Member(member.name, member.size, member.isdir(), tar.extractfile(member))


def _of_zip(opened: zipfile.ZipFile, source: Source) -> Iterator[_Member]:
    for member in opened.infolist():
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or member.flag_bits & 1:
            raise _hostile(
                source, f"holds {member.filename!r}, which is a link, encrypted, or no ordinary file"
            )
        yield _Member(
            member.filename,
            member.file_size,
            member.is_dir(),
            None if member.is_dir() else opened.open(member),
        )
