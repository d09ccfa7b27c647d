"""A server, and archives of trees as they are published."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from served import Served, serving


@pytest.fixture
def served() -> Served:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """The server is on this machine, whatever proxy the machine has."""
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """Whatever else the machine writes is not waited for, a hundred times."""
    monkeypatch.setattr(os, "sync", lambda: None)


def tar_of(folder: Path) -> bytes:
    """Return a folder as .tar.gz, with the folder at its top."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as tar:
        tar.add(folder, folder.name)
    return written.getvalue()


def zip_of(folder: Path) -> bytes:
    """Return a folder as .zip, with the folder at its top."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, f"{folder.name}/{path.relative_to(folder).as_posix()}")
    return written.getvalue()
