"""A folder of pictures: what is found, in which order, under which name, and what is said when it is not right."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from incrlt.benchmarks import datasets, folder, folder_lt, looking
from incrlt.benchmarks.holding import Holding
from incrlt.benchmarks.protocols import Protocol, resolve
from incrlt.errors import UserError
from incrlt.experiment import schema as config
from incrlt.experiment.json_schema import json_schema

COUNTS = {"wren": 3, "heron": 7, "coot": 3, "swan": 12}
ORDER = ("swan", "heron", "coot", "wren")  # by frequency, ties by name


def colour(name: str, index: int) -> tuple[int, int, int]:
    return (20 * sorted(COUNTS).index(name), 10 * index, 77)


@pytest.fixture
def birds(tmp_path) -> Path:
    root = tmp_path / "birds"
    for part, size in (("train", COUNTS), ("test", dict.fromkeys(COUNTS, 2))):
        for name, number in size.items():
            (root / part / name).mkdir(parents=True)
            for index in range(number):
                Image.new("RGB", (20, 12), colour(name, index)).save(root / part / name / f"{index:02}.png")
    return root


def test_classes_are_ordered_by_frequency_and_named(birds):
    found = folder.scan(birds)
    assert found.class_names == ORDER
    assert found.counts == (12, 7, 3, 3)
    assert [path.name for path in found.train[2]] == ["00.png", "01.png", "02.png"]


def test_images_labels_and_statistics_are_those_of_the_files(birds):
    data = datasets.load_folder(birds, 8)
    assert data.train_images.shape == (25, 3, 8, 8) and data.train_images.dtype == torch.uint8
    expected = [
        (label, colour(name, index)) for label, name in enumerate(ORDER) for index in range(COUNTS[name])
    ]
    seen = [
        (int(y), tuple(x[:, 3, 3].tolist()))
        for x, y in zip(data.train_images, data.train_labels, strict=True)
    ]
    assert seen == expected
    assert data.test_labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    pixels = data.train_images.double() / 255
    torch.testing.assert_close(torch.tensor(data.mean).double(), pixels.mean((0, 2, 3)), atol=1e-6, rtol=0)
    deviation = pixels.std((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(data.std).double()[:2], deviation[:2], atol=1e-6, rtol=0)
    assert deviation[2] == 0 and data.std[2] == pytest.approx(
        1 / 255
    )  # a flat channel must not divide by zero


def test_the_central_square_is_taken_as_the_camera_was_held(tmp_path, birds):
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 200  # the central square
    path = birds / "train" / "swan" / "00.png"
    Image.fromarray(pixels).save(path)
    assert (datasets.load_folder(birds, 8).train_images[0] == 200).all()
    tall = Image.fromarray(np.full((8, 16, 3), (255, 0, 0), np.uint8))
    tall.paste((0, 0, 255), (0, 0, 8, 8))  # left half blue: turned by 90 degrees clockwise it is above
    exif = Image.Exif()
    exif[0x0112] = 6
    path.unlink()
    tall.save(birds / "train" / "swan" / "00.jpg", exif=exif, quality=100)
    image = datasets.load_folder(birds, 8).train_images[0].float()
    assert image[2, 0].mean() > 200 > 60 > image[2, 7].mean()


def test_grey_and_transparent_pictures_become_colour(birds):
    Image.new("L", (9, 9), 50).save(birds / "train" / "swan" / "00.png")
    Image.new("RGBA", (9, 9), (1, 2, 3, 255)).save(birds / "train" / "swan" / "01.png")
    data = datasets.load_folder(birds, 8)
    assert data.train_images[0, :, 0, 0].tolist() == [50, 50, 50]
    assert data.train_images[1, :, 0, 0].tolist() == [1, 2, 3]


def test_the_name_follows_the_content_not_the_place(birds, tmp_path):
    name = folder.scan(birds).name
    shutil.copytree(birds, tmp_path / "elsewhere")
    assert folder.scan(tmp_path / "elsewhere").name == name
    assert folder.scan(birds, 64).name != name
    (birds / "train" / "swan" / "notes.txt").write_text("no picture")
    assert folder.scan(birds).name == name
    (birds / "test" / "swan" / "01.png").unlink()
    assert folder.scan(birds).name != name


def test_what_is_counted_is_what_is_used_linked_folders_too(birds, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (20, 12), (1, 2, 3)).save(tmp_path / "elsewhere" / "far.png")
    (birds / "train" / "wren" / "linked").symlink_to(tmp_path / "elsewhere")
    found = folder.scan(birds)
    assert [len(paths) for paths in found.train] == [12, 7, 4, 3]
    assert found.class_names == ("swan", "heron", "wren", "coot")
    assert found.account.startswith(f"{sum(map(len, (*found.train, *found.test)))} pictures")


def test_copies_that_stay_in_are_said_and_only_files_of_one_size_are_opened(birds, monkeypatch):
    for path in birds.rglob("*.png"):  # files of many sizes
        path.write_bytes(path.read_bytes() + bytes(int.from_bytes(str(path).encode(), "big") % 9973))
    original = birds / "train" / "swan" / "00.png"
    shutil.copy(original, birds / "train" / "swan" / "copy.png")
    shutil.copy(original, birds / "test" / "swan" / "copy.png")
    opened, whole = set(), looking._ends
    monkeypatch.setattr(
        looking, "_ends", lambda path, number: (opened.add(path.name), whole(path, number))[1]
    )
    found = folder.scan(birds)
    assert found.counts[0] == 13
    assert found.account.endswith(
        "; 2 copies by content are used as they are (first: train/swan/00.png: the same file as test/swan/copy.png); "
        "--skip-broken leaves them out"
    )
    assert opened >= {"00.png", "copy.png"} and len(opened) < 12
    assert "copies" not in folder.scan(birds, skip_broken=True).account
    shutil.copy(original, birds / "train" / "coot" / "copy.png")
    assert (
        "the same picture is test/swan/copy.png (swan) and train/coot/copy.png (coot)"
        in folder.scan(birds).account
    )


def test_a_natural_tail_keeps_every_picture(birds):
    benchmark = folder_lt(birds, "lfs-ordered-2", image_size=8, augmentation="none")
    assert benchmark.class_names == ORDER
    assert benchmark.protocol.counts.tolist() == [12, 7, 3, 3]
    assert [len(experience.dataset) for experience in benchmark.train_stream] == [19, 6]
    assert benchmark.protocol.protocol.imbalance_ratio == 4
    assert benchmark.groups == ("few",) * 4


def test_a_tail_that_is_cut_starts_from_what_every_class_has(birds):
    benchmark = folder_lt(birds, "lfs-ordered-2", imbalance_ratio=3, image_size=8, augmentation="none")
    assert benchmark.protocol.counts.tolist() == [3, 2, 1, 1]  # 3 * 3 ** (-c / 3), rounded down


def experiment(root, **benchmark) -> config.Experiment:
    chosen = {"dataset": "folder", "protocol": "lfs-2", "imbalance_ratio": None} | benchmark
    return config.parse({"benchmark": chosen, "strategy": {"name": "finetune"}, "data": {"root": str(root)}})


def test_yaml_and_script_make_the_same_protocol(birds):
    ours = experiment(birds, image_size=8, augmentation="none").protocol()
    script = folder_lt(birds, "lfs-2", image_size=8, augmentation="none", memory={}).protocol
    assert ours == script.protocol
    labels = np.repeat(range(4), [12, 7, 3, 3])
    assert resolve(ours, labels).hash == script.hash
    assert [row["images"] for row in ours.plan()] == [row["images"] for row in script.plan()]
    assert ours.rule()["natural_counts"] == [12, 7, 3, 3]


def test_other_datasets_have_the_rule_they_had():
    assert "natural_counts" not in Protocol.named("lfh-shuffled-10", "cifar100").rule()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "digits", "imbalance_ratio": None}, "digits is balanced"),
        (
            {"dataset": "digits", "imbalance_ratio": 5.0, "image_size": 16},
            "image_size is for pictures from files, such as dataset 'folder'",
        ),
        ({"profile": "step"}, "profile 'step' would do nothing"),
        ({"protocol": "lfs-3"}, "possible are 1, 2, 4"),
    ],
)
def test_what_does_not_go_together_is_said(birds, change, message):
    with pytest.raises(UserError, match=message):
        experiment(birds, **change)


def remove_class(root):
    shutil.rmtree(root / "train" / "coot")


def empty_class(root, part="train"):
    for path in (root / part / "coot").iterdir():
        path.unlink()


def empty_test_class(root):
    empty_class(root, "test")


def no_classes(root):
    shutil.rmtree(root / "test")
    (root / "test").mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "cannot be read .*ROOT/train/CLASS.*--data"),
        (remove_class, "3 classes in train, 4 in test; only in test: coot"),
        (empty_class, "train has no pictures in coot"),
        (empty_test_class, "test has no pictures in coot"),
        (no_classes, "test has no class folders"),
    ],
)
def test_a_folder_that_is_not_right_is_refused_before_any_work(birds, spoil, message):
    spoil(birds)
    with pytest.raises(UserError, match=message):
        experiment(birds)


def test_a_folder_is_walked_once(birds, monkeypatch):
    """ImageNet has 1,281,167 pictures; before, they were listed twice."""
    seen, real = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: seen.append(Path(place)) or real(place))
    assert folder.scan(birds).counts == (12, 7, 3, 3)
    inner = [place for place in seen if place.parent.parent == birds]
    assert len(inner) == len(set(inner)) == 8  # four classes, two parts


def test_a_class_without_test_pictures_stops_nothing(birds):
    shutil.rmtree(birds / "test" / "coot")
    benchmark = folder_lt(birds, "lfs-ordered-2", image_size=8, augmentation="none")
    assert [len(experience.dataset) for experience in benchmark.test_stream] == [4, 2]


def test_a_test_part_is_split_off_where_there_is_none(birds):
    shutil.rmtree(birds / "test")
    for place in (birds, birds / "train"):  # with and without the folder of the part
        found = folder.scan(place, 8)
        assert found.class_names == ("swan", "heron", "coot", "wren")
        assert [len(own) for own in found.test] == [2, 1, 1, 1]  # a fifth, one at least
        assert found.counts == (10, 6, 2, 2)
        assert not {p for own in found.train for p in own} & {p for own in found.test for p in own}
        assert "25 pictures; 5 of 25 pictures were split off for testing (seed 0)" in found.account
    again = shutil.copytree(birds / "train", birds.parent / "moved")
    assert folder.scan(again, 8).name == folder.scan(birds / "train", 8).name
    assert [p.name for p in folder.scan(again, 8).test[0]] == [p.name for p in found.test[0]]


def test_a_list_is_a_dataset_like_a_folder(birds):
    files = [(path, part) for part in ("train", "test") for path in (birds / part).rglob("*.png")]
    lines = [f"{path},{path.parent.name},{part}" for path, part in files]
    (birds / "list.csv").write_text("\n".join(["path,label,split", *lines]))
    places = (birds / "list.csv", birds)
    listed, usual = (folder_lt(place, "lfs-2", image_size=8, augmentation="none") for place in places)
    assert listed.class_names == usual.class_names
    assert listed.protocol.counts.tolist() == usual.protocol.counts.tolist()


def test_all_damaged_pictures_are_named_at_once(birds):
    for name in ("heron/03.png", "swan/01.png", "swan/02.png"):
        (birds / "train" / name).write_bytes(b"no picture")
    with pytest.raises(UserError) as told:
        datasets.load_folder(birds)
    lines = str(told.value).splitlines()
    assert lines[0] == (
        "3 pictures cannot be read; mend or remove them, or let a run go on without them by --skip-broken "
        "(data.skip_broken):"
    )
    assert [line.split(" cannot")[0][-9:] for line in lines[1:]] == ["an/01.png", "an/02.png", "on/03.png"]


def test_classes_may_be_ordered_by_name_in_experiences_of_any_size(birds):
    def made(**benchmark):
        chosen = {"dataset": "folder", **benchmark}
        values = {"benchmark": chosen, "strategy": {"name": "finetune"}, "data": {"root": str(birds)}}
        return config.parse(values)

    asked = made(experiences=[["coot", "wren"], ["swan"], ["heron"]])
    assert asked.protocol().class_order == (2, 3, 0, 1)
    assert asked.protocol().classes_per_experience == (2, 1, 1)
    assert asked.benchmark.imbalance_ratio is None, "a folder keeps its own tail"
    again = config.parse(asked.resolved())
    assert again.hash() == asked.hash() and again.protocol() == asked.protocol()
    sizes = made(base_classes=0, increment=[1, 3], order=["wren", "coot", "heron", "swan"])
    assert sizes.protocol().classes_per_experience == (1, 3)
    short = made(experiences=[1, 3], order=["wren", "coot", "heron", "swan"])
    assert short.protocol() == sizes.protocol() and short.hash() == sizes.hash()
    for wrong, said in (
        ({"experiences": [["coot", "wrn"], ["swan"], ["heron"]]}, "unknown: wrn Did you mean 'wren'"),
        ({"experiences": [["coot"], ["swan"], ["heron"]]}, "missing: wren"),
        ({"experiences": [["coot", "wren", "coot"], ["swan"], ["heron"]]}, "twice: coot"),
        ({"experiences": ["coot"]}, "must list the class names of each"),
        ({"experiences": [3, 0]}, "or how many classes each has"),
        ({"experiences": [3, 2]}, "3, 2 classes, 5 in all, and there are 4"),
        ({"experiences": [["coot"]], "protocol": "lfs-2"}, "already decides the split"),
        ({"base_classes": 2, "increment": [1, 3]}, "2, 1, 3 classes, 6 in all, and there are 4"),
    ):
        with pytest.raises(UserError, match=said):
            made(**wrong)


def test_a_list_is_named_as_one_and_the_schema_knows_what_a_file_may_write(birds, tmp_path):
    lines = [f"{path}\t{path.parent.name}\n" for path in sorted((birds / "train").rglob("*.png"))]
    (tmp_path / "all.txt").write_text("".join(lines))
    values = {"strategy": {"name": "finetune"}, "data": {"root": str(tmp_path / "all.txt")}}
    named, usual = (
        config.parse({**values, "benchmark": {"dataset": word, "experiences": [2, 2], "order": "ordered"}})
        for word in ("list", "folder")
    )
    assert named.hash() == usual.hash() and named.protocol() == usual.protocol()
    known = json_schema()["$defs"]["Benchmark"]["properties"]
    assert "list" in known["dataset"]["enum"] and len(known["experiences"]["anyOf"]) == 2


def test_what_may_have_been_a_picture_stops_and_what_lies_beside_is_counted(birds):
    (birds / "train" / "heron" / "notes.txt").write_text("by the lake")
    assert "33 pictures, 1 left out: 1 .txt beside pictures" in folder.scan(birds).account
    (birds / "train" / "heron" / "raw.cr2").write_bytes(b"")
    with pytest.raises(UserError, match=r"heron/raw\.cr2: a raw photograph; develop it"):
        folder.scan(birds)


def test_a_damaged_picture_is_named(birds):
    (birds / "train" / "heron" / "03.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"heron.03\.png cannot be read .*mend or remove"):
        datasets.load_folder(birds)


def test_more_than_memory_is_refused_with_both_sizes(birds, monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1024, "SC_PHYS_PAGES": 64}.__getitem__)
    memory = Holding("memory")
    datasets.load_folder(birds, 8, memory)  # 33 pictures, 6 kB of 64
    with pytest.raises(UserError, match=r"33 pictures of 64 x 64 pixels take .* GiB; this machine has"):
        datasets.load_folder(birds, 64, memory)


@pytest.mark.parametrize(
    "counts", [(), (3, 2), (3, 4, 1), (3, 2, 0), (4, 2, 1)], ids=["none", "short", "rising", "empty", "head"]
)
def test_natural_counts_that_do_not_fit_are_refused(counts):
    with pytest.raises(UserError, match=r"natural_counts must be the images of each of the 3 classes"):
        Protocol.named(
            "lfs-3", "mine", 3, max_images=3, profile="natural", natural_counts=counts, imbalance_ratio=3
        )


def test_natural_counts_belong_to_the_natural_profile():
    with pytest.raises(UserError, match="the profile is 'exponential'"):
        Protocol.named("lfs-3", "mine", 3, max_images=3, natural_counts=(3, 2, 1))


def test_a_class_folder_whose_name_is_no_text_is_refused(birds):
    for part in ("train", "test"):
        (birds / part / "coot").rename(birds / part / "caf\udce9")
    with pytest.raises(UserError, match=r"names are not UTF-8 text: 'caf\\udce9'. Rename them"):
        folder.scan(birds)


def test_hidden_folders_hold_no_pictures(birds):
    expected = folder.scan(birds).train
    hidden = birds / "train" / "coot" / ".ipynb_checkpoints"
    hidden.mkdir()
    shutil.copy(birds / "train" / "coot" / "00.png", hidden / "00-checkpoint.png")
    assert folder.scan(birds).train == expected


def test_a_link_to_nowhere_is_named(birds):
    (birds / "train" / "coot" / "09.png").symlink_to(birds / "nothing.png")
    with pytest.raises(UserError, match=r"coot/09\.png: links to nowhere"):
        folder.scan(birds)


def test_portable_pixmaps_are_pictures(birds):
    Image.new("RGB", (4, 4)).save(birds / "train" / "wren" / "9.ppm")
    assert folder.scan(birds).counts == (12, 7, 4, 3)
    assert folder.scan(birds).class_names == ("swan", "heron", "wren", "coot")


@pytest.mark.parametrize("size", [0, -1, 7, 1025])
def test_a_size_that_is_not_possible_is_refused(birds, size):
    with pytest.raises(UserError, match=rf"image_size is {size}; allowed are 8 to 1024"):
        folder_lt(birds, "lfs-2", image_size=size)


def first_pixel(birds, picture, name="00.png"):
    (birds / "train" / "swan" / "00.png").unlink()
    picture.save(birds / "train" / "swan" / name)
    return datasets.load_folder(birds, 8).train_images[0, :, 0, 0].tolist()


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (257, 1), (32896, 128), (65535, 255)])
def test_grey_of_16_bits_is_scaled(birds, value, grey):
    assert first_pixel(birds, Image.fromarray(np.full((9, 9), value, np.uint16))) == [grey] * 3


@pytest.mark.parametrize(
    ("alpha", "seen"), [(0, [255, 255, 255]), (102, [255, 153, 153]), (255, [255, 0, 0])]
)
def test_transparent_parts_lie_on_white(birds, alpha, seen):
    assert first_pixel(birds, Image.new("RGBA", (9, 9), (255, 0, 0, alpha))) == seen


def test_32_bit_values_are_refused_by_name(birds):
    with pytest.raises(UserError, match=r"00\.tif has 32-bit values \(mode F\).*Convert or remove"):
        first_pixel(birds, Image.fromarray(np.ones((9, 9), np.float32)), "00.tif")


def test_a_picture_of_too_many_pixels_is_refused(birds, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # PIL warns above, and raises above twice as many
    with pytest.raises(UserError, match=r"00\.png cannot be read \(DecompressionBombWarning.*mend or remove"):
        datasets.load_folder(birds, 8)
