"""The saved counts of one stream: what every metric is computed from, and its two files.

``confusions.npz`` holds one array per read-out and experience, ``<readout>_<t:03d>``; ``classes.json`` holds
what is known of the classes. Both are in arrival space: class 0 is the first class that arrived.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from incrlt.errors import UserError
from incrlt.files import ordinary, read_json, write_atomic
from incrlt.metrics.counts import Cells, Counts, Hits, Tables, as_counts, as_tables, held, stored

ROUTED = "routed"
"""The read-out that stops early on easy images."""
CONFUSIONS_FILE = "confusions.npz"
CLASSES_FILE = "classes.json"
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,  # an archive that says it is encrypted or of an unknown compression
    MemoryError,  # a table that says it is larger than it is
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading a damaged ``.npz`` file can raise."""
LARGEST_ARRAYS = 1 << 30
"""Bytes that the arrays of a file may have unpacked."""
MOST_EXPERIENCES = 5_000
"""The accuracy matrix has as many rows and columns."""
_KEY = re.compile(r"(?P<readout>.+)_(?P<t>\d{3,})")


@dataclass(frozen=True, eq=False)
class StreamRecord:
    """Test counts of one read-out over a stream, finished or not.

    Args:
        confusions: After experience t an int [C_t, C_t]: rows are the true class, columns the predicted
            class, over all classes seen so far, in arrival space. Large ones are held by their cells that are not 0
            and made whole by an index; :meth:`right_after`, :meth:`tested_after` and :meth:`hits_after` need not.
        experience_of_class: int [C], the experience in which a class arrived; non-decreasing, starting at 0.
            May name classes that have not arrived yet (C > C_t).
        images_of_class: int [C], training images of the class in the full training set of the run.
        class_names: C names, or None.

    Raises:
        UserError: The shapes do not fit together or a count is negative.
    """

    confusions: Sequence[Counts]
    experience_of_class: Counts
    images_of_class: Counts
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "confusions", as_tables(self.confusions, "confusions"))
        put(self, "experience_of_class", as_counts(self.experience_of_class, "experience_of_class"))
        put(self, "images_of_class", as_counts(self.images_of_class, "images_of_class"))
        if self.class_names is not None:
            # a folder's name may hold bytes that are no text; no file of a run could be written with them
            names = (str(name).encode("utf-8", "replace").decode() for name in self.class_names)
            put(self, "class_names", tuple(names))
        _check_classes(self)
        _check_confusions(self)

    @property
    def num_experiences(self) -> int:
        """Experiences evaluated so far, T."""
        return len(self.confusions)

    @property
    def num_seen(self) -> int:
        """Classes seen after the last evaluated experience."""
        return self.seen_after(self.num_experiences - 1)

    def seen_after(self, t: int) -> int:
        """Return C_t, the number of classes seen after experience ``t``."""
        return int(np.searchsorted(self.experience_of_class, t, side="right"))

    @property
    def tables(self) -> Tables:
        """The confusions as they are held."""
        return as_tables(self.confusions, "confusions")

    def right_after(self, t: int) -> Counts:
        """Return the right answers of each class after experience ``t``, int64 [C_t]."""
        return self.tables.right(t)

    def tested_after(self, t: int) -> Counts:
        """Return the test images of each class after experience ``t``, int64 [C_t]."""
        return self.tables.tested(t)

    def hits_after(self, t: int) -> Hits:
        """Return the cells that are not 0 after experience ``t``: row, column and count, int64 [n] each."""
        return self.tables.hits(t)

    def name_of(self, class_index: int) -> str:
        """Return the class's name, or its arrival number where no names were saved."""
        return self.class_names[class_index] if self.class_names else str(class_index)


def main_readout(names: Iterable[str], chosen: object = None) -> str:
    """Return the read-out a run answers with: the router's where there is one, else the one its strategy chose.

    Args:
        names: Read-outs that have counts, at least one.
        chosen: ``strategy.readout`` of the configuration; anything else leaves the first name.

    Example:
        >>> main_readout(["cnn", "nme"], "nme"), main_readout(["cnn", "nme", "routed"], "cnn"), main_readout(["cnn"])
        ('nme', 'routed', 'cnn')
    """
    known = list(names)
    if ROUTED in known:
        return ROUTED
    return chosen if chosen in known else known[0]


def _check_classes(record: StreamRecord) -> None:
    experience, images, names = record.experience_of_class, record.images_of_class, record.class_names
    if experience.ndim != 1 or not experience.size or experience[0] != 0 or np.any(np.diff(experience) < 0):
        raise UserError(
            "experience_of_class must be one non-decreasing list starting at 0 (classes in order of "
            f"arrival); got {experience.ravel()[:8].tolist()}. Sort the classes by arrival first."
        )
    if images.shape != experience.shape:
        raise UserError(
            f"images_of_class must name {experience.size} classes like experience_of_class; "
            f"it has shape {images.shape}."
        )
    if names is not None and len(names) != experience.size:
        raise UserError(f"class_names must name {experience.size} classes; got {len(names)}.")


