"""One file that carries what was fetched to a machine without network.

A plain tar: ``incrlt-pack.json``, which names the data sets, then the archives and lists as they were published. What a
pack says of itself is not believed: each file must have the checksum that this package knows.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Final, cast

from incrlt.errors import UserError, short
from incrlt.fetching.checksums import Progress, silent, stream_matches
from incrlt.fetching.sources import Source, recipe
from incrlt.files import LARGEST_JSON, parsed_json, sync

TOLD: Final = "incrlt-pack.json"
FORMAT: Final = 1


def write(
    file: Path, datasets: Sequence[str], sources: Sequence[Source], folder: Path, progress: Progress = silent
) -> None:
    """Write a pack; it appears when it is whole.

    Args:
        file: Path of the pack.
        datasets: Names of what is in it.
        sources: Files that go into it, fetched and checked.
        folder: Where they lie.
        progress: Told how far it is.

    Raises:
        UserError: It cannot be written.
    """
    beside = file.with_name(f".{file.name}.part")
    told = json.dumps({"format": FORMAT, "datasets": list(datasets), "files": [one.name for one in sources]})
    try:
        with open(beside, "wb") as opened:
            with tarfile.open(fileobj=opened, mode="w", format=tarfile.GNU_FORMAT) as tar:
                _add(tar, TOLD, len(told.encode()), io.BytesIO(told.encode()))
                for source in sources:
                    path = folder / source.name
                    with open(path, "rb") as content:
                        size = path.stat().st_size
                        _add(
                            tar,
                            source.name,
                            size,
                            cast(BinaryIO, _Watched(content, source.name, size, progress)),
                        )
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(beside, file)
        sync(file.absolute().parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {file}: {error.strerror or error}. Free some space, or choose another --pack."
        ) from error


def _add(tar: tarfile.TarFile, name: str, size: int, content: BinaryIO) -> None:
    member = tarfile.TarInfo(name)  # no owner and no time: the same files make the same pack
    member.size = size
    tar.addfile(member, content)


class _Watched:
    """Tells how far a file is read."""

    def __init__(self, file: BinaryIO, name: str, size: int, progress: Progress) -> None:
        self._file, self._size, self._progress, self._name = file, size, progress, name

    def read(self, number: int = -1) -> bytes:
        block = self._file.read(number)
        self._progress(f"packing {self._name}", self._file.tell(), self._size)
        return block


class Pack:
    """A pack that is open for reading.

    Args:
        tar: Its archive.
        path: Where it lies.
        datasets: Names of what is in it.
    """

    def __init__(self, tar: tarfile.TarFile, path: Path, datasets: tuple[str, ...]) -> None:
        self.path, self.datasets = path, datasets
        self._tar = tar

    def content(self, source: Source, progress: Progress = silent) -> IO[bytes]:
        """Return an open file of the pack, at its beginning, after its checksum was compared.

        Raises:
            UserError: It is not there, no ordinary file, or another one than the known.
        """
        try:
            member = self._tar.getmember(source.name)
            content = self._tar.extractfile(member) if member.isreg() and not member.issparse() else None
            if content is None:
                raise UserError(f"{source.name} in {self.path} is no ordinary file; pack it anew.")
            if not stream_matches(
                cast(BinaryIO, content), member.size, source.name, source.checksum, progress
            ):
                raise UserError(
                    f"{source.name} in {self.path} is damaged or another file ({source.checksum} is the checksum of "
                    f"{source.whence}); carry the pack anew, or pack it anew."
                )
            content.seek(0)
            return content
        except KeyError:
            raise UserError(f"{source.name} is not in {self.path}; pack it anew.") from None
        except tarfile.TarError as error:
            raise UserError(f"{self.path} is damaged ({short(error)}); carry the pack anew.") from error


@contextmanager
def opened(file: Path) -> Iterator[Pack]:
    """Open a pack.

    Raises:
        UserError: It cannot be read, is none of incrlt, is cut, or names data sets that are not known here.
    """
    try:
        with open(file, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            datasets = _told(tar, file)
            tar.getmembers()  # a pack that was cut ends in the middle of one
            yield Pack(tar, file, datasets)
    except tarfile.TarError as error:
        raise UserError(
            f"{file} is no whole pack of incrlt.prepare --pack ({short(error)}); carry it anew."
        ) from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error


def _told(tar: tarfile.TarFile, file: Path) -> tuple[str, ...]:
    """Return the data sets that a pack names, all known here."""
    first = tar.next()
    content = tar.extractfile(first) if first is not None and first.name == TOLD and first.isreg() else None
    if content is None or first is None or first.size > LARGEST_JSON:
        raise UserError(f"{file} is no pack of incrlt.prepare --pack.")
    try:
        told = parsed_json(content.read().decode())
        number, datasets = told["format"], tuple(map(str, told["datasets"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({TOLD} cannot be read); carry the pack anew.") from error
    if number != FORMAT:
        raise UserError(
            f"{file} is a pack of format {number}, and {FORMAT} is read here; use the same incrlt on both."
        )
    for dataset in datasets:
        recipe(dataset)
    return datasets
