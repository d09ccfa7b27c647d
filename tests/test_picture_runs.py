"""Runs on pictures from files: the same bits wherever they are held and however often killed; nothing decoded twice."""

from __future__ import annotations

import gc
import html
import json
import re
import shutil
import weakref
from pathlib import Path

import large_trees
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from incrlt.benchmarks import looking, streams, surveying
from incrlt.run import main
from incrlt.training.template import IncrTemplate

COUNTS = (24, 16, 9, 6, 4)
"""Training pictures of the digits 0 to 4; three of each are for testing, and of one none."""
YAML = """\
benchmark: {dataset: folder, base_classes: 3, increment: 2, image_size: 16, augmentation: resized-crop-flip}
model: {name: resnet8, width: 4}
strategy: {name: lucir}
experts: {name: ncl, num_experts: 2}
memory: {per_class: 3}
rebalance: {name: lws, epochs: 1}
training: {epochs: 2, batch_size: 12, precision: fp32, threads: 1, eval_batch_size: 8}
device: cpu
"""
LARGE_YAML = """\
benchmark: {dataset: places-lt, protocol: offline, image_size: 16, augmentation: imagenet}
model: {name: resnet8, width: 4, head: linear}
strategy: {name: finetune}
memory: null
training: {epochs: 1, batch_size: 4, precision: fp32, threads: 1}
device: cpu
"""
SAME_BYTES = (
    "results.csv", "per_class.csv", "classes.json", "protocol.json", "evaluations.npz", "confusions.npz",
    "thumbnails.npz", "kept.json", "kept/exemplars.zip", "kept/tests.zip",
)  # fmt: skip

