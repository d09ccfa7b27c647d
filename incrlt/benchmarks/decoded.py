"""Pictures decoded once, at the size of a run, into a file that later starts map into memory.

A file of pixels is known by its content: by the SHA-256 of every picture in it, in order, the size, and what decoded
them. What a list of paths, sizes and times was found to be is noted beside, so that nothing is read where nothing
changed; where paths or times did, the files are hashed and none is decoded. Two processes that want the same pictures
take turns; files come whole by renaming; each picture has a checksum, and one that is damaged is decoded anew. What was
used least recently leaves where the limit is reached.

In the folder: ``KEY.pixels`` (uint8 ``[N, C, H, W]``), ``KEY.sums.npz`` (checksums, contents), ``LISTING.json`` (what a
list was found to be), ``LISTING.lock``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import PIL
from filelock import FileLock, Timeout

from incrlt.benchmarks.looking import Progress, state_of
from incrlt.benchmarks.surveying import Histogram, Listed, Survey, content_of, decoded, survey
from incrlt.data.ahead import in_order
from incrlt.data.stores import Pixels
from incrlt.errors import UserError
from incrlt.files import read_json, write_atomic

FORMAT: Final = 1
"""Rises when the same picture files give other pixels."""
CHECKED_BYTES: Final = 2 << 30
"""Bytes compared with their checksums at a start: all of a smaller file, as many, evenly spread, of a larger one."""
SHARE: Final = 0.5
"""Of what is free on the disk, what may be taken where no limit is given."""
LEFT_OVER: Final = ".building-"
DAMAGED: Final = (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error)


class CacheError(Exception):
    """The folder cannot take the pictures; the message says why, without a full stop."""


@dataclass(frozen=True, eq=False)
class Found:
    """A whole file of pixels.

    Args:
        file: uint8 ``[N, C, H, W]``.
        histogram: Of the training pictures ``[C, 256]``.
    """

    file: Path
    histogram: Histogram


class DecodedCache:
    """A folder of decoded pictures.

    Args:
        folder: Where; made when first written to.
        gigabytes: Most that all files may take together (10^9 bytes); None: half of what the disk has free.
    """

    def __init__(self, folder: Path, gigabytes: float | None = None) -> None:
        self.folder, self._limit = folder, gigabytes

    def get(self, listed: Listed, threads: int, progress: Progress | None = None) -> Found:
        """Return the decoded pictures of a list, decoding them where they are not here.

        Args:
            listed: The pictures.
            threads: That decode.
            progress: Told how far decoding is; not called where nothing is decoded.

        Raises:
            UserError: Pictures cannot be read.
            CacheError: There is no room, or the folder cannot be written to.
        """
        with self._turn(listed) as name:
            found = self._known(listed, name) or self._by_content(listed, name, threads)
            if found is not None and self._whole(found.file, listed, threads):
                with contextlib.suppress(OSError):
                    os.utime(found.file)  # used now
                return found
            return self._build(listed, name, threads, progress)

    def histogram(self, listed: Listed, threads: int, progress: Progress | None = None) -> Histogram:
        """Return the histogram of pictures that are not kept decoded, looking at each where they changed since.

        Raises:
            UserError: Pictures cannot be read.
        """
        try:
            with self._turn(listed) as name:
                note = self._note(name)
                if note is not None:
                    return note[1]
                found = survey(listed, threads, None, progress).histogram
                self._write_note(name, "", found)
                return found
        except CacheError:
            return survey(listed, threads, None, progress).histogram

    # ------------------------------------------------------------------ what is here

    def _known(self, listed: Listed, name: str) -> Found | None:
        note = self._note(name)
        if note is None or not note[0]:
            return None
        return Found(self._pixels(note[0]), note[1])

    def _by_content(self, listed: Listed, name: str, threads: int) -> Found | None:
        """Find pictures that were decoded from files of the same content elsewhere, or before they were touched."""
        if not any(path.stat().st_size == listed.nbytes for path in self._files()):
            return None  # nothing here can be it
        contents = list(in_order(content_of, listed.paths, threads))
        key = _key(listed, np.frombuffer(b"".join(contents), np.uint8).reshape(-1, 32))
        try:
            found = Found(self._pixels(key), _arrays(self._sums(key))["histogram"])
        except DAMAGED:
            return None
        self._write_note(name, key, found.histogram)
        return found

    def _whole(self, file: Path, listed: Listed, threads: int) -> bool:
        """Say whether a file of pixels is what was written, after what is damaged in it was decoded anew."""
        try:
            if file.stat().st_size != listed.nbytes:
                return False
            arrays = _arrays(file.with_suffix(".sums.npz"))
            sums, contents = arrays["sums"], arrays["contents"]
            bad = _damaged(file, listed, sums, threads)
            for row in bad:
                self._mend(file, listed, row, int(sums[row]))
            whole = len(contents) == len(listed.paths)
            return whole and (not bad or not _damaged(file, listed, sums, threads))
        except DAMAGED:
            return False

    def _mend(self, file: Path, listed: Listed, row: int, checksum: int) -> None:
        """Write one picture anew; readers of the file see right pixels come in the place of wrong ones."""
        try:
            pixels = decoded(listed.paths[row], listed.shape)
        except UserError as error:
            raise ValueError(str(error)) from error
        if zlib.crc32(pixels.data) != checksum:
            raise ValueError("the picture is another one now")
        with open(file, "r+b") as out:
            out.seek(row * pixels.nbytes)
            out.write(pixels.tobytes())

    # ------------------------------------------------------------------ making it

    def _build(self, listed: Listed, name: str, threads: int, progress: Progress | None) -> Found:
        self._make_room(listed.nbytes)
        beside = self.folder / f"{LEFT_OVER}{name[:16]}.{os.getpid()}"
        sums: list[int] = []
        try:
            with open(beside, "wb") as out:

                def take(pixels: Pixels) -> None:
                    sums.append(zlib.crc32(pixels.data))
                    out.write(pixels.tobytes())

                seen = survey(listed, threads, take, progress)
                out.flush()
                os.fsync(out.fileno())  # the rename must not reach the disk before the pixels do
            return self._put(listed, name, beside, seen, sums)
        except OSError as error:
            raise CacheError(f"{self.folder} cannot be written to ({error.strerror or error})") from error
        finally:
            with contextlib.suppress(OSError):
                beside.unlink()

    def _put(self, listed: Listed, name: str, beside: Path, seen: Survey, sums: list[int]) -> Found:
        """Give a file its name, after its checksums, and note what the list was found to be."""
        key = _key(listed, seen.contents)
        told = self.folder / f"{LEFT_OVER}{name[:16]}.{os.getpid()}.npz"
        try:
            with open(told, "wb") as out:
                np.savez(
                    out, sums=np.array(sums, np.uint32), contents=seen.contents, histogram=seen.histogram
                )
            os.replace(told, self._sums(key))
        finally:
            with contextlib.suppress(OSError):
                told.unlink()
        os.replace(beside, self._pixels(key))
        self._write_note(name, key, seen.histogram)
        return Found(self._pixels(key), seen.histogram)

    def _make_room(self, needed: int) -> None:
        """Delete what was used least recently until ``needed`` bytes fit.

        Raises:
            CacheError: They do not.
        """
        files = sorted(self._files(), key=lambda path: path.stat().st_mtime)
        held, free, limit = self._room(files)
        if needed > min(limit, held + free):
            raise CacheError(self._too_large(needed, min(limit, held + free)))
        for path in files:
            if held + needed <= limit and needed <= free:
                return
            with contextlib.suppress(OSError):  # another process may have it open, where that forbids it
                size = path.stat().st_size
                path.unlink()
                path.with_suffix(".sums.npz").unlink(missing_ok=True)
                held, free = held - size, free + size

    def lack(self, needed: int) -> str | None:
        """Return why so many bytes have no room here, without a full stop; None where they have. Nothing is deleted."""
        try:
            held, free, limit = self._room(self._files())
        except OSError as error:
            return f"{self.folder} cannot be used ({error.strerror})"
        return None if needed <= min(limit, held + free) else self._too_large(needed, min(limit, held + free))

    def _room(self, files: list[Path]) -> tuple[int, int, float]:
        """Return the bytes that files take, those that are free on the disk, and those that files may take."""
        place = self.folder
        while not place.exists() and place != place.parent:
            place = place.parent
        held, free = sum(path.stat().st_size for path in files), shutil.disk_usage(place).free
        return held, free, held + SHARE * free if self._limit is None else self._limit * 1e9

    def _too_large(self, needed: int, allowed: float) -> str:
        return f"the decoded pictures would take {_told(needed)}, and {_told(allowed)} are allowed in {self.folder}"

    # ------------------------------------------------------------------ names

    @contextlib.contextmanager
    def _turn(self, listed: Listed) -> Iterator[str]:
        """Yield the name of a list while no other process works on it.

        Raises:
            CacheError: The folder cannot be written to.
        """
        name = _listing(listed)
        lock = FileLock(self.folder / f"{name}.lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (OSError, Timeout) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise CacheError(f"{self.folder} cannot be written to ({reason})") from error
        try:
            for path in self.folder.glob(f"{LEFT_OVER}{name[:16]}.*"):  # of a process that was killed
                path.unlink(missing_ok=True)
            yield name
        finally:
            lock.release()

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob("*.pixels") if path.is_file()]

    def _pixels(self, key: str) -> Path:
        return self.folder / f"{key}.pixels"

    def _sums(self, key: str) -> Path:
        return self.folder / f"{key}.sums.npz"

    def _note(self, name: str) -> tuple[str, Histogram] | None:
        """Return the key of a list's pixels, empty where none were kept, and its histogram."""
        try:
            content = read_json(self.folder / f"{name}.json")
            histogram = np.array(content["histogram"], dtype=np.int64)
            return (str(content["key"]), histogram) if histogram.shape[1:] == (256,) else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _write_note(self, name: str, key: str, histogram: Histogram) -> None:
        content = {"format": FORMAT, "key": key, "histogram": histogram.tolist()}
        with contextlib.suppress(UserError):  # without a note, files are hashed at the next start
            write_atomic(self.folder / f"{name}.json", json.dumps(content) + "\n")


