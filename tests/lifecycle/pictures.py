"""Small pictures whose class can be seen, and an experiment on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("heron", "swan", "coot", "wren", "teal", "rail")
YAML = {
    "benchmark": {
        "dataset": "folder",
        "image_size": 8,
        "imbalance_ratio": None,
        "base_classes": 2,
        "increment": 2,
        "augmentation": "none",
    },
    "model": {"name": "resnet8", "width": 4},
    "strategy": {"name": "replay"},
    "memory": {"per_class": 4},
    "training": {"epochs": 3, "batch_size": 16, "precision": "fp32", "threads": 1, "lr": 0.2},
    "device": "cpu",
}


def picture(label: int, number: int, side: int = 12) -> Image.Image:
    """A bright stripe whose place and colour tell the class, with noise of its own."""
    noise = np.random.default_rng([label, number]).integers(0, 60, (side, side, 3))
    noise[2 * label : 2 * label + 2, :, label % 3] += 150
    return Image.fromarray(noise.astype(np.uint8))


def write(folder: Path, counts: dict[str, int], first: int = 0) -> Path:
    """A folder per class with pictures numbered from ``first`` on."""
    for name, number in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + number):
            picture(CLASSES.index(name), index).save(folder / name / f"{index:03}.png")
    return folder
