"""What of a call terms and sizes decide alone: worked out once, since a training asks for the same thing each step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from incrlt.kernels.spec import TERMS, TermSpec

MAIN_TERMS = tuple(name for name in TERMS if name != "ranking")
"""Terms of the main kernel; the ranking has one of its own."""


@dataclass(frozen=True)
class Plan:
    """Where each term stands, which are computed, and the numbers that kernels are given.

    Attributes:
        places: Row of each term in the values.
        active: The same of terms that can be other than 0.
        computed: Bit of each active term's row.
        weights: Arguments ``w0`` ... of the factors: weights with their constants, to be divided by numbers of rows.
        num_negatives: Negatives taken per old row.
        mutual_plain: The mutual term reads logits without the prior that others read.
        parts: What takes registers, keys of :data:`.heuristics.WEIGHTS`.
        main: Arguments of the main kernel that say where its terms stand, -1 for those left out.
    """

    places: dict[str, int]
    active: dict[str, int]
    computed: int
    weights: dict[str, float]
    num_negatives: int
    mutual_plain: bool
    parts: frozenset[str]
    main: dict[str, Any]

    @property
    def has_main(self) -> bool:
        """Some term reads the logits."""
        return bool(self.parts)


@lru_cache(maxsize=256)
def plan(
    spec: TermSpec,
    num_experts: int,
    num_classes: int,
    empty: bool,
    teacher_classes: int,
    has_prior: bool,
    has_margins: bool,
) -> Plan:
    """Return the plan of a call.

    Args:
        spec: Terms and weights.
        num_experts: K.
        num_classes: C.
        empty: The batch has no row.
        teacher_classes: O of the teacher's logits, 0 without a teacher.
        has_prior: A prior is given.
        has_margins: Margins are given.
    """
    negatives = _num_negatives(spec, num_classes)
    can_be = {
        "mutual": num_experts > 1,
        "hard_mutual": num_experts > 1,
        "diversity": num_experts > 1 and num_classes - spec.first_class >= 2,
        "transfer": num_experts > 1 and num_classes >= 3,
        "distillation": teacher_classes > 0,
        "ranking": negatives > 0 and spec.num_old > 0,
    }
    places = {name: place for place, name in enumerate(spec.names)}
    active = {name: place for name, place in places.items() if can_be.get(name, True) and not empty}
    plain = "mutual" in active and has_prior and not spec.mutual_prior
    return Plan(
        places=places,
        active=active,
        computed=sum(1 << place for place in active.values()),
        weights=_weights(spec, num_experts, negatives),
        num_negatives=negatives,
        mutual_plain=plain,
        parts=_parts(set(active), has_margins or plain),
        main={name.upper(): active.get(name, -1) for name in MAIN_TERMS} | {"MUTUAL_PLAIN": plain},
    )


def _num_negatives(spec: TermSpec, num_classes: int) -> int:
    others = num_classes - (spec.num_old if spec.negatives == "new" else 1)
    return max(min(spec.num_negatives, others), 0)


def _weights(spec: TermSpec, num_experts: int, negatives: int) -> dict[str, float]:
    pairs = num_experts * max(num_experts - 1, 1)
    constants = {
        "mutual": 1 / pairs,
        "hard_mutual": 1 / pairs,
        "distillation": spec.temperature**2 / num_experts,
        "ranking": 1 / (max(negatives, 1) * num_experts),
    }
    weights = [float(getattr(spec, name) * constants.get(name, 1 / num_experts)) for name in spec.names]
    weights += [0.0] * (len(TERMS) - len(weights))
    return {f"w{place}": weight for place, weight in enumerate(weights)}


def _parts(active: set[str], apart: bool) -> frozenset[str]:
    """The mutual term shares the classification's exponentials unless margins or a prior tell them apart."""
    parts = {"hard" if name.startswith("hard") else name for name in active if name != "ranking"}
    if "mutual" in parts and (apart or "classification" not in parts):
        parts = parts - {"mutual"} | {"mutual_apart"}
    return frozenset(parts)
