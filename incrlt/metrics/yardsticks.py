"""What a router is held against: answers of the same experts without a router, and ceilings that no choice passes.

All are accuracies on the same test images, within a group every class counting the same (``over_classes``):

- ``routed``: the router's own answer;
- ``all_experts``: what the ensemble answers, the mean of the logits or a method's own combination;
- ``uniform_mean``: the mean of the logits, the same where a method has no combination of its own;
- ``probability_mean``: the mean of the softmax probabilities;
- ``best_weights_ceiling``: the weighted mean of the logits under the best weights of :func:`weight_grid`, one vector
  for all images, chosen **in hindsight**, on these very test images and their labels, by accuracy over classes. It is
  no method: whoever chose weights without the labels would get at most as much on this grid;
- ``stop_ceiling``: images that are right if the router stops after the right number of experts. No stopping gives
  more, whatever router decides;
- ``oracle_ceiling``: images that at least one expert has right by itself. No choice of one expert for each image gives
  more. A mean may: two experts that err in different ways can be right together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from incrlt.metrics.counts import Counts
from incrlt.metrics.experts import Values, over_groups
from incrlt.metrics.groups import GROUPS
from incrlt.metrics.numbers import mean_known, percent

YARDSTICKS: Mapping[str, str] = {
    "routed": "the router",
    "all_experts": "all experts",
    "uniform_mean": "mean of logits",
    "probability_mean": "mean of probabilities",
    "best_weights_ceiling": "best fixed weights",
    "stop_ceiling": "best stop",
    "oracle_ceiling": "any expert",
}
"""Name -> words, in the order of the counts' columns."""
CEILINGS = tuple(name for name in YARDSTICKS if name.endswith("_ceiling"))
"""Those that know the labels."""
FINEST, MOST = 10, 100
"""The grid of weights has at most so many steps from 0 to 1, and as many as keep it at so many vectors."""

Weights = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class YardstickCounts:
    """What one evaluation counted.

    Args:
        right: int [C_t, 7], test images of each class that a yardstick has right, in the order of
            :data:`YARDSTICKS`.
        weights: The chosen weights of the K experts, in hindsight; they sum to one.
    """

    right: Counts
    weights: Weights


def weight_grid(num_experts: int) -> list[Weights]:
    """Return the weight vectors that are tried: none negative, each summing to one, the most even ones first.

    The equal weights are the first; after them come all vectors in steps of 1/10 of two or three experts, of 1/6 of
    four, 1/4 of five, 1/3 of six and seven, 1/2 of eight to thirteen: the finest steps that give at most 100. Beyond
    that each expert alone is left. Every expert alone is always there.

    Args:
        num_experts: K, at least 1.

    Example:
        >>> [len(weight_grid(k)) for k in (2, 3, 4, 5, 20)]
        [11, 67, 85, 71, 21]
        >>> weight_grid(2)[:3]
        [(0.5, 0.5), (0.6, 0.4), (0.4, 0.6)]
    """
    steps = _steps(num_experts)
    experts = range(num_experts)
    shared_out = itertools.combinations_with_replacement(experts, steps)  # each step goes to one expert
    parts = [tuple(one.count(expert) for expert in experts) for one in shared_out]
    uneven = sorted((p for p in parts if len(set(p)) > 1), key=lambda p: sum(n * n for n in p))
    return [(1 / num_experts,) * num_experts, *(tuple(n / steps for n in p) for p in uneven)]


def _steps(num_experts: int) -> int:
    for steps in range(FINEST, 1, -1):
        if math.comb(steps + num_experts - 1, num_experts - 1) <= MOST:
            return steps
    return 1


def best_column(right: npt.ArrayLike, tested: npt.ArrayLike) -> int:
    """Return the column with the highest accuracy over classes; of equal ones the first.

    Args:
        right: int [C_t, V], images of each class that answer v has right.
        tested: Test images of each class [C_t], of at least one class.
    """
    rates = [mean_known(percent(column, tested)) for column in np.asarray(right).T]
    return int(np.argmax(np.array(rates, dtype=np.float64)))


def yardstick_columns(
    found: YardstickCounts | None, tested: npt.ArrayLike, images_of_class: npt.ArrayLike, num_experts: int
) -> dict[str, float | None]:
    """Return the columns of ``routing.csv``: each yardstick over classes and by group, and the chosen weights.

    Args:
        found: Of one experience; None where an older version recorded it, which fills the columns with None.
        tested: Test images of each class [C_t].
        images_of_class: Training images of the class in the full training set [at least C_t].
        num_experts: K.

    Returns:
        ``<yardstick>/over_classes``, ``<yardstick>/many_over_classes``, ... in percent, None for an empty group, and
        ``best_weights_ceiling/weight_of_expert_0`` to ``weight_of_expert_{K - 1}``.
    """
    columns: dict[str, float | None] = {}
    for place, name in enumerate(YARDSTICKS):
        means: Values = {}
        if found is not None:
            means = over_groups(percent(found.right[:, place], tested), images_of_class)
        columns[f"{name}/over_classes"] = means.get("over_classes")
        columns |= {f"{name}/{group}_over_classes": means.get(group) for group in GROUPS}
    weights: Sequence[float | None] = [None] * num_experts if found is None else found.weights
    return columns | {
        f"best_weights_ceiling/weight_of_expert_{k}": weight for k, weight in enumerate(weights)
    }


def in_words(found: YardstickCounts, tested: npt.ArrayLike) -> str:
    """Return the accuracies over classes in a line; the mean of logits is told where it is not what all experts say.

    Args:
        found: Of one experience.
        tested: Test images of each class [C_t], of at least one class.
    """
    rates = {
        name: mean_known(percent(found.right[:, place], tested)) for place, name in enumerate(YARDSTICKS)
    }
    same = np.array_equal(found.right[:, _place("uniform_mean")], found.right[:, _place("all_experts")])
    hidden = ("routed", *CEILINGS, *(["uniform_mean"] if same else []))
    plain = ", ".join(f"{YARDSTICKS[name]} {rates[name]:.1f}" for name in YARDSTICKS if name not in hidden)
    ceilings = ", ".join(f"{YARDSTICKS[name]} {rates[name]:.1f}" for name in CEILINGS)
    return f"over classes {rates['routed']:.1f} % right ({plain}; ceilings, in hindsight: {ceilings})"


def _place(name: str) -> int:
    return list(YARDSTICKS).index(name)
