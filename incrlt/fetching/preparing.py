"""From nothing to a data set that incrlt reads: plan, room, downloads, archives, packs, and the set's own check.

Downloads lie in ``.downloads`` below the data root until they are removed. What is there already is never touched:
not a folder, and not a list of the same name with other lines.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Final, cast

from filelock import FileLock, Timeout

from incrlt.benchmarks import large
from incrlt.errors import UserError
from incrlt.fetching import packs
from incrlt.fetching.archives import unpack
from incrlt.fetching.checksums import Progress, matches, silent
from incrlt.fetching.download import fetch, got
from incrlt.fetching.sources import Source, recipe
from incrlt.files import write_atomic
from incrlt.words import size as bytes_of

DOWNLOADS: Final = ".downloads"
"""Folder below the data root."""
SPARE: Final = 100_000_000
"""Bytes that stay free on a disk."""

HERE, OTHER, WANTED = "is here", "another file of this name is here, and stays", "to be fetched"


@dataclass(frozen=True)
class Step:
    """A file that a data set needs.

    Args:
        source: What is known of it.
        place: Where its folder or list goes.
        state: One of :data:`HERE`, :data:`OTHER`, :data:`WANTED`.
        got: Bytes of it that are downloaded.
    """

    source: Source
    place: Path
    state: str
    got: int


def steps(datasets: Sequence[str], root: Path) -> tuple[Step, ...]:
    """Return what data sets need, each file once, in order.

    Raises:
        UserError: One cannot be prepared.
    """
    sources = {one.name: one for dataset in datasets for one in recipe(dataset).sources}
    return tuple(_step(source, root) for source in sources.values())


def _step(source: Source, root: Path) -> Step:
    place = root / source.folder / (source.top or source.name)
    state = WANTED
    if place.exists() or place.is_symlink():
        state = HERE if source.top or matches(place, source.checksum) else OTHER
    return Step(source, place, state, got(source, root / DOWNLOADS))


def account(
    datasets: Sequence[str], planned: Sequence[Step], root: Path, pack: Path | None = None
) -> Iterator[str]:
    """Yield lines that say what would be done, with sizes.

    Args:
        datasets: Names.
        planned: Of :func:`steps`.
        root: The data root.
        pack: Path of the pack that would be written.
    """
    for step in planned:
        there = "" if step.got == 0 else f", {bytes_of(step.got)} in {root / DOWNLOADS}"
        state = WANTED if pack is not None else step.state
        yield f"{step.source.name}  about {bytes_of(step.source.size)}, {state}{there}"
        yield f"  from {step.source.url}"
        yield f"  {step.source.checksum}, of {step.source.whence}"
        yield f"  {f'into {pack}' if pack is not None else f'to {step.place}'}"
    for dataset in datasets:
        known = recipe(dataset)
        yield f"{dataset}: terms: {known.terms}"
        if known.by_hand:
            yield f"{dataset}: by hand: {known.by_hand.format(root=root)}"
    for place, needed in _needs(planned, root, pack).items():
        yield f"needs about {bytes_of(needed)} in {place}, {bytes_of(_free(place))} are free"


def check_room(planned: Sequence[Step], root: Path, pack: Path | None = None) -> None:
    """Refuse what the disk has no room for.

    Raises:
        UserError: There is not enough; with the numbers.
    """
    for place, needed in _needs(planned, root, pack).items():
        _check_free(place, needed)


def _check_free(place: Path, needed: int) -> None:
    if needed and needed + SPARE > _free(place):
        raise UserError(
            f"about {bytes_of(needed)} are needed in {place}, and {bytes_of(_free(place))} are free. Free some space, "
            "or choose another folder with --data."
        )


def _needs(planned: Sequence[Step], root: Path, pack: Path | None) -> dict[Path, int]:
    """Return the bytes that come to each disk, by a folder on it."""
    wanted = [step for step in planned if pack is not None or step.state == WANTED]
    needed = sum(max(0, step.source.size - step.got) for step in wanted)
    if pack is None:
        return {root: needed + sum(step.source.unpacked or step.source.size for step in wanted)}
    packed = sum(step.source.size for step in wanted)
    if _standing(root).stat().st_dev == _standing(pack.parent).stat().st_dev:
        return {root: needed + packed}
    return {root: needed, pack.parent: packed}


def _standing(place: Path) -> Path:
    """Return the folder, or the nearest above it that is there."""
    place = place.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def _free(place: Path) -> int:
    return shutil.disk_usage(_standing(place)).free


# --------------------------------------------------------------------------------------------------------- the work


def prepare(datasets: Sequence[str], root: Path, progress: Progress = silent, remove: bool = False) -> None:
    """Fetch what may be fetched and put it where incrlt reads it.

    Args:
        datasets: Names.
        root: The data root; made where it is not there.
        progress: Told how far it is.
        remove: Remove each archive when it is unpacked.

    Raises:
        UserError: No network, no room, damage, or a name that is not known; the sentence says what to do.
    """
    with _working(root) as downloads:
        planned = steps(datasets, root)
        check_room(planned, root)
        for step in planned:
            if step.state == WANTED:
                file = fetch(step.source, downloads, progress)
                with open(file, "rb") as content:
                    _put(step, content, progress)
                if remove:
                    file.unlink()


def pack(
    datasets: Sequence[str], root: Path, file: Path, progress: Progress = silent, remove: bool = False
) -> None:
    """Fetch what may be fetched and write it as one file for a machine without network.

    Args:
        datasets: Names.
        root: The data root, in which downloads lie.
        file: Path of the pack; must not be there.
        progress: Told how far it is.
        remove: Remove the downloads when they are packed.

    Raises:
        UserError: As :func:`prepare`; or the file is there already.
    """
    if file.exists():
        raise UserError(f"{file} is there already; remove it, or name another file by --pack.")
    if not file.absolute().parent.is_dir():
        raise UserError(f"{file.parent} is no folder; make it, or name another file by --pack.")
    with _working(root) as downloads:
        planned = steps(datasets, root)
        check_room(planned, root, file)
        sources = [step.source for step in planned]
        for source in sources:
            fetch(source, downloads, progress)
        packs.write(file, datasets, sources, downloads, progress)
        for source in sources if remove else ():
            (downloads / source.name).unlink()


def unpack_pack(
    file: Path, datasets: Sequence[str], root: Path, progress: Progress = silent
) -> tuple[str, ...]:
    """Put what a pack holds where incrlt reads it.

    Args:
        file: The pack.
        datasets: Names; none: all that are in it.
        root: The data root; made where it is not there.
        progress: Told how far it is.

    Returns:
        Names of the data sets that were wanted.

    Raises:
        UserError: The pack is damaged, none of ours, or does not hold one of them; no room.
    """
    with packs.opened(file) as opened:
        lost = [dataset for dataset in datasets if dataset not in opened.datasets]
        if lost:
            raise UserError(f"{file} does not hold {', '.join(lost)}; it holds {', '.join(opened.datasets)}.")
        wanted = tuple(datasets) or opened.datasets
        with _working(root):
            planned = tuple(step for step in steps(wanted, root) if step.state == WANTED)
            _check_free(root, sum(step.source.unpacked or step.source.size for step in planned))
            for step in planned:
                with opened.content(step.source, progress) as content:
                    _put(step, content, progress)
    return wanted


def _put(step: Step, content: IO[bytes], progress: Progress) -> None:
    """Bring an archive's folder or a list to its place."""
    step.place.parent.mkdir(parents=True, exist_ok=True)
    if step.source.top:
        unpack(cast(BinaryIO, content), step.source, step.place, progress)
    else:
        write_atomic(step.place, content.read())


