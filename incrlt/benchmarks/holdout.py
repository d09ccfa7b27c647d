"""The 10 % of the training images that a published protocol removes and never uses.

Liu et al. (ECCV 2022, ``xialeiliu/Long-Tailed-CIL``) train on about 9.75 k of CIFAR-100-LT's 10,847 images,
because their loader splits off a validation set. The published numbers have it, so it is a rule here.
NumPy and Python's ``random`` only; the global random states stay untouched.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FRACTION = 0.1

RULES = ("none", "long-tailed-cil")

Indices = npt.NDArray[np.int64]


def split_off(
    rule: str, positions: Sequence[npt.NDArray[np.int64]], classes: Sequence[range], seed: int
) -> list[tuple[Indices, Indices]]:
    """Split every experience's training list into what is trained on and what is held out.

    Args:
        rule: ``"none"`` or ``"long-tailed-cil"``.
        positions: Per experience ``[n_t]``: arrival position of each image's class, in list order.
        classes: Per experience: arrival positions of its classes.
        seed: Seed of Python's generator; the published lists have 0. One generator serves all experiences,
            so the lists depend on the layout of the protocol.

    Returns:
        Per experience ``(kept, held_out)``: places in the experience's list; kept ones in list order.
    """
    if rule == "none":
        return [(np.arange(len(p)), np.arange(0)) for p in positions]
    generator = random.Random(seed)
    return [_long_tailed_cil(p, own, generator) for p, own in zip(positions, classes, strict=True)]


def _long_tailed_cil(
    positions: npt.NDArray[np.int64], classes: range, generator: random.Random
) -> tuple[Indices, Indices]:
    """Hold out a tenth of each class, class after class in arrival order.

    The published defect is kept: a class whose tenth rounds to nothing (up to 5 images) gives up no image of
    its own; the first image left in the experience's list goes instead, whichever class it is of.
    Deviation: the last image of a class is never taken (the published code would; it does not happen in the
    published layouts), the next class in the list pays, or nobody.
    """
    left = np.arange(len(positions))
    held: list[int] = []
    for class_position in classes:
        own = np.flatnonzero(positions[left] == class_position)
        number = int(np.round(len(own) * FRACTION))
        if number:
            places = own[sorted(generator.sample(range(len(own)), number), reverse=True)]
        else:
            places = _first_spare(positions[left])
        held.extend(left[places])
        left = np.delete(left, places)
    return left, np.array(held, dtype=np.int64)


def _first_spare(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Return the place of the first image whose class has another one; empty when there is none."""
    sizes = np.bincount(positions)
    return np.flatnonzero(sizes[positions] > 1)[:1]
