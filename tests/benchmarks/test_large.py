"""Large data sets in their official layouts: which pictures, whose split, and what is said where something lacks."""

from __future__ import annotations

import hashlib

import large_trees as trees
import numpy as np
import pytest
import torch

from incrlt.benchmarks import datasets, large, longtail, protocols
from incrlt.benchmarks.holding import Holding
from incrlt.data import augment
from incrlt.errors import UserError
from incrlt.experiment import schema
from incrlt.experiment.plan import plan


def checksum(counts):
    return hashlib.sha256(",".join(map(str, counts)).encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "classes", "images", "total", "start", "groups"),
    [
        ("imagenet-subset-lt", 100, 1300, 28_281, "f6374717f43be020", (55, 35, 10)),
        ("food101-lt", 101, 750, 16_454, "7537ef67a96a2374", (44, 35, 22)),
        ("tiny-imagenet", 200, 500, 21_549, "75c1035b83e6f454", (70, 70, 60)),
    ],
)
def test_counts_of_cut_tails_are_the_known_ones(name, classes, images, total, start, groups):
    known = large.facts.info(name)
    assert (known.num_classes, known.max_images) == (classes, images)
    counts = longtail.class_counts("exponential", classes, images, 100).tolist()
    assert sum(counts) == total and checksum(counts).startswith(start)
    assert tuple(longtail.groups(counts).count(group) for group in longtail.GROUPS) == groups


def test_subset_is_shuffled_and_ordered_as_published():
    counts = longtail.class_counts("exponential", 100, 1300, 100)
    arriving = counts[list(large.subset_order("shuffled"))]
    assert arriving[:7].tolist() == [387, 23, 1184, 100, 39, 17, 617]
    assert checksum(arriving.tolist()).startswith("9cd588b7e1ad1361")
    sizes = [int(part.sum()) for part in np.split(arriving, range(50, 100, 5))]
    assert sizes == [16417, 2021, 1721, 1306, 1040, 1034, 661, 1031, 964, 1636, 450]
    for order in ("shuffled", "ordered"):  # the same classes arrive at the same places, with other counts
        label = large.subset_labels(order)
        arrival = [label[c] for c in large.subset_order(order)]
        assert arrival[:3] == [68, 56, 78] and arrival[-2:] == [57, 33]


def test_a_list_is_known_by_either_fingerprint(tmp_path):
    file = tmp_path / "list.txt"
    file.write_bytes(b"hello\n")
    sha256, blob = large.fingerprint(file)
    assert blob == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    assert sha256 == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert large.is_published(file, (blob,)) and large.is_published(file, (sha256[:16],))
    assert not large.is_published(file, ("0" * 40, sha256[:15] + "x"))


def test_imagenet_lt_follows_its_lists_and_says_whose_split_it_is(tmp_path, monkeypatch):
    place = trees.imagenet(tmp_path)
    found = large.scan("imagenet-lt", tmp_path, 32, own_tail=True)
    assert found.class_names == ("n1003", "n1002", "n1001", "n1000")  # class 0 is the head
    assert found.counts == (5, 4, 3, 2)
    assert large.OTHER in found.account
    before = found.name
    lists = ("ImageNet_LT_train.txt", "ImageNet_LT_test.txt")
    monkeypatch.setattr(large, "FINGERPRINTS", {n: (large.fingerprint(place / n)[1],) for n in lists})
    found = large.scan("imagenet-lt", tmp_path, 32, own_tail=True)
    assert large.PUBLISHED in found.account and found.name == before
    cut = large.scan("imagenet-lt", tmp_path, 32, own_tail=False)
    assert cut.counts == (6, 6, 6, 6) and cut.name != before


def test_validation_pictures_without_class_folders_are_found(tmp_path):
    place = trees.imagenet(tmp_path)
    for file in list((place / "val").glob("*/*.JPEG")):
        file.rename(place / "val" / file.name)
    for folder in list((place / "val").iterdir()):
        if folder.is_dir():
            folder.rmdir()
    found = large.scan("imagenet-lt", tmp_path, 32, own_tail=True)
    assert all(path.is_file() for own in found.test for path in own) and len(found.test[0]) == 2


@pytest.mark.parametrize("easy", [True, False])
def test_places_are_read_in_both_layouts(tmp_path, easy):
    trees.places(tmp_path, easy)
    found = large.scan("places-lt", tmp_path, 32, own_tail=True)
    assert (found.class_names, found.counts) == (("barn", "airfield"), (5, 3))
    assert all(path.is_file() for part in (found.train, found.test) for own in part for path in own)


