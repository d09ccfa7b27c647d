"""Which pictures a folder or a list names, and every file of it that is left out, with the reason.

A folder has a folder per class, or ``train``, ``test`` and ``val`` with a folder per class in each. A list is a text
file of ``path label`` lines, or a CSV, TSV or Parquet table with the columns path and label and, if wanted, split and
group. Nothing is skipped in silence: what is no picture, hidden, linked to nowhere or unreadable is named. No picture
is opened.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from incrlt.benchmarks import parquet
from incrlt.errors import UserError, shown
from incrlt.files import LARGEST_LIST, MOST_LISTED, read_listing

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
"""Suffixes of pictures that Pillow reads by itself."""
LISTS: Final = (".txt", ".csv", ".tsv", ".parquet")
"""Suffixes of files that list pictures."""
PLUGINS: Final = {
    ".heic": ("pillow_heif", "pillow-heif"),
    ".heif": ("pillow_heif", "pillow-heif"),
    ".avif": ("pillow_avif", "pillow-avif-plugin"),
    ".jxl": ("pillow_jxl", "pillow-jxl-plugin"),
}
"""Pictures that Pillow reads with a plugin: its module, and its name in the package index."""
OTHER_PICTURES: Final = {
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf"), "a raw photograph; develop it"),
    **dict.fromkeys((".svg", ".eps", ".pdf", ".ai", ".psd", ".xcf"), "a drawing or document; export it as PNG"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm"), "a film; take pictures from it"),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"), "an archive; unpack it"),
    **dict.fromkeys((".npy", ".npz", ".mat", ".h5", ".pt"), "an array; give it from Python"),
}  # fmt: skip
"""What may well have been meant as pictures and is not read."""
BESIDE: Final = frozenset(
    {".txt", ".json", ".xml", ".csv", ".tsv", ".md", ".html", ".yaml", ".yml", ".ini", ".db", ".log", ".xmp", ".py"}
)  # fmt: skip
"""What usually lies beside pictures."""
PARTS: Final = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
}
"""Words for the parts of a data set."""
COLUMNS: Final = {
    "path": ("path", "file", "filename", "image", "file_name"),
    "label": ("label", "class", "category", "species"),
    "split": ("split", "part", "subset"),
    "group": ("group", "location", "camera", "sequence"),
}
"""Columns of a table, and the heads by which each is known."""
DUPLICATES: Final = "duplicates by content"
"""Kind of a file that another one is a copy of."""
SHOWN: Final = 50
"""Names that an error lists."""
LONGEST: Final = 120
"""Letters of a path in a sentence."""
LONGEST_LABEL: Final = 1_000
"""Letters of a class's name; a folder's has 255 at most."""
NO_FILE: Final = "no file but a pipe, a socket or a device"
"""Of what would be waited for without end."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture that is named.

    Args:
        path: Where it is.
        name: What it is called in tables: its path below the source, with slashes.
        label: Name of its class; empty where none is asked for.
        part: ``train``, ``test``, or empty where nobody said.
        group: Pictures of one group stay in one part; empty without.
    """

    path: Path
    name: str
    label: str = ""
    part: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file, or a line of a list, that is not used.

    Args:
        name: What it is called.
        kind: What it has in common with others, such as ``hidden``.
        reason: Why, for this one; empty where the kind says it all.
        broken: It may have been meant as a picture: nothing is learned before it is mended or given up.
    """

    name: str
    kind: str
    reason: str = ""
    broken: bool = True

    @property
    def sentence(self) -> str:
        """Name and reason."""
        return f"{self.name}: {self.reason or self.kind}"


