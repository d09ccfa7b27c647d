"""Long-tail profiles: how many images each class has, and which ones are kept.

Class id 0 is the head and the last class id the rarest, as in the literature's generator. When a class
*arrives* is another matter (:mod:`incrlt.benchmarks.protocols`). NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Real

import numpy as np
import numpy.typing as npt

from incrlt.errors import UserError, did_you_mean

MANY_ABOVE = 100
"""A class with more images than this is a *many* class."""

FEW_BELOW = 20
"""A class with fewer images than this is a *few* class; between the two bounds, both included, *medium*."""

GROUPS = ("many", "medium", "few")

NATURAL = "natural"
"""Profile of a dataset whose classes are kept as they are."""

IMAGE_CHOICES = ("shuffled", "file-order")

Counts = npt.NDArray[np.int64]


def class_counts(profile: str, num_classes: int, max_images: int, imbalance_ratio: float) -> Counts:
    """Return the number of training images of each class, head first.

    * ``exponential``: ``max * (1 / ratio) ** (c / (C - 1))``; Cui et al., CVPR 2019, in the form of LDAM's
      ``IMBALANCECIFAR``, including its rounding down.
    * ``step``: the first half of the classes (rounded down) is full, the rest has ``max / ratio``; LDAM.
    * ``pareto``: the rank-size law of a Pareto distribution, ``max * (c + 1) ** -s``, with the exponent
      ``s = log(ratio) / log(C)`` that gives the last class ``max / ratio``: a sharper head and a longer
      tail than ``exponential``. Our own definition; ImageNet-LT's list files are samples, not a formula.

    Args:
        profile: One of the names above.
        num_classes: Number of classes C.
        max_images: Images of the head class.
        imbalance_ratio: Images of the head class over those of the rarest, >= 1.

    Returns:
        int64 ``[C]``, never increasing, every entry >= 1: a class that would round to none keeps one.

    Raises:
        UserError: An unknown profile, a ratio below 1, or no classes or images.
    """
    if profile not in PROFILES:
        raise UserError(
            f"the long-tail profile {profile!r} is unknown; "
            f"choose one of {', '.join(PROFILES)}.{did_you_mean(profile, PROFILES)}"
        )
    check_ratio(imbalance_ratio)
    if num_classes < 1 or max_images < 1:
        raise UserError(
            f"a long-tail profile needs at least one class and one image; "
            f"got {num_classes} classes and {max_images} images."
        )
    sizes = PROFILES[profile](num_classes, max_images, float(imbalance_ratio))
    return np.array([max(1, int(size)) for size in sizes], dtype=np.int64)


def check_natural(profile: str, counts: Sequence[int], num_classes: int, max_images: int) -> None:
    """Raise unless the counts of a natural tail fit its classes.

    Raises:
        UserError: Another profile, another number of classes, an empty class, or a head that is not first.
    """
    falling = all(before >= after for before, after in pairwise(counts))
    if profile != NATURAL:
        raise UserError(f"natural_counts belong to the profile {NATURAL!r}; the profile is {profile!r}.")
    if len(counts) != num_classes or min(counts, default=0) < 1 or not falling or counts[0] != max_images:
        raise UserError(
            f"natural_counts must be the images of each of the {num_classes} classes, from the largest class "
            f"({max_images}, max_images) to the smallest, each at least 1; got {len(counts)}: "
            f"{', '.join(map(str, counts[:5]))}{', ...' if len(counts) > 5 else ''}."
        )


def check_ratio(imbalance_ratio: float) -> None:
    """Raise unless ``imbalance_ratio`` is a finite number >= 1.

    Raises:
        UserError: It is not; for 0.01 the message asks whether 100 was meant.
    """
    is_number = isinstance(imbalance_ratio, Real) and not isinstance(imbalance_ratio, bool)
    if is_number and math.isfinite(imbalance_ratio) and imbalance_ratio >= 1:
        return
    hint = ""
    if is_number and 0 < imbalance_ratio < 1:
        hint = f" Did you mean {1 / imbalance_ratio:.6g}?"
    raise UserError(
        f"imbalance_ratio is {imbalance_ratio!r}; it is the images of the largest class over those of the "
        f"smallest and must be a number >= 1 (1 = balanced).{hint}"
    )


def _exponential(num_classes: int, max_images: int, ratio: float) -> list[float]:
    # Written as the literature's generator evaluates it: another order of operations rounds other classes.
    factor = 1 / ratio
    last = max(num_classes - 1.0, 1.0)
    return [max_images * (factor ** (c / last)) for c in range(num_classes)]


def _step(num_classes: int, max_images: int, ratio: float) -> list[float]:
    full = num_classes // 2 if num_classes > 1 else 1
    return [float(max_images)] * full + [max_images / ratio] * (num_classes - full)


def _pareto(num_classes: int, max_images: int, ratio: float) -> list[float]:
    exponent = math.log(ratio) / math.log(max(num_classes, 2))
    # 1e-9: the last class is max / ratio exactly, and a power must not round it down by one image.
    return [max_images * (c + 1) ** -exponent + 1e-9 for c in range(num_classes)]


PROFILES: dict[str, Callable[[int, int, float], list[float]]] = {
    "exponential": _exponential,
    "step": _step,
    "pareto": _pareto,
}


def choose_images(
    labels: npt.ArrayLike, counts: npt.ArrayLike, seed: int, choice: str = "shuffled"
) -> npt.NDArray[np.int64]:
    """Return the indices of the kept images, class blocks in the order of the class ids.

    ``shuffled`` is LDAM's generator, bit for bit: one legacy ``RandomState(seed)`` shuffles the images of
    class after class and the first ones are kept. ``file-order`` keeps the first images of each class
    without a draw (SHIKE, UniCIL). The global random state stays untouched.

    Args:
        labels: ``[N]`` class ids 0..C-1 of the training images, in file order.
        counts: ``[C]`` images to keep per class.
        seed: Seed of the draw; the published lists have 0.
        choice: ``"shuffled"`` or ``"file-order"``.

    Returns:
        int64 ``[sum(counts)]``.

    Raises:
        UserError: A label without a count, a class with fewer images than asked for, or an unknown choice.
    """
    labels, counts = np.asarray(labels), np.asarray(counts)
    _check_choice(labels, counts, choice)
    generator = np.random.RandomState(seed)
    kept = []
    for class_id, count in enumerate(counts):
        indices = np.flatnonzero(labels == class_id)
        if choice == "shuffled":
            generator.shuffle(indices)
        kept.append(indices[:count])
    return np.concatenate(kept).astype(np.int64)


def _check_choice(labels: np.ndarray, counts: np.ndarray, choice: str) -> None:
    if choice not in IMAGE_CHOICES:
        raise UserError(
            f"the image choice {choice!r} is unknown; "
            f"choose one of {', '.join(IMAGE_CHOICES)}.{did_you_mean(choice, IMAGE_CHOICES)}"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < len(counts):
        raise UserError(
            f"the labels run from {labels.min()} to {labels.max()}, but the protocol has {len(counts)} "
            f"classes; labels must be 0..{len(counts) - 1}."
        )
    there = np.bincount(labels.astype(np.int64), minlength=len(counts))
    short = np.flatnonzero(there < counts)
    if short.size:
        first = int(short[0])
        raise UserError(
            f"class {first} has {there[first]} training images, but the long-tail profile asks for "
            f"{counts[first]} ({short.size} such classes); lower max_images or raise imbalance_ratio."
        )


def group(count: int) -> str:
    """Return ``"many"`` (> 100 images), ``"medium"`` (20 to 100) or ``"few"`` (< 20), after ImageNet-LT."""
    if count > MANY_ABOVE:
        return "many"
    return "few" if count < FEW_BELOW else "medium"


def groups(counts: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
    """Return the group of every class.

    Args:
        counts: ``[C]`` training images per class.

    Returns:
        C times ``"many"``, ``"medium"`` or ``"few"``.
    """
    return [group(int(count)) for count in counts]