PLACES = {"attic": 19, "bakery": 101, "canyon": 5, "dam": 100, "estuary": 120, "fountain": 20}
"""Training pictures on both sides of each border between many, medium and few; labels are not in order of counts."""
PLACES_BY_COUNT = ("estuary", "bakery", "dam", "fountain", "attic", "canyon")


def of_places(root, **benchmark):
    told = {"dataset": "places-lt", "image_size": 16, **benchmark}
    return schema.parse({"benchmark": told, "strategy": {"name": "finetune"}, "data": {"root": str(root)}})


def test_the_protocol_of_places_lt_is_its_list(tmp_path):
    """Counts, order, split and groups, from the lists to what a run trains on: 365 pictures."""
    place = trees.places(tmp_path, counts=PLACES)
    trees.put(
        place, ["train/estuary/unlisted.jpg"], 9
    )  # Places365 has 1.8 million pictures, Places-LT 62,500 of them
    asked = of_places(tmp_path, protocol="offline")
    found, rule = asked.pictures(), asked.protocol()
    assert found.class_names == PLACES_BY_COUNT and found.split.startswith(large.OTHER)
    assert [[path.parent.name for path in own] for own in found.train] == [
        [name] * PLACES[name] for name in PLACES_BY_COUNT
    ]
    assert [[path.name for path in own] for own in found.test] == [
        [f"Places365_val_{label}{k}.jpg" for k in range(2)]
        for label in map(list(PLACES).index, PLACES_BY_COUNT)
    ]
    kept = protocols.resolve(rule, datasets.folder_labels(found.train).numpy())
    assert kept.counts.tolist() == [120, 101, 100, 20, 19, 5] == rule.rule()["natural_counts"]
    assert rule.imbalance_ratio == 24 and rule.classes_per_experience == (6,)
    assert [sorted(own.tolist()) for own in kept.train_indices] == [list(range(365))]  # all, none twice
    assert kept.groups == ["many", "many", "medium", "medium", "few", "few"]
    (row,) = kept.plan()
    assert (row["images"], row["held_out"]) == (365, 0)
    assert row["classes_by_group"] == {"many": 2, "medium": 2, "few": 2}
    assert row["images_by_group"] == {"many": 221, "medium": 120, "few": 24}
    assert [own["images"] for own in plan(asked)] == [365]


def test_places_lt_has_the_same_pictures_in_both_layouts_and_follows_its_list(tmp_path):
    seen = []
    for name, easy in (("easy", True), ("letters", False)):
        trees.places(tmp_path / name, easy, PLACES)
        found = of_places(tmp_path / name, protocol="offline").pictures()
        names = [[path.name for path in own] for part in (found.train, found.test) for own in part]
        seen.append((found.class_names, found.counts, names))
    assert seen[0] == seen[1]
    place = tmp_path / "easy" / "places365" / "Places_LT_train.txt"
    place.write_text(place.read_text().replace("train/canyon/4.jpg 2\n", ""))
    asked = of_places(tmp_path / "easy", protocol="offline")
    assert asked.pictures().counts == (120, 101, 100, 20, 19, 4)


def test_places_lt_arrives_in_experiences(tmp_path):
    trees.places(tmp_path, counts=PLACES)
    asked = of_places(tmp_path, base_classes=2, increment=2, order="ordered")
    rows = plan(asked)
    assert [row["classes"] for row in rows] == [[0, 1], [2, 3], [4, 5]]
    assert [row["images"] for row in rows] == [221, 120, 24]
    assert [row["classes_by_group"] for row in rows] == [
        {"many": 2, "medium": 0, "few": 0}, {"many": 0, "medium": 2, "few": 0}, {"many": 0, "medium": 0, "few": 2},
    ]  # fmt: skip


def test_inaturalist_is_the_same_by_lists_and_by_json(tmp_path):
    counts = []
    for as_json in (False, True):
        trees.inaturalist(tmp_path / str(as_json), as_json)
        found = large.scan("inaturalist2018", tmp_path / str(as_json), 32, own_tail=True)
        counts.append((found.counts, [path.name for path in found.train[0]]))
        assert all(path.is_file() for own in found.test for path in own)
    assert counts[0] == counts[1] and counts[0][0] == (5, 4, 3)


