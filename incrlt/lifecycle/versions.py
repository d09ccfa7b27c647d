"""The versions of a run: which there are, which one answers, and going back. Plain files, no torch.

Version 1 is the run itself. An update makes ``versions/0002``, a run folder like any other, and beside it
``versions/0002.json``: parent, digest of the data, verdict. A version is accepted when that file says so; its folder is
never changed once it is made. ``versions/rollback.json`` says from where on newer versions count again.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from incrlt.errors import UserError
from incrlt.files import read_json, write_atomic

FOLDER: Final = "versions"
ROLLBACK_FILE: Final = "rollback.json"
FORMAT: Final = 1
FIRST: Final = 1
"""Number of the run itself."""


@dataclass(frozen=True)
class Version:
    """What is known of a version.

    Args:
        number: From 2 on.
        parent: Number of the version that it was made from.
        parent_stream: Digest of everything that the parent has learned.
        data: Digest of what arrived.
        settings: What was set otherwise than in the run.
        source: Where the pictures were, for people.
        account: How many pictures there were and what was left out.
        threads: CPU threads that it trains with.
        stream: Digest of everything that it has learned; empty while it is in progress.
        measures: What the gate looked at; empty while it is in progress.
        accept: The rule that it was held to.
        accepted: Whether answers may come from it; None while it is in progress.
        verdict: Why, a sentence each.
        seconds: Of learning.
        golden: Digest of the pictures of ``--golden``; empty where it was judged on the test pictures of all versions.
        trained_on: Pictures that it was trained on: exemplars and what arrived.
        joint: Measures of a network trained anew on the same pictures; empty where none was asked for.
    """

    number: int
    parent: int
    parent_stream: str
    data: str
    settings: tuple[str, ...] = ()
    source: str = ""
    account: str = ""
    threads: int = 0
    stream: str = ""
    measures: Mapping[str, float | None] = field(default_factory=dict)
    accept: str = ""
    accepted: bool | None = None
    verdict: tuple[str, ...] = ()
    seconds: float = 0.0
    golden: str = ""
    trained_on: int = 0
    joint: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, tuple[str, ...]]:
        """What makes two updates the same: parent, data, settings."""
        return self.parent_stream, self.data, self.settings

    @property
    def state(self) -> str:
        """``accepted``, ``rejected`` or ``unfinished``."""
        return {None: "unfinished", True: "accepted", False: "rejected"}[self.accepted]


def path_of(run: Path, number: int) -> Path:
    """Return the folder of a version."""
    return run if number == FIRST else run / FOLDER / f"{number:04d}"


def file_of(run: Path, number: int) -> Path:
    """Return the file that says what is known of a version."""
    return run / FOLDER / f"{number:04d}.json"


def report_of(run: Path, number: int) -> Path:
    """Return the page that says what a version cost and saved."""
    return run / FOLDER / f"{number:04d}.md"


def all_of(run: Path) -> list[Version]:
    """Return the versions of a run from the second on, unfinished ones too, in their order.

    Raises:
        UserError: A file of one is damaged.
    """
    files = [path for path in (run / FOLDER).glob("[0-9]*.json") if path.stem.isdigit()]
    return [_read(path) for path in sorted(files, key=lambda path: int(path.stem))]


def _read(file: Path) -> Version:
    try:
        content = read_json(file)
        if content.pop("format") != FORMAT:
            raise ValueError("it has another format")
        version = Version(**content)
        settings, verdict = tuple(map(str, version.settings)), tuple(map(str, version.verdict))
        return Version(**{**content, "settings": settings, "verdict": verdict})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is damaged ({str(error)[:200]}); take it from a copy, or delete it with {file.with_suffix('')}."
        ) from error


def write(run: Path, version: Version) -> None:
    """Write what is known of a version, whole or not at all; its acceptance counts from then on."""
    content = {"format": FORMAT, **asdict(version)}
    write_atomic(file_of(run, version.number), json.dumps(content, indent=1) + "\n")


def find(run: Path, number: int) -> Version | None:
    """Return a version; None for the run itself.

    Raises:
        UserError: There is none of that number.
    """
    if number == FIRST:
        return None
    found = {version.number: version for version in all_of(run)}
    if number not in found:
        raise UserError(f"{run} has no version {number}; it has {', '.join(map(str, [FIRST, *found]))}.")
    return found[number]


def current(run: Path) -> int:
    """Return the number of the version that answers: the newest accepted one, or the one that was gone back to."""
    back = _rollback(run)
    newer = [v.number for v in all_of(run) if v.accepted and v.number > back["below"]]
    return max(newer, default=back["to"])


def _rollback(run: Path) -> dict[str, int]:
    path = run / FOLDER / ROLLBACK_FILE
    if not path.exists():
        return {"to": FIRST, "below": FIRST}
    try:
        content = read_json(path)
        return {"to": int(content["to"]), "below": int(content["below"])}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); say anew which version answers: incrlt rollback."
        ) from error


def ancestors(run: Path, number: int) -> list[int]:
    """Return the versions that one was made from, the nearest first, down to the run itself."""
    parents = {version.number: version.parent for version in all_of(run)}
    found = []
    while number in parents:
        number = parents[number]
        found.append(number)
    return found


def roll_back(run: Path, number: int | None = None) -> tuple[int, int]:
    """Let answers come from an earlier version again; a rejected one too, where its number is given.

    Args:
        run: The run folder.
        number: Of the version; None: the parent of the one that answers now.

    Returns:
        The versions that answered before and that answers now.

    Raises:
        UserError: There is no such version, or it is unfinished.
    """
    with locked(run):
        try:
            before = current(run)
        except UserError:
            if number is None:
                raise
            before = number  # the file that says so is damaged, and is written anew
        if number is None:
            version = find(run, before)
            if version is None:
                raise UserError(f"version {FIRST} of {run} answers already, and nothing is older.")
            number = version.parent
        version = find(run, number)
        if version is not None and version.accepted is None:
            raise UserError(f"version {number} of {run} is unfinished; finish its update first.")
        newest = max((version.number for version in all_of(run)), default=FIRST)
        answer_from(run, number, newest)
        return before, number


def answer_from(run: Path, number: int, below: int) -> None:
    """Write that a version answers, until one above ``below`` is accepted; the caller holds the lock."""
    write_atomic(run / FOLDER / ROLLBACK_FILE, json.dumps({"to": number, "below": below}) + "\n")


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the versions of a run for this process; the system lets go of them however it ends.

    Raises:
        UserError: Another process holds them, or the folder cannot be written to.
    """
    if not run.is_dir():
        raise UserError(f"{run} is no folder; give the folder of a finished run.")
    try:
        (run / FOLDER).mkdir(exist_ok=True)
        lock = FileLock(run / FOLDER / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"another process is updating {run}. Wait for it, or stop it and run the same command again."
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot write to {run}: {error.strerror}. Copy the folder to where there is space."
        ) from error
    try:
        yield
    finally:
        lock.release()


def discard(run: Path, version: Version) -> None:
    """Delete an unfinished version."""
    assert version.accepted is None
    shutil.rmtree(path_of(run, version.number), ignore_errors=True)
    report_of(run, version.number).unlink(missing_ok=True)
    file_of(run, version.number).unlink()


def table(run: Path) -> list[str]:
    """Return a line for each version."""
    answering = current(run)
    lines = [f"{'*' if answering == FIRST else ' '} 1  the run itself"]
    for version in all_of(run):
        mark = "*" if version.number == answering else " "
        reason = "; ".join(version.verdict)
        lines.append(
            f"{mark} {version.number}  {version.state}, from {version.parent}, {version.account}"
            f"{f' ({reason})' if reason else ''}"
        )
    return lines
