"""Archives: what is in them comes out, and what would do harm stops it with nothing left behind."""

from __future__ import annotations

import io
import tarfile
import zipfile

import pytest

from incrlt.errors import UserError
from incrlt.fetching import archives
from incrlt.fetching.sources import Source


def tar_with(*members: tarfile.TarInfo | tuple[str, bytes], mode: str = "w:gz") -> io.BytesIO:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode=mode) as tar:
        for member in members:
            if isinstance(member, tuple):
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
            else:
                tar.addfile(member)
    written.seek(0)
    return written


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zip_with(*members: tuple[str, bytes, int]) -> io.BytesIO:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    written.seek(0)
    return written


def source(name: str, unpacked: int = 1000, files: int = 10) -> Source:
    return Source(
        name, "http://publisher/it", "md5:0", 1000, "a test", top="set", unpacked=unpacked, files=files
    )


GOOD = [("set/a/1.txt", b"one"), ("set/a/b/2.txt", b"two"), ("./set/3.txt", b"")]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_comes_out_as_it_went_in(tmp_path, mode):
    seen = []
    folder = special("set", tarfile.DIRTYPE)
    archives.unpack(
        tar_with(folder, *GOOD, mode=mode),
        source("x.tar"),
        tmp_path / "here",
        lambda *told: seen.append(told),
    )
    found = {
        str(p.relative_to(tmp_path / "here")): p.read_bytes()
        for p in (tmp_path / "here").rglob("*")
        if p.is_file()
    }
    assert found == {"a/1.txt": b"one", "a/b/2.txt": b"two", "3.txt": b""}
    assert [done for _, done, _ in seen] == [3, 6, 6]
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_zip_comes_out_as_it_went_in(tmp_path):
    archives.unpack(
        zip_with(("set/", b"", 0o40755), ("set/a.txt", b"one" * 100, 0o100644), ("set/b/c", b"", 0)),
        source("x.zip"), tmp_path / "set",
    )  # fmt: skip
    assert (tmp_path / "set" / "a.txt").read_bytes() == b"one" * 100 and (
        tmp_path / "set" / "b" / "c"
    ).is_file()


def test_what_a_stopped_call_left_is_no_hindrance(tmp_path):
    (tmp_path / ".set.unpacking").mkdir()
    (tmp_path / ".set.unpacking" / "a").write_bytes(b"half")
    archives.unpack(tar_with(("set/b", b"")), source("x.tar"), tmp_path / "set")
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["b"]


HOSTILE_TARS = {
    "above": [("set/../../out", b"x")],
    "absolute": [("/tmp/out", b"x")],
    "beside": [("other/a", b"x")],
    "the folder as a file": [("set", b"x")],
    "backslash": [("set/..\\..\\out", b"x")],
    "drive": [("set/C:x", b"x")],
    "link": [special("set/link", tarfile.SYMTYPE, "/etc")],
    "link inside": [("set/a", b"x"), special("set/link", tarfile.SYMTYPE, "a")],
    "hard link": [("set/a", b"x"), special("set/link", tarfile.LNKTYPE, "set/a")],
    "hard link out": [special("set/link", tarfile.LNKTYPE, "../../etc/passwd")],
    "link as the folder": [special("set", tarfile.SYMTYPE, "/tmp"), ("set/a", b"x")],
    "character device": [special("set/null", tarfile.CHRTYPE)],
    "block device": [special("set/disk", tarfile.BLKTYPE)],
    "pipe": [special("set/pipe", tarfile.FIFOTYPE)],
    "twice": [("set/a", b"x"), ("set/a", b"y")],
    "too many": [(f"set/{n}", b"") for n in range(101)],
    "too large": [("set/a", bytes(600_000)), ("set/b", bytes(600_000))],
}


@pytest.mark.parametrize("what", HOSTILE_TARS)
def test_a_hostile_tar_leaves_nothing(tmp_path, what):
    home = tmp_path / "deep" / "data"
    home.mkdir(parents=True)
    first = [("set/first", b"fine")] if what not in ("the folder as a file", "link as the folder") else []
    with pytest.raises(UserError, match=r"it is not unpacked|cannot be unpacked"):
        archives.unpack(tar_with(*first, *HOSTILE_TARS[what]), source("x.tar.gz"), home / "set")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["deep", "deep/data"]


HOSTILE_ZIPS = {
    "above": [("set/../../out", b"x", 0)],
    "absolute": [("/tmp/out", b"x", 0)],
    "link": [("set/link", b"/etc", 0o120777)],
    "pipe": [("set/pipe", b"", 0o010644)],
    "twice": [("set/a", b"x", 0), ("set/a", b"y", 0)],
    "bomb": [("set/a", bytes(3_000_000), 0)],
}


@pytest.mark.parametrize("what", HOSTILE_ZIPS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_hostile_zip_leaves_nothing(tmp_path, what):
    home = tmp_path / "deep" / "data"
    home.mkdir(parents=True)
    with pytest.raises(UserError, match="it is not unpacked"):
        archives.unpack(
            zip_with(("set/first", b"fine", 0), *HOSTILE_ZIPS[what]), source("x.zip"), home / "set"
        )
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["deep", "deep/data"]


def test_an_encrypted_zip_is_told(tmp_path):
    content = bytearray(zip_with(("set/a", b"x", 0)).getvalue())
    content[content.index(b"PK\1\2") + 8] |= 1  # the bit in the central directory
    with pytest.raises(UserError, match="encrypted"):
        archives.unpack(io.BytesIO(bytes(content)), source("x.zip"), tmp_path / "set")


@pytest.mark.parametrize("length", [0, 10, 5_000, 150_000])
@pytest.mark.parametrize("kind", ["x.tar.gz", "x.tar", "x.zip"])
def test_a_cut_archive_leaves_nothing(tmp_path, length, kind):
    noise = bytes(n * n % 251 for n in range(200_000))
    whole = (
        zip_with(("set/a", noise, 0))
        if kind == "x.zip"
        else tar_with(("set/a", noise), mode="w:gz" if kind == "x.tar.gz" else "w")
    )
    cut = io.BytesIO(whole.getvalue()[: min(length, len(whole.getvalue()) - 700)])
    with pytest.raises(UserError, match=r"is damaged|holds no files"):
        archives.unpack(cut, source(kind), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_byte_in_a_zip_is_found(tmp_path):
    content = bytearray(zip_with(("set/a", bytes(n * n % 251 for n in range(5000)), 0)).getvalue())
    content[100] ^= 255
    with pytest.raises(UserError, match="is damaged"):
        archives.unpack(io.BytesIO(bytes(content)), source("x.zip"), tmp_path / "set")


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be unpacked"):
        archives.unpack(tar_with(*GOOD), source("x.tar"), tmp_path / "file" / "set")
    (tmp_path / ".set.unpacking").symlink_to("/tmp")
    with pytest.raises(UserError, match="is in the way"):
        archives.unpack(tar_with(*GOOD), source("x.tar"), tmp_path / "set")
