"""Pictures are decoded once: the file is found again, shared, mended and kept within its limit, and holds no more."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from incrlt.benchmarks import datasets, decoded, surveying
from incrlt.benchmarks.holding import Holding
from incrlt.data.stores import MappedPictures, StreamedPictures
from incrlt.errors import UserError

HOLDS = ("auto", "memory", "cache", "stream")


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> Path:
    """Pictures that all differ: 12 and 4 of two classes to learn from, 3 of each to test on."""
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, counts in (("train", (12, 4)), ("test", (3, 3))):
        for name, number in zip(("newt", "toad"), counts, strict=True):
            (root / part / name).mkdir(parents=True)
            for index in range(number):
                pixels = random.integers(0, 256, (40, 52, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{index:02}.jpg", quality=95)
    return root


@pytest.fixture
def photos(painted, tmp_path) -> Path:
    """The same, free to be damaged."""
    return Path(shutil.copytree(painted, tmp_path / "photos"))


@pytest.fixture
def count(monkeypatch):
    """Names of the pictures decoded since it was last asked."""
    seen: list[str] = []
    real = surveying.read_picture

    def counting(file, height, width, channels, name):
        seen.append(Path(name).name)
        return real(file, height, width, channels, name)

    def asked() -> int:
        number = len(seen)
        seen.clear()
        return number

    monkeypatch.setattr(surveying, "read_picture", counting)
    return asked


def load(root: Path, cache: Path, hold="cache", **options) -> datasets.ImageData:
    return datasets.load_folder(root, 16, Holding(hold, cache=cache, **options))


def same(one: datasets.ImageData, other: datasets.ImageData) -> bool:
    pairs = [(one.train_images, other.train_images), (one.test_images, other.test_images)]
    return (one.mean, one.std) == (other.mean, other.std) and all(torch.equal(a[:], b[:]) for a, b in pairs)


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_are_the_same_wherever_they_are_held(photos, tmp_path, workers):
    expected = load(photos, tmp_path / "cache", "memory", workers=0)
    pixels = expected.train_images.double() / 255
    torch.testing.assert_close(
        torch.tensor(expected.mean).double(), pixels.mean((0, 2, 3)), atol=1e-6, rtol=0
    )
    for hold in HOLDS:
        assert same(load(photos, tmp_path / "cache", hold, workers=workers), expected)


def test_what_holds_them_is_what_was_asked_for_and_said(photos, tmp_path):
    kinds = {
        "auto": torch.Tensor,
        "memory": torch.Tensor,
        "cache": MappedPictures,
        "stream": StreamedPictures,
    }
    said = {
        "auto": "mapped into memory",
        "memory": "in memory, decoded at each start",
        "cache": "read by 2 threads",
        "stream": "decoded each time they are used, by 2 threads",
    }
    for hold, kind in kinds.items():
        data = load(photos, tmp_path / "cache", hold, workers=2)
        assert type(data.train_images) is kind and said[hold] in data.where, hold


def test_only_the_first_start_decodes(photos, tmp_path, count):
    first = load(photos, tmp_path / "cache")
    assert count() == 22
    for hold in ("auto", "cache"):
        assert same(load(photos, tmp_path / "cache", hold), first)
        assert count() == 0
    load(photos, tmp_path / "cache", "stream")
    assert count() == 0  # whether all can be read, and their mean, is known


def test_the_same_content_elsewhere_or_touched_is_hashed_and_not_decoded(photos, tmp_path, count):
    first = load(photos, tmp_path / "cache")
    moved = photos.rename(tmp_path / "elsewhere")
    os.utime(moved / "train" / "newt" / "00.jpg", (1, 1))
    count()
    assert same(load(moved, tmp_path / "cache"), first)
    assert count() == 0


def test_another_content_of_the_same_size_is_decoded(photos, tmp_path, count):
    path = photos / "train" / "newt" / "00.jpg"
    first = load(photos, tmp_path / "cache")
    size = path.stat().st_size
    Image.new("RGB", (40, 40), (250, 0, 0)).save(path)
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))  # what follows the picture is not read
    second = load(photos, tmp_path / "cache")
    assert count() == 44
    assert not same(first, second) and second.train_images[0][0].min() > 240
    load(photos, tmp_path / "cache")
    assert count() == 0


def files(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.pixels"))


def test_a_damaged_picture_is_decoded_anew_and_no_other(photos, tmp_path, count):
    first = load(photos, tmp_path / "cache")
    whole = [image.clone() for image in first.train_images]
    [file] = files(tmp_path / "cache")
    with open(file, "r+b") as out:
        out.seek(5 * 16 * 16 * 3 + 7)
        out.write(b"damage")
    count()
    again = load(photos, tmp_path / "cache")
    assert count() == 1
    assert torch.equal(torch.stack(whole), again.train_images[:])


@pytest.mark.parametrize("harm", ["cut", "sums", "note", "gone"])
def test_a_file_that_cannot_be_trusted_is_made_anew(photos, tmp_path, count, harm):
    cache = tmp_path / "cache"
    first = load(photos, cache, "memory")
    load(photos, cache)
    [file] = files(cache)
    [note] = cache.glob("*.json")
    if harm == "cut":
        os.truncate(file, 1000)
    elif harm == "sums":
        file.with_suffix(".sums.npz").write_bytes(b"PK\3\4 no archive")
    elif harm == "note":
        note.write_text('{"key": "..')
    else:
        file.unlink()
    count()
    assert same(load(photos, cache), first)
    assert count() == (0 if harm == "note" else 22)
    assert len(files(cache)) == 1


def test_two_that_start_at_once_decode_once_and_both_have_all(photos, tmp_path, count):
    found: list[datasets.ImageData] = []
    threads = [
        threading.Thread(target=lambda: found.append(load(photos, tmp_path / "cache"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert count() == 22 and same(*found)


def test_what_was_used_least_recently_leaves_where_the_limit_is_reached(photos, tmp_path):
    cache, one = tmp_path / "cache", 22 * 3 / 1e9
    sizes = [datasets.load_folder(photos, size, Holding("cache", 0, cache)) for size in (16, 12)]
    old, used = sorted(files(cache), key=lambda file: -file.stat().st_size)
    os.utime(old, (1, 1))
    datasets.load_folder(photos, 14, Holding("cache", 0, cache, one * (14**2 + 12**2)))
    assert not old.exists() and used.exists() and len(files(cache)) == 2
    assert sizes[0].train_images[0].shape == (3, 16, 16)  # who has it open still reads it
    with pytest.raises(UserError, match=r"would take .* allowed in .*data\.cache_gigabytes"):
        datasets.load_folder(photos, 64, Holding("cache", 0, cache, one * 100))


def test_without_room_on_the_disk_memory_takes_them_and_without_that_a_stream(photos, tmp_path, monkeypatch):
    tight = {"gigabytes": 1e-9}
    data = load(photos, tmp_path / "cache", "auto", **tight)
    assert (
        isinstance(data.train_images, torch.Tensor)
        and "in memory" in data.where
        and "allowed in" in data.where
    )
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 20_000}.__getitem__)
    streamed = load(photos, tmp_path / "cache", "auto", **tight)
    assert isinstance(streamed.train_images, StreamedPictures) and same(streamed, data)
    roomy = load(photos, tmp_path / "cache", "auto")
    assert isinstance(roomy.train_images, MappedPictures) and same(roomy, data)


def test_a_folder_that_cannot_be_made_is_said_and_only_asking_for_it_stops(photos, tmp_path):
    (tmp_path / "file").write_text("no folder")
    place = tmp_path / "file" / "cache"
    assert "cannot be written to" in load(photos, place, "auto").where
    load(photos, place, "stream")
    with pytest.raises(UserError, match=r"cannot be written to .*data\.hold: stream"):
        load(photos, place, "cache")


@pytest.mark.parametrize("hold", HOLDS)
def test_all_pictures_that_cannot_be_read_are_named_before_anything_is_kept(photos, tmp_path, hold):
    for name in ("03.jpg", "07.jpg"):
        (photos / "train" / "newt" / name).write_bytes(b"no picture")
    with pytest.raises(
        UserError, match=r"2 pictures cannot be read; .*--skip-broken.*:\n.*03\.jpg.*\n.*07\.jpg"
    ):
        load(photos, tmp_path / "cache", hold)
    assert not [path for path in (tmp_path / "cache").glob("*") if path.suffix != ".lock"]


def test_a_build_that_was_killed_leaves_nothing_behind(photos, tmp_path):
    cache = tmp_path / "cache"
    load(photos, cache)
    name = next(cache.glob("*.json")).stem
    (cache / f"{decoded.LEFT_OVER}{name[:16]}.1").write_bytes(b"half")
    load(photos, cache)
    assert not list(cache.glob(f"{decoded.LEFT_OVER}*"))
