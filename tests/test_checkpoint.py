"""Checkpoints are whole or refused, and never run code."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import random
import time
import zipfile
from pathlib import Path

import pytest
import torch

from incrlt import tensorfile
from incrlt.checkpoint import CheckpointFolder, first_non_finite, one_sentence
from incrlt.errors import UserError


def filled(folder: Path, count: int) -> CheckpointFolder:
    checkpoints = CheckpointFolder(folder / "checkpoints")
    for number in range(count):
        checkpoints.save({"number": number, "tensor": torch.arange(50.0) * number, "plain": [1, None, "x"]})
        checkpoints.drop_old()
    return checkpoints


def names(checkpoints: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir() if path.name != "damaged")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def into_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)  # to open it for reading waits for a writer that never comes


def endless(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(1 << 43)  # 8 TiB of nothing: takes no space, and an hour to read


DAMAGES = [truncate, flip, empty, dangle, into_folder, into_pipe, endless]


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
    assert checkpoints.damaged == {}
    assert not checkpoints.folder.exists()


def test_the_last_two_are_kept_and_numbers_go_on(tmp_path):
    checkpoints = filled(tmp_path, 1)
    assert [name[:8] for name in names(checkpoints)] == ["00000000"]
    filled(tmp_path, 11)
    assert [name[:8] for name in names(checkpoints)] == ["00000010", "00000011"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_named_and_the_one_before_is_read(tmp_path, damage):
    checkpoints = filled(tmp_path, 3)
    newest = names(checkpoints)[-1]
    damage(checkpoints.folder / newest)
    assert checkpoints.newest()["number"] == 1
    assert list(checkpoints.damaged) == [newest] and checkpoints.damaged[newest]
    assert newest in names(checkpoints)  # reading changes nothing
    assert checkpoints.newest(put_aside=True)["number"] == 1
    assert list(checkpoints.damaged) == [newest]
    assert newest not in names(checkpoints)
    assert os.path.lexists(checkpoints.folder / "damaged" / newest)  # kept for whoever wants to look at it
    assert checkpoints.newest()["number"] == 1
    assert checkpoints.damaged == {}  # it is told once


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_a_newest_that_may_not_be_read_falls_back(tmp_path):
    checkpoints = filled(tmp_path, 2)
    (checkpoints.folder / names(checkpoints)[-1]).chmod(0)
    assert checkpoints.newest()["number"] == 0
    assert list(checkpoints.damaged.values()) == ["Permission denied"]


def test_a_disk_that_fails_to_read_falls_back(tmp_path, monkeypatch):
    checkpoints = filled(tmp_path, 2)
    newest, real = names(checkpoints)[-1], open

    def failing(path, *arguments, **options):
        if Path(path).name == newest:
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", failing)
    assert checkpoints.newest()["number"] == 0
    assert checkpoints.damaged == {newest: "Input/output error"}


def test_files_of_other_programs_are_neither_read_nor_deleted(tmp_path):
    """2024-model.pt was taken for a checkpoint of ours, found damaged, and deleted."""
    checkpoints = filled(tmp_path, 2)
    others = [
        "2024-model.pt",
        "1-x.pt",
        "-.pt",
        "00000009-ABCDEF.pt",
        "9" * 40 + "-x.pt",
        "é.pt",
        ".draft.tmp",
    ]
    for name in others:
        (checkpoints.folder / name).write_bytes(b"mine")
    assert checkpoints.newest(put_aside=True)["number"] == 1
    assert checkpoints.damaged == {}
    checkpoints.save({"number": 2})
    checkpoints.drop_old()
    checkpoints.clear()
    assert names(checkpoints) == sorted(others)


def test_after_a_fall_back_two_are_kept_again(tmp_path):
    checkpoints = filled(tmp_path, 3)
    flip(checkpoints.folder / names(checkpoints)[-1])
    checkpoints.newest(put_aside=True)
    checkpoints.save({"number": 7})
    checkpoints.drop_old()
    assert [name[:8] for name in names(checkpoints)] == ["00000001", "00000002"]
    assert checkpoints.newest()["number"] == 7


def test_where_nothing_can_be_put_aside_the_good_one_stays(tmp_path, monkeypatch):
    checkpoints = filled(tmp_path, 3)
    flip(checkpoints.folder / names(checkpoints)[-1])
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only")))
    assert checkpoints.newest(put_aside=True)["number"] == 1
    checkpoints.save({"number": 7})
    checkpoints.drop_old()
    assert [name[:8] for name in names(checkpoints)] == ["00000001", "00000002", "00000003"]


def test_when_all_are_damaged_there_is_none(tmp_path):
    checkpoints = filled(tmp_path, 2)
    files = names(checkpoints)
    for name in files:
        truncate(checkpoints.folder / name)
    assert checkpoints.newest() is None
    assert list(checkpoints.damaged) == files[::-1]


def test_interrupted_writes_are_ignored_then_deleted(tmp_path):
    checkpoints = filled(tmp_path, 2)
    whole = names(checkpoints)
    leftover = checkpoints.folder / f".00000002-{'0' * 32}.pt.123-abcdef01.tmp"
    leftover.write_bytes(b"half a checkpoint")
    assert checkpoints.newest()["number"] == 1
    assert checkpoints.damaged == {}
    checkpoints.tidy()
    assert names(checkpoints) == whole


def test_clear_leaves_nothing(tmp_path):
    checkpoints = filled(tmp_path, 2)
    (checkpoints.folder / ".00000002-ab.pt.77-0123abcd.tmp").write_bytes(b"")
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
        checkpoints.newest(put_aside=True)
    assert not touched.exists()
    assert bad.exists()  # a person decides, it is not damage


# ------------------------------------------------------------------------------------ sizes that are not there


def saved(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def with_contents(content: bytes, change) -> bytes:
    """Return a file of tensors whose table of contents has been changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w") as target:
        for member in source.infolist():
            data = source.read(member)
            target.writestr(member.filename, change(data) if member.filename.endswith("data.pkl") else data)
    return out.getvalue()


