"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "data" / "golden"
sys.path.insert(0, str(Path(__file__).resolve().parent))  # makes toy.py and chromium.py importable
sys.path.insert(1, str(REPOSITORY))  # and perf/
if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # one of several processes: threads of one would wait for cores of another
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--soak`` runs the tests that take minutes."""
    parser.addoption("--soak", action="store_true", help="run the tests marked soak too")
    parser.addoption(
        "--share", default="1", help="share of the cases of each soak test: 0.1, or from and to: 0.5-1"
    )


def pytest_collection() -> None:
    """Collect no garbage while everything is imported."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Leave what is there now out of every later search for garbage: a tenth of the suite went into it."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that take minutes, unless they are asked for; files with slow tests begin.

    A file is one process's work: a long one at the end would leave the other processes without any.
    """
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)
    if not config.getoption("--soak"):
        wait = pytest.mark.skip(reason="takes minutes: make soak")
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(wait)


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> Callable[[int], range]:
    """Numbers of the random cases of a soak test: all of them, the first ``--share``, or those between two shares.

    Shares that touch hold each case once, so that a long test can go on where it stopped.
    """
    *start, end = request.config.getoption("--share").split("-")
    return lambda whole: range(
        round(whole * float(start[0] if start else 0)), max(1, round(whole * float(end)))
    )


@pytest.fixture
def figure(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print what a soak test counted, captured or not."""

    def say(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{text}\n")

    return say


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Decoded pictures of tests lie apart from the user's."""
    place = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INCRLT_CACHE", str(place))
        yield place


@pytest.fixture(autouse=True)
def own_cache(caches: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """What one test decodes, another does not find."""
    monkeypatch.setenv("INCRLT_CACHE", str(caches / hashlib.sha256(request.node.nodeid.encode()).hexdigest()))


@pytest.fixture(scope="session")
def cifar100_root() -> Path:
    """Folder that holds ``cifar-100-python``; skips where the real data are not there."""
    candidates = [os.environ.get("INCRLT_DATA"), REPOSITORY / ".." / "shared" / "data", REPOSITORY / "data"]
    for candidate in candidates:
        if candidate and (Path(candidate) / "cifar-100-python" / "train").is_file():
            return Path(candidate).resolve()
    pytest.skip("CIFAR-100 is not here: set INCRLT_DATA to the folder that holds cifar-100-python")


@pytest.fixture(scope="session")
def browser() -> str:
    """Path of a browser; skips where there is none."""
    from chromium import BROWSERS

    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    return found or pytest.skip("no Chromium is installed: Debian's package is chromium")


@pytest.fixture(scope="session")
def axe() -> Path:
    """Path of axe-core; skips where it is not installed."""
    from chromium import find_axe

    return find_axe() or pytest.skip(
        "axe-core is not installed: npm install axe-core, or set INCRLT_AXE to its folder"
    )


@pytest.fixture(scope="session")
def golden():
    """Load a golden case by name: arrays computed by a method's official code."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return {key: arrays[key] for key in arrays.files}

    return load


@pytest.fixture(autouse=True)
def same_numbers_whatever_ran_before():
    """Each test starts from the same random state, alone or in the suite."""
    torch = sys.modules.get("torch")  # tests of the configuration do without
    if torch is not None:
        torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