@dataclass(frozen=True)
class Listing:
    """What a source names.

    Args:
        source: The folder or file.
        entries: Pictures, by class and name where it is a folder, in the order of the lines where it is a list.
        left_out: Everything else.
    """

    source: Path
    entries: tuple[Entry, ...]
    left_out: tuple[LeftOut, ...] = ()

    def without(self, more: Iterable[LeftOut]) -> Listing:
        """Return the same without some entries, which are named with the others that are left out."""
        more = tuple(more)
        names = {item.name for item in more}
        kept = tuple(entry for entry in self.entries if entry.name not in names)
        return replace(self, entries=kept, left_out=(*self.left_out, *more))

    @property
    def account(self) -> str:
        """How many pictures there are and what was left out, each kind counted."""
        text = f"{len(self.entries):,} pictures"
        if not self.left_out:
            return text
        kinds: dict[str, list[LeftOut]] = {}
        for item in self.left_out:
            kinds.setdefault(item.kind, []).append(item)
        told = [
            f"{len(items):,} {kind}" + (f" (first: {items[0].sentence})" if items[0].reason else "")
            for kind, items in sorted(kinds.items(), key=lambda pair: (-len(pair[1]), pair[0]))
        ]
        return f"{text}, {len(self.left_out):,} left out: {', '.join(told)}"

    @property
    def names(self) -> str:
        """What is left out and might have been used, by name with the reason; empty where nothing is."""
        told = [item.sentence for item in self.left_out if item.broken or item.kind == DUPLICATES]
        more = f"; and {len(told) - SHOWN:,} more" if len(told) > SHOWN else ""
        return "; ".join(told[:SHOWN]) + more

    def check(self, skip_broken: bool) -> None:
        """Refuse what is broken, all of it at once, unless it is to be skipped.

        Raises:
            UserError: Something is, or nothing is left.
        """
        broken = [item.sentence for item in self.left_out if item.broken]
        if broken and not skip_broken:
            more = f"\n  and {len(broken) - SHOWN:,} more" if len(broken) > SHOWN else ""
            listed = "".join(f"\n  {sentence}" for sentence in broken[:SHOWN])
            raise UserError(
                f"{len(broken):,} of {len(self.entries) + len(self.left_out):,} files in {self.source} cannot be used; "
                f"mend or remove them, or go on without them by --skip-broken (skip_broken=True):{listed}{more}"
            )
        if not self.entries:
            raise UserError(f"{self.source} has no pictures that can be used: {self.account}.")


def pictures_in(source: str | os.PathLike[str]) -> Listing:
    """List pictures without classes: one file, a folder with all below it, or a list of paths.

    Raises:
        UserError: There is no such file or folder, or the list cannot be read.
    """
    place = _existing(source)
    if place.is_dir():
        found, left_out = _split(place, _walk(place, place))
        return Listing(place, tuple(Entry(path, name) for path, name in found), tuple(left_out))
    if place.suffix.lower() in LISTS:
        return _of_list(place, labelled=False)
    if not place.is_file():
        raise UserError(f"{place} is {NO_FILE}; give a folder of pictures, a list of them, or a picture.")
    entry, left_out = _classify(place, place.name)
    return Listing(place, () if entry is None else (Entry(place, place.name),), tuple(left_out))


def labelled_pictures(source: str | os.PathLike[str]) -> Listing:
    """List pictures with their classes: a folder per class, with or without parts, or a list.

    Raises:
        UserError: There is no such folder or list, it has no classes, or it cannot be read.
    """
    place = _existing(source)
    if place.is_dir():
        return _told_apart(_of_classes(place))
    if place.suffix.lower() not in LISTS:
        raise UserError(
            f"{place} is neither a folder with a folder per class nor a list; allowed are lists as {', '.join(LISTS)}."
        )
    return _told_apart(_of_list(place, labelled=True))


def class_name(text: str) -> str:
    """Return the name of a class as it is compared: the same letters have the same codes on every system.

    Example:
        >>> class_name("cafe" + chr(0x301)) == "caf" + chr(0xE9)
        True
    """
    return unicodedata.normalize("NFC", text)


def meant(name: str) -> str:
    """Return what two spellings of one class have in common; single letters are classes of their own, as in A and a.

    Example:
        >>> meant("Grey heron ") == meant("grey heron"), meant("A") == meant("a")
        (True, False)
    """
    return name.strip() if len(name.strip()) == 1 else name.casefold().strip()


def _told_apart(listing: Listing) -> Listing:
    """Refuse two classes that are surely one, spelled otherwise."""
    known: dict[str, str] = {}
    for entry in listing.entries:
        other = known.setdefault(meant(entry.label), entry.label)
        if other != entry.label:
            raise UserError(
                f"{listing.source} has the classes {other!r} and {entry.label!r} (first: {entry.name}): classes are "
                "told apart by name. Rename one of them, so that the same class has one name."
            )
    return listing


def _existing(source: str | os.PathLike[str]) -> Path:
    place = Path(source).expanduser()
    try:
        if place.exists():
            return place
        reason = "a link to nowhere" if place.is_symlink() else "not there"
    except OSError as error:
        reason = f"unreadable ({error.strerror})"
    raise UserError(f"{place} is {reason}; give a folder of pictures, a list of them, or a picture.")


# ---------------------------------------------------------------------------------------------------- folders


