"""What evaluations tell beyond who was taken for whom, and its file ``evaluations.npz``.

Everything is whole numbers per class, in arrival space, so that sums are the same in any order of the batches:

- ``confidence_<readout>`` ``[C_t, 3, BINS]``: per bin of the winner's probability the images, those of them that
  were right, and the sum of their probabilities in millionths;
- ``right`` ``[C_t, 2, K]``: images that expert k alone (0), and the mean of the first k + 1 experts (1), got right;
- ``disagree`` ``[C_t, K, K]``: images on which two experts answer differently;
- ``macs`` ``[K]``: multiply-adds of an image with the first k + 1 experts;
- ``memory`` ``[C_t]``: exemplars kept.

Of the last evaluation the answers themselves are kept, one per test image: ``labels`` and ``predicted_<readout>``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy.typing as npt

from incrlt.errors import UserError
from incrlt.metrics.counts import Counts, as_counts
from incrlt.metrics.record import UNREADABLE, read_arrays, write_arrays

EVALUATIONS_FILE = "evaluations.npz"
BINS = 15
"""Bins of confidence, as Guo et al., "On Calibration of Modern Neural Networks", ICML 2017."""
MILLION = 1_000_000

_SHAPES: dict[str, tuple[int | str, ...]] = {
    "confidence": ("C", 3, BINS),
    "right": ("C", 2, "K"),
    "disagree": ("C", "K", "K"),
    "macs": ("K",),
    "memory": ("C",),
}
"""Name, or its part before the read-out -> shape; a letter is the same number in all of an experience."""

_STEP = re.compile(r"(?P<name>.+)_at_(?P<t>\d+)")
_LAST = "_last"


@dataclass(frozen=True, eq=False)
class EvaluationRecord:
    """What was recorded in the evaluations of a run.

    Args:
        steps: Experience -> name -> counts. An experience may be missing: a run begun by an older version.
        answers: ``labels`` and ``predicted_<readout>`` of the last evaluation, int [N] each.
    """

    steps: Mapping[int, Mapping[str, Counts]] = field(default_factory=dict)
    answers: Mapping[str, Counts] = field(default_factory=dict)

    def series(self, name: str) -> dict[int, Counts]:
        """Return the counts of one name by experience, in order; empty where it was never recorded."""
        return {t: step[name] for t, step in sorted(self.steps.items()) if name in step}


def save_evaluations(
    path: str | os.PathLike[str],
    steps: Mapping[int, Mapping[str, npt.ArrayLike]],
    answers: Mapping[str, npt.ArrayLike],
) -> Path:
    """Write a record to one compressed npz, whole or not at all.

    Args:
        path: The file, usually ``<run folder>/evaluations.npz``.
        steps: As in :class:`EvaluationRecord`.
        answers: As in :class:`EvaluationRecord`.

    Returns:
        The path written.
    """
    arrays = {f"{name}_at_{t:03d}": values for t, step in steps.items() for name, values in step.items()}
    arrays |= {f"{name}{_LAST}": values for name, values in answers.items()}
    return write_arrays(path, {name: as_counts(values, name) for name, values in arrays.items()})


def load_evaluations(path: str | os.PathLike[str]) -> EvaluationRecord:
    """Read what :func:`save_evaluations` wrote.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        loaded = {name: as_counts(values, name) for name, values in read_arrays(path).items()}
    except UNREADABLE as error:
        raise UserError(f"cannot read the evaluations in {path}: {error}") from error
    steps: dict[int, dict[str, Counts]] = {}
    for name, values in loaded.items():
        if match := _STEP.fullmatch(name):
            steps.setdefault(int(match["t"]), {})[match["name"]] = values
    answers = {name.removesuffix(_LAST): values for name, values in loaded.items() if name.endswith(_LAST)}
    return EvaluationRecord(steps, answers)


def misfit(record: EvaluationRecord, classes_after: Sequence[int]) -> str | None:
    """Say which sums do not belong to a run's counts, as those of another version or another run may.

    Args:
        record: What was read.
        classes_after: Classes seen after each experience that has counts.

    Returns:
        What was found and expected, or None where all fits. Names that are not known are not judged.
    """
    for t, step in sorted(record.steps.items()):
        if t >= len(classes_after):
            return f"experience {t} has evaluations but no counts"
        sizes = {"C": classes_after[t]}
        for name, values in step.items():
            shape = _SHAPES.get(name.split("_")[0], values.shape)
            expected = tuple(_size(part, sizes, values.shape[-1:]) for part in shape)
            if values.shape != expected or sizes.get("K", 2) < 2:
                return f"{name} after experience {t} has shape {values.shape}; expected {expected}"
    return None


def _size(part: int | str, sizes: dict[str, int], last: tuple[int, ...]) -> int:
    """Return a length of a shape; a letter that has no number yet takes the length of the last axis."""
    if isinstance(part, int):
        return part
    return sizes.setdefault(part, last[0] if last else -1)
