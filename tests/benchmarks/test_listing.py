"""Every file and line is used or named: what a folder or list holds, and what is said of the rest."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from incrlt.benchmarks import listing, looking, reading
from incrlt.benchmarks.listing import labelled_pictures, pictures_in
from incrlt.benchmarks.testpart import with_tests
from incrlt.errors import UserError

SHAPE = (3, 8, 8)


def encoded(seed: int = 0, format: str = "PNG", mode: str = "RGB", size=(20, 12), **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


GOOD = {
    "plain.png": encoded(1),
    "photo.JPG": encoded(2, "JPEG"),
    "photo.jpeg": encoded(3, "JPEG", exif=exif(6)),
    "grey.png": encoded(4, mode="L"),
    "palette.gif": encoded(5, "GIF", mode="P"),
    "clear.png": encoded(6, mode="RGBA"),
    "print.tif": encoded(7, "TIFF", mode="CMYK"),
    "web.webp": encoded(8, "WEBP"),
    "old.bmp": encoded(9, "BMP"),
    "portable.ppm": encoded(10, "PPM"),
    "bits.png": encoded(11, mode="1"),
    "tiny.png": encoded(12, size=(1, 1)),
    "long.png": encoded(13, size=(300, 2)),
    "with spaces é.png": encoded(14),
    "large.jpg": encoded(15, "JPEG", size=(400, 300)),
}
"""Name in a class folder to content: all of these are pictures."""

BAD = {
    "empty.png": (b"", "unreadable"),
    "cut.png": (encoded(20)[:-200], "unreadable"),
    "cut.jpg": (encoded(21, "JPEG", size=(200, 200))[:900], "unreadable"),
    "text.png": (b"no picture", "unreadable"),
    "page.jpg": (b"<html>404</html>", "unreadable"),
    "deep.tif": (encoded(22, "TIFF", mode="F"), "32-bit values"),
    "phone.heic": (b"x", "needs a plugin: pip install pillow-heif"),
    "phone.HEIF": (b"x", "pillow-heif"),
    "new.jxl": (b"x", "pillow-jxl-plugin"),
    "raw.cr2": (b"x", "a raw photograph; develop it"),
    "raw.NEF": (b"x", "a raw photograph"),
    "raw.dng": (b"x", "a raw photograph"),
    "drawing.svg": (b"<svg/>", "export it as PNG"),
    "document.pdf": (b"%PDF", "export it as PNG"),
    "layers.psd": (b"x", "export it as PNG"),
    "film.mp4": (b"x", "a film; take pictures from it"),
    "film.MOV": (b"x", "a film"),
    "all.zip": (b"PK", "an archive; unpack it"),
    "all.tar": (b"x", "an archive"),
    "array.npy": (b"x", "an array; give it from Python"),
    "nosuffix": (encoded(23), "without a suffix"),
    "strange.xyz": (b"x", "unknown suffix .xyz"),
    "double.png.part": (b"x", "unknown suffix .part"),
    "backup.png~": (encoded(24), "unknown suffix .png~"),
}
"""What may have been meant as a picture, and a part of its sentence."""

BESIDE = {
    "notes.txt": ".txt beside pictures",
    "labels.csv": ".csv beside pictures",
    "boxes.xml": ".xml beside pictures",
    "meta.json": ".json beside pictures",
    "README.md": ".md beside pictures",
    "Thumbs.db": "hidden",
    ".DS_Store": "hidden",
    "._photo.jpg": "hidden",
    "desktop.ini": ".ini beside pictures",
    "side.xmp": ".xmp beside pictures",
}
"""What usually lies beside pictures, and how it is counted."""


@pytest.fixture
def birds(tmp_path) -> Path:
    root = tmp_path / "birds"
    (root / "heron").mkdir(parents=True)
    for name, content in GOOD.items():
        (root / "heron" / name).write_bytes(content)
    (root / "swan" / "nested" / "deeper").mkdir(parents=True)
    (root / "swan" / "nested" / "deeper" / "a.png").write_bytes(encoded(50))
    return root


def files_below(root: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(root))


def test_every_file_of_every_kind_is_used_or_named_and_nothing_twice(birds, tmp_path):
    """One folder with all of it: as many files as are used and named together."""
    for place, table in (("heron", {name: content for name, (content, _) in BAD.items()}), ("swan", BESIDE)):
        for name, content in table.items():
            (birds / place / name).write_bytes(content if isinstance(content, bytes) else b"x")
    (birds / "heron" / "again.png").write_bytes(GOOD["plain.png"])
    (birds / "loose.png").write_bytes(encoded(70))
    (birds / ".cache").mkdir()
    (birds / ".cache" / "thumb.png").write_bytes(encoded(71))
    (birds / "swan" / "gone.png").symlink_to(tmp_path / "nothing.png")
    os.mkfifo(birds / "swan" / "pipe.png")  # reading it would wait without end
    with socket.socket(socket.AF_UNIX) as bound:
        at = os.getcwd()
        os.chdir(birds / "swan")  # such an address may have a hundred letters
        try:
            bound.bind("socket.png")
        finally:
            os.chdir(at)
        there = files_below(birds)
        found = reading.read(labelled_pictures(birds), SHAPE, skip_broken=True)
    used, named = (
        [entry.name for entry in found.listing.entries],
        [item.name for item in found.listing.left_out],
    )
    assert len(used) == len(GOOD) + 1 and len(named) == len(BAD) + len(BESIDE) + 6
    assert len(used) + len(named) == len({*used, *named}) == there > 50
    kinds = {item.name: item.sentence for item in found.listing.left_out}
    assert all(sentence.strip(": ") != name for name, sentence in kinds.items())
    for name in ("swan/pipe.png", "swan/socket.png"):
        assert kinds[name] == f"{name}: no file but a pipe, a socket or a device"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["test/heron/a", "test/swan/b"], "has test and no train: put the class folders"),
        (["test/heron/a", "val/swan/b"], "has test and val and no train"),
        (["heron/a", "swan/b", "val/swan/c"], "has val and no train"),
        (["Heron/a", "heron/b", "swan/c"], r"the classes 'Heron' and 'heron' \(first: heron/b.png\)"),
        (["heron/a", "heron /b"], "the classes 'heron' and 'heron '"),
        (["train/heron/a", "test/HERON/b"], "the classes 'HERON' and 'heron'"),
        (["heron.png/a", ".swan/b", "a"], None),
        (["train/a", "bus/b", "car/c"], None),  # classes, one of which is called train
        (["A/a", "a/b"], None),  # letters may be classes
    ],
)
def test_a_folder_that_may_be_meant_otherwise_is_refused(tmp_path, files, said):
    for number, name in enumerate(files):
        path = tmp_path / "given" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    if said is None:
        found = labelled_pictures(tmp_path / "given")
        assert len(found.entries) + len(found.left_out) == len(files)
        assert {entry.label for entry in found.entries} >= {name.split("/")[0] for name in files[:1]}
        return
    with pytest.raises(UserError, match=said):
        labelled_pictures(tmp_path / "given")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "list.csv").write_text("path,label\npipe.png,heron\n")
    with pytest.raises(UserError, match=r"pipe\.png is no file but a pipe"):
        pictures_in(tmp_path / "pipe.png")
    [item] = labelled_pictures(tmp_path / "list.csv").left_out
    assert item.sentence == "list.csv:2: pipe.png is no file but a pipe, a socket or a device"


def test_all_kinds_of_pictures_are_read(birds):
    found = reading.read(labelled_pictures(birds), SHAPE)
    assert len(found.images) == len(GOOD) + 1 == files_below(birds)
    assert found.listing.account == f"{len(GOOD) + 1} pictures"
    assert {entry.label for entry in found.listing.entries} == {"heron", "swan"}
    assert [entry.name for entry in found.listing.entries][-1] == "swan/nested/deeper/a.png"


def test_what_is_broken_is_told_all_at_once_and_by_kind(birds):
    for name, (content, _) in BAD.items():
        (birds / "heron" / name).write_bytes(content)
    with pytest.raises(UserError) as told:
        labelled_pictures(birds).check(skip_broken=False)
    sentences = {line.split(": ")[0].strip(): line for line in str(told.value).splitlines()[1:]}
    seen = set()
    for name, (_, words) in BAD.items():
        if words not in ("unreadable", "32-bit values"):
            assert words in sentences[f"heron/{name}"], name
            seen.add(name)
    found = reading.read(labelled_pictures(birds), SHAPE, skip_broken=True)
    left_out = {item.name.removeprefix("heron/"): item for item in found.listing.left_out}
    assert set(left_out) == set(BAD)
    for name, why in {
        "empty.png": "the file is empty",
        "page.jpg": "its content is that of no picture",
    }.items():
        assert left_out[name].reason == f"it cannot be read ({why})"
    for name in set(BAD) - seen:
        assert left_out[name].kind == "unreadable" and left_out[name].reason, name
    assert "32-bit values" in left_out["deep.tif"].reason
    assert len(found.images) + len(found.listing.left_out) == files_below(birds)
    assert f"{len(BAD)} left out: 6 unreadable (first: heron/" in found.listing.account
    with pytest.raises(UserError) as told:
        reading.read(labelled_pictures(birds), SHAPE)
    assert all(f"heron/{name}: " in str(told.value) for name in BAD)


def test_what_lies_beside_pictures_is_counted_and_stops_nothing(birds):
    for name in BESIDE:
        (birds / "swan" / name).write_bytes(b"x")
    found = reading.read(labelled_pictures(birds), SHAPE)
    kinds = {item.name.removeprefix("swan/"): item.kind for item in found.listing.left_out}
    assert kinds == BESIDE
    assert len(found.images) + len(kinds) == files_below(birds)
    assert f"{len(BESIDE)} left out: 3 hidden" in found.listing.account


def test_links_are_followed_once_and_loops_and_dangling_ones_are_named(birds, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.png").write_bytes(encoded(60))
    (birds / "teal").symlink_to(elsewhere)  # a class folder, and the pictures in it
    (birds / "heron" / "loop").symlink_to(birds / "heron")
    (birds / "heron" / "gone.png").symlink_to(birds / "nothing.png")
    found = labelled_pictures(birds)
    assert [entry.name for entry in found.entries if entry.label == "teal"] == ["teal/far.png"]
    assert {item.name: item.kind for item in found.left_out} == {
        "heron/loop": "linked into itself",
        "heron/gone.png": "links to nowhere",
    }
    with pytest.raises(UserError, match=r"heron/gone\.png: links to nowhere"):
        found.check(skip_broken=False)


def test_a_folder_that_cannot_be_entered_is_named(birds, monkeypatch):
    whole = os.scandir

    def refuse(path):
        if Path(path).name == "nested":
            raise PermissionError(13, "Permission denied")
        return whole(path)

    monkeypatch.setattr(listing.os, "scandir", refuse)
    [item] = labelled_pictures(birds).left_out[:1]
    assert item.sentence == "swan/nested: it cannot be read (Permission denied)" and item.broken


def test_pictures_outside_of_class_folders_are_named(birds):
    (birds / "loose.png").write_bytes(encoded(70))
    (birds / "empty").mkdir()
    (birds / ".git").mkdir()
    (birds / ".git" / "x.png").write_bytes(encoded(71))
    found = {item.name: item.sentence for item in labelled_pictures(birds).left_out}
    assert found == {
        "loose.png": "loose.png: lies beside the class folders",
        "empty": "empty: class without pictures",
        ".git/x.png": ".git/x.png: hidden",
    }


def test_twins_are_left_out_and_one_picture_of_two_classes_is_refused(birds):
    (birds / "heron" / "again.png").write_bytes(GOOD["plain.png"])
    found = reading.read(labelled_pictures(birds), SHAPE)
    assert (
        "1 left out: 1 duplicates by content (first: heron/plain.png: the same file as heron/again.png)"
        in (found.listing.account)
    )
    (birds / "swan" / "again.png").write_bytes(GOOD["plain.png"])
    with pytest.raises(
        UserError, match=r"the same picture is heron/again.png \(heron\) and .*swan/again.png \(swan\)"
    ):
        reading.read(labelled_pictures(birds), SHAPE)


def test_what_is_tested_is_not_trained_on(tmp_path):
    for part, numbers in (("train", (1, 2, 3)), ("test", (3, 4)), ("val", (5,))):
        (tmp_path / part / "heron").mkdir(parents=True)
        for number in numbers:
            (tmp_path / part / "heron" / f"{number}.png").write_bytes(encoded(number))
    found = reading.read(labelled_pictures(tmp_path), SHAPE)
    assert [(e.part, e.name[-5:]) for e in found.listing.entries] == [
        ("test", "3.png"), ("test", "4.png"), ("train", "1.png"), ("train", "2.png"),
    ]  # fmt: skip
    kinds = sorted(item.kind for item in found.listing.left_out)
    assert kinds == ["duplicates by content", "of the validation part, which nothing uses"]


def test_a_validation_part_is_the_test_part_where_there_is_no_other(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "heron").mkdir(parents=True)
        (tmp_path / part / "heron" / "a.png").write_bytes(encoded(len(part)))
    assert {entry.part for entry in labelled_pictures(tmp_path).entries} == {"train", "test"}


def lines_of(tmp_path, name, text):
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(encoded(number))
    (tmp_path / name).write_text(text, encoding="utf-8")
    return labelled_pictures(tmp_path / name)


def test_lists_in_all_their_forms(tmp_path):
    texts = {
        "a.txt": "# a comment\n0.png heron\n\n1.png swan\n",
        "b.txt": "0.png\tgrey heron\n1.png\tswan\n",
        "c.csv": "path,label\n0.png,heron\n1.png,swan\n",
        "d.csv": 'file,class\n"0.png","heron"\n1.png,swan\n',
        "e.tsv": "label\tpath\nheron\t0.png\nswan\t1.png\n",
        "f.csv": "\ufeffimage,species,split,camera\n0.png,heron,train,a\n1.png,swan,validation,b\n",
    }
    for name, text in texts.items():
        found = lines_of(tmp_path, name, text)
        assert [entry.path.name for entry in found.entries] == ["0.png", "1.png"], name
        assert [entry.label for entry in found.entries][1] == "swan" and not found.left_out
    assert [(entry.part, entry.group) for entry in found.entries] == [("train", "a"), ("test", "b")]
    assert lines_of(tmp_path, "b.txt", texts["b.txt"]).entries[0].label == "grey heron"


def test_every_line_of_a_list_is_used_or_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.heic").write_bytes(b"x")
    (tmp_path / "y.json").write_bytes(b"x")
    text = (
        "path,label,split\n0.png,heron,train\n1.png,swan,\n0.png,heron,train\n0.png,swan,train\n,heron,\n2.png,,\n"
        "3.png,heron,holdout\n9.png,heron,\nfolder,heron,\nx.heic,heron,\ny.json,heron,\n4.png,heron,test\n"
        "5.png,heron,val\n\n3.png,heron,train,more\nsub\\3.png,heron,\nhttps://x.org/3.png,heron,\n"
        + "long" * 200
        + ".png,heron,\n,,,\n"
    )
    found = lines_of(tmp_path, "list.csv", text)
    said = {item.name: item.sentence.split(": ", 1)[1] for item in found.left_out}
    assert said == {
        "list.csv:4": "listed twice",
        "list.csv:5": "line 5 says swan, an earlier line heron",
        "list.csv:6": "lines without a path",
        "list.csv:7": "2.png has no label",
        "list.csv:8": "'holdout' is none of train, test and val",
        "list.csv:9": "9.png is not there",
        "list.csv:10": "folder is a folder; list its pictures",
        "list.csv:11": "needs a plugin: pip install pillow-heif",
        "list.csv:12": "y.json is no picture",
        "list.csv:14": "of the validation part, which nothing uses",
        "list.csv:16": "3 columns, and 'more' beyond them; put cells with commas in quotes",
        "list.csv:17": "sub\\3.png is not there; write its folders with /",
        "list.csv:18": "https://x.org/3.png is an address; fetch it, and list the file",
        "list.csv:19": f"{'long' * 30}... cannot be read (File name too long)",
    }
    assert len(found.entries) + len(found.left_out) == 17


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "is empty; it needs a head with path and label"),
        ("a.csv", b"name,kind\n0.png,heron\n", "has the columns name, kind and needs path and label"),
        ("a.csv", b"path,kind\n0.png,heron\n", r"needs label \(label or class or category or species\)"),
        ("a.txt", b"0.png heron\xff\n", r"\(it is not UTF-8 text\); save it as UTF-8"),
        ("a.txt", b"# nothing\n", "has no pictures that can be used: 0 pictures"),
        ("a.csv", b"path;label\n0.png;heron\n", "has the columns path;label and needs path and label"),
        ("a.csv", b"0.png,heron\n1.png,swan\n", "has the columns 0.png, heron and needs path and label"),
        (
            "a.csv",
            b'path,label\n1.png,swan\n"0.png,heron\n',
            r"unexpected end of data, in what begins in line 3",
        ),
        ("a.csv", b"path,label\n0.png," + b"x" * 200_000, "field larger than field limit"),
        ("a.csv", b"path,label,label\n", "has the columns label and label, and each may be the label"),
        (
            "a.csv",
            b"image,filename,label\n",
            "columns image and filename, and each may be the path. Call one",
        ),
        ("a.csv", "path,label\n".encode("utf-16"), "it is not UTF-8 text"),
        ("a.xlsx", b"PK", "neither a folder with a folder per class nor a list"),
        ("a.parquet", b"x", "needs pyarrow|cannot be read"),
    ],
)
def test_a_list_that_is_none_is_told_in_one_sentence(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        labelled_pictures(tmp_path / name).check(skip_broken=True)


def test_a_source_that_is_not_there_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name, said in (
        ("nowhere", "is not there"),
        ("dangling", "a link to nowhere"),
        ("empty", "no class folders"),
    ):
        with pytest.raises(UserError, match=said):
            labelled_pictures(tmp_path / name)
    with pytest.raises(UserError, match="has no pictures that can be used: 0 pictures"):
        pictures_in(tmp_path / "empty").check(skip_broken=True)


def test_one_picture_a_folder_and_a_list_of_paths_can_be_asked_about(birds, tmp_path):
    assert [entry.name for entry in pictures_in(birds / "heron" / "plain.png").entries] == ["plain.png"]
    assert len(pictures_in(birds).entries) == len(GOOD) + 1
    (tmp_path / "ask.txt").write_text("birds/heron/plain.png\nbirds/heron/with spaces é.png\n")
    assert [entry.path.name for entry in pictures_in(tmp_path / "ask.txt").entries] == [
        "plain.png",
        "with spaces é.png",
    ]


def test_a_test_part_is_a_fifth_of_each_class_the_same_each_time_and_groups_stay_whole(tmp_path):
    entries = [listing.Entry(Path(f"{n}"), f"{n}", "many") for n in range(50)]
    entries += [listing.Entry(Path(f"r{n}"), f"r{n}", "rare") for n in range(2)]
    entries += [listing.Entry(Path(f"g{n}"), f"g{n}", "grouped", group=f"camera {n // 5}") for n in range(20)]
    made, said = with_tests(listing.Listing(tmp_path, tuple(entries)))
    tested = {
        label: [e for e in made.entries if e.label == label and e.part == "test"]
        for label in ("many", "rare", "grouped")
    }
    assert [len(own) for own in tested.values()] == [10, 0, 5]
    assert len({entry.group for entry in tested["grouped"]}) == 1
    assert said == "15 of 72 pictures were split off for testing (seed 0); too few to test: rare"
    again, _ = with_tests(listing.Listing(tmp_path, tuple(entries[:50])))  # other classes do not move a class
    assert [e.part for e in again.entries] == [e.part for e in made.entries[:50]]
    other, _ = with_tests(listing.Listing(tmp_path, tuple(entries)), seed=1)
    assert [e.part for e in other.entries] != [e.part for e in made.entries]


def test_a_large_jpeg_is_reduced_to_about_the_same_pixels():
    smooth = np.linspace(0, 255, 640)[:, None, None] * np.linspace(0.2, 1, 480)[None, :, None] * np.ones(3)
    buffer = io.BytesIO()
    Image.fromarray(smooth.astype(np.uint8)).save(buffer, "JPEG", quality=95)
    from incrlt.benchmarks.preparing import prepared, read_picture

    reduced = read_picture(buffer.getvalue(), 16, 16)
    whole = prepared(Image.open(io.BytesIO(buffer.getvalue())), 16, 16)
    assert np.abs(reduced.astype(int) - whole.astype(int)).max() <= 3


def test_a_picture_in_many_places_is_told_in_few_words():
    """Before, each of N copies had a sentence that named all N: 23 MB of words for 6,000 files."""
    entries = [
        listing.Entry(Path(f"{k}.png"), f"class {k % 10}/{k}.png", f"class {k % 10}", "train")
        for k in range(1000)
    ]
    found = looking.copies(entries, [b"one"] * 1000)
    assert [item.name for item in found] == [entry.name for entry in entries]
    reasons = {id(item.reason): item.reason for item in found}
    assert list(reasons.values()) == [
        "the same picture is class 0/0.png (class 0) and class 1/1.png (class 1) and class 2/2.png (class 2) and "
        "class 3/3.png (class 3) and 996 more"
    ]