def _of_classes(root: Path) -> Listing:
    """List a folder of class folders, or of parts with class folders."""
    children = list(_children(root))
    parts = _parts(root, children)
    if "train" not in parts.values():
        return _with_classes(root, Listing(root, ()), root, "")
    whole = Listing(root, ())
    has_test = "test" in parts.values()
    for child in children:
        if child not in parts:
            whole = _add(whole, [], _outside(root, child, "in no part", "lies beside train, test and val"))
        elif parts[child] == "val" and has_test:
            found, left_out = _split(root, _walk(root, child))
            unused = [
                LeftOut(name, "of the validation part, which nothing uses", broken=False) for _, name in found
            ]
            whole = _add(whole, [], [*left_out, *unused])
        else:
            whole = _with_classes(root, whole, child, "test" if parts[child] != "train" else "train")
    return whole


def _parts(root: Path, children: Sequence[Path]) -> dict[Path, str]:
    """Return which folders are parts; ``train`` among others, with pictures right in it, is a class of that name."""
    folders = [child for child in children if child.is_dir() and not child.name.startswith(".")]
    parts = {child: PARTS[child.name.lower()] for child in folders if child.name.lower() in PARTS}
    deep = [child for child in parts if any(inner.is_dir() for inner in _children(child))]
    if len(parts) < len(folders) and not deep:
        return {}
    if parts and "train" not in parts.values():
        told = " and ".join(child.name for child in (deep or parts))
        raise UserError(
            f"{root} has {told} and no train: put the class folders to be learned into {root / 'train'}; a class "
            "cannot be called so."
        )
    return parts


def _with_classes(root: Path, whole: Listing, folder: Path, part: str) -> Listing:
    """Add the class folders of a folder."""
    classes = 0
    for child in _children(folder):
        if not child.is_dir() or child.name.startswith("."):
            whole = _add(
                whole, [], _outside(root, child, "in no class folder", "lies beside the class folders")
            )
            continue
        classes += 1
        label = class_name(child.name)
        if not is_text(label):
            raise UserError(
                f"{folder} has class folders whose names are not UTF-8 text: {child.name!a}. Rename them."
            )
        found, left_out = _split(root, _walk(root, child))
        entries = [Entry(path, name, label, part) for path, name in found]
        if not entries:
            left_out = [*left_out, LeftOut(_name(root, child), "class without pictures", broken=False)]
        whole = _add(whole, entries, left_out)
    if not classes:
        raise UserError(
            f"{folder} has no class folders; put the pictures of each class into a folder of its name, or give a list."
        )
    return whole


def _add(whole: Listing, entries: Sequence[Entry], left_out: Sequence[LeftOut]) -> Listing:
    return replace(whole, entries=(*whole.entries, *entries), left_out=(*whole.left_out, *left_out))


def _outside(root: Path, child: Path, kind: str, reason: str) -> list[LeftOut]:
    """Name what lies where no picture belongs; a picture there was surely meant to be one."""
    found, left_out = _split(root, _walk(root, child))
    return [*left_out, *(LeftOut(name, kind, reason) for _, name in found)]


def _children(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); see its permissions.") from error


def _walk(
    root: Path, place: Path, above: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[Path, LeftOut | None]]:
    """Yield every file below a place, folders that cannot be entered as left out; links are followed, loops are not."""
    try:
        found = place.stat()
        if not place.is_dir():
            yield place, None if stat.S_ISREG(found.st_mode) else LeftOut(_name(root, place), NO_FILE)
            return
        here = (found.st_dev, found.st_ino)
        if here in above:
            yield (
                place,
                LeftOut(_name(root, place), "linked into itself", "a link to a folder around it", False),
            )
            return
        inside = sorted(os.scandir(place), key=lambda entry: entry.name)
    except FileNotFoundError:
        yield place, LeftOut(_name(root, place), "links to nowhere")
        return
    except OSError as error:
        yield place, LeftOut(_name(root, place), "unreadable", f"it cannot be read ({error.strerror})")
        return
    for entry in inside:
        yield from _walk(root, Path(entry.path), (*above, here))


def _split(
    root: Path, walk: Iterable[tuple[Path, LeftOut | None]]
) -> tuple[list[tuple[Path, str]], list[LeftOut]]:
    """Tell pictures, with their names, from what is left out."""
    found: list[tuple[Path, str]] = []
    left_out: list[LeftOut] = []
    for path, refused in walk:
        name = _name(root, path)
        picture, reasons = (None, [refused]) if refused is not None else _classify(path, name)
        left_out += reasons
        if picture is not None:
            found.append((picture, name))
    return found, left_out


