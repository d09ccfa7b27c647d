"""The long-tailed papers' large data sets, in the layouts in which they are handed out: found and named, none read.

ImageNet-LT, iNaturalist 2018 and Places-LT have their own tail, which a published list names; ImageNet-Subset-LT,
Food101-LT and Tiny-ImageNet are cut by the seeded rule from balanced parents. Neither pictures nor lists come with this
package, only fingerprints of the lists: SHA-256 of the bytes, or git's blob id (``git hash-object FILE``). A run then
says whether it has the published split. NumPy only.

Sources of fingerprints and layouts: facebookresearch/classifier-balancing f162adef, Vanint/SADE-AgnosticLT cba11b8b,
xialeiliu/Long-Tailed-CIL 7db6317; the folders are those of the official archives.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from incrlt.benchmarks import facts, splits
from incrlt.benchmarks.folder import LARGEST, SMALLEST, ImageFolder, data_root, prepare_command
from incrlt.benchmarks.listing import SUFFIXES
from incrlt.errors import UserError, short, shown
from incrlt.files import LARGEST_LIST, MOST_LISTED, git_blob, read_json, read_lines

PUBLISHED: Final = "this is the published split"
OTHER: Final = "this is another split than the published one"

FINGERPRINTS: Final = {
    "ImageNet_LT_train.txt": ("a063f095fcd475db4cf8b0658c4b73955535bbf9",),
    "ImageNet_LT_test.txt": ("d1590191cf8a71fada7b1aaedaa2d139a2aea93ff2f1b755319d0bd8dbaa55d5",),
    "iNaturalist18_train.txt": ("4accdb7584d2f0a5106c40a33ed6afa392189bcc",),
    "iNaturalist18_val.txt": ("efaeff65f80641b60864470e6f255aa69453406ef5717eec8c6681748f3a61f3",),
    "Places_LT_train.txt": (
        "726c4871dcbf07ce2f857703bfe32e9a83ffbf52d704239f6d95c4f4f4c247f7",
        "09410632a22045212fb3231623261e8426ba8dc1887a2b633afeab78ba9c8868",
    ),
    "Places_LT_test.txt": ("44eee8441c8098c5",),
    "subset_train.txt": ("62e4499422a41187e2102ae5bef6332bc6d642cd",),
    "subset_test.txt": ("7a61b34ec8221d67",),
}
"""Published lists: SHA-256 (64 characters, or as many of the first as are known) or git blob id (40) of each form."""

SUBSET_SEED: Final = 1993
"""Draws ImageNet-Subset's classes, and orders them: NumPy's legacy generator (Long-Tailed-CIL)."""

Pair = tuple[str, str]
"""Path below the data set's folder, and name of its class."""


@dataclass(frozen=True)
class LargeSet:
    """Where a data set lies and how it is read.

    Args:
        folder: Its folder below the data root.
        own_tail: Its tail is its own and not cut.
        get: What must be got, and where it goes; ``{place}`` is its folder, ``{prepare}`` the command that fetches.
        find: Returns the pictures of training and testing, class names in order, and what is to be said.
    """

    folder: str
    own_tail: bool
    get: str
    find: Callable[[Path, str], _Found]


@dataclass(frozen=True)
class _Found:
    train: list[Pair]
    test: list[Pair]
    class_names: tuple[str, ...]
    account: str


@dataclass(frozen=True)
class LargeFolder(ImageFolder):
    """What lies in the folder of a large data set.

    Args:
        dataset: Its name.
        head: Class id of the class whose pictures are the head's of a tail that is cut.
        split: Whether its lists are those that were published, or what its tail is cut from, in words.
    """

    dataset: str = ""
    head: int = 0
    split: str = ""

    @property
    def name(self) -> str:
        """``DATASET@`` and ten characters of a hash over size, relative paths and classes: what the protocol hashes."""
        digest = hashlib.sha256(f"{self.dataset}\0{self.image_size}\n".encode())
        for part in (self.train, self.test):
            for label, own in zip(self.class_names, part, strict=True):
                lines = (f"{label}\0{path.relative_to(self.root).as_posix()}\n" for path in own)
                digest.update("".join(lines).encode("utf-8", "surrogateescape"))
            digest.update(b"\n")
        return f"{self.dataset}@{digest.hexdigest()[:10]}"

    def rule(self, as_it_is: bool) -> dict[str, object]:
        """Return the fields of a protocol that the pictures decide; see :meth:`ImageFolder.rule`."""
        if as_it_is:
            return super().rule(as_it_is)
        largest = len(self.train[self.head]) if self.dataset == "imagenet-subset-lt" else min(self.counts)
        return {"num_classes": len(self.counts), "max_images": largest}