def test_subset_needs_all_classes_and_keeps_the_order_of_its_list(tmp_path):
    place = trees.imagenet(tmp_path, 103, 3)
    found = large.scan("imagenet-subset-lt", tmp_path, 32, own_tail=False, order="ordered")
    wnids = sorted(path.name for path in (place / "train").iterdir())
    drawn = np.random.RandomState(1993).choice(wnids, 100, replace=False).tolist()
    assert found.class_names[:2] == (drawn[68], drawn[56])
    rows = [
        (f"/x/train/{name}/{name}_{k}.JPEG", label) for label, name in enumerate(drawn) for k in (2, 0, 1)
    ]
    trees.listed(place / "subset_train.txt", rows)
    listed = large.scan("imagenet-subset-lt", tmp_path, 32, own_tail=False, order="ordered")
    assert [path.name[-6] for path in listed.train[0]] == ["2", "0", "1"]
    assert large.OTHER in listed.account and listed.name != found.name


@pytest.mark.parametrize("name", large.SETS)
def test_what_is_missing_is_told_with_its_place(tmp_path, name):
    with pytest.raises(UserError, match=r"(?s)no such folder.*(by hand|incrlt\.prepare)") as told:
        large.scan(name, tmp_path, 32, own_tail=name in ("imagenet-lt", "places-lt", "inaturalist2018"))
    assert str(tmp_path / large.SETS[name].folder) in str(told.value)


def test_a_list_without_its_pictures_is_refused(tmp_path):
    place = trees.imagenet(tmp_path)
    (place / "train" / "n1001" / "n1001_0.JPEG").unlink()
    with pytest.raises(UserError, match=r"n1001_0\.JPEG, which is not in"):
        large.scan("imagenet-lt", tmp_path, 32, own_tail=True)


@pytest.mark.parametrize(("make", "name"), [(trees.food, "food101-lt"), (trees.tiny, "tiny-imagenet")])
def test_official_parts_are_read_and_normalised_as_known(tmp_path, make, name):
    make(tmp_path)
    found = large.scan(name, tmp_path, 32, own_tail=False)
    assert found.counts == (6,) * 4 and [len(own) for own in found.test] == [2] * 4
    data = datasets.read_folder(found, Holding("memory", workers=0))
    assert data.train_images.shape == (24, 3, 32, 32)
    assert data.mean == large.facts.info(name).mean


def test_an_experiment_on_the_subset_has_the_published_arrival(tmp_path):
    trees.imagenet(tmp_path, 100, 12)
    told = {
        "dataset": "imagenet-subset-lt",
        "protocol": "lfh-shuffled-10",
        "imbalance_ratio": 4,
        "image_size": 32,
    }
    experiment = schema.parse(
        {"benchmark": told, "strategy": {"name": "finetune"}, "data": {"root": str(tmp_path)}}
    )
    protocol = experiment.protocol()
    assert protocol.class_order == large.subset_order("shuffled")
    assert protocol.classes_per_experience == (50, *[5] * 10) and protocol.max_images == 12
    assert protocol.augmentation == "imagenet"


def test_evaluation_takes_the_central_seven_eighths():
    images = torch.arange(64 * 64, dtype=torch.uint8).view(1, 1, 64, 64)
    prepared = augment.build("imagenet", (1, 64, 64), (0.0,), (1.0,), train=False)(images)
    torch.testing.assert_close(prepared, images[:, :, 4:60, 4:60] / 255)
    trained = augment.build("imagenet-jitter", (3, 64, 64), (0.0,) * 3, (1.0,) * 3, train=True)
    assert trained(images.expand(2, 3, 64, 64)).shape == (2, 3, 56, 56)


def test_pictures_are_listed_once_however_often_an_experiment_is_asked(tmp_path, monkeypatch):
    """Before: a dry run listed them four times; ImageNet has 1.3 million."""
    trees.imagenet(tmp_path)
    calls, real = [], large.scan
    monkeypatch.setattr(large, "scan", lambda *asked: calls.append(asked) or real(*asked))
    told = {"dataset": "imagenet-lt", "protocol": "offline", "image_size": 32}
    values = {"benchmark": told, "strategy": {"name": "finetune"}, "data": {"root": str(tmp_path)}}
    experiment = schema.parse(values)
    plan(experiment)
    assert experiment.pictures() is experiment.pictures() and len(calls) == 1
    other = tmp_path / "other"
    trees.imagenet(other)
    moved = experiment.model_copy(update={"data": experiment.data.model_copy(update={"root": str(other)})})
    assert moved.pictures().root == other / "imagenet" and experiment.pictures().root == tmp_path / "imagenet"