def _classify(path: Path, name: str) -> tuple[Path | None, list[LeftOut]]:
    """Return a path that is a picture by its name, or why it is left out."""
    suffix = path.suffix.lower()
    if any(part.startswith(".") for part in Path(name).parts) or path.name.lower() == "thumbs.db":
        return None, [LeftOut(name, "hidden", broken=False)]
    if is_read(suffix):
        return path, []
    if suffix in PLUGINS:
        install = PLUGINS[suffix][1]
        return None, [
            LeftOut(name, f"{suffix} (install {install})", f"needs a plugin: pip install {install}")
        ]
    if suffix in OTHER_PICTURES:
        return None, [LeftOut(name, suffix, OTHER_PICTURES[suffix])]
    if suffix in BESIDE:
        return None, [LeftOut(name, f"{suffix} beside pictures", broken=False)]
    kind = f"of the unknown suffix {suffix}" if suffix else "without a suffix"
    reason = f"{kind}: nothing says that it is a picture; add the right suffix or remove it"
    return None, [LeftOut(name, kind, reason)]


def is_read(suffix: str) -> bool:
    """Tell whether files of a suffix, in small letters, are read as pictures here."""
    return suffix in SUFFIXES or (suffix in PLUGINS and has_plugin(suffix))


def has_plugin(suffix: str) -> bool:
    """Tell whether Pillow can read pictures of a suffix here."""
    if suffix == ".avif":
        from PIL import features

        if "avif" in features.modules and features.check("avif"):
            return True
    return importlib.util.find_spec(PLUGINS[suffix][0]) is not None


def _name(root: Path, path: Path) -> str:
    inner = path.relative_to(root) if path != root and path.is_relative_to(root) else Path(path.name)
    return os.fsencode(inner.as_posix()).decode("utf-8", "backslashreplace")


