"""The files of a run: what was asked, on what it ran, every epoch, every count, every result."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

import incrlt
from incrlt.errors import UserError
from incrlt.files import LARGEST_LOG, event_of, read_text, remove_leftovers, write_atomic
from incrlt.metrics import StreamRecord, save_classes, save_confusions, spent, write_results
from incrlt.processes import world
from incrlt.runner.events import EpochEvent
from incrlt.runner.memory import peak_memory
from incrlt.training.template import IncrTemplate

PACKAGES = ("torch", "torchvision", "avalanche-lib", "numpy")
"""Packages whose versions stand in environment.json."""


class RunFolder:
    """Writes one run folder; every file is whole or absent, the log is cut back when a run is resumed.

    Args:
        path: The folder; made here.

    Raises:
        UserError: It cannot be made or written to, or another process is writing to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the run folder {path}: {error.strerror or error}. Choose another folder with --out."
            ) from error
        self._lock = self._locked()
        remove_leftovers(path)  # of a write that was killed
        self.log_path = path / "log.jsonl"

    def _locked(self) -> FileLock:
        """Take the folder for this process; the system lets go of it however the process ends."""
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"another process is running in {self.path}. Wait for it, stop it, or choose another folder with --out."
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot write to the run folder {self.path}: {error.strerror}. Choose another folder with --out."
            ) from error
        return lock

    @property
    def is_done(self) -> bool:
        """True when the run came to its end."""
        return (self.path / "DONE").is_file()

    def write_json(self, name: str, values: object) -> None:
        """Write plain data to a file of the folder."""
        write_atomic(self.path / name, json.dumps(values, indent=1, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write text to a file of the folder."""
        write_atomic(self.path / name, text)

    def log(self, event: Mapping[str, object]) -> None:
        """Append a line to ``log.jsonl``."""
        with self.writing("log.jsonl"), open(self.log_path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), **event}) + "\n")

    @property
    def log_size(self) -> int:
        """Bytes of ``log.jsonl``, which a checkpoint remembers."""
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def cut_log(self, size: int) -> None:
        """Drop lines written after a checkpoint."""
        if self.log_size > size:
            with self.writing("log.jsonl"):
                os.truncate(self.log_path, size)

    def remove(self, names: Iterable[str]) -> None:
        """Delete files of a run that is begun anew."""
        for name in names:
            with self.writing(name):
                (self.path / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Make one sentence of a disk that cannot be written to.

        Args:
            what: Name of the file or folder, for the sentence.

        Raises:
            UserError: In place of the error inside.
        """
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write {what} in {self.path}: {error.strerror or error}. See that the folder is there and has "
                "space, then run the same command again: it goes on from what is saved."
            ) from error

    def write_counts(
        self, records: dict[str, StreamRecord], labels: list[int], extra: Mapping[str, object]
    ) -> dict[str, Any]:
        """Write counts, classes and results; return the content of ``results.json``."""
        save_confusions(self.path / "confusions.npz", {k: r.confusions for k, r in records.items()})
        record = next(iter(records.values()))
        save_classes(
            self.path / "classes.json",
            record.experience_of_class,
            record.images_of_class,
            record.class_names,
            labels,
        )
        return write_results(self.path, records, extra)

    def write_cost(self) -> None:
        """Write what each stage has cost up to the last line of the log."""
        self.write_json(spent.FILE, {"stages": self.stages()})

    def stages(self) -> list[dict[str, object]]:
        """Return what each stage has cost, :func:`incrlt.metrics.spent.spent` of the log."""
        return spent.spent(self._events())

    def _events(self) -> Iterator[dict[str, object]]:
        """Yield the lines of the log; one that was damaged while the run was not running is passed over."""
        for line in read_text(self.log_path, LARGEST_LOG, "replace").splitlines():
            event = event_of(line)
            if event is not None:
                yield event

    def close(self) -> None:
        """Let go of the folder, whatever has become of it meanwhile."""
        with contextlib.suppress(OSError):
            self._lock.release()
        with contextlib.suppress(OSError):
            if [file.name for file in self.path.iterdir()] == [
                ".lock"
            ]:  # refused before anything was written
                (self.path / ".lock").unlink()
                self.path.rmdir()


def epoch_event(strategy: IncrTemplate, experience: int) -> EpochEvent:
    """Return what the log says of an epoch that has just ended."""
    seconds = max(strategy.epoch_seconds, 1e-9)
    return {
        "event": "epoch",
        "experience": experience,
        "stage": strategy.stage.name,
        "epoch": strategy.stage_epoch + 1,
        "epochs": strategy.stage.epochs,
        "lr": strategy.epoch_lr,
        "loss": sum(strategy.epoch_terms.values()),
        "terms": strategy.epoch_terms,
        "images_per_second": strategy.epoch_images / seconds,
        "seconds": seconds,
        "images": strategy.epoch_images,
        "stored": strategy.stage.cache_features,
        "processes": world().size,
        "peak_bytes": peak_memory(strategy.device),
    }


def environment(device: torch.device, command: str) -> dict[str, object]:
    """Return versions, machine and commit as plain data."""
    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "incrlt": incrlt.__version__,
        "python": platform.python_version(),
        **{name.removesuffix("-lib"): metadata.version(name) for name in PACKAGES},
        "device": str(device),
        "gpu": cuda,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        **_git(),
        "command": command,
    }


def session(machine: Mapping[str, object], begun_from: str, noticed: Sequence[str]) -> dict[str, object]:
    """Return what ``environment.json`` says of one process of a run: commits of the manifest name it by number.

    Args:
        machine: :func:`environment` with what was chosen on it.
        begun_from: Where in the run it took over.
        noticed: What differed then, a sentence each.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"begun": now, "from": begun_from, "process": os.getpid(), **machine, "noticed": list(noticed)}


def _git() -> dict[str, object]:
    def ask(*words: str) -> str | None:
        try:
            where = Path(__file__).parent
            done = subprocess.run(
                ["git", *words], cwd=where, capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None  # not a checkout, or no git
        return done.stdout.strip()

    status = ask("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": ask("rev-parse", "HEAD"), "git_dirty": None if status is None else bool(status)}