def _listing(listed: Listed) -> str:
    """Return what a list is called: a hash over paths, sizes and times of its files, which says whether any changed."""
    digest = _begun(listed)
    for path in listed.paths:
        digest.update(f"{path.absolute()}\0{state_of(path)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _key(listed: Listed, contents: npt.NDArray[np.uint8]) -> str:
    """Return what a file of pixels is called: a hash over what was decoded, how and to what size."""
    digest = _begun(listed)
    digest.update(contents.tobytes())
    return digest.hexdigest()[:32]


def _begun(listed: Listed) -> hashlib._Hash:
    head = [FORMAT, PIL.__version__, *listed.shape, len(listed.train), len(listed.test)]
    return hashlib.sha256(json.dumps(head).encode())


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    with open(path, "rb") as file, np.load(file) as arrays:
        return dict(arrays)


def _damaged(file: Path, listed: Listed, sums: npt.NDArray[np.uint32], threads: int) -> list[int]:
    """Return the pictures, among those that are looked at, whose pixels are not what was written."""
    size = int(np.prod(listed.shape))
    number = len(listed.paths)
    pixels = np.memmap(file, np.uint8, "r", 0, (number, size))
    looked_at = np.linspace(0, number - 1, max(1, min(number, CHECKED_BYTES // size))).round().astype(int)
    found = in_order(lambda row: zlib.crc32(pixels[row].data) == sums[row], looked_at.tolist(), threads)
    return [row for row, whole in zip(looked_at.tolist(), found, strict=True) if not whole]


def _told(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