def is_text(name: str) -> bool:
    """Say whether a name can stand in the files of a run."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


# ------------------------------------------------------------------------------------------------------ lists


@dataclass(frozen=True)
class _Row:
    number: int
    path: str
    label: str = ""
    split: str = ""
    group: str = ""
    too_many: str = ""


def _of_list(place: Path, labelled: bool) -> Listing:
    rows = list(_rows(place, labelled))
    entries: dict[str, Entry] = {}
    left_out: list[LeftOut] = []
    has_test = any(PARTS.get(row.split.lower()) == "test" for row in rows)
    for row in rows:
        entry = _entry(place, row, labelled, has_test)
        if isinstance(entry, LeftOut):
            left_out.append(entry)
        elif entry.name not in entries:
            entries[entry.name] = entry
        elif entries[entry.name].label != entry.label:
            both = f"line {row.number} says {entry.label}, an earlier line {entries[entry.name].label}"
            left_out.append(LeftOut(f"{place.name}:{row.number}", "listed under two classes", both))
        else:
            left_out.append(LeftOut(f"{place.name}:{row.number}", "listed twice", broken=False))
    return Listing(place, tuple(entries.values()), tuple(left_out))


def _entry(place: Path, row: _Row, labelled: bool, has_test: bool) -> Entry | LeftOut:
    where = f"{place.name}:{row.number}"
    if row.too_many:
        return LeftOut(where, "lines with too many cells", row.too_many)
    if not row.path:
        return LeftOut(where, "lines without a path")
    if len(row.label) > LONGEST_LABEL:
        return LeftOut(where, "lines with a label too long", f"a label has {len(row.label):,} letters")
    if labelled and not row.label:
        return LeftOut(where, "lines without a label", f"{row.path[:LONGEST]} has no label")
    part = PARTS.get(row.split.lower(), None if row.split else "")
    if part is None:
        return LeftOut(where, "of an unknown split", f"{shown(row.split)} is none of train, test and val")
    if part == "val" and has_test:
        return LeftOut(where, "of the validation part, which nothing uses", broken=False)
    path = Path(row.path).expanduser()
    path = path if path.is_absolute() else place.parent / path
    problem = _lost(path, row.path)
    if problem is not None:
        return replace(problem, name=where)
    picture, refused = _classify(path, path.name)
    if picture is None:
        return replace(refused[0], name=where, reason=refused[0].reason or f"{row.path} is no picture")
    name = os.fsencode(row.path).decode("utf-8", "backslashreplace")
    return Entry(path, name, class_name(row.label), "test" if part == "val" else part, row.group)


def _lost(path: Path, told: str) -> LeftOut | None:
    """Return why there is no file at a path of a list, without the line; None where there is one."""
    short = told if len(told) <= LONGEST else f"{told[:LONGEST]}..."
    try:
        if path.is_file():
            return None
        if path.is_dir():
            return LeftOut("", "folders in a list", f"{short} is a folder; list its pictures")
        if path.exists():
            return LeftOut("", NO_FILE, f"{short} is {NO_FILE}")
        linked = path.is_symlink()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return LeftOut("", "unreadable", f"{short} cannot be read ({reason})")
    if "://" in told:
        return LeftOut("", "addresses", f"{short} is an address; fetch it, and list the file")
    if "\\" in told and os.sep == "/":
        return LeftOut("", "not there", f"{short} is not there; write its folders with /")
    return LeftOut("", "links to nowhere" if linked else "not there", f"{short} is not there")


def _rows(place: Path, labelled: bool) -> Iterator[_Row]:
    if place.suffix.lower() == ".parquet":
        head, rows = parquet.read(place)
        yield from _of_table(place, head, enumerate(rows, 2), labelled)
        return
    text = _text(place)
    if place.suffix.lower() == ".txt":
        yield from _of_lines(text, labelled)
        return
    reader = csv.reader(
        io.StringIO(text), delimiter="\t" if place.suffix.lower() == ".tsv" else ",", strict=True
    )
    begun = 1
    try:
        lines: list[tuple[int, Sequence[object]]] = []
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((begun, cells))
            begun = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"the list {place} is no table ({error}, in what begins in line {begun}); save it as CSV with a head, "
            "cells that have quotes or commas in quotes."
        ) from error
    if not lines:
        raise UserError(f"the list {place} is empty; it needs a head with path{' and label' * labelled}.")
    yield from _of_table(place, [str(cell) for cell in lines[0][1]], lines[1:], labelled)


def _text(place: Path) -> str:
    try:
        return read_listing(place, LARGEST_LIST, MOST_LISTED)
    except UnicodeDecodeError as error:
        raise UserError(
            f"the list {place} cannot be read (it is not UTF-8 text); save it as UTF-8 text."
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"the list {place} cannot be read ({reason}); give a text file with a line per picture."
        ) from error


def _of_lines(text: str, labelled: bool) -> Iterator[_Row]:
    """Read ``path label`` lines; a tab, where there is one, lets paths and labels have spaces."""
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if not labelled:
            yield _Row(number, line)
            continue
        cells = line.rsplit("\t" if "\t" in line else None, 1)
        yield _Row(number, cells[0].strip(), cells[1].strip() if len(cells) == 2 else "")


def _of_table(
    place: Path, head: Sequence[str], lines: Iterable[tuple[int, Sequence[object]]], labelled: bool
) -> Iterator[_Row]:
    """Read numbered lines of a table below its head."""
    where = _columns(place, head, labelled)
    for number, line in lines:
        more = [str(cell) for cell in line[len(head) :] if str(cell).strip()]
        cells = {
            column: ""
            if index is None or index >= len(line) or line[index] is None
            else str(line[index]).strip()
            for column, index in where.items()
        }
        beyond = f"{len(head)} columns, and {' '.join(more)[:LONGEST]!r} beyond them; put cells with commas in quotes"
        yield _Row(number, **cells, too_many=beyond if more else "")


def _columns(place: Path, head: Sequence[str], labelled: bool) -> dict[str, int | None]:
    """Return where each column is; what is missing or may be meant twice is refused."""
    heads = [cell.strip().lower() for cell in head]
    where = {
        column: next((heads.index(word) for word in words if word in heads), None)
        for column, words in COLUMNS.items()
    }
    needed = ("path", "label") if labelled else ("path",)
    missing = [column for column in needed if where[column] is None]
    if missing:
        raise UserError(
            f"the list {place} has the columns {', '.join(head)[:200]} and needs {' and '.join(missing)} "
            f"({'; '.join(' or '.join(COLUMNS[c]) for c in missing)}). Add a head, or rename a column."
        )
    for column in needed:
        found = [word for word in heads if word in COLUMNS[column]]
        if found.count(column) != 1 and len(found) > 1:
            raise UserError(
                f"the list {place} has the columns {' and '.join(found)}, and each may be the {column}. Call one of "
                f"them {column}, and no other."
            )
    return where
