"""The forgetting report, recomputed by a stranger: from confusions.npz and classes.json alone, with plain loops."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from incrlt.report import page, read_run, tables
from incrlt.report.verdict import verdict

RUNS = Path(__file__).resolve().parent.parent.parent / "docs" / "gallery" / "runs"
FOLDERS = (
    "cifar100lt_10tasks_finetune/d019fdd4-2007c2e2-s0",
    "cifar100lt_10tasks_icarl/c8dcf149-c7494921-s0",
    "cifar100lt_10tasks_lucir_ride/aadac667-ae269176-s0",
    "cifar100lt_10tasks_lucir_shike/aadac667-877e632d-s1",
    "cifar100lt_10tasks_published_lucir_lws/ac9aacf4-65d9c196-s0",
)
OWN = ("cnn", "nme", "cnn", "routed", "cnn")


class Stranger:
    """Knows numpy's file format and the definitions in docs/metrics.md, and nothing of the package."""

    def __init__(self, folder: Path, readout: str) -> None:
        classes = json.loads((folder / "classes.json").read_text())
        self.arrived, self.images = classes["experience_of_class"], classes["images_of_class"]
        self.names = classes["class_names"]
        arrays = np.load(folder / "confusions.npz")
        keys = sorted(key for key in arrays if key.startswith(f"{readout}_"))
        self.counts = [arrays[key].astype(int).tolist() for key in keys]
        self.last = len(self.counts) - 1

    def own(self, j):
        return [c for c, t in enumerate(self.arrived) if t == j]

    def accuracy(self, t, classes):
        right = sum(self.counts[t][c][c] for c in classes)
        return 100 * right / sum(sum(self.counts[t][c]) for c in classes)

    def curve(self, j):
        return [self.accuracy(t, self.own(j)) for t in range(j, self.last + 1)]

    def drop(self, j):
        *before, now = self.curve(j)
        return max(before) - now

    def best_at(self, j):
        before = self.curve(j)[:-1]
        return j + max(t for t, value in enumerate(before) if value == max(before))

    def wrong(self, t, j, to):
        """Share of the images of experience j that is taken for class ``to`` and is not of it."""
        own = self.own(j)
        images = sum(sum(self.counts[t][c]) for c in own)
        taken = sum(self.counts[t][c][to] for c in own if c != to and to < len(self.counts[t]))
        return 100 * taken / images

    def gains(self, j):
        return [
            self.wrong(self.last, j, c) - self.wrong(self.best_at(j), j, c)
            for c in range(len(self.counts[-1]))
        ]

    def group(self, c):
        return "many" if self.images[c] > 100 else "few" if self.images[c] < 20 else "medium"

    def lost(self, group):
        best, drops = [], []
        for c, t in enumerate(self.arrived):
            if t < self.last and self.group(c) == group:
                curve = [self.accuracy(step, [c]) for step in range(t, self.last + 1)]
                best.append(max(curve[:-1]))
                drops.append(max(curve[:-1]) - curve[-1])
        return sum(best) / len(best), sum(drops) / len(drops)

    def old(self):
        values = [self.accuracy(self.last, [c]) for c, t in enumerate(self.arrived) if t < self.last]
        return sum(values) / len(values)

    def old_to_new(self):
        old = [c for c, t in enumerate(self.arrived) if t < self.last]
        new = self.own(self.last)
        images = sum(sum(self.counts[-1][c]) for c in old)
        return 100 * sum(self.counts[-1][c][n] for c in old for n in new) / images


@pytest.fixture(params=zip(FOLDERS, OWN, strict=True), ids=lambda pair: pair[0].split("/")[0], scope="module")
def both(request):
    folder, readout = request.param
    return read_run(RUNS / folder), Stranger(RUNS / folder, readout)


