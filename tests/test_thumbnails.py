"""The sheet of thumbnails: every image lies where it is said to lie, and damage is found."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

from incrlt.errors import UserError
from incrlt.report.thumbnails import MOST_BYTES, MOST_PIXELS, load_thumbnails, room, save_thumbnails

COUNTS = [4, 1, 3, 4, 2, 4, 1]


def plain_images(channels: int, height: int, width: int) -> list[np.ndarray]:
    """Per class images of one colour each, no two alike."""
    generator = np.random.default_rng(0)
    colours = [generator.integers(0, 256, (count, channels, 1, 1), dtype=np.uint8) for count in COUNTS]
    return [np.tile(own, (1, 1, height, width)) for own in colours]


@pytest.mark.parametrize(
    ("shape", "side"), [((3, 32, 32), 32), ((1, 8, 8), 8), ((3, 96, 64), 32), ((2, 28, 28), 28)]
)
def test_every_image_lies_where_the_sheet_says(tmp_path, shape, side):
    images = plain_images(*shape)
    sheet = load_thumbnails(save_thumbnails(tmp_path / "thumbnails.npz", images))
    assert (sheet.side, sheet.counts) == (side, tuple(COUNTS))
    drawn = np.asarray(Image.open(io.BytesIO(sheet.jpeg))).astype(int)
    assert drawn.ndim == (3 if shape[0] == 3 else 2)  # grey stays grey
    assert drawn.shape[1] == sheet.width * side
    for index, own in enumerate(images):
        left, top = sheet.place(index)
        for place, image in enumerate(own):
            x, y = (left + place) * side + side // 2, top * side + side // 2
            expected = image[:, 0, 0] if shape[0] == 3 else image[0, 0, 0]
            assert np.abs(drawn[y, x] - expected).max() <= 10, (index, place)  # JPEG rounds


def test_large_images_are_shrunk_whole(tmp_path):
    """Left half black, right half white: so is the thumbnail, and what sticks out of the square is cut."""
    image = np.zeros((1, 1, 128, 256), dtype=np.uint8)
    image[..., 128:] = 255
    sheet = load_thumbnails(save_thumbnails(tmp_path / "thumbnails.npz", [image]))
    drawn = np.asarray(Image.open(io.BytesIO(sheet.jpeg)))[:, :32]
    assert drawn.shape == (32, 32)
    assert drawn[:, :14].max() < 20 and drawn[:, 18:].min() > 235


def test_more_images_than_there_is_room_for_are_left_out(tmp_path):
    images = [np.zeros((9, 1, 8, 8), dtype=np.uint8)] * 10
    assert load_thumbnails(save_thumbnails(tmp_path / "thumbnails.npz", images)).counts == (4,) * 10


@pytest.mark.parametrize("classes", [1, 2, 10, 100, 200, 365, 512, 1000, 2048, 2049, 8142, 21841])
def test_a_sheet_never_grows_beyond_its_budget(classes):
    per_class, side = room(classes)
    assert 1 <= per_class <= 4 and side >= 8
    assert classes * per_class * side * side <= MOST_PIXELS
    assert classes > 512 or (per_class, side) == (4, 32)


@pytest.mark.parametrize("classes", [100, 1000])
def test_a_sheet_of_noise_fits_into_its_bytes(tmp_path, classes):
    """Nothing compresses worse."""
    noise = np.random.default_rng(0).integers(0, 256, (classes, 4, 3, 32, 32), dtype=np.uint8)
    assert len(load_thumbnails(save_thumbnails(tmp_path / "thumbnails.npz", list(noise))).jpeg) <= MOST_BYTES


def test_same_images_give_the_same_bytes(tmp_path):
    images = plain_images(3, 32, 32)
    first, second = (save_thumbnails(tmp_path / name, images).read_bytes() for name in ("a", "b"))
    assert first == second


def test_damage_is_found_wherever_it_is(tmp_path):
    """Flip a bit or cut: a sentence with the file's name, or exactly what was written."""
    path = save_thumbnails(tmp_path / "thumbnails.npz", plain_images(1, 8, 8))
    whole, sheet = path.read_bytes(), load_thumbnails(path)
    generator, found = random.Random(0), 0
    for _ in range(400):
        place = generator.randrange(len(whole))
        if generator.random() < 0.5:
            path.write_bytes(whole[:place])
        else:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            read = load_thumbnails(path)
        except UserError as error:
            found += 1
            assert "cannot read the thumbnails in" in str(error)
        else:  # names and dates in the archive mean nothing
            assert vars(read) == vars(sheet)
    assert found > 300


@pytest.mark.parametrize(
    "change",
    [
        {"side": np.array(0)},
        {"columns": np.array([1, 2])},
        {"per_class": np.array(1)},
        {"counts": np.array([-1])},
        {"counts": np.array(["a"])},
        {"counts": np.zeros((2, 2), dtype=int)},
        {"jpeg": np.frombuffer(b"<svg>", dtype=np.uint8)},
        {"jpeg": np.array(["a"])},
        {"side": np.array(32.0)},
    ],
    ids=str,
)
def test_parts_that_do_not_fit_together_are_refused(tmp_path, change):
    path = save_thumbnails(tmp_path / "thumbnails.npz", plain_images(1, 8, 8))
    with np.load(path) as arrays:
        np.savez(path, **{**arrays, **change})
    with pytest.raises(UserError, match="cannot read the thumbnails"):
        load_thumbnails(path)
