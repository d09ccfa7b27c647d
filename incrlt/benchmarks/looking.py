"""Which pictures of a listing can be used: each is opened once, and what was found is noted for later starts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import PIL

from incrlt.benchmarks.listing import DUPLICATES, Entry, LeftOut, Listing
from incrlt.benchmarks.preparing import read_picture
from incrlt.data.ahead import in_order, workers
from incrlt.errors import UserError
from incrlt.files import LARGEST_PICTURE, cache_folder, read_bytes, read_json, write_atomic

FORMAT: Final = 1
"""Of the notes."""
LARGEST_NOTE: Final = 1_000_000_000
"""Bytes of a note: a line for each picture that is left out."""
NAMED: Final = 4
"""Classes whose pictures a sentence on one and the same picture names."""
ENDS: Final = 4096
"""Bytes at both ends of a file that tell photographs of one size apart."""
Progress: TypeAlias = Callable[[int, int], None]
"""Called with the pictures read so far and those there are."""


def default_folder() -> Path:
    """Return the folder of what is known of pictures, where none is given."""
    return cache_folder("pictures")


def looked_at(listing: Listing, shape: Sequence[int]) -> Listing:
    """Return a listing without what cannot be read and what comes twice; files that did not change are not opened.

    Args:
        listing: Which.
        shape: Channels, height, width that they are to be brought to.
    """
    note = default_folder() / f"{_key(listing, shape)}.left_out.json"
    known = _noted(note)
    if known is not None:
        return listing.without(known)
    found = usable(listing, shape)
    lost = found.left_out[len(listing.left_out) :]
    lines = [[item.name, item.kind, item.reason, item.broken] for item in lost]
    with contextlib.suppress(UserError, OSError):  # without a note, every file is opened at the next start
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(note, json.dumps(lines) + "\n")
    return found


def _noted(note: Path) -> list[LeftOut] | None:
    try:
        lines = read_json(note, LARGEST_NOTE)
        return [LeftOut(str(name), str(kind), str(why), bool(broken)) for name, kind, why, broken in lines]
    except (OSError, ValueError, TypeError):
        return None


def _key(listing: Listing, shape: Sequence[int]) -> str:
    """Return a hash over names, classes, sizes and times of the files, which says whether any changed."""
    digest = hashlib.sha256(json.dumps([FORMAT, PIL.__version__, *shape]).encode())
    for entry in listing.entries:
        line = f"{entry.path.absolute()}\0{entry.name}\0{entry.label}\0{entry.part}\0{state_of(entry.path)}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def state_of(path: Path) -> str:
    """Return size and time of a file, which say whether it changed; of one that cannot be looked at, why not."""
    try:
        found = path.stat()
        return f"{found.st_size}\0{found.st_mtime_ns}"
    except OSError as error:  # whoever looks at its content will name it
        return str(error.errno)


def usable(listing: Listing, shape: Sequence[int]) -> Listing:
    """Return a listing without what cannot be read and what comes twice, each named with the others left out.

    Every picture is opened, and none is kept.

    Args:
        listing: Which.
        shape: Channels, height, width that they would be brought to.
    """
    digests = [b""] * len(listing.entries)

    def one(index: int) -> LeftOut | None:
        digests[index], found = opened(listing.entries[index], shape)
        return found if isinstance(found, LeftOut) else None

    refused = each(one, len(listing.entries), None)
    return listing.without([*refused, *copies(listing.entries, digests)])


def each(one: Callable[[int], LeftOut | None], number: int, progress: Progress | None) -> list[LeftOut]:
    """Call a function with 0 .. ``number`` - 1 in threads; return the problems it found, in that order."""
    problems: list[LeftOut] = []
    for done, problem in enumerate(in_order(one, range(number), workers(None)), 1):
        problems += [] if problem is None else [problem]
        if progress is not None:
            progress(done, number)
    return problems


def opened(entry: Entry, shape: Sequence[int]) -> tuple[bytes, npt.NDArray[np.uint8] | LeftOut]:
    """Return the SHA-256 of a file, empty where it cannot be read, and its pixels ``[C, H, W]`` or why there are none.

    What is no picture counts as no duplicate either: each such file is named for itself.
    """
    channels, height, width = shape
    try:
        content = read_bytes(entry.path, LARGEST_PICTURE)
        pixels = read_picture(content, height, width, channels, entry.name).transpose(2, 0, 1)
    except OSError as error:
        return b"", LeftOut(entry.name, "unreadable", f"it cannot be read ({error.strerror})")
    except UserError as error:
        return b"", LeftOut(entry.name, "unreadable", _short(str(error), entry.name))
    except ValueError as error:
        return b"", LeftOut(entry.name, "unreadable", f"it cannot be read ({error})")
    return hashlib.sha256(content).digest(), pixels


def _short(sentence: str, name: str) -> str:
    """Return the reason out of a sentence of :func:`read_picture`, which names the picture already."""
    reason = sentence.removeprefix(f"the picture {name} ").split("; ")[0]
    return f"it {reason}" if reason != sentence.split("; ")[0] else reason


def doubles(entries: Sequence[Entry]) -> str:
    """Return a sentence on pictures whose files are the same, empty where none are; only files of one size are opened.

    For a run that was not told to leave copies out: nothing is decoded, and what is used stays as it is.
    """
    digests = [b""] * len(entries)
    alike = _alike(entries, range(len(entries)), _length)
    alike = _alike(entries, alike, lambda path: _ends(path, ENDS))
    for index in alike:
        digests[index] = _ends(entries[index].path, None) or b""
    found = copies(entries, digests)
    if not found:
        return ""
    others = [item for item in found if item.kind != DUPLICATES]
    first = (others or found)[0].sentence
    return f"{len(found):,} copies by content are used as they are (first: {first}); --skip-broken leaves them out"


def _alike(entries: Sequence[Entry], rows: Iterable[int], key: Callable[[Path], object]) -> list[int]:
    """Return the rows whose file has something in common with that of another row."""
    groups: dict[object, list[int]] = {}
    for row in rows:
        found = key(entries[row].path)
        if found is not None:
            groups.setdefault(found, []).append(row)
    return sorted(row for group in groups.values() if len(group) > 1 for row in group)


def _length(path: Path) -> int | None:
    try:
        return path.stat().st_size or None
    except OSError:  # whoever reads it will name it
        return None


def _ends(path: Path, number: int | None) -> bytes | None:
    """Return a hash of the first and last bytes of a file, or of all; None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            if number is None:
                return hashlib.file_digest(file, "sha256").digest()
            head = file.read(number)
            file.seek(max(file.tell(), file.seek(0, os.SEEK_END) - number))
            return hashlib.sha256(head + file.read()).digest()
    except OSError:
        return None