def test_every_column_of_the_table_of_experiences(both):
    run, stranger = both
    rows = tables.tasks(run.records[run.readout])
    assert len(rows) == stranger.last + 1
    for j, row in enumerate(rows):
        own, curve = stranger.own(j), stranger.curve(j)
        assert row["names"] == [stranger.names[c] for c in own]
        for group in ("many", "medium", "few"):
            images = sum(stranger.images[c] for c in own if stranger.group(c) == group)
            assert row["images_by_group"][group] == images
        assert (row["on_arrival"], row["last"]) == (pytest.approx(curve[0]), pytest.approx(curve[-1]))
        if j == stranger.last:
            assert row["drop"] is row["relative"] is row["worst_step"] is None and not row["absorbed"]
            continue
        best = max(curve[:-1])
        assert (row["best"], row["best_at"]) == (pytest.approx(best), stranger.best_at(j))
        assert row["drop"] == pytest.approx(best - curve[-1])
        assert row["relative"] == pytest.approx(100 * (best - curve[-1]) / best)
        falls = [before - after for before, after in pairwise(curve)]
        if max(falls) > 1e-9:
            assert row["worst_fall"] == pytest.approx(max(falls))
            assert falls[row["worst_step"] - j - 1] == pytest.approx(max(falls))
        else:
            assert row["worst_step"] is None
        if stranger.drop(j) <= 1e-9:
            assert not row["absorbed"] and not row["absorbed_by"]
            continue
        gains = stranger.gains(j)
        assert sum(gains) == pytest.approx(stranger.drop(j))
        by_experience = [sum(gains[c] for c in stranger.own(e)) for e in range(stranger.last + 1)]
        for place, (experience, gain) in enumerate(row["absorbed"]):
            assert gain == pytest.approx(by_experience[experience])
            assert gain == pytest.approx(sorted(by_experience, reverse=True)[place])
        for place, (name, gain) in enumerate(row["absorbed_by"]):
            assert gain == pytest.approx(gains[stranger.names.index(name)])
            assert gain == pytest.approx(sorted(gains, reverse=True)[place])


def numbers(text: str) -> list[float]:
    return [float(one.replace("−", "-")) for one in re.findall(r"[−-]?\d+(?:\.\d+)?", text)]


def test_every_number_of_the_verdict(both):
    run, stranger = both
    first, groups, head = ("".join(piece.text for piece in sentence) for sentence in verdict(run))
    worst = max(range(stranger.last), key=stranger.drop)
    curve, at = stranger.curve(worst), stranger.best_at(worst)
    found = re.fullmatch(
        r"Experience (\d+) \((.*?)\) was forgotten most: from ([\d.]+) % after experience (\d+) to ([\d.]+) %, mostly "
        r"while experiences? (.*?) (?:was|were) learned\. More of its images are now taken for classes of experience "
        r"(\d+) \(\+([\d.]+) points\), above all (.*)\.",
        first,
    )
    assert (int(found[1]), int(found[4])) == (worst, at)
    assert found[2].split(", ")[:3] == [stranger.names[c] for c in stranger.own(worst)][:3]
    assert (float(found[3]), float(found[5])) == (
        pytest.approx(max(curve[:-1]), abs=0.0501), pytest.approx(curve[-1], abs=0.0501),
    )  # fmt: skip
    since = {t: curve[t - worst - 1] - curve[t - worst] for t in range(at + 1, stranger.last + 1)}
    named = re.findall(r"(\d+) \(−([\d.]+)\)", found[6])
    for t, points in named:
        assert float(points) == pytest.approx(since[int(t)], abs=0.0501)
    largest = sorted(since.values(), reverse=True)
    assert sum(since[int(t)] for t, _ in named) == pytest.approx(sum(largest[: len(named)]))
    assert sum(largest[: len(named)]) >= stranger.drop(worst) / 2 - 1e-9
    assert sum(largest[: len(named) - 1]) < stranger.drop(worst) / 2
    gains = stranger.gains(worst)
    by_experience = [sum(gains[c] for c in stranger.own(e)) for e in range(stranger.last + 1)]
    assert int(found[7]) == int(np.argmax(by_experience))
    assert float(found[8]) == pytest.approx(max(by_experience), abs=0.0501)
    inside = sorted(stranger.own(int(found[7])), key=lambda c: -gains[c])
    shown = found[9].split(", ")
    assert [gains[stranger.names.index(name)] for name in shown] == pytest.approx(
        [gains[c] for c in inside[: len(shown)]]
    )

    expected = []
    for group in ("few", "many"):
        best, lost = stranger.lost(group)
        expected += [lost, best, 100 * lost / best]
    near = [0.0501, 0.0501, 0.501] * 2  # half of the last digit shown
    assert numbers(groups) == [pytest.approx(value, abs=by) for value, by in zip(expected, near, strict=True)]

    of_head = Stranger(run.folder, "cnn")
    wanted = [of_head.old(), of_head.old_to_new()]
    wanted += [Stranger(run.folder, "nme").old()] if "nme" in run.records else []
    assert numbers(head) == [pytest.approx(value, abs=0.0501) for value in wanted]