SAID = {
    "stream": "decoded each time they are used, by 2 threads (0.1 MB in all)",
    "cache": "read by 2 threads",
    "auto": "mapped into memory",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    digits, root = load_digits(), tmp_path_factory.mktemp("photos")
    for label, number in enumerate(COUNTS):
        pictures = digits.images[digits.target == label]
        parts = {"train": pictures[:number], "test": pictures[number : number + 3] if label != 2 else ()}
        for part, own in parts.items():
            for index, picture in enumerate(own):
                path = root / part / f"digit {label}" / f"{index:02}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                grey = Image.fromarray((picture * 15).astype(np.uint8)).resize((48, 36))
                grey.convert("RGB").save(path, quality=95)
    (root / "page.yaml").write_text(YAML)
    return root


def start(photos: Path, out: Path, hold: str, workers: int, *more: str) -> int:
    words = [f"data.hold={hold}", f"data.workers={workers}", *more]
    return main([str(photos / "page.yaml"), *words, "--data", str(photos), "--out", str(out)])


def results(out: Path) -> dict[str, bytes]:
    """The files of the one run in a folder, and its last weights."""
    [done] = out.glob("page/*/DONE")
    found = {name: (done.parent / name).read_bytes() for name in SAME_BYTES}
    last = max((done.parent / "checkpoints").iterdir())
    weights = torch.load(next(last.glob("*.pt")) if last.is_dir() else last, weights_only=True)
    flat = json.dumps(weights["strategy"]["model"], default=lambda value: value.tolist())
    return found | {"weights": flat.encode()}


@pytest.fixture(scope="module")
def straight(photos, tmp_path_factory) -> dict[str, bytes]:
    """What a run in one go gives, its pictures in memory."""
    out = tmp_path_factory.mktemp("straight")
    assert start(photos, out, "memory", 0) == 0
    return results(out)


@pytest.mark.parametrize(("hold", "workers"), [("stream", 2), ("cache", 2), ("auto", 0)])
def test_a_run_has_the_same_bits_wherever_its_pictures_are(photos, straight, tmp_path, capsys, hold, workers):
    assert start(photos, tmp_path, hold, workers) == 0
    assert results(tmp_path) == straight
    [environment] = tmp_path.glob("page/*/environment.json")
    sentence = json.loads(environment.read_text())["pictures"]
    assert SAID[hold] in sentence and sentence in capsys.readouterr().out


class Stopped(BaseException):
    """In the place of a kill: nothing after it is executed."""


def stopped_at(monkeypatch, step: int) -> None:
    taken, real = 0, IncrTemplate.optimizer_step

    def counting(self, *args, **kwargs):
        nonlocal taken
        taken += 1
        if taken == step:
            raise Stopped
        return real(self, *args, **kwargs)

    monkeypatch.setattr(IncrTemplate, "optimizer_step", counting)


@pytest.mark.parametrize("first", [0, 2])
def test_a_streamed_run_that_is_killed_goes_on_to_the_same_bits_with_any_workers(
    photos, straight, tmp_path, monkeypatch, first
):
    """In the base experience and in the second, where exemplars join; the other number of workers takes over."""
    for step, workers in ((7, first), (14, 2 - first)):
        with monkeypatch.context() as patch:
            stopped_at(patch, step)
            with pytest.raises(Stopped):
                start(photos, tmp_path, "stream", workers)
        assert not list(tmp_path.glob("page/*/DONE"))
    assert start(photos, tmp_path, "stream", first) == 0
    assert results(tmp_path) == straight


def test_a_second_start_a_resume_and_a_finished_run_decode_nothing(photos, straight, tmp_path, monkeypatch):
    decoded, real = [], surveying.read_picture

    def counting(*args):
        decoded.append(args)
        return real(*args)

    monkeypatch.setattr(surveying, "read_picture", counting)
    with monkeypatch.context() as patch:
        stopped_at(patch, 7)
        with pytest.raises(Stopped):
            start(photos, tmp_path, "auto", 2)
    assert len(decoded) == sum(COUNTS) + 12
    decoded.clear()
    assert start(photos, tmp_path, "auto", 2) == 0  # the killed run goes on
    assert results(tmp_path) == straight and not decoded
    assert start(photos, tmp_path, "auto", 2) == 0  # it is finished
    for hold in ("memory", "stream"):
        assert start(photos, tmp_path, hold, 2) == 0  # finished too: how pictures are held is another matter
    assert not decoded
    assert start(photos, tmp_path / "another", "cache", 0, "--seed", "5") == 0
    assert not decoded


CUT = (
    "benchmark.dataset=digits",
    "benchmark.base_classes=8",
    "benchmark.imbalance_ratio=10",
    "benchmark.image_size=null",
    "data.hold=auto",  # there are no files, and words on them are refused
    "data.workers=null",
)


@pytest.mark.parametrize("more", [CUT, ()], ids=["a tail that is cut", "a tail of its own"])
def test_images_are_not_held_twice_through_a_run(photos, tmp_path, monkeypatch, more):
    """Before: the data set stood beside what the stream had taken from it, as long as the run lasted."""
    made: list[weakref.ref] = []
    real, seen = streams.build, []

    def build(data, *args):
        made.extend([weakref.ref(data), weakref.ref(data.train_images)])
        return real(data, *args)

    def stop(*_):
        gc.collect()
        seen.extend(one() is None for one in made)
        raise Stopped

    monkeypatch.setattr(streams, "build", build)
    monkeypatch.setattr(IncrTemplate, "optimizer_step", stop)
    with pytest.raises(Stopped):
        start(photos, tmp_path, "memory", 0, *more)
    # Of a tail that is cut, the stream has its own few images; else it looks at the data set's.
    assert seen == [True, bool(more)]


@pytest.mark.parametrize(
    ("hold", "said"),
    [
        ("stream", ["decoded each time they are used", "is what it waits for", "disk for pictures  nothing"]),
        ("auto", ["decoded once, below", "before the first of them", "disk for pictures  53.2 KiB"]),
    ],
)
def test_a_dry_run_measures_what_a_run_would_take(photos, tmp_path, capsys, monkeypatch, hold, said):
    monkeypatch.setattr("incrlt.runner.measure.SECONDS", 0.2)
    assert start(photos, tmp_path, hold, 0, "--dry-run", "--measure") == 0
    shown = re.sub(" +", " ", capsys.readouterr().out)
    [images] = re.findall(
        r"measured ([\d,]+) images/s in training \(\d+ steps?\), ([\d,]+) in evaluation", shown
    )
    assert all(int(number.replace(",", "")) > 0 for number in images)
    assert all(re.sub(" +", " ", words) in shown for words in said), shown
    assert not list(tmp_path.glob("page/*/DONE"))


BROKEN = {
    "train/digit 0/cut.jpg": "unreadable",
    "train/digit 0/no picture.png": "unreadable",
    "train/digit 1/a film.mp4": ".mp4",
    "train/digit 1/again.jpg": "duplicates by content",
    "train/digit 3/of the test.jpg": "duplicates by content",
    "test/digit 3/empty.jpg": "unreadable",
    "test/digit 3/notes.txt": ".txt beside pictures",
}


def broken_copy(photos: Path, root: Path) -> Path:
    """Copy the photographs, with files of every kind among them that a run cannot or should not use."""
    shutil.copytree(photos, root)
    (root / "page.yaml").rename(root.parent / "page.yaml")
    whole = (root / "train/digit 1/00.jpg").read_bytes()
    content = dict.fromkeys(BROKEN, b"none") | {
        "train/digit 0/cut.jpg": whole[:200],
        "train/digit 1/again.jpg": whole,
        "train/digit 3/of the test.jpg": (root / "test/digit 3/01.jpg").read_bytes(),
        "test/digit 3/empty.jpg": b"",
    }
    for name, written in content.items():
        (root / name).write_bytes(written)
    return root


def skipping(root: Path, *more: str) -> int:
    words = ["data.hold=memory", "data.workers=0", "--data", str(root), "--out", str(root.parent / "runs")]
    return main([str(root.parent / "page.yaml"), *words, *more])


@pytest.mark.parametrize("layout", ["parts", "one folder", "a list"])
def test_a_dry_run_that_skips_what_is_broken_names_every_file(photos, tmp_path, capsys, layout):
    root = source = broken_copy(photos, tmp_path / "photos")
    names = set(BROKEN)
    if layout == "one folder":
        shutil.rmtree(root / "test")
        for folder in (root / "train").iterdir():
            folder.rename(root / folder.name)
        (root / "train").rmdir()
        names = {name.removeprefix("train/") for name in BROKEN if name.startswith("train/")}
        names.remove("digit 3/of the test.jpg")  # its other copy is gone
    files = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]
    if layout == "a list":
        source = root / "all.csv"
        rows = [f"{name},{name.split('/')[1]},{name.split('/')[0]}" for name in files]
        source.write_text("path,label,split\n" + "\n".join(rows))
    assert skipping(root, "--data", str(source), "--dry-run") == 2
    assert "--skip-broken" in capsys.readouterr().err
    assert skipping(root, "--data", str(source), "--dry-run", "--skip-broken") == 0
    said = " ".join(capsys.readouterr().out.split())
    used, left_out = map(int, re.search(r"(\d+) pictures, (\d+) left out: ", said).groups())
    assert (used, left_out) == (len(files) - len(names), len(names)), "used + named is every file"
    for name in names - {"test/digit 3/notes.txt"}:
        place = f"all.csv:{files.index(name) + 2}" if layout == "a list" and name.endswith("mp4") else name
        assert f"{place}: " in said, name
    fewer = int(layout == "one folder")
    assert f"{3 - fewer} unreadable (first: " in said and "1 .mp4 (first: " in said
    assert f"{2 - fewer} duplicates by content (first: " in said