def copies(entries: Sequence[Entry], digests: Sequence[bytes]) -> list[LeftOut]:
    """Name pictures whose files are the same: one of a class is enough, and what is tested is not trained on."""
    of: dict[bytes, list[Entry]] = {}
    for entry, digest in zip(entries, digests, strict=True):
        if digest:
            of.setdefault(digest, []).append(entry)
    found: list[LeftOut] = []
    for same in of.values():
        if len({entry.label for entry in same}) > 1:
            told = list(dict.fromkeys(f"{entry.name} ({entry.label})" for entry in _one_of_each(same)))
            more = f" and {len(same) - len(told):,} more" if len(same) > len(told) else ""
            reason = (
                f"the same picture is {' and '.join(told)}{more}"  # one string for all, however many they are
            )
            kind = "the same picture under two classes"
            found += [LeftOut(entry.name, kind, reason) for entry in same]
            continue
        keep = next((entry for entry in same if entry.part == "test"), same[0])
        reason = f"the same file as {keep.name}"
        found += [
            LeftOut(entry.name, DUPLICATES, reason, broken=False) for entry in same if entry is not keep
        ]
    return found


def _one_of_each(same: Sequence[Entry]) -> list[Entry]:
    """Return a picture of each class, of two classes at least and of few: a sentence that names all has no end."""
    first: dict[str, Entry] = {}
    for entry in same:
        first.setdefault(entry.label, entry)
    return list(first.values())[:NAMED]
