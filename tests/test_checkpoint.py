"""Checkpoints are whole or refused, and never run code."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch

from incrlt.checkpoint import CheckpointFolder
from incrlt.errors import UserError


def filled(folder: Path, count: int) -> CheckpointFolder:
    checkpoints = CheckpointFolder(folder / "checkpoints")
    for number in range(count):
        checkpoints.save({"number": number, "tensor": torch.arange(50.0) * number, "plain": [1, None, "x"]})
    return checkpoints


def names(checkpoints: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_what_is_read_is_what_was_saved(tmp_path):
    state = filled(tmp_path, 4).newest()
    assert state["number"] == 3
    assert state["plain"] == [1, None, "x"]
    assert torch.equal(state["tensor"], torch.arange(50.0) * 3)


def test_no_folder_no_checkpoint(tmp_path):
    checkpoints = CheckpointFolder(tmp_path / "checkpoints")
    checkpoints.tidy()
    checkpoints.clear()
    assert checkpoints.newest() is None
    assert checkpoints.damaged == []
    assert not checkpoints.folder.exists()


def test_the_last_two_are_kept_and_numbers_go_on(tmp_path):
    checkpoints = filled(tmp_path, 1)
    assert [name[:8] for name in names(checkpoints)] == ["00000000"]
    filled(tmp_path, 11)
    assert [name[:8] for name in names(checkpoints)] == ["00000010", "00000011"]


@pytest.mark.parametrize("damage", [truncate, flip, empty])
def test_a_damaged_newest_is_named_and_the_one_before_is_read(tmp_path, damage):
    checkpoints = filled(tmp_path, 3)
    newest = names(checkpoints)[-1]
    damage(checkpoints.folder / newest)
    assert checkpoints.newest()["number"] == 1
    assert checkpoints.damaged == [newest]
    assert checkpoints.newest()["number"] == 1
    assert checkpoints.damaged == []  # the damaged file is gone: it is told once


def test_after_a_fall_back_two_are_kept_again(tmp_path):
    checkpoints = filled(tmp_path, 3)
    flip(checkpoints.folder / names(checkpoints)[-1])
    checkpoints.newest()
    checkpoints.save({"number": 7})
    assert [name[:8] for name in names(checkpoints)] == ["00000001", "00000002"]
    assert checkpoints.newest()["number"] == 7


def test_when_all_are_damaged_there_is_none(tmp_path):
    checkpoints = filled(tmp_path, 2)
    files = names(checkpoints)
    for name in files:
        truncate(checkpoints.folder / name)
    assert checkpoints.newest() is None
    assert checkpoints.damaged == files[::-1]


def test_interrupted_writes_are_ignored_then_deleted(tmp_path):
    checkpoints = filled(tmp_path, 2)
    whole = names(checkpoints)
    leftover = checkpoints.folder / f".00000002-{'0' * 32}.pt.123-abcdef01.tmp"
    leftover.write_bytes(b"half a checkpoint")
    assert checkpoints.newest()["number"] == 1
    assert checkpoints.damaged == []
    checkpoints.tidy()
    assert names(checkpoints) == whole


def test_clear_leaves_nothing(tmp_path):
    checkpoints = filled(tmp_path, 2)
    (checkpoints.folder / ".x.tmp").write_bytes(b"")
    checkpoints.clear()
    assert names(checkpoints) == []


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_a_pickled_object_with_a_right_digest_is_refused_and_not_run(tmp_path, write):
    checkpoints, touched, plain = filled(tmp_path, 1), tmp_path / "touched", tmp_path / "plain"
    write({"number": Malicious(touched)}, plain)
    content = plain.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:32]
    bad = checkpoints.folder / f"00000001-{digest}.pt"
    bad.write_bytes(content)
    with pytest.raises(UserError, match=f"{bad.name}.*--restart"):
        checkpoints.newest()
    assert not touched.exists()
    assert bad.exists()  # a person decides, it is not damage
