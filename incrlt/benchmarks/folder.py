"""Pictures of your own, a folder per class or a list: found, counted and named without reading a picture.

``ROOT/train/CLASS/*.png`` and ``ROOT/test/CLASS/*.png``, as torchvision's ``ImageFolder`` has them; or ``ROOT/CLASS``,
or a list file, of which a test part is split off where none is given. Standard library only, so that ``--dry-run``
knows the counts at once.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from incrlt.benchmarks.listing import LISTS, SUFFIXES, Listing, class_name, is_read, labelled_pictures
from incrlt.benchmarks.testpart import with_tests
from incrlt.errors import UserError

IMAGE_SIZE = 32
"""Side in pixels where none is asked for; the networks are made for small images."""

SMALLEST, LARGEST = 8, 1024
"""Sides in pixels that may be asked for."""

_LAYOUT = "pictures belong into ROOT/train/CLASS and ROOT/test/CLASS"


@dataclass(frozen=True)
class ImageFolder:
    """What lies in a folder of pictures.

    Args:
        root: The folder.
        image_size: Side in pixels to which the pictures are brought.
        class_names: Names of the class folders, most frequent in training first (ties by name): the position is the
            class id, so that class 0 is the head as in every dataset here.
        train: Paths of the training pictures by class id, sorted.
        test: Paths of the test pictures by class id, sorted; a class may have none.
        account: How many pictures there are, what was left out and why, what was split off for testing.
        identity: What the pictures are known by where they lie in no ``train`` and ``test``; enters the name.
        left_out: Names of what is left out and might have been used, with the reasons; empty where nothing is.
    """

    root: Path
    image_size: int
    class_names: tuple[str, ...]
    train: tuple[tuple[Path, ...], ...]
    test: tuple[tuple[Path, ...], ...]
    account: str = ""
    identity: str = ""
    left_out: str = ""

    @property
    def counts(self) -> tuple[int, ...]:
        """Training pictures of each class, never increasing."""
        return tuple(map(len, self.train))

    @property
    def name(self) -> str:
        """``folder-`` and ten characters of a hash over size, relative paths and file sizes.

        It enters the protocol hash in place of a dataset's name: another place on the disk is the same dataset,
        another set of pictures is not.
        """
        digest = hashlib.sha256(str(self.image_size).encode())
        if self.identity:
            digest.update(self.identity.encode())
            return f"folder-{digest.hexdigest()[:10]}"
        for path in (path for part in (self.train, self.test) for own in part for path in own):
            line = f"{path.relative_to(self.root).as_posix()}\0{path.stat().st_size}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return f"folder-{digest.hexdigest()[:10]}"

    def rule(self, as_it_is: bool) -> dict[str, object]:
        """Return the fields of a protocol that the pictures decide.

        Args:
            as_it_is: Keep every picture; otherwise a tail is cut, from as many pictures as every class has.
        """
        if not as_it_is:
            return {"num_classes": len(self.counts), "max_images": min(self.counts)}
        return {
            "num_classes": len(self.counts),
            "max_images": max(self.counts),
            "profile": "natural",
            "natural_counts": self.counts,
            "imbalance_ratio": max(self.counts) / min(self.counts),
        }


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of the datasets: ``root``, else ``INCRLT_DATA``, else ``data``."""
    return Path(root or os.environ.get("INCRLT_DATA") or "data").expanduser()


def prepare_command(dataset: str, root: Path) -> str:
    """Return the command that gets what may be fetched of a dataset."""
    return f"python -m incrlt.prepare {dataset} --data {shlex.quote(str(root))}"


def scan(
    root: str | os.PathLike[str] | None, image_size: int | None = None, skip_broken: bool = False
) -> ImageFolder:
    """List the pictures of a folder.

    Args:
        root: The folder; None: the environment variable ``INCRLT_DATA``, else ``data``.
        image_size: Side in pixels to which they will be brought; None: :data:`IMAGE_SIZE`.
        skip_broken: Go on without what cannot be used and what is there twice; every picture is opened for that, once.

    Raises:
        UserError: No such folder, no pictures, a link to nowhere, training and test classes that differ, or a size
            that is not possible.
    """
    size = IMAGE_SIZE if image_size is None else image_size
    if not SMALLEST <= size <= LARGEST:
        raise UserError(
            f"image_size is {size}; allowed are {SMALLEST} to {LARGEST} pixels a side. Choose one of these, or None "
            f"for {IMAGE_SIZE}."
        )
    place = data_root(root)
    if _is_listed(place):
        return _of_listing(_usable(labelled_pictures(place), size, skip_broken), size, skip_broken)
    folders = {part: _class_folders(place, part) for part in ("train", "test")}
    listed = labelled_pictures(place)
    if not skip_broken:
        _check_filled(listed, folders)
    listed = _usable(listed, size, skip_broken)
    train, test = (_of_part(listed, part) for part in ("train", "test"))  # what is counted is what is used
    _check_same(place, train, test)
    names = tuple(sorted(train, key=lambda name: (-len(train[name]), name)))
    twice = _twice(listed, skip_broken)
    return ImageFolder(
        place,
        size,
        names,
        tuple(train[name] for name in names),
        tuple(test.get(name, ()) for name in names),
        listed.account + twice,
        left_out=listed.names,
    )


