"""Small photographs on a pretrained network that stands still: heads against class means, fine-tuning and joint.

Ten classes of CIFAR-100 (real photographs of 32 pixels), as many training pictures of each as an uneven tail has, are
written as PNG files and brought to a larger size, as anybody's photographs would be; the published experiment file runs
on them. Every method sees the same pictures in the same order; nothing is chosen on test pictures.

``python -m perf.bench_pretrained --data FOLDER_OF_CIFAR``
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from incrlt.benchmarks import protocols, streams
from incrlt.experiment import schema
from incrlt.metrics import StreamRecord, summarise
from incrlt.plugins.evaluation import EvaluationRecorder
from incrlt.runner.build import build_strategy, choose_device, load_data
from perf.machine import machine
from perf.photographs import EXPERIMENT, Photographs, options

CLASSES = (
    "apple", "bicycle", "bear", "bottle", "castle", "chair", "elephant", "motorcycle", "orchid", "tiger",
)  # fmt: skip
HEAD, RATIO, TESTS = 200, 20, 100
"""Training pictures of the most frequent class, how many times fewer the rarest has, test pictures of each."""
SHORT = ["training.epochs=10", "experts.classifier_epochs=5", "training.threads=1"]
"""Of every run: half the epochs of the file."""
METHODS: dict[str, list[str]] = {
    "LUCIR + SHIKE heads": [],
    "fine-tuning": ["experts={name: single}", "strategy={name: finetune}", "memory=null"],
    "joint, SHIKE heads": ["strategy={name: joint}", "memory=null"],
}
"""What differs from the file."""


def write_pictures(cifar: Path, place: Path) -> dict[str, int]:
    """Write the pictures below ``place``; return how many training pictures each class has."""
    parts = {part: Photographs(cifar, part) for part in ("train", "test")}
    counts = {}
    for position, name in enumerate(CLASSES):
        counts[name] = int(HEAD * (1 / RATIO) ** (position / (len(CLASSES) - 1)))
        for part, most in (("train", counts[name]), ("test", TESTS)):
            parts[part].write(parts[part].rows(name)[:most], place / part / name, ".png")
    return counts


def run(place: Path, name: str, seed: int, size: int, cache: bool) -> dict[str, Any]:
    """Run one method, without checkpoints and report; return accuracies in percent and seconds of each experience."""
    experiment = schema.load(
        EXPERIMENT,
        [
            f"seeds.all={seed}", f"data.root={place / 'photos'}", f"benchmark.image_size={size}",
            f"data.feature_cache={place / 'features' if cache else 'null'}", *SHORT, *METHODS[name],
        ],
    )  # fmt: skip
    data = load_data(experiment)
    resolved = protocols.resolve(experiment.protocol(), data.train_labels.numpy())
    benchmark, recorder = streams.build(data, resolved), EvaluationRecorder()
    strategy = build_strategy(experiment, 3, choose_device("cpu"), [recorder])
    training, evaluating = [], []
    for t, experience in enumerate(benchmark.train_stream):
        begun = time.perf_counter(), time.process_time()
        strategy.train(experience)
        training.append([time.perf_counter() - begun[0], time.process_time() - begun[1]])
        begun = time.perf_counter(), time.process_time()
        strategy.eval(benchmark.test_stream[: t + 1])
        evaluating.append([time.perf_counter() - begun[0], time.process_time() - begun[1]])
    arrived = [t for t, own in enumerate(resolved.protocol.classes_per_experience) for _ in range(own)]
    images = [len(benchmark.train_stream[t].dataset) for t in range(len(training))]
    seen = np.bincount(
        np.concatenate([e.dataset.targets for e in benchmark.train_stream]), minlength=len(arrived)
    )
    told = {
        readout: summarise(StreamRecord(tuple(np.asarray(c) for c in confusions), np.array(arrived), seen))
        for readout, confusions in recorder.confusions.items()
    }
    return {
        "numbers": {readout: _rounded(one["numbers"]) for readout, one in told.items()},
        "images": images,
        "training_seconds_wall_and_cpu": [[round(s, 1) for s in both] for both in training],
        "evaluation_seconds_wall_and_cpu": [[round(s, 1) for s in both] for both in evaluating],
    }


def _rounded(numbers: dict[str, float | None]) -> dict[str, float]:
    wanted = (
        "average_incremental_accuracy/over_classes",
        "last_accuracy/",
        "forgetting/chaudhry_over_classes",
    )
    return {
        key: round(value, 2) for key, value in numbers.items() if key.startswith(wanted) and value is not None
    }


def main(arguments: list[str]) -> int:
    """Run everything and print what was found as JSON."""
    given = options(__doc__, arguments)
    found: dict[str, Any] = {
        "machine": machine(),
        "size": given.size,
        "settings": SHORT,
        "tests_per_class": TESTS,
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        found["training_pictures"] = write_pictures(given.data, place / "photos")
        todo = [(name, seed, True) for seed in range(given.seeds) for name in METHODS]
        todo.insert(len(METHODS), (next(iter(METHODS)), 0, False))
        for name, seed, cache in todo:
            one = run(place, name, seed, given.size, cache)
            found["runs"].append({"method": name, "seed": seed, "cache": cache, **one})
            if given.out is not None:
                given.out.write_text(json.dumps(found) + "\n")
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