def compressed(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("archive/data.pkl", b"\0" * 20_000_000)
    return out.getvalue()


def expanded(content: bytes) -> bytes:
    """torch saves a view of one element as such: a step of 0 makes any number of it."""
    return saved({"x": torch.zeros(1).expand(10**12)})


class Bytes:
    """A list of zeros as long as its number says, from a class that weights_only allows."""

    def __reduce__(self):
        return bytearray, (10**11,)


HOSTILE = {
    "larger than the storage": lambda c: with_contents(
        c, lambda d: d.replace(b"M\x39\x05", b"J\xff\xff\xff\x7f")
    ),
    "expanded": expanded,
    "compressed": compressed,
    "a bomb of bytes": lambda c: saved({"x": Bytes()}),
    "memo": lambda c: with_contents(c, lambda d: b"\x80\x02K\x01r\xff\xff\xff\xff."),
    "cut off": lambda c: with_contents(c, lambda d: d[: len(d) // 2]),
    "no table": lambda c: c[:4] + bytes(len(c) - 4),
    "a number": lambda c: with_contents(c, lambda d: b"\x80\x02K\x01."),
    "odd storages": lambda c: with_contents(c, lambda d: d.replace(b"FloatStorage", b"FloatSturage")),
    "deep": lambda c: with_contents(c, lambda d: b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b"."),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_asks_for_more_than_it_holds_is_one_sentence_at_once(tmp_path, case):
    checkpoints = filled(tmp_path, 1)
    good = saved({"x": torch.zeros(1337), "y": [torch.ones(2, 3)]})
    tensorfile.check(good)
    content = HOSTILE[case](good)
    assert content != good
    path = checkpoints.folder / f"00000005-{hashlib.sha256(content).hexdigest()[:32]}.pt"
    path.write_bytes(content)
    begun = time.perf_counter()
    with pytest.raises(UserError) as caught:
        checkpoints.newest()
    assert time.perf_counter() - begun < 5
    assert str(caught.value).startswith(f"checkpoint {path} was not written by this program: it ")
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_every_type_of_tensor_may_be_in_a_checkpoint(tmp_path):
    types = [
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
    ]
    types += [torch.int8, torch.uint8, torch.bool, torch.complex64]
    state = {str(kind): torch.ones(3, 2).to(kind) for kind in types}
    state |= {"empty": torch.zeros(0, 5), "scalar": torch.tensor(2.0), "view": torch.arange(9.0).view(3, 3).T}
    state |= {"repeated": torch.ones(1).expand(1000)}
    state |= {"parameter": torch.nn.Parameter(torch.ones(2)), "ordered": torch.nn.Linear(2, 3).state_dict()}
    checkpoints = CheckpointFolder(tmp_path / "checkpoints")
    checkpoints.save(state)
    read = checkpoints.newest()
    assert all(torch.equal(read[key], value) for key, value in state.items() if key != "ordered")


def test_thousands_of_flipped_bits_are_a_sentence_or_harmless():
    """The digest is right, so that the file itself is looked at."""
    good = saved({"model": {"a": torch.arange(6.0).view(2, 3)}, "n": [1, 2.5, None, "x"]})
    chance = random.Random(0)
    refused = 0
    for _ in range(300):
        content = bytearray(good)
        for _ in range(chance.choice([1, 3, 20])):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        try:
            tensorfile.check(bytes(content))
        except tensorfile.NotTensorsError:
            refused += 1
    assert 30 < refused < 300


# ------------------------------------------------------------------------------------ nothing non-finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_never_saved(tmp_path, value):
    checkpoints = filled(tmp_path, 2)
    before = names(checkpoints)
    state = {
        "strategy": {"model": {"tensors": {"a": torch.ones(2), "b.running_var": torch.tensor([1, value])}}}
    }
    assert first_non_finite(state) == "strategy.model.tensors.b.running_var"
    with pytest.raises(UserError, match=r"b\.running_var is not finite"):
        checkpoints.save(state)
    assert names(checkpoints) == before


def test_what_is_finite_or_a_methods_own_is_saved():
    assert first_non_finite({"a": [torch.ones(2), (torch.arange(3), None, "nan")], "b": float("nan")}) is None
    assert first_non_finite({"extra": {"prior": torch.tensor([-torch.inf])}}) is None
    assert first_non_finite({"router.calibration": torch.tensor([torch.nan])}) is None
    assert first_non_finite({"calibration.weight": torch.tensor([torch.nan])}) == "calibration.weight"
    assert first_non_finite({"large": torch.full((3,), 3e38), "half": torch.full((9,), 6e4).half()}) is None
    assert first_non_finite({"both": torch.tensor([torch.inf, -torch.inf])}) == "both"
    assert first_non_finite({"complex": torch.tensor([complex(0, torch.nan)])}) == "complex"
    assert first_non_finite([torch.ones(1), torch.tensor([torch.nan])]) == "1"


@pytest.mark.parametrize(
    "use", [lambda s: s["nothing"], lambda s: s + 1, lambda s: torch.ones(2) @ torch.ones(3)]
)
def test_another_structure_is_one_sentence(use):
    sentence = r"^the file has another structure .*\. Do this\.$"
    with pytest.raises(UserError, match=sentence) as caught, one_sentence("the file", "Do this."):
        use({})
    assert "\n" not in str(caught.value)


def test_a_folder_that_was_removed_stays_removed(tmp_path):
    checkpoints = CheckpointFolder(tmp_path / "gone" / "checkpoints")
    with pytest.raises(UserError, match="cannot make"):
        checkpoints.save({"number": 1})
    assert not (tmp_path / "gone").exists()