@contextlib.contextmanager
def _working(root: Path) -> Iterator[Path]:
    """Keep the folder of downloads to one process; return it."""
    downloads = root / DOWNLOADS
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        with FileLock(downloads / ".lock", timeout=0):
            yield downloads
    except Timeout:
        raise UserError(f"another process prepares data sets in {root}; wait until it has ended.") from None
    except OSError as error:
        raise UserError(
            f"{error.filename or root} cannot be written to ({error.strerror or error}); choose another --data."
        ) from error


# --------------------------------------------------------------------------------------------------------- the check


def told(dataset: str, root: Path) -> tuple[bool, str]:
    """Say whether a data set is whole, by its own reader, and what is there or missing.

    Args:
        dataset: Its name.
        root: The data root.
    """
    look: Callable[[str, Path], str] = _large if dataset in large.SETS else _small
    try:
        return True, look(dataset, root)
    except UserError as error:
        return False, str(error)


def _small(dataset: str, root: Path) -> str:
    from incrlt.benchmarks import datasets  # torch, which nothing else here needs

    bad = datasets.problems(dataset, root)
    if bad:
        raise UserError(f"{'; '.join(bad)}.")
    return f"its files are in {root}, and their checksums are right"


def _large(dataset: str, root: Path) -> str:
    found = large.scan(dataset, root, None, large.SETS[dataset].own_tail)
    paths = [path for part in (found.train, found.test) for own in part for path in own]
    lost = [path for path in paths if not path.is_file()]
    if lost:
        raise UserError(
            f"{len(lost):,} of {len(paths):,} pictures are not there, such as {lost[0]}; get these, or move the folder "
            "away and prepare it again."
        )
    return f"{found.account}; in {found.root}"