def _usable(found: Listing, size: int, skip_broken: bool) -> Listing:
    """Return what of a source can be used; without leave to skip, refuse it if that is not all."""
    found.check(skip_broken)
    if not skip_broken:
        return found
    from incrlt.benchmarks.looking import looked_at  # opens pictures, which a plain listing does not

    found = looked_at(found, (3, size, size))
    found.check(skip_broken)
    return found


def _twice(found: Listing, skip_broken: bool) -> str:
    """Return what is to be added of copies that stay in."""
    from incrlt.benchmarks.looking import doubles

    told = "" if skip_broken else doubles(found.entries)
    return f"; {told}" if told else ""


def _of_part(found: Listing, part: str) -> dict[str, tuple[Path, ...]]:
    """Return the pictures of each class in one part."""
    classes: dict[str, list[Path]] = {}
    for entry in found.entries:
        if entry.part == part:
            classes.setdefault(entry.label, []).append(entry.path)
    return {name: tuple(sorted(paths)) for name, paths in classes.items()}


def _is_listed(place: Path) -> bool:
    """Tell whether a source is a list, or a folder that has no ``train`` and ``test`` side by side."""
    if place.is_file():
        return place.suffix.lower() in LISTS
    if (place / "train").is_dir():
        return not (place / "test").is_dir()
    return not (place / "test").exists() and any(_has_picture(path) for path in _folders(place))


def _folders(place: Path) -> list[Path]:
    try:
        return [path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return []


def _has_picture(folder: Path) -> bool:
    return any(is_read(path.suffix.lower()) for path in folder.rglob("*"))


def _of_listing(found: Listing, size: int, skip_broken: bool) -> ImageFolder:
    """Return what a list names, or a folder of classes, with a test part."""
    found, split = with_tests(found)
    parts: dict[str, dict[str, list[Path]]] = {"train": {}, "test": {}}
    digest = hashlib.sha256()
    for entry in found.entries:
        parts[entry.part].setdefault(entry.label, []).append(entry.path)
        line = f"{entry.part}\0{entry.label}\0{entry.name}\0{entry.path.stat().st_size}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    train, test = parts["train"], parts["test"]
    _check_same(found.source, {n: tuple(p) for n, p in train.items()}, {n: tuple(p) for n, p in test.items()})
    names = tuple(sorted(train, key=lambda name: (-len(train[name]), name)))
    return ImageFolder(
        found.source,
        size,
        names,
        tuple(tuple(train[name]) for name in names),
        tuple(tuple(test.get(name, ())) for name in names),
        found.account + (f"; {split}" if split else "") + _twice(found, skip_broken),
        digest.hexdigest(),
        found.names,
    )


def _class_folders(root: Path, part: str) -> list[str]:
    """Return the names of the class folders of a part; what is in them is not looked at."""
    try:
        return [
            path.name for path in (root / part).iterdir() if path.is_dir() and not path.name.startswith(".")
        ]
    except OSError as error:
        raise UserError(
            f"{root / part} cannot be read ({error.strerror}); {_LAYOUT}. Say where ROOT is: --data, data.root "
            "or INCRLT_DATA, in a script root=."
        ) from error


def _check_filled(found: Listing, folders: dict[str, list[str]]) -> None:
    """Raise where a part has no classes, or a class folder no picture."""
    for part, names in folders.items():
        labels = {entry.label for entry in found.entries if entry.part == part}
        empty = sorted(name for name in names if class_name(name) not in labels)
        if empty or not names:
            which = f"no pictures in {_some(empty)}" if empty else "no class folders"
            raise UserError(f"{found.source / part} has {which}; {_LAYOUT}, as {', '.join(SUFFIXES)}.")


def _check_same(root: Path, train: dict[str, tuple[Path, ...]], test: dict[str, tuple[Path, ...]]) -> None:
    lost = sorted(test.keys() - train.keys())
    if lost or not train:
        raise UserError(
            f"{root}: {len(train)} classes in train, {len(test)} in test; only in test: {_some(lost)}. "
            "Every class needs pictures to learn from."
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
