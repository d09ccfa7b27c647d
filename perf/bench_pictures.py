"""Pictures from files: incrlt's stream and decoded file against a plain loader and a bare loop; memory; first steps.

``python -m perf.bench_pictures --out FILE.json``: synthetic JPEGs, competitors in alternation in one process, batches
of 32 pictures by random resized crop to 224 x 224, mirrored and normalised. Memory and first steps are measured in
processes of their own. The file is written after each part.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from incrlt.benchmarks import datasets
from incrlt.benchmarks.holding import Holding
from incrlt.benchmarks.preparing import read_picture
from incrlt.data import augment
from incrlt.data.tensors import TensorBatches
from perf.alternate import alternate, ratio, spread
from perf.output import write

SIDE, BATCH = 224, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LARGE = (4000, 3000)
"""Pixels of a photograph of 12 megapixels."""


def photo(width: int, height: int, draw: np.random.Generator) -> Image.Image:
    """Return a picture with structure and noise, of which a JPEG of quality 88 has about 70 kB at 500 x 375."""
    coarse = draw.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth, dtype=np.float32) + draw.normal(0, 8, (height, width, 3)).astype(np.float32)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def paint(root: Path, number: int, size: tuple[int, int], classes: int = 4, distinct: int = 64) -> None:
    """Write a folder of pictures to learn from, links to ``distinct`` ones, and one of each class to test on."""
    draw, originals = np.random.default_rng(0), root / "originals"
    originals.mkdir(parents=True)
    for index in range(min(distinct, number)):
        photo(*size, draw).save(originals / f"{index}.jpg", quality=88)
    for index in range(number + classes):
        part = "train" if index < number else "test"
        path = root / "pictures" / part / f"class {index % classes}" / f"{index:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(originals / f"{index % min(distinct, number)}.jpg", path)


class Plain(Dataset[tuple[torch.Tensor, int]]):
    """What torchvision's examples have: PIL, and one transform after the other."""

    def __init__(self, root: Path) -> None:
        from torchvision import transforms

        self.paths = sorted((root / "pictures" / "train").rglob("*.jpg"))
        steps = [transforms.RandomResizedCrop(SIDE), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return a transformed picture and no label."""
        with Image.open(self.paths[index]) as picture:
            return self.transform(picture.convert("RGB")), 0


def ours(root: Path, hold: Any, workers: int) -> TensorBatches:
    """Return incrlt's loader of the pictures."""
    held = Holding(hold, workers, root / "cache")
    data = datasets.load_folder(root / "pictures", SIDE, held)
    crop = (augment.RandomResizedCrop(SIDE, SIDE), augment.RandomFlip())
    transform = augment.Augmentation(crop, MEAN, STD)
    return TensorBatches(data.train_images, data.train_labels, batch_size=BATCH, augmentation=transform)


def bare(root: Path) -> Iterator[torch.Tensor]:
    """Decode and crop in a loop, and do nothing else."""
    paths = sorted((root / "pictures" / "train").rglob("*.jpg"))
    transform = augment.Augmentation((augment.RandomResizedCrop(SIDE, SIDE), augment.RandomFlip()), MEAN, STD)
    for start in range(0, len(paths), BATCH):
        pixels = [read_picture(path, SIDE, SIDE).transpose(2, 0, 1) for path in paths[start : start + BATCH]]
        yield transform(torch.from_numpy(np.stack(pixels)))


def used_up(batches: Any) -> Callable[[], None]:
    """Return what goes through an epoch."""

    def epoch() -> None:
        for batch in batches:
            assert len(batch)

    return epoch


def loaders(root: Path, rounds: int) -> dict[str, Any]:
    """Compare loaders of the pictures of a folder, each once per round."""
    number = len(list((root / "pictures" / "train").rglob("*.jpg")))
    turns = {
        "plain": used_up(DataLoader(Plain(root), BATCH, shuffle=True)),
        "plain, 2 workers": used_up(
            DataLoader(Plain(root), BATCH, shuffle=True, num_workers=2, persistent_workers=True)
        ),
        "bare loop": lambda: used_up(bare(root))(),
        "stream": used_up(ours(root, "stream", 0)),
        "stream, 2 threads": used_up(ours(root, "stream", 2)),
        "decoded file": used_up(ours(root, "cache", 0)),
    }
    times = alternate(turns, rounds)
    compared = [("plain", name) for name in ("stream", "stream, 2 threads", "decoded file")]
    compared += [("plain, 2 workers", "stream, 2 threads"), ("bare loop", "stream")]
    return {
        "pictures": number,
        "pictures per second": {
            name: spread([number / second for second in own]) for name, own in times.items()
        },
        "times as fast": {f"{new} as {old}": ratio(times, old, new) for old, new in compared},
    }


class Watched:
    """Peak of memory that a process holds, beyond what it held when the watch began, in MiB."""

    def __init__(self) -> None:
        self._before, self.peak, self._over = anonymous(), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watched:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.peak = max(self.peak, anonymous() - self._before)


def status(name: str) -> float:
    """Return the MiB of a line of this process's status, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def anonymous() -> float:
    """Return the MiB that are this process's own; the system may let go of mapped files at any time."""
    return status("RssAnon")


def child(root: Path, hold: str, workers: int, side: int) -> dict[str, float]:
    """Read all pictures of a folder in a process of its own: seconds to the first batch and peak memory."""
    global SIDE
    SIDE = side
    torch.set_num_threads(1)
    with Watched() as watched:
        begun = time.perf_counter()
        batches = iter(ours(root, hold, workers))
        pictures = len(next(batches)[0])
        first = time.perf_counter() - begun
        pictures += sum(len(images) for images, _ in batches)
    whole = status("VmHWM")
    return {
        "pictures": pictures,
        "first batch, s": first,
        "own, MiB": watched.peak,
        "peak of all, MiB": whole,
    }


def apart(root: Path, hold: str, workers: int, side: int) -> dict[str, float]:
    """Run :func:`child` in a process of its own."""
    words = ["--child", str(root), hold, str(workers), str(side)]
    done = subprocess.run(
        [sys.executable, "-m", "perf.bench_pictures", *words], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def memory(place: Path, numbers: tuple[int, ...]) -> dict[str, Any]:
    """Return peak memory by number of pictures of 160 x 120 pixels, read at 64 x 64."""
    found: dict[str, Any] = {}
    for number in numbers:
        root = place / f"memory {number}"
        paint(root, number, (160, 120), classes=20)
        for hold in ("stream", "cache"):
            found[f"{hold}, {number:,} pictures"] = apart(root, hold, 2, 64)
    return found


def first_steps(place: Path, number: int, rounds: int) -> dict[str, Any]:
    """Return seconds to the first batch of photographs of 12 megapixels, cold and warm, and memory."""
    found: dict[str, Any] = {}
    root = place / "large"
    for name in ("cold", "warm"):
        runs = []
        for turn in range(rounds):
            if name == "cold":
                for path in (root / "cache").glob("*"):
                    path.unlink()
            runs.append(apart(root, "auto", 1, SIDE))
            del turn
        found[name] = {key: spread([run[key] for run in runs]) for key in runs[0]}
    return {"pictures": number, **found}


def measure(
    rounds: int, small: int, large: int, numbers: tuple[int, ...], out: Path | None, only: str = ""
) -> None:
    """Write all figures.

    Args:
        rounds: Of alternation.
        small: Pictures of 500 x 375 pixels.
        large: Photographs of 12 megapixels.
        numbers: Pictures whose memory is compared.
        out: File; None is the terminal.
        only: How the names of the parts begin that are measured.
    """
    from perf.machine import machine  # not for the processes whose start is measured

    torch.set_num_threads(1)
    figures: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        paint(place / "small", small, (500, 375))
        sizes = [path.stat().st_size for path in (place / "small" / "originals").iterdir()]
        paint(place / "large", large, LARGE, distinct=4)
        parts: dict[str, Callable[[], Any]] = {
            "kB of a picture of 500 x 375": lambda: sum(sizes) / len(sizes) / 1e3,
            "500 x 375": lambda: loaders(place / "small", rounds),
            "4000 x 3000": lambda: loaders(place / "large", max(3, rounds // 3)),
            "first steps, 4000 x 3000": lambda: first_steps(place, large, 3),
            "memory": lambda: memory(place, numbers),
        }
        for name in [name for name in parts if name.startswith(only)]:
            figures[name] = parts[name]()
            if out is not None:
                write(figures, out)
    if out is None:
        write(figures, None)


def main() -> None:
    """Run from the command line."""
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--child", nargs=4, metavar=("ROOT", "HOLD", "WORKERS", "SIDE"), help="for itself")
    command.add_argument("--rounds", type=int, default=12)
    command.add_argument("--small", type=int, default=128, help="pictures of 500 x 375")
    command.add_argument("--large", type=int, default=32, help="photographs of 12 megapixels")
    command.add_argument("--numbers", type=int, nargs="+", default=[2_000, 20_000])
    command.add_argument("--only", help="first letters of the part to measure")
    command.add_argument("--out", type=Path)
    given = command.parse_args()
    if given.child:
        root, hold, workers, side = given.child
        write(child(Path(root), hold, int(workers), int(side)), None)
        return
    measure(given.rounds, given.small, given.large, tuple(given.numbers), given.out, given.only or "")


if __name__ == "__main__":
    main()
