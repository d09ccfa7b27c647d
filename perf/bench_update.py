"""A model that goes on after its data are gone: run, predict, update, predict, export, beside training anew.

Photographs of CIFAR-100 (32 pixels, JPEG, brought to a larger size), all from its training part: a long tail of
classes today; then that folder is deleted, and two new classes arrive with a few more pictures of known ones. The
commands are those of ``incrlt``, each a process of its own; accuracy is what ``incrlt predict`` answers to the same
test pictures, every class counting the same. The last row trains anew on everything that ever arrived, for which the
deleted pictures are written again.

``python -m perf.bench_update --data FOLDER_OF_CIFAR [section.key=value ...]``
"""

from __future__ import annotations

import csv
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from incrlt.benchmarks.longtail import GROUPS, groups
from incrlt.experiment import yamlfile
from perf import output
from perf.machine import machine
from perf.photographs import EXPERIMENT, Photographs, options

TODAY, HEAD, RATIO, TESTS = 20, 250, 21, 50
"""Classes of today, training pictures of the most frequent one, how many times fewer the rarest has, tests of each."""
NEW = (60, 20)
"""Pictures of each new class."""
MORE = dict.fromkeys(range(1, 16, 2), 5)
"""Further pictures of known classes, by their place in the tail."""


@dataclass(frozen=True)
class Arrivals:
    """Which rows of CIFAR-100 arrive when: class name -> rows."""

    today: Mapping[str, Sequence[int]]
    monday: Mapping[str, Sequence[int]]
    tests: Mapping[str, Sequence[int]]

    def seen(self, name: str) -> int:
        """Return how many training pictures of a class arrive at any time."""
        return len(self.today.get(name, ())) + len(self.monday.get(name, ()))


def arrivals_of(cifar: Photographs, seed: int) -> Arrivals:
    """Draw classes and pictures."""
    rng = np.random.default_rng(seed)
    names = [cifar.names[label] for label in rng.permutation(100)[: TODAY + len(NEW)]]
    today, monday, tests = {}, {}, {}
    for place, name in enumerate(names):
        rows = rng.permutation(cifar.rows(name)).tolist()
        tests[name], rows = rows[:TESTS], rows[TESTS:]
        if place >= TODAY:
            monday[name] = rows[: NEW[place - TODAY]]
            continue
        count = int(HEAD * (1 / RATIO) ** (place / (TODAY - 1)))
        today[name] = rows[:count]
        if place in MORE:
            monday[name] = rows[count : count + MORE[place]]
    return Arrivals(today, monday, tests)


def write(cifar: Photographs, rows_of: Mapping[str, Sequence[int]], folder: Path) -> None:
    """Write pictures as JPEG files, a folder per class."""
    for name, rows in rows_of.items():
        cifar.write(rows, folder / name, ".jpg")


def experiment(classes: Sequence[str], seed: int, size: int) -> dict[str, object]:
    """Return the experiment for photographs of one's own, all classes in one experience."""
    settings = yamlfile.read(EXPERIMENT)
    for key in ("base_classes", "increment", "order"):
        del settings["benchmark"][key]
    settings["benchmark"] |= {"experiences": [list(classes)], "image_size": size}
    return settings | {"seeds": {"all": seed}, "training": settings["training"] | {"threads": 1}}


def command(*words: object, codes: Sequence[int] = (0,)) -> float:
    """Run ``incrlt ...``; return its processor seconds.

    Raises:
        RuntimeError: It ends with another code than one of ``codes``.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "incrlt", *map(str, words)], capture_output=True, text=True, check=False
    )
    if done.returncode not in codes:
        raise RuntimeError(f"incrlt {words[0]} ended with {done.returncode}: {done.stderr or done.stdout}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)


def accuracy(answers: Path, arrivals: Arrivals) -> dict[str, float | None]:
    """Return the accuracy of answers to the test pictures in percent, by age and group of the classes."""
    rows = list(csv.DictReader(answers.read_text().splitlines()))
    right: dict[str, list[bool]] = {}
    for row in rows:
        name = Path(row["file"]).parent.name
        right.setdefault(name, []).append(row["class"] == name)
    group_of = dict(zip(right, groups(np.array([arrivals.seen(name) for name in right])), strict=True))
    members = {
        "old": [name for name in right if name in arrivals.today],
        "new": [name for name in right if name not in arrivals.today],
        **{
            group: [name for name in right if group_of[name] == group and name in arrivals.today]
            for group in GROUPS
        },
        "all": list(right),
    }
    return {
        key: round(100 * float(np.mean([np.mean(right[name]) for name in names])), 1) if names else None
        for key, names in members.items()
    }


def transcript(
    cifar: Photographs, seed: int, size: int, changes: Sequence[str], place: Path
) -> dict[str, object]:
    """Carry out one seed below ``place``; return accuracies and processor seconds."""
    arrivals, seconds, told = arrivals_of(cifar, seed), {}, {}
    for part, rows in (("today/train", arrivals.today), ("monday/train", arrivals.monday)):
        write(cifar, rows, place / part)
    for part in ("today", "monday"):
        own = {
            name: rows
            for name, rows in arrivals.tests.items()
            if (name in arrivals.today) == (part == "today")
        }
        write(cifar, own, place / part / "test")
    write(cifar, arrivals.tests, place / "photos")

    file = place / "birds.yaml"
    file.write_text(yaml.safe_dump(experiment(list(arrivals.today), seed, size)))
    settings = (f"data.feature_cache={place / 'features'}", *changes)
    seconds["run"] = command("run", file, "--out", place / "runs", f"data.root={place / 'today'}", *settings)
    run = next((place / "runs" / "birds").iterdir())
    shutil.rmtree(place / "today")
    seconds["predict"] = command("predict", run, place / "photos", "-o", place / "before.csv")
    told["before"] = accuracy(place / "before.csv", arrivals)
    seconds["update"] = command("update", run, place / "monday", codes=(0, 3))
    verdict = json.loads((run / "versions" / "0002.json").read_text())
    if not verdict["accepted"]:
        command("rollback", run, 2)
    command("predict", run, place / "photos", "-o", place / "after.csv")
    told["update"] = accuracy(place / "after.csv", arrivals)
    seconds["export"] = command("export", run, "-o", place / "model")

    for rows in (arrivals.today, arrivals.monday):
        write(cifar, rows, place / "all" / "train")
    write(cifar, arrivals.tests, place / "all" / "test")
    anew = place / "anew.yaml"
    anew.write_text(yaml.safe_dump(experiment(list(arrivals.tests), seed, size)))
    seconds["anew"] = command("run", anew, "--out", place / "runs", f"data.root={place / 'all'}", *settings)
    command("predict", next((place / "runs" / "anew").iterdir()), place / "photos", "-o", place / "anew.csv")
    told["anew on everything"] = accuracy(place / "anew.csv", arrivals)
    return {
        "seed": seed,
        "pictures": {
            "today": sum(map(len, arrivals.today.values())),
            "monday": sum(map(len, arrivals.monday.values())),
        },
        "accepted": verdict["accepted"],
        "accuracy": told,
        "processor_seconds": seconds,
    }


def main(arguments: list[str]) -> int:
    """Run every seed and print what was found as JSON."""
    given = options(__doc__, arguments, changes=True)
    cifar, runs = Photographs(given.data, "train"), []
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as temporary:
            runs.append(transcript(cifar, seed, given.size, given.changes, Path(temporary)))
    output.write(
        {
            "machine": machine(),
            "size": given.size,
            "changes": given.changes,
            "tests_per_class": TESTS,
            "runs": runs,
        },
        given.out,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