def _check_confusions(record: StreamRecord) -> None:
    for t in range(record.num_experiences):
        seen, shape = record.seen_after(t), record.tables.shape(t)
        if shape != (seen, seen):
            raise UserError(
                f"confusions[{t}] must be {seen} x {seen}, the classes seen after experience {t}; "
                f"got shape {shape}."
            )


def read_arrays(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an ``.npz`` file by name.

    Raises:
        Exception: One of :data:`UNREADABLE`; ValueError where the file is no ordinary one, or larger unpacked than
            :data:`LARGEST_ARRAYS`: a few kilobytes can stand for many gigabytes.
    """
    with ordinary(path) as file:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > LARGEST_ARRAYS:
            raise ValueError(f"its arrays have {unpacked:,} bytes; at most {LARGEST_ARRAYS:,} are read")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def save_confusions(path: str | os.PathLike[str], confusions: Mapping[str, Sequence[npt.ArrayLike]]) -> Path:
    """Write the counts of all read-outs to one compressed npz, whole or not at all.

    Args:
        path: The file, usually ``<run folder>/confusions.npz``.
        confusions: Per read-out ("cnn", "nme", ...) one [C_t, C_t] matrix per experience.

    Returns:
        The path written.
    """
    arrays = {
        f"{readout}_{t:03d}": stored(table)
        for readout, tables in confusions.items()
        for t, table in enumerate(as_tables(tables, readout).held)
    }
    return write_arrays(path, arrays)


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, npt.NDArray[Any]]) -> Path:
    """Write arrays to one compressed npz, whole or not at all; returns the path written."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return write_atomic(path, buffer.getvalue())


def load_confusions(path: str | os.PathLike[str]) -> dict[str, Tables]:
    """Read what :func:`save_confusions` wrote.

    A read-out with a gap (experience 2 is missing) is cut before the gap.

    Returns:
        Per read-out the matrices of experiences 0, 1, ...; each index gives one as int64.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        loaded = read_arrays(path)
    except UNREADABLE as error:
        raise UserError(f"cannot read the counts in {path}: {error}") from error
    found: dict[str, dict[int, Counts | Cells]] = {}
    for key, array in loaded.items():
        if match := _KEY.fullmatch(key):
            found.setdefault(match["readout"], {})[int(match["t"])] = held(array, key)
    return {readout: _leading(steps) for readout, steps in sorted(found.items())}


def _leading(steps: Mapping[int, Counts | Cells]) -> Tables:
    """Return the matrices of experiences 0, 1, ... up to the first that is missing."""
    t = 0
    while t in steps:
        t += 1
    if t > MOST_EXPERIENCES:
        raise UserError(f"the counts name {t:,} experiences; at most {MOST_EXPERIENCES:,} are read.")
    return Tables(steps[step] for step in range(t))


def save_classes(
    path: str | os.PathLike[str],
    experience_of_class: npt.ArrayLike,
    images_of_class: npt.ArrayLike,
    class_names: Sequence[str] | None = None,
    label_of_class: npt.ArrayLike | None = None,
) -> Path:
    """Write ``classes.json``: what is known of the classes, in arrival order.

    Args:
        path: The file, usually ``<run folder>/classes.json``.
        experience_of_class: int [C], as in :class:`StreamRecord`.
        images_of_class: int [C], as in :class:`StreamRecord`.
        class_names: C names, or None.
        label_of_class: int [C], the class's id in the user's benchmark, or None.

    Returns:
        The path written.
    """
    content = {
        "experience_of_class": np.asarray(experience_of_class).tolist(),
        "images_of_class": np.asarray(images_of_class).tolist(),
        "class_names": list(class_names) if class_names is not None else None,
        "label_of_class": None if label_of_class is None else np.asarray(label_of_class).tolist(),
    }
    return write_atomic(path, json.dumps(content, indent=1) + "\n")


def load_records(folder: str | os.PathLike[str]) -> dict[str, StreamRecord]:
    """Read a run folder's counts, one record per read-out.

    Raises:
        UserError: ``confusions.npz`` or ``classes.json`` is missing, damaged or does not fit the other.
    """
    path = Path(folder) / CLASSES_FILE
    try:
        classes = read_json(path)
        experience, images = classes["experience_of_class"], classes["images_of_class"]
        names = classes.get("class_names")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"cannot read the classes in {path}: {error}") from error
    confusions = load_confusions(Path(folder) / CONFUSIONS_FILE)
    return {
        readout: StreamRecord(matrices, experience, images, tuple(names) if isinstance(names, list) else None)
        for readout, matrices in confusions.items()
        if matrices
    }
