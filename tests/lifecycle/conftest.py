"""A run on a few small pictures, made once, and folders of pictures to come."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))  # makes the helpers of this folder importable

from pictures import CLASSES, YAML, write


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A finished run on four classes, whose data are gone."""
    from incrlt.experiment import schema
    from incrlt.runner.options import RunOptions
    from incrlt.runner.run import execute

    place = tmp_path_factory.mktemp("birds")
    write(place / "data" / "train", {"heron": 20, "swan": 12, "coot": 8, "wren": 6})
    write(place / "data" / "test", dict.fromkeys(CLASSES[:4], 5), first=100)
    asked = YAML | {
        "data": {"root": str(place / "data")},
        "output": {"folder": str(place / "runs"), "name": "birds"},
    }
    (place / "birds.yaml").write_text(yaml.safe_dump(asked))
    assert execute(schema.load(place / "birds.yaml"), RunOptions()) == 0
    shutil.rmtree(place / "data")
    return next((place / "runs" / "birds").iterdir())


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """The same, moved to another place."""
    return Path(shutil.copytree(finished, tmp_path / "moved"))


@pytest.fixture
def monday(tmp_path) -> Path:
    """A new class and more pictures of an old one."""
    return write(tmp_path / "monday", {"teal": 15, "heron": 10}, first=200)
