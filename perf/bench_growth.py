"""Growth of one experience's bookkeeping with the classes: processor seconds and memory at C = 100, 1,000 and 10,000.

Features and images are synthetic; nothing trains. The last of ten equal experiences arrives: a tenth of the classes is
new, with 50 images each, and 20 images of each class are kept; the counts of the nine experiences before are there.
``python -m perf.bench_growth [--out FILE]``; each size runs in a process of its own, and the peak of each part is read
from /proc (Linux), that of the process before it left out.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import incrlt._compat  # noqa: F401  (before avalanche)

import numpy as np
import torch
from avalanche.benchmarks.utils import as_classification_dataset

from incrlt import report
from incrlt.checkpoint import CheckpointFolder
from incrlt.metrics import save_classes, save_confusions, write_results
from incrlt.metrics.counts import LARGE, Cells
from incrlt.models.heads import CosineHead
from incrlt.plugins import ExemplarMemory
from incrlt.plugins.confusion import ConfusionRecorder
from incrlt.plugins.counting import saved
from incrlt.plugins.herding import herding
from perf.machine import machine
from perf.output import write

SIZES = (100, 1_000, 10_000)
EXPERIENCES, WIDTH, IMAGES, KEPT, TESTED, BATCH = 10, 64, 50, 20, 5, 512
MEBIBYTE = 1 << 20


def resident(peak: bool = False) -> float:
    """Return the MiB that this process holds, or the most it has held since :func:`measured` began."""
    name = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def measured(part: Callable[[], object]) -> dict[str, float]:
    """Run a part; return its processor seconds and the MiB by which it raised the memory held, at its highest."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins anew
    before, begun = resident(), time.process_time()
    part()
    seconds = time.process_time() - begun
    return {"seconds": round(seconds, 4), "mib": round(max(0.0, resident(peak=True) - before), 1)}


class Bookkeeping:
    """What an experience leaves to do beside training, at ``classes`` classes.

    Args:
        classes: C, after the experience.
        folder: A run folder.
    """

    def __init__(self, classes: int, folder: Path) -> None:
        self.classes, self.folder = classes, folder
        self.new = classes // EXPERIENCES
        self.head = CosineHead(WIDTH)
        self.head.grow(classes - self.new)
        self.features = list(torch.randn(self.new, IMAGES, WIDTH, generator=torch.Generator().manual_seed(0)))
        self.memory = ExemplarMemory(per_class=KEPT, selection="random")
        self.memory.update(self._no_model(), _experience(0, classes - self.new, KEPT))
        self.arriving = _experience(classes - self.new, self.new, IMAGES)
        self.scores = torch.rand(BATCH, classes, generator=torch.Generator().manual_seed(1))
        self.recorder = ConfusionRecorder()
        self.recorder.load_state_dict(self._counted())

    def _counted(self) -> dict[str, Any]:
        """Return the state of a recorder after the nine experiences before; images are taken for any class."""
        draw, tables = np.random.default_rng(0), []
        for seen in range(self.new, self.classes, self.new):
            true = np.arange(seen).repeat(TESTED)
            places, images = np.unique(true * seen + draw.integers(0, seen, len(true)), return_counts=True)
            cells = Cells(seen, places, images)
            tables.append(saved(cells if seen * seen > LARGE else cells.dense()))
        return {
            "class_ids": list(range(self.classes)),
            "experience_of_class": [label // self.new for label in range(self.classes)],
            "images_of_class": [IMAGES] * self.classes,
            "experience": EXPERIENCES - 1,
            "confusions": {"cnn": tables},
        }

    def _no_model(self) -> Any:
        return SimpleNamespace(device="cpu", model=None)

    def parts(self) -> dict[str, Callable[[], object]]:
        """Return the parts by name, in their order."""
        return {
            "heads": lambda: self.head.grow(self.new),
            "herding": lambda: herding(self.features, KEPT),
            "memory": self.remember,
            "evaluation": self.evaluate,
            "numbers": self.number,
            "checkpoint": self.save,
            "report": lambda: report.write(self.folder),
        }

    def remember(self) -> None:
        """Choose exemplars, and join them to what trains."""
        self.memory.update(self._no_model(), self.arriving)
        assert len(self.memory) == KEPT * self.classes
        self.memory.dataset(without=self.arriving.dataset)

    def evaluate(self) -> None:
        """Count answers to five test images of each class, a batch at a time."""
        recorder = self.recorder
        strategy = SimpleNamespace(
            device="cpu", model=SimpleNamespace(class_ids=list(range(self.classes))), mb_scores={}
        )
        recorder.before_eval(strategy)
        for labels in torch.arange(self.classes).repeat_interleave(TESTED).split(BATCH):
            strategy.mb_y = labels
            strategy.mb_output = self.scores[: len(labels)]
            recorder.after_eval_iteration(strategy)
        recorder.after_eval(strategy)

    def number(self) -> None:
        """Compute every number of the experience and write it, with the counts."""
        records = self.recorder.records()
        record = records["cnn"]
        assert record.num_experiences == EXPERIENCES
        save_confusions(self.folder / "confusions.npz", {"cnn": record.confusions})
        save_classes(
            self.folder / "classes.json",
            record.experience_of_class,
            record.images_of_class,
            None,
            self.recorder.class_ids,
        )
        write_results(self.folder, records, {"method": "growth"})

    def save(self) -> None:
        """Write a checkpoint of head, memory and counts."""
        state = {
            "head": self.head.state_dict(),
            "memory": self.memory.state_dict(),
            "recorder": self.recorder.state_dict(),
        }
        CheckpointFolder(self.folder / "checkpoints").save(state)


def _experience(first: int, classes: int, images: int) -> Any:
    labels = torch.arange(first, first + classes).repeat_interleave(images)
    draw = torch.Generator().manual_seed(first + 1)
    pictures = torch.randint(0, 256, (len(labels), 1, 4, 4), generator=draw, dtype=torch.uint8)
    data = torch.utils.data.TensorDataset(pictures, labels)
    data.targets = labels.tolist()  # type: ignore[attr-defined]
    arrived = SimpleNamespace(
        dataset=as_classification_dataset(data), origin_stream=None, current_experience=0
    )
    arrived.logging = lambda: arrived
    return arrived


def measure(classes: int) -> dict[str, Any]:
    """Return seconds and MiB of each part, in this process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        work = Bookkeeping(classes, Path(folder))
        found = {}
        for name, part in work.parts().items():
            found[name] = measured(part)
            sys.stderr.write(f"C = {classes:,}: {name} {found[name]}\n")
        size = {path.name: path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()}
    return {"parts": found, "bytes": size}


def main() -> None:
    """Measure sizes, each in a process of its own."""
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--classes", type=int, nargs="+", default=SIZES)
    command.add_argument("--out", type=Path, help="JSON file of the figures")
    given = command.parse_args()
    torch.set_num_threads(1)  # a fork must not inherit a pool of threads
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        found = {str(size): pool.apply(measure, (size,)) for size in given.classes}
    write({"machine": machine(), "n": 1, "classes": found}, given.out)


if __name__ == "__main__":
    main()
