"""The files of a run: what was asked, on what it ran, every epoch, every count, every result."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

import incrlt
from incrlt.errors import UserError
from incrlt.files import write_atomic
from incrlt.metrics import StreamRecord, save_classes, save_confusions, write_results

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
                f"cannot make the run folder {path}: {error.strerror}. Choose another folder with --out."
            ) from error
        self._lock = self._locked()
        for left in path.glob(".*.tmp"):  # a write that was killed
            left.unlink(missing_ok=True)
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

    def write_json(self, name: str, values: Any) -> None:
        """Write plain data to a file of the folder."""
        write_atomic(self.path / name, json.dumps(values, indent=1, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write text to a file of the folder."""
        write_atomic(self.path / name, text)

    def log(self, event: dict[str, Any]) -> None:
        """Append a line to ``log.jsonl``."""
        try:
            with open(self.log_path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"time": time.time(), **event}) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write {self.log_path}: {error.strerror}. Free some space, then run the same command again."
            ) from error

    @property
    def log_size(self) -> int:
        """Bytes of ``log.jsonl``, which a checkpoint remembers."""
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def cut_log(self, size: int) -> None:
        """Drop lines written after a checkpoint."""
        if self.log_size > size:
            os.truncate(self.log_path, size)

    def write_counts(
        self, records: dict[str, StreamRecord], labels: list[int], extra: dict[str, Any]
    ) -> dict[str, Any]:
        """Write counts, classes and results; return the content of ``results.json``."""
        save_confusions(self.path / "confusions.npz", {k: list(r.confusions) for k, r in records.items()})
        record = next(iter(records.values()))
        save_classes(
            self.path / "classes.json",
            record.experience_of_class,
            record.images_of_class,
            record.class_names,
            labels,
        )
        return write_results(self.path, records, extra)

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.release()
        if [file.name for file in self.path.iterdir()] == [".lock"]:  # refused before anything was written
            (self.path / ".lock").unlink()
            self.path.rmdir()


def environment(device: torch.device, command: str) -> dict[str, Any]:
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


def _git() -> dict[str, Any]:
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
