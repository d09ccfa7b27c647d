"""Every experiment on a large data set for a few steps on a tiny tree of its layout: ``make large``.

Each file of ``experiments/`` runs as it is but for what makes it small: pictures of 32 pixels, small batches, one
epoch, and made-up weights in a file where it asks for pretrained ones. Two steps of the first experience, and of an
incremental one two more of the second, with its teacher and its exemplars; pictures are streamed from files. Then what
has to be refused is asked for. Prints one line each: peak memory is that of the whole process, for these small batches.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import large_trees
import timm
import torch
from experiment_files import FOLDER, FROM_PICTURES

from incrlt.console import Console
from incrlt.errors import UserError
from incrlt.experiment import schema
from incrlt.runner.memory import peak_memory
from incrlt.runner.options import RunOptions
from incrlt.runner.run import execute
from incrlt.training.template import IncrTemplate
from incrlt.words import size

STEPS = 2
SMALL = [
    "training.epochs=1", "training.warmup_epochs=0", "training.eval_batch_size=64", "benchmark.image_size=32",
    "data.hold=stream", "data.workers=1", "device=cpu", "training.precision=fp32",
]  # fmt: skip
FORK = multiprocessing.get_context("fork")

REFUSED: list[tuple[str, list[str]]] = [
    ("imagenetlt_offline_ride", ["model.pretrained=timm"]),
    ("imagenetlt_offline_shike", ["model.name='timm:vit_small_patch16_224'"]),
    ("imagenetlt_offline_ride", ["model.name='timm:swin_tiny'"]),
    ("imagenetlt_offline_ride", ["benchmark.image_size=4"]),
    ("folder_pretrained_lucir_shike", ["benchmark.augmentation=imagenet"]),
    ("folder_pretrained_lucir_shike", ["experts.fusion=true"]),
    ("placeslt_offline_ncl", ["model.pretrained=nowhere.pth"]),
    ("food101lt_10tasks_lucir_shike", ["benchmark.imbalance_ratio=null"]),
]
"""What does not go together."""


class EnoughError(Exception):
    """All steps that are wanted are done."""


def made(root: Path) -> Path:
    """Write a tree of each data set and return their folder."""
    large_trees.imagenet(root, classes=100, images=4)
    large_trees.inaturalist(root)
    large_trees.places(root)
    large_trees.food(root, classes=101, images=4)
    for number in range(10):
        for part, many in (("train", 8), ("test", 2)):
            own = [f"{part}/class {number}/{k}.jpg" for k in range(many)]
            large_trees.put(root / "photos", own, 16 * number + 8 * (part == "test"))
    return root


def words(path: Path, root: Path) -> list[str]:
    """Return the overrides that make an experiment small."""
    experiment = schema.load(path, with_data=False)
    several = experiment.benchmark.protocol != "offline"
    queue = ["experts.queue=64"] if experiment.experts.hyper_parameters.get("contrastive") else []
    found = [*SMALL, *queue, f"data.root='{root}'", f"output.folder='{root / 'runs'}'"]
    if experiment.benchmark.dataset == "folder":
        found = [word for word in found if not word.startswith("data.hold")]
        found[-2] = f"data.root='{root / 'photos'}'"
        return [
            *found,
            "training.batch_size=12",
            f"data.feature_cache='{root / 'features'}'",
            *_later(experiment),
        ]
    found.append(f"training.batch_size={48 if several else 4}")
    if experiment.benchmark.imbalance_ratio is not None:
        found.append("benchmark.imbalance_ratio=4")
    if experiment.model.pretrained is not None:
        found.append(f"model.pretrained='{_weights(experiment.model.name, root)}'")
    return [*found, *_later(experiment)]


def _later(experiment: Any) -> list[str]:
    """Return the overrides that make stages after the first short."""
    short = {"classifier_epochs": 1, "classifier_warmup": 0}
    asked = experiment.experts.hyper_parameters
    stages = [name for name in ("rebalance", "router") if getattr(experiment, name) is not None]
    return [
        *(f"experts.{key}={value}" for key, value in short.items() if key in asked),
        *(f"{name}.epochs=1" for name in stages),
    ]


def _weights(name: str, root: Path) -> Path:
    """Write made-up weights of a network, under timm's names."""
    bare = name.removeprefix("timm:")
    path = root / f"{bare}.pth"
    if not path.exists():
        torch.save(timm.create_model(bare, pretrained=False).state_dict(), path)
    return path