def fingerprint(file: Path) -> tuple[str, str]:
    """Return SHA-256 and git blob id of a file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        sha256, blob = hashlib.sha256(), git_blob(file.stat().st_size)
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                sha256.update(block)
                blob.update(block)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); see its permissions.") from error
    return sha256.hexdigest(), blob.hexdigest()


def is_published(file: Path, known: Sequence[str] | None = None) -> bool:
    """Say whether a list has the fingerprint of a published one of its name."""
    known = FINGERPRINTS.get(file.name, ()) if known is None else known
    own = fingerprint(file)
    return any(
        found == value or (len(value) == 16 and found.startswith(value)) for found in own for value in known
    )


def scan(
    dataset: str,
    root: str | os.PathLike[str] | None,
    image_size: int | None,
    own_tail: bool,
    order: str = "shuffled",
) -> LargeFolder:
    """List the pictures of a large data set.

    Args:
        dataset: One of :data:`SETS`.
        root: Folder of all data sets; None: ``INCRLT_DATA``, else ``data``.
        image_size: Side in pixels; None: the data set's usual one.
        own_tail: Take the published list; otherwise every picture of the official folders, of which a tail is cut.
        order: Order of arrival; ImageNet-Subset-LT names its classes by it (see :func:`subset_labels`).

    Raises:
        UserError: Something is not there; the sentence says what must be got and where it goes.
    """
    chosen, known = SETS[dataset], facts.info(dataset)
    size = known.image_shape[-1] if image_size is None else image_size
    if not SMALLEST <= size <= LARGEST:
        raise UserError(f"image_size is {size}; allowed are {SMALLEST} to {LARGEST} pixels a side.")
    place = data_root(root) / chosen.folder
    if not place.is_dir():
        raise UserError(f"{dataset} is not in {place}: there is no such folder. {how_to_get(dataset, place)}")
    if own_tail and not chosen.own_tail:
        raise UserError(
            f"{dataset} is balanced and has no tail of its own; give benchmark.imbalance_ratio, such as 100."
        )
    find = chosen.find if own_tail or not chosen.own_tail else _PARENTS[dataset]
    found = find(place, order)
    train, test = (_by_class(place, part, found.class_names) for part in (found.train, found.test))
    empty = [name for name, own in zip(found.class_names, train, strict=True) if not own]
    if empty or not train:
        raise UserError(
            f"{dataset} in {place} has no training pictures of {', '.join(empty[:5]) or 'any class'}"
            f"{f' and {len(empty) - 5} more' if len(empty) > 5 else ''}. {how_to_get(dataset, place)}"
        )
    names = found.class_names
    if own_tail:  # class 0 is the head, as in every data set here
        rank = sorted(range(len(names)), key=lambda label: (-len(train[label]), names[label]))
        names = tuple(names[label] for label in rank)
        train, test = (tuple(part[label] for label in rank) for part in (train, test))
    pictures = sum(map(len, train)) + sum(map(len, test))
    told = f"{pictures:,} pictures; {found.account}"
    head = subset_order(order, len(names))[0] if dataset == "imagenet-subset-lt" else 0
    return LargeFolder(place, size, names, train, test, told, dataset=dataset, head=head, split=found.account)


def how_to_get(dataset: str, place: Path) -> str:
    """Return what must be got, and where it goes."""
    get = SETS[dataset].get.format(place=place, prepare=prepare_command(dataset, place.parent))
    return f"{get} Say where the data sets are by --data, data.root or INCRLT_DATA."


def subset_order(order: str, num_classes: int = 100) -> tuple[int, ...]:
    """Return ImageNet-Subset-LT's class ids by arrival: class id 0 has the most pictures.

    ``shuffled`` is one in-place shuffle of the counts by NumPy's legacy seed 0, as in Long-Tailed-CIL.
    """
    if order != "shuffled":
        return splits.class_order(order, num_classes)
    ids = list(range(num_classes))
    np.random.RandomState(0).shuffle(ids)
    return tuple(ids)


def subset_labels(order: str, num_classes: int = 100) -> tuple[int, ...]:
    """Return the published label of each class id.

    The same classes arrive in the same order in both published forms (NumPy's permutation by 1993); what differs is
    which position has how many pictures. A class id is a rank of counts, so its label depends on the order.
    """
    arrival = splits.class_order("shuffled", num_classes, SUBSET_SEED)
    label_of = dict(zip(subset_order(order, num_classes), arrival, strict=True))
    return tuple(label_of[rank] for rank in range(num_classes))


def _by_class(place: Path, pairs: Iterable[Pair], names: Sequence[str]) -> tuple[tuple[Path, ...], ...]:
    own: dict[str, list[Path]] = {name: [] for name in names}
    for path, name in pairs:
        if name not in own:
            raise UserError(f"{place / path} is of the class {name}, which has no training pictures.")
        own[name].append(place / path)
    return tuple(tuple(paths) for paths in own.values())


# ------------------------------------------------------------------------------------------------------------- lists


def _lines(file: Path) -> list[tuple[str, int]]:
    """Return path and label of each line of a published list."""
    try:
        found = [(path, int(label)) for path, label in (line.rsplit(None, 1) for line in _told(file))]
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"the list {file} cannot be read ({short(error)}); its lines are PATH LABEL, get it anew."
        ) from error
    if not found:
        raise UserError(f"the list {file} is empty; get it anew.")
    return found


def _told(file: Path) -> list[str]:
    """Return the lines of an official text file that say something."""
    try:
        lines = read_lines(file, LARGEST_LIST, MOST_LISTED)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({short(error)}); get the official file anew.") from error
    return [line.strip() for line in lines if line.strip()]


def _of_lists(
    dataset: str, place: Path, train: str, test: str, resolve: Callable[[Path, str], str], named: int
) -> _Found:
    """Read two lists.

    Args:
        dataset: Its name.
        place: Folder of the data set, in which the lists lie.
        train: Name of the training list.
        test: Name of the test list.
        resolve: Gives the path that a picture has here.
        named: Which part of a training path is the class's name, counted from the end.
    """
    missing = [name for name in (train, test) if not (place / name).is_file()]
    if missing:
        raise UserError(
            f"the published lists {' and '.join(missing)} are not in {place}, and the tail is theirs. Run "
            f"{prepare_command(dataset, place.parent)}, or put them there (github.com/facebookresearch/"
            "classifier-balancing, folder data/), or give benchmark.imbalance_ratio to cut another tail from all "
            "pictures by the seeded rule."
        )
    rows = {name: _lines(place / name) for name in (train, test)}
    flat = [path for path, _ in rows[train] if len(PurePosixPath(path).parts) < named]
    if flat:
        raise UserError(
            f"{place / train} names {shown(flat[0])}, whose folders do not tell its class; get it anew."
        )
    names = {label: PurePosixPath(path).parts[-named] for path, label in rows[train]}
    if len(set(names.values())) != len(names):  # species may share a word; the label keeps them apart
        names = {label: f"{name}-{label}" for label, name in names.items()}
    lost = sorted({label for _, label in rows[test]} - names.keys())
    if lost:
        raise UserError(
            f"{place / test} has labels without training pictures: {lost[:5]}; the lists do not belong together."
        )
    first = {label: path for path, label in reversed(rows[train])}
    gone = [path for path in first.values() if not (place / resolve(place, path)).exists()]
    if gone:
        raise UserError(
            f"{place / train} names {gone[0]}, which is not in {place} ({len(gone):,} classes so)."
        )
    pairs = {
        name: [(resolve(place, path), names[label]) for path, label in own] for name, own in rows.items()
    }
    return _Found(
        pairs[train],
        pairs[test],
        tuple(names[label] for label in sorted(names)),
        _verdict(place, train, test),
    )


def _verdict(place: Path, *lists: str) -> str:
    other = [name for name in lists if not is_published(place / name)]
    if not other:
        return f"{PUBLISHED} ({', '.join(lists)}: fingerprints agree)"
    return f"{OTHER} ({', '.join(other)}: unknown fingerprint)"


def _imagenet_path(place: Path, path: str) -> str:
    """Return a path of ImageNet; some copies have no class folders under ``val``."""
    parts = PurePosixPath(path).parts
    flat = len(parts) > 2 and parts[0] == "val" and not (place / parts[0] / parts[1]).is_dir()
    return f"val/{parts[-1]}" if flat else path


def _places_path(place: Path, path: str) -> str:
    """Return a path of Places365: folders of classes, or ``data_256`` by first letter and a flat ``val_256``."""
    parts = PurePosixPath(path).parts
    inner = parts[2:] if parts[0] == "data_256" else parts[1:]  # class folders, in both forms, and the file
    if parts[0] in ("val", "val_256"):
        easy = PurePosixPath("val", *inner)
        return str(easy) if (place / "val").is_dir() else f"val_256/{parts[-1]}"
    if (place / "train").is_dir():
        return str(PurePosixPath("train", "-".join(inner[:-1]), inner[-1]))
    return str(PurePosixPath("data_256", inner[0][0], *inner))


def _imagenet_lt(place: Path, order: str) -> _Found:
    return _of_lists("imagenet-lt", place, "ImageNet_LT_train.txt", "ImageNet_LT_test.txt", _imagenet_path, 2)


def _places_lt(place: Path, order: str) -> _Found:
    return _of_lists("places-lt", place, "Places_LT_train.txt", "Places_LT_test.txt", _places_path, 2)


def _inaturalist(place: Path, order: str) -> _Found:
    """Read the lists, or the official ``train2018.json`` and ``val2018.json``, which say the same."""
    lists = ("iNaturalist18_train.txt", "iNaturalist18_val.txt")
    if not (place / lists[0]).is_file() and (place / "train2018.json").is_file():
        train, test = (_of_json(place / f"{part}2018.json") for part in ("train", "val"))
        names = tuple(dict.fromkeys(name for _, name in sorted(train, key=lambda pair: int(pair[1]))))
        return _Found(train, test, names, "the official train2018.json and val2018.json")
    return _of_lists("inaturalist2018", place, *lists, lambda _, path: path, 2)


def _of_json(file: Path) -> list[Pair]:
    try:
        told = read_json(file, LARGEST_LIST)
        rows = zip(told["images"], told["annotations"], strict=True)
        return [(str(image["file_name"]), str(int(note["category_id"]))) for image, note in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}: {short(error)}); get the official file anew."
        ) from error


# ----------------------------------------------------------------------------------------------------- whole folders


def _folders(folder: Path) -> list[str]:
    try:
        found = sorted(
            path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); the data set is not whole.") from error
    if not found:
        raise UserError(f"{folder} has no class folders; the data set is not whole.")
    return found


def _files(place: Path, *inner: str) -> list[str]:
    folder = place.joinpath(*inner)
    if not folder.is_dir():
        raise UserError(f"{folder} is not there; the data set is not whole.")
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return [str(PurePosixPath(*inner, name)) for name in names]


def _class_folders(place: Path, names: Sequence[str], *tail: str) -> _Found:
    train = [(path, name) for name in names for path in _files(place, "train", name, *tail)]
    test = [(path, name) for name in names for path in _files(place, "val", name, *tail)]
    return _Found(train, test, tuple(names), "official folders; the tail is cut by the seeded rule")


def _whole(place: Path, order: str) -> _Found:
    return _class_folders(place, _folders(place / "train"))


def _subset(place: Path, order: str) -> _Found:
    """Draw ImageNet-Subset's classes; with the published lists its pictures are in their order, else sorted by name."""
    wnids, number = _folders(place / "train"), facts.info("imagenet-subset-lt").num_classes
    if len(wnids) < number:
        raise UserError(
            f"{place / 'train'} has {len(wnids)} class folders, and {number} of ImageNet's 1,000 are drawn; get all."
        )
    drawn = np.random.RandomState(SUBSET_SEED).choice(wnids, number, replace=False).tolist()
    names = tuple(str(drawn[label]) for label in subset_labels(order, number))
    found = _class_folders(place, names)
    train_list = place / "subset_train.txt"
    if not train_list.is_file():
        return _Found(
            found.train, found.test, names,
            f"{OTHER} (no subset_train.txt: the published classes and counts, but files in order of their names)",
        )  # fmt: skip
    rows = [("/".join(PurePosixPath(path).parts[-3:]), label) for path, label in _lines(train_list)]
    outside = [label for _, label in rows if not 0 <= label < number]
    if outside:
        raise UserError(f"{train_list} has the label {outside[0]}; labels are 0 to {number - 1}.")
    train = [(path, str(drawn[label])) for path, label in rows]
    return _Found(train, found.test, names, _verdict(place, "subset_train.txt"))


def _food(place: Path, order: str) -> _Found:
    """Read Food-101's ``meta/{train,test}.txt``, whose lines are ``CLASS/ID`` without a suffix."""
    parts = []
    for part in ("train", "test"):
        file = place / "meta" / f"{part}.txt"
        parts.append([(f"images/{line}.jpg", line.split("/")[0]) for line in _told(file)])
    names = tuple(sorted({name for _, name in parts[0]}))
    return _Found(
        parts[0],
        parts[1],
        names,
        "the official parts; the tail is cut by the seeded rule, no list is agreed on",
    )


def _tiny(place: Path, order: str) -> _Found:
    """Read Tiny-ImageNet: its validation part is the test, since the test part has no labels."""
    files = (place / "wnids.txt", place / "val" / "val_annotations.txt")
    wnids, notes = (_told(file) for file in files)
    names = tuple(sorted(wnids))
    train = [(path, name) for name in names for path in _files(place, "train", name, "images")]
    rows = [line.split("\t")[:2] for line in notes]
    if any(len(row) != 2 for row in rows):
        raise UserError(f"{files[1]} has lines without a class; get the official file anew.")
    test = [(f"val/images/{file}", name) for file, name in rows]
    return _Found(
        train, test, names, "the official parts; the tail is cut by the seeded rule, no list is agreed on"
    )


_IMAGENET_HELP = (
    "Get ILSVRC 2012 by hand from image-net.org (it wants an account) and put its pictures into "
    "{place}/train/WNID/*.JPEG and {place}/val/WNID/*.JPEG"
)
SETS: Final[dict[str, LargeSet]] = {
    "imagenet-lt": LargeSet(
        "imagenet", True, _IMAGENET_HELP + "; its two lists are fetched by: {prepare}.", _imagenet_lt
    ),
    "inaturalist2018": LargeSet(
        "inaturalist2018", True,
        "Run {prepare} (120 GB), or get train_val2018.tar.gz by hand (github.com/visipedia/inat_comp, 2018), unpack it "
        "to {place}/train_val2018/KINGDOM/ID/*.jpg, and put train2018.json and val2018.json, or the two lists "
        "iNaturalist18_train.txt and iNaturalist18_val.txt, into {place}.",
        _inaturalist,
    ),
    "places-lt": LargeSet(
        "places365", True,
        "Get Places365-Standard by hand (places2.csail.mit.edu; the small easy-format archive) and put it into "
        "{place}/train/CLASS and {place}/val/CLASS; the two lists of Places-LT are fetched by: {prepare}.",
        _places_lt,
    ),
    "imagenet-subset-lt": LargeSet(
        "imagenet", False,
        _IMAGENET_HELP + "; subset_train.txt, which gives the published pictures, is fetched by: {prepare}.",
        _subset,
    ),
    "food101-lt": LargeSet(
        "food-101", False,
        "Run {prepare} (5 GB), or get food-101.tar.gz by hand (data.vision.ee.ethz.ch/cvl/datasets_extra/food-101) and "
        "unpack it, so that {place}/images and {place}/meta are there.",
        _food,
    ),
    "tiny-imagenet": LargeSet(
        "tiny-imagenet-200", False,
        "Run {prepare} (0.25 GB), or get tiny-imagenet-200.zip by hand (cs231n.stanford.edu) and unpack it, so that "
        "{place}/wnids.txt, {place}/train and {place}/val are there.",
        _tiny,
    ),
}  # fmt: skip
"""The large data sets by name."""

_PARENTS: Final = {"imagenet-lt": _whole, "places-lt": _whole, "inaturalist2018": _inaturalist}
"""What a tail is cut from where the data set's own is not wanted: all pictures; iNaturalist's lists name all."""
