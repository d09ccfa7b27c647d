"""Downloads from a server that fails in every way that one can: the file is right in the end, or not there."""

from __future__ import annotations

import hashlib

import pytest

from incrlt.errors import UserError
from incrlt.fetching import download
from incrlt.fetching.checksums import matches
from incrlt.fetching.sources import Source

CONTENT = bytes(range(256)) * 40_000  # ten megabytes: several blocks
RIGHT = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


def source(url: str, checksum: str = RIGHT, size: int = len(CONTENT)) -> Source:
    return Source("file.bin", url, checksum, size, "a test")


def fetch(of: Source, folder, **options):
    return download.fetch(of, folder, pause=lambda seconds: None, **options)


def test_a_file_comes_whole_and_is_taken_as_it_is_the_next_time(served, tmp_path):
    seen = []
    url = served.put("/file.bin", CONTENT)
    file = fetch(source(url), tmp_path, progress=lambda *told: seen.append(told))
    assert file.read_bytes() == CONTENT and [path.name for path in tmp_path.iterdir()] == ["file.bin"]
    assert ("file.bin", len(CONTENT), len(CONTENT)) in seen
    assert [done for what, done, _ in seen if what == "file.bin"] == sorted(
        done for what, done, _ in seen if what == "file.bin"
    )
    assert fetch(source(url), tmp_path) == file and len(served.asked) == 1


@pytest.mark.parametrize(
    "checksum", [hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest(), None]
)
def test_each_kind_of_checksum_is_known(tmp_path, checksum):
    file = tmp_path / "a"
    file.write_bytes(CONTENT)
    blob = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    told = f"blob:{blob}" if checksum is None else f"{'md5' if len(checksum) == 32 else 'sha256'}:{checksum}"
    assert matches(file, told)
    file.write_bytes(CONTENT[:-1] + b"\0")
    assert not matches(file, told)


def test_a_connection_that_ends_early_is_taken_up_where_it_ended(served, tmp_path):
    cuts = [("cut", 3_000_001), ("cut", 2_500_000), ("cut", 1)]
    url = served.put("/file.bin", CONTENT, *cuts)
    assert fetch(source(url), tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in served.asked] == [
        None, "bytes=3000001-", "bytes=5500001-", "bytes=5500002-",
    ]  # fmt: skip


def test_what_an_earlier_call_got_is_used(served, tmp_path):
    url = served.put("/file.bin", CONTENT)
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:4_000_000])
    assert download.got(source(url), tmp_path) == 4_000_000
    assert fetch(source(url), tmp_path).read_bytes() == CONTENT
    assert served.asked == [("/file.bin", "bytes=4000000-")]
    assert not (tmp_path / "file.bin.part").exists()


def test_a_whole_part_only_lacks_its_name(served, tmp_path):
    url = served.put("/file.bin", CONTENT)
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert fetch(source(url), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "begun",
    [b"\1" * 1_000_000, CONTENT + b"more", b"\1" * len(CONTENT)],
    ids=["other", "too long", "other, as long"],
)
def test_the_beginning_of_another_file_is_thrown_away(served, tmp_path, begun):
    url = served.put("/file.bin", CONTENT)
    (tmp_path / "file.bin.part").write_bytes(begun)
    assert fetch(source(url), tmp_path).read_bytes() == CONTENT
    assert served.asked[-1] == ("/file.bin", None)


def test_a_server_without_ranges_sends_all(served, tmp_path):
    url = served.put("/file.bin", CONTENT, ("cut", 5_000_000), ("whole",))
    assert fetch(source(url), tmp_path).read_bytes() == CONTENT
    assert len(served.asked) == 2


@pytest.mark.parametrize(
    "fault", [("status", 503), ("status", 429), ("shifted",), ("page", b"<html>log in</html>")]
)
def test_a_passing_fault_costs_an_attempt_and_nothing_that_was_got(served, tmp_path, fault):
    url = served.put("/file.bin", CONTENT, fault, fault)
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:6_000_000])
    assert fetch(source(url), tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in served.asked] == ["bytes=6000000-"] * 3


def test_a_server_that_gives_no_length_is_held_to_the_checksum(served, tmp_path):
    url = served.put("/file.bin", CONTENT, ("unsized",))
    assert fetch(source(url), tmp_path).read_bytes() == CONTENT


def test_another_file_is_not_kept(served, tmp_path):
    url = served.put("/file.bin", CONTENT[:-1] + b"\0")
    with pytest.raises(
        UserError, match=r"gives another file than the known one \(md5:.*checksum of a test"
    ) as told:
        fetch(source(url), tmp_path)
    assert str(tmp_path / "file.bin") in str(told.value) and list(tmp_path.iterdir()) == []


def test_more_than_is_known_is_not_taken(served, tmp_path):
    url = served.put("/file.bin", CONTENT)
    with pytest.raises(UserError, match=r"9\.77 MiB or more, and about 2 MiB are known"):
        fetch(source(url, size=1 << 21), tmp_path)
    assert not (tmp_path / "file.bin").exists()
    served.faults["/file.bin"] = [("unsized",)]
    with pytest.raises(UserError, match="or more, and about 2 MiB are known"):
        fetch(source(url, size=1 << 21), tmp_path)
    assert download.got(source(url), tmp_path) <= 1 << 22


def test_what_does_not_come_is_told_with_what_is_here(served, tmp_path):
    url = served.put("/file.bin", CONTENT, ("cut", 5 << 20), *[("status", 503)] * download.TRIES)
    with pytest.raises(
        UserError, match=r"the server said 503.*5 MiB of about 9.77 MiB are in .*--pack"
    ) as told:
        fetch(source(url), tmp_path)
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[: 5 << 20]
    assert f"put the file at {tmp_path / 'file.bin'}." in str(told.value)
    assert fetch(source(url), tmp_path).read_bytes() == CONTENT


def test_nobody_there_and_not_found(served, tmp_path):
    with pytest.raises(UserError, match="Connection refused"):
        fetch(source("http://127.0.0.1:9/file.bin"), tmp_path)
    with pytest.raises(UserError, match="the server said 404"):
        fetch(source(f"{served.address}/none"), tmp_path)
    assert len(served.asked) == 1  # no use in asking again


def test_a_file_put_there_by_hand_is_taken_or_refused_and_never_removed(served, tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    assert fetch(source(f"{served.address}/none"), tmp_path).read_bytes() == CONTENT
    (tmp_path / "file.bin").write_bytes(b"other")
    with pytest.raises(UserError, match="damaged or another file"):
        fetch(source(f"{served.address}/none"), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == b"other" and served.asked == []


def test_a_full_disk_is_told_as_one(served, tmp_path, monkeypatch):
    url = served.put("/file.bin", CONTENT)

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, block):
            if self.file.tell() > 3 << 20:
                raise OSError(28, "No space left on device")
            return self.file.write(block)

    real = download._opened
    monkeypatch.setattr(download, "_opened", lambda part, mode: Full(real(part, mode)))
    with pytest.raises(UserError, match=r"No space left on device\. Free some space"):
        fetch(source(url), tmp_path)
    assert len(served.asked) == 1
    monkeypatch.undo()
    assert fetch(source(url), tmp_path).read_bytes() == CONTENT
    assert served.asked[1][1] == f"bytes={4 << 20}-"