def one(path: Path, root: Path) -> dict[str, Any]:
    """Run an experiment until enough steps are done; return what was seen."""
    experiment = schema.load(path, words(path, root))
    wanted = [0, 1] if len(experiment.protocol().classes_per_experience) > 1 else [0]
    steps: dict[int, int] = {}
    real = IncrTemplate.optimizer_step

    def step(strategy: IncrTemplate) -> None:
        real(strategy)
        now = strategy.experience_index
        steps[now] = steps.get(now, 0) + 1
        if now == wanted[-1] and steps[now] >= STEPS:
            raise EnoughError

    IncrTemplate.optimizer_step = step  # type: ignore[method-assign]
    with contextlib.suppress(EnoughError):
        execute(experiment, RunOptions(resume="restart"))
    return {
        "good": len(steps) == len(wanted) and all(count >= STEPS for count in steps.values()),
        "steps": " + ".join(map(str, steps.values())),
        "peak": size(peak_memory(torch.device("cpu"))),
    }


def _in_child(path: Path, root: Path, told: Connection, log: Path) -> None:
    """Run an experiment in a fork of this process, and write what it says beside it."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        told.send(one(path, root))
    except Exception as error:  # whatever it is, it stands in the table
        traceback.print_exc()
        told.send({"good": False, "error": f"{type(error).__name__}: {error}"})


def tried(path: Path, root: Path) -> tuple[bool, str]:
    """Run an experiment in a process of its own; return whether it did its steps, and its line.

    A fork: torch and timm, which take seconds to import, are here already, and nothing of them has run.
    """
    begun = time.perf_counter()
    here, there = FORK.Pipe(duplex=False)
    child = FORK.Process(target=_in_child, args=(path, root, there, root / f"{path.stem}.log"))
    child.start()
    there.close()
    try:
        seen = here.recv()
    except EOFError:  # the system ended it
        seen = {"good": False, "error": "its process ended without a word, for lack of memory perhaps"}
    child.join()
    seconds = time.perf_counter() - begun
    if "error" in seen:
        return False, f"{path.stem:42} FAILED   {' '.join(seen['error'].split())}"
    return seen["good"], f"{path.stem:42} {seen['steps']:>7}  {seen['peak']:>8}  {seconds:5.0f} s"


def refused(name: str, overrides: list[str], root: Path) -> tuple[bool, str]:
    """Ask for what does not go together; return whether it was refused, and its line."""
    wanted = f"{name} {' '.join(overrides)}"
    place = root / "photos" if name.startswith("folder") else root
    try:
        schema.load(FOLDER / f"{name}.yaml", [*overrides, f"data.root='{place}'"]).protocol()
    except UserError as error:
        return True, f"refused  {wanted}\n         {' '.join(str(error).split())}"
    return False, f"NOT REFUSED  {wanted}"


def absent() -> list[tuple[str, list[str]]]:
    """Return one experiment of each data set, asked for where there is none."""
    first: dict[str, str] = {}
    for path in FROM_PICTURES:
        first.setdefault(schema.load(path, with_data=False).benchmark.dataset, path.stem)
    return [(name, []) for name in first.values()]


def main() -> int:
    """Run all, print the table, and return 1 where something failed."""
    chosen = [path for path in FROM_PICTURES if all(part in path.stem for part in sys.argv[1:])]
    if not chosen:
        names = ", ".join(path.stem for path in FROM_PICTURES)
        sys.exit(f"no experiment has all of {' '.join(sys.argv[1:])} in its name; they are {names}")
    good, say = True, Console().plain
    say(f"{'experiment':42} {'steps':>7}  {'peak':>8}  {'time':>7}")
    with tempfile.TemporaryDirectory() as folder:
        root = made(Path(folder))
        for path in chosen:
            well, line = tried(path, root)
            good &= well
            say(line)
        os.chdir(root)  # where weights named by a relative path are not
        nothing = root / "nothing"
        nothing.mkdir()
        asked = [(*case, root) for case in REFUSED] + [(*case, nothing) for case in absent()]
        for name, overrides, place in asked if len(sys.argv) == 1 else []:
            well, line = refused(name, overrides, place)
            good &= well
            say(line)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