def test_every_number_of_the_verdict_leads_to_a_place_on_the_page(both):
    run, _ = both
    text = page.render("run.html", "plotly.js", **page.contents(run))
    places = set(re.findall(r'id="([^"]+)"', text))
    for sentence in verdict(run):
        for piece in sentence:
            assert not piece.to or piece.to in places, piece
            if not piece.to and not re.search(
                "after experience|classes of experience|points they had", piece.text
            ):
                assert not re.search(r"\d", piece.text), piece


def written_run(make_run, tmp_path, counts, images=(200, 10, 10), readouts=("cnn",)):
    from incrlt.metrics import save_classes, save_confusions

    folder = make_run(tmp_path, sizes=(2, 1), epochs=1, readouts=readouts)
    save_confusions(folder / "confusions.npz", dict(zip(readouts, counts, strict=True)))
    save_classes(folder / "classes.json", [0, 0, 1], images, ["ant", "bee", "cat"])
    return "\n".join("".join(piece.text for piece in sentence) for sentence in verdict(read_run(folder)))


def test_a_run_that_forgot_nothing_says_so(make_run, tmp_path):
    counts = [np.diag([5, 5]) + np.array([[0, 5], [5, 0]]), np.diag([10, 10, 10])]
    text = written_run(make_run, tmp_path, [counts])
    assert text.startswith("No experience ended below its best: nothing was forgotten.")
    assert "Few classes gained 50.0 points on the 50.0 points they had at best (100 %)" in text


def test_a_class_that_was_never_learned_was_not_forgotten(make_run, tmp_path):
    counts = [np.array([[10, 0], [10, 0]]), np.array([[5, 0, 5], [0, 0, 10], [0, 0, 10]])]
    text = written_run(make_run, tmp_path, [counts])
    assert (
        "Many classes lost 50.0 of the 100.0 points they had at best (50 %)." in text
        and "ew classes" not in text
    )


@pytest.mark.parametrize(
    ("right_by_means", "words"),
    [
        (9, "more: part of the loss is a bias of the head"),
        (5, "about the same"),
        (2, "less: nothing points to a bias"),
    ],
)
def test_the_nearest_mean_tells_bias_from_lost_features(make_run, tmp_path, right_by_means, words):
    n = right_by_means
    head = [np.diag([10, 10]), np.array([[5, 0, 5], [0, 5, 5], [0, 0, 10]])]
    means = [np.diag([10, 10]), np.array([[n, 0, 10 - n], [0, n, 10 - n], [0, 0, 10]])]
    text = written_run(make_run, tmp_path, [head, means], readouts=("cnn", "nme"))
    assert f"reaches {10 * n}.0 %, {words}" in text
    assert "reaches 50.0 % on the old classes and takes 50.0 % of their images for the newest ones" in text
