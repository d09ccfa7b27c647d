"""Trees of a few pixels in the layouts of the large data sets' official archives."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

from PIL import Image

SIDE = 40
"""Pixels of a side of each picture."""


@functools.cache
def jpeg(shade: int) -> bytes:
    """Return a picture of one colour."""
    written = io.BytesIO()
    Image.new("RGB", (SIDE + shade % 3, SIDE), (shade % 256, 90, 255 - shade % 256)).save(written, "JPEG")
    return written.getvalue()


def put(place: Path, paths: list[str], shade: int = 0) -> None:
    """Write pictures."""
    for number, path in enumerate(paths):
        file = place / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg((16 * shade + number) % 256))


def listed(file: Path, rows: list[tuple[str, int]]) -> None:
    """Write a list of the published form."""
    file.write_text("".join(f"{path} {label}\n" for path, label in rows))


def imagenet(root: Path, classes: int = 4, images: int = 6) -> Path:
    """Write ImageNet, with lists of ImageNet-LT whose rarest class is the first."""
    place = root / "imagenet"
    wnids = [f"n{1000 + number}" for number in range(classes)]
    for number, wnid in enumerate(wnids):
        put(place, [f"train/{wnid}/{wnid}_{k}.JPEG" for k in range(images)], number)
        put(place, [f"val/{wnid}/ILSVRC2012_val_{number}{k}.JPEG" for k in range(2)], number)
    train = [(f"train/{w}/{w}_{k}.JPEG", c) for c, w in enumerate(wnids) for k in range(min(2 + c, images))]
    test = [(f"val/{w}/ILSVRC2012_val_{c}{k}.JPEG", c) for c, w in enumerate(wnids) for k in range(2)]
    listed(place / "ImageNet_LT_train.txt", train)
    listed(place / "ImageNet_LT_test.txt", test)
    return place


def places(root: Path, easy: bool = True, counts: dict[str, int] | None = None) -> Path:
    """Write Places365, in the easy format or by first letters, with Kang's lists.

    Args:
        root: The data root.
        easy: Folders of classes; otherwise ``data_256`` by first letter and a flat ``val_256``.
        counts: Training pictures of each class, by label.
    """
    place, train, test = root / "places365", [], []
    for label, (name, number) in enumerate((counts or {"airfield": 3, "barn": 5}).items()):
        for k in range(number):
            train.append((f"train/{name}/{k}.jpg", label))
            put(place, [f"train/{name}/{k}.jpg" if easy else f"data_256/{name[0]}/{name}/{k}.jpg"], k)
        for k in range(2):
            test.append((f"val/{name}/Places365_val_{label}{k}.jpg", label))
            put(
                place,
                [
                    f"val/{name}/Places365_val_{label}{k}.jpg"
                    if easy
                    else f"val_256/Places365_val_{label}{k}.jpg"
                ],
                k,
            )
    listed(place / "Places_LT_train.txt", train)
    listed(place / "Places_LT_test.txt", test)
    return place


def inaturalist(root: Path, as_json: bool = False) -> Path:
    """Write iNaturalist 2018, with its lists or its official JSON files."""
    place, parts = root / "inaturalist2018", {"train": [], "val": []}
    for part, number in (("train", 3), ("val", 1)):
        for label, kingdom in enumerate(("Plantae", "Aves", "Plantae")):
            rows = [f"train_val2018/{kingdom}/{label}/{part}{k}.jpg" for k in range(number + label)]
            put(place, rows, label)
            parts[part] += [(path, label) for path in rows]
    for part, name in (("train", "iNaturalist18_train.txt"), ("val", "iNaturalist18_val.txt")):
        if as_json:
            told = {
                "images": [{"file_name": path} for path, _ in parts[part]],
                "annotations": [{"category_id": label} for _, label in parts[part]],
            }
            (place / f"{part}2018.json").write_text(json.dumps(told))
        else:
            listed(place / name, parts[part])
    return place


def food(root: Path, classes: int = 4, images: int = 6) -> Path:
    """Write Food-101."""
    place, lines = root / "food-101", {"train": [], "test": []}
    for number in range(classes):
        for part, many in (("train", images), ("test", 2)):
            own = [f"dish_{number:03}/{part}{k}" for k in range(many)]
            lines[part] += own
            put(place, [f"images/{line}.jpg" for line in own], number)
    (place / "meta").mkdir(exist_ok=True)
    for part, own in lines.items():
        (place / "meta" / f"{part}.txt").write_text("\n".join(own) + "\n")
    return place


def tiny(root: Path, classes: int = 4, images: int = 6) -> Path:
    """Write Tiny-ImageNet."""
    place, notes = root / "tiny-imagenet-200", []
    wnids = [f"n{2000 + number}" for number in range(classes)]
    for number, wnid in enumerate(wnids):
        put(place, [f"train/{wnid}/images/{wnid}_{k}.JPEG" for k in range(images)], number)
        put(place, [f"val/images/val_{number}_{k}.JPEG" for k in range(2)], number)
        notes += [f"val_{number}_{k}.JPEG\t{wnid}\t0\t0\t9\t9" for k in range(2)]
    (place / "wnids.txt").write_text("\n".join(reversed(wnids)) + "\n")
    (place / "val" / "val_annotations.txt").write_text("\n".join(notes) + "\n")
    return place