def test_a_run_skips_what_is_broken_and_learns_what_the_clean_folder_has(
    photos, tmp_path, capsys, monkeypatch
):
    """Of what is left the results are those of a folder without the broken files; a second start opens nothing."""
    clean, root = tmp_path / "clean" / "photos", broken_copy(photos, tmp_path / "photos")
    broken_copy(photos, clean)
    for name in BROKEN:
        (clean / name).unlink()
    assert skipping(root) == 2
    told = capsys.readouterr().err
    assert "1 of " in told and "a film.mp4" in told
    (root / "train/digit 1/a film.mp4").unlink()
    assert skipping(root) == 2
    told = capsys.readouterr().err
    assert "3 pictures cannot be read" in told and "--skip-broken" in told
    assert skipping(root, "--skip-broken") == 0
    said = capsys.readouterr().out
    assert skipping(clean) == 0
    assert results(tmp_path / "runs") == results(clean.parent / "runs")
    [environment] = (tmp_path / "runs").glob("page/*/environment.json")
    sentence = json.loads(environment.read_text())["pictures"]
    page = html.unescape((environment.parent / "report.html").read_text())
    for text in (said, page):
        assert sentence in text
    assert all(f"{name}: " in sentence for name, kind in BROKEN.items() if kind[0] != ".")
    monkeypatch.setattr(looking, "read_picture", None)
    monkeypatch.setattr(surveying, "read_picture", None)
    capsys.readouterr()
    assert skipping(root, "--skip-broken") == 0
    assert "finished" in capsys.readouterr().out


def test_a_run_on_a_large_set_tells_which_split_it_had(tmp_path: Path) -> None:
    """Before: protocol.json was silent, and two runs on other lists of one name looked alike in it."""
    large_trees.places(tmp_path)
    (tmp_path / "page.yaml").write_text(LARGE_YAML)
    words = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([str(tmp_path / "page.yaml"), *words]) == 0
    [run] = (done.parent for done in (tmp_path / "out").glob("page/*/DONE"))
    told = "this is another split than the published one (Places_LT_train.txt, Places_LT_test.txt: unknown fingerprint)"
    assert json.loads((run / "protocol.json").read_text())["split"] == told
    page = " ".join(html.unescape((run / "report.html").read_text()).split())
    assert page.count(told) >= 2  # among the facts of the head, and in the protocol
