"""What routing saves and on whom: experts used by group and age, and the curve of accuracy over computation.

Everything starts from two saved things: how many test images of each class stopped after 1, 2, ... K experts, an
int [C, K] in arrival space; and, for the curve, the router's scores with what each ensemble predicted. Within a
group every class counts the same (``over_classes``), as for accuracies.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from incrlt.errors import UserError
from incrlt.files import Plain, write_atomic
from incrlt.metrics.counts import Counts
from incrlt.metrics.groups import AGE_BUCKETS, GROUPS, age_name, class_groups
from incrlt.metrics.numbers import Floats, known, mean_known, percent
from incrlt.metrics.results import csv_text
from incrlt.metrics.yardsticks import YardstickCounts, yardstick_columns

ROUTING_FILE = "routing.csv"
SWEEP_FILE = "routing_sweep.csv"


def count_experts_used(
    labels: npt.ArrayLike, experts_used: npt.ArrayLike, num_classes: int, num_experts: int
) -> Counts:
    """Count test images of each class by the number of experts that ran on them.

    Args:
        labels: int [N], class in arrival space.
        experts_used: int [N], 1 to K.
        num_classes: C.
        num_experts: K.

    Returns:
        int [C, K]; column k counts images that stopped after k + 1 experts. Counts of several batches add up.

    Raises:
        UserError: A label or a number of experts out of its range.

    Example:
        >>> count_experts_used([0, 0, 1], [1, 3, 2], num_classes=2, num_experts=3).tolist()
        [[1, 0, 1], [0, 1, 0]]
    """
    classes, used = np.asarray(labels, dtype=np.int64), np.asarray(experts_used, dtype=np.int64)
    for name, values, first, last in (
        ("labels", classes, 0, num_classes - 1),
        ("experts_used", used, 1, num_experts),
    ):
        if values.size and not first <= values.min() <= values.max() <= last:
            raise UserError(
                f"{name} must lie between {first} and {last}; got {values.min()} to {values.max()}."
            )
    flat = np.bincount(classes * num_experts + used - 1, minlength=num_classes * num_experts)
    return flat.reshape(num_classes, num_experts)


def mean_experts(used: npt.ArrayLike) -> Floats:
    """Return the mean number of experts per class from counts [C, K]: float [C], NaN without images."""
    counts = np.asarray(used, dtype=np.float64)
    return percent(counts @ np.arange(1, counts.shape[1] + 1), counts.sum(axis=1)) / 100


def experts_by_group(used: npt.ArrayLike, images_of_class: npt.ArrayLike) -> dict[str, float | None]:
    """Return the mean number of experts of many, medium and few classes; None for an empty group.

    Args:
        used: int [C, K] of the classes seen.
        images_of_class: Training images of the class in the full training set [at least C].
    """
    mean = mean_experts(used)
    groups = class_groups(np.asarray(images_of_class)[: len(mean)])
    return {name: mean_known(mean[groups == name]) for name in GROUPS}


def experts_by_age(used: npt.ArrayLike, experience_of_class: npt.ArrayLike) -> dict[str, float | None]:
    """Return the mean number of experts by age of the class, in experiences since it arrived.

    Args:
        used: int [C, K] of the classes seen; the last of them arrived in the latest experience.
        experience_of_class: Experience in which a class arrived [at least C], non-decreasing.

    Returns:
        ``{"new": ..., "1-2": ..., ...}``; None where no class has that age.
    """
    mean = mean_experts(used)
    arrived = np.asarray(experience_of_class)[: len(mean)]
    age = arrived.max(initial=0) - arrived
    ages = {"new": mean_known(mean[age == 0])}
    for youngest, oldest in AGE_BUCKETS:
        inside = (age >= youngest) & (age <= (np.inf if oldest is None else oldest))
        ages[age_name((youngest, oldest))] = mean_known(mean[inside])
    return ages


def computation(used: npt.ArrayLike, macs: Sequence[float]) -> dict[str, float | None]:
    """Return what the images cost, as RIDE counts it: arithmetic weighted by where images stopped.

    Args:
        used: int [C, K].
        macs: Multiply-accumulates of an image with the first 1, 2, ... K experts [K], of
            ``incrlt.models.cost.macs``.

    Returns:
        ``mean_experts`` and ``mean_mmacs`` (millions) per image, ``macs_saved`` in percent of all experts, and
        ``stopped_after_k`` in percent of images for each k; None without images. It is arithmetic, not time.

    Raises:
        UserError: Another number of costs than of experts.
    """
    stopped = np.asarray(used, dtype=np.float64).sum(axis=0)
    costs = _costs(macs, stopped.size)
    number = np.arange(1, stopped.size + 1)
    share = percent(stopped, np.full(stopped.size, stopped.sum()))
    mean = float(share @ costs) / 100
    return {
        "mean_experts": known(float(share @ number) / 100),
        "mean_mmacs": known(mean / 1e6),
        "macs_saved": known(100 * (1 - mean / costs[-1])),
        **{f"stopped_after_{k}": known(value) for k, value in zip(number, share, strict=True)},
    }


def routing_rows(
    used: Sequence[npt.ArrayLike],
    experience_of_class: npt.ArrayLike,
    images_of_class: npt.ArrayLike,
    macs: Sequence[Sequence[float]],
    yardsticks: Sequence[YardstickCounts | None] | None = None,
) -> list[Plain]:
    """Return one row per experience: computation, mean number of experts by group and age, and yardsticks.

    Args:
        used: After experience t the counts [C_t, K].
        experience_of_class: Experience in which a class arrived [C].
        images_of_class: Training images of the class in the full training set [C].
        macs: After experience t the costs [K]; heads grow, so they rise a little.
        yardsticks: After experience t what the router is held against, see :mod:`incrlt.metrics.yardsticks`; None where
            an older version recorded it: its columns are then empty.
    """
    rows = []
    beside = [None] * len(used) if yardsticks is None else yardsticks
    for t, (counts, costs, found) in enumerate(zip(used, macs, beside, strict=True)):
        tested, experts = np.sum(counts, axis=1), np.shape(counts)[1]
        groups = experts_by_group(counts, images_of_class)
        ages = experts_by_age(counts, experience_of_class)
        rows.append(
            {
                "experience": t,
                **computation(counts, costs),
                **{f"experts/{name}_over_classes": value for name, value in groups.items()},
                **{f"experts/age_{name}_over_classes": value for name, value in ages.items()},
                **yardstick_columns(found, tested, images_of_class, experts),
            }
        )
    return rows


@dataclass(frozen=True, eq=False)
class RoutingTable:
    """What a router and all ensembles said about N test images: enough to route them at any threshold.

    Args:
        scores: float [K-1, N], the router's decisions before the sigmoid.
        predictions: int [K, N], class predicted by the first 1, 2, ... K experts, in arrival space.
        labels: int [N], true class in arrival space.

    Raises:
        UserError: The shapes do not fit together.
    """

    scores: Floats
    predictions: Counts
    labels: Counts

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "scores", np.asarray(self.scores, dtype=np.float64))
        put(self, "predictions", np.asarray(self.predictions, dtype=np.int64))
        put(self, "labels", np.asarray(self.labels, dtype=np.int64))
        experts, images = self.predictions.shape if self.predictions.ndim == 2 else (0, -1)
        if self.labels.shape != (images,) or self.scores.shape != (experts - 1, images):
            raise UserError(
                f"scores {self.scores.shape}, predictions {self.predictions.shape} and labels {self.labels.shape} "
                "do not fit; they are [K-1, N], [K, N] and [N]."
            )

    @property
    def deciding(self) -> Floats:
        """Smallest score so far, float [K-1, N]: expert k + 2 runs where row k lies above the threshold."""
        return np.minimum.accumulate(self.scores, axis=0)

    def experts_used(self, threshold: float) -> Counts:
        """Return the number of experts that run on each image, int [N]; stopped is stopped."""
        used: Counts = 1 + (self.deciding > threshold).sum(axis=0)
        return used

    def thresholds(self, points: int = 21) -> list[float]:
        """Return thresholds whose computation is spread evenly, descending: from one expert to all of them.

        Args:
            points: Number of thresholds, at least 2; equal ones are dropped.
        """
        deciding = np.sort(self.deciding, axis=None)
        if not deciding.size:
            return [0.0]
        places = np.linspace(deciding.size - 1, 0, max(2, points) - 1).round().astype(int)
        everything = np.nextafter(deciding[0], -np.inf)  # a score must lie above the threshold
        return list(dict.fromkeys([*deciding[places].tolist(), float(everything)]))


def sweep(
    table: RoutingTable,
    macs: Sequence[float],
    images_of_class: npt.ArrayLike,
    thresholds: Sequence[float] | None = None,
) -> list[dict[str, float | None]]:
    """Return the curve of accuracy over computation, one row per threshold.

    Args:
        table: Scores and predictions of the test images.
        macs: Costs with the first 1, 2, ... K experts [K].
        images_of_class: Training images of the class in the full training set [at least C].
        thresholds: Scores; by default 21 that spread the computation evenly.

    Returns:
        Rows with ``threshold``, ``accuracy/over_images``, ``accuracy/over_classes`` and per group in percent,
        and what :func:`computation` returns.
    """
    rows: list[dict[str, float | None]] = []
    for threshold in table.thresholds() if thresholds is None else thresholds:
        used = table.experts_used(threshold)
        predicted = np.take_along_axis(table.predictions, used[None] - 1, axis=0)[0]
        rows.append(
            {
                "threshold": float(threshold),
                **_accuracies(predicted == table.labels, table.labels, images_of_class),
                **computation(np.bincount(used - 1, minlength=len(table.predictions))[None], macs),
            }
        )
    return rows


def _accuracies(
    right: npt.NDArray[np.bool_], labels: Counts, images_of_class: npt.ArrayLike
) -> dict[str, float | None]:
    images = np.asarray(images_of_class)
    groups = class_groups(images)
    tested = np.bincount(labels, minlength=images.size)
    per_class = percent(np.bincount(labels, weights=right, minlength=images.size), tested)
    return {
        "accuracy/over_images": known(percent([right.sum()], [right.size])[0]),
        "accuracy/over_classes": mean_known(per_class),
        **{f"accuracy/{name}_over_classes": mean_known(per_class[groups == name]) for name in GROUPS},
    }


def _costs(macs: Sequence[float], num_experts: int) -> Floats:
    costs = np.asarray(macs, dtype=np.float64)
    if costs.shape != (num_experts,):
        raise UserError(f"macs must hold one cost for each of 1 to {num_experts} experts; got {costs.shape}.")
    return costs


def write_routing(
    folder: str | os.PathLike[str],
    rows: Sequence[Plain],
    curve: Sequence[Plain] | None = None,
) -> None:
    """Write routing.csv and routing_sweep.csv, each whole or not at all.

    Args:
        folder: The run folder.
        rows: Of :func:`routing_rows`.
        curve: Of :func:`sweep`, after the last experience; None writes no such file.
    """
    write_atomic(Path(folder) / ROUTING_FILE, csv_text(rows))
    if curve is not None:
        write_atomic(Path(folder) / SWEEP_FILE, csv_text(curve))
