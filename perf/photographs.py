"""CIFAR-100 as photographs of somebody's own: files in a folder per class, and the options of benchmarks on them."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

EXPERIMENT = Path(__file__).resolve().parent.parent / "experiments" / "folder_pretrained_lucir_shike.yaml"
"""The published experiment on such files."""


class Photographs:
    """The pictures of a part of CIFAR-100.

    Args:
        root: Folder somewhere below which ``cifar-100-python`` lies.
        part: ``train`` or ``test``.

    Attributes:
        names: Class names by label.
    """

    def __init__(self, root: Path, part: str) -> None:
        folder = next(root.rglob("cifar-100-python"))
        told, read = (
            pickle.loads((folder / name).read_bytes(), encoding="latin1") for name in ("meta", part)
        )
        self.names: list[str] = told["fine_label_names"]
        self._pixels, self._labels = read["data"], np.array(read["fine_labels"])

    def rows(self, name: str) -> npt.NDArray[np.int64]:
        """Return the rows of a class, ascending."""
        return np.flatnonzero(self._labels == self.names.index(name))

    def write(self, rows: Iterable[int], folder: Path, suffix: str) -> None:
        """Write pictures as files below a folder, ``.png`` or ``.jpg``."""
        folder.mkdir(parents=True, exist_ok=True)
        for row in rows:
            pixels = self._pixels[row].reshape(3, 32, 32).transpose(1, 2, 0)
            Image.fromarray(pixels).save(
                folder / f"{row:05}{suffix}", quality=95
            )  # PNG takes no notice of it


def options(about: str | None, arguments: list[str], *, changes: bool = False) -> argparse.Namespace:
    """Return the words of a benchmark on photographs: ``data``, ``size``, ``seeds``, ``out``.

    Args:
        about: What the benchmark is.
        arguments: The words.
        changes: Take settings of the experiment that are to differ, too: ``changes``.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar-100-python")
    parser.add_argument("--size", type=int, default=96, help="side of the pictures in pixels")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file for the numbers")
    if changes:
        parser.add_argument("changes", nargs="*", help="settings of the experiment: section.key=value")
    return parser.parse_args(arguments)
