"""What the fused op computes, as data: which terms, with which weights."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, Literal

from incrlt.errors import UserError

TERMS = (
    "classification",
    "mutual",
    "hard_classification",
    "hard_mutual",
    "diversity",
    "transfer",
    "distillation",
    "ranking",
)
"""Names of the terms, in the order in which every backend returns them."""


@dataclass(frozen=True)
class TermSpec:
    """Weights of the terms over logits ``[K, B, C]`` and the numbers they need; a weight of 0 leaves a term out.

    Each term is the sane flavor of the function of :mod:`incrlt.losses` named here, averaged over experts and over
    the rows that are not ignored. Tensors (prior, margins, weights, temperatures, teacher) go to the op itself.

    Attributes:
        classification: :func:`~incrlt.losses.ldam` on logits plus prior: cross entropy without prior and margins,
            balanced softmax with a prior.
        mutual: :func:`~incrlt.losses.pairwise_divergence`, both sides live.
        hard_classification: :func:`~incrlt.losses.hard_category_cross_entropy`.
        hard_mutual: :func:`~incrlt.losses.online_distillation` over the hard categories.
        diversity: :func:`~incrlt.losses.distribution_aware_diversity` over classes and images from ``first_class`` on.
        transfer: :func:`~incrlt.losses.dynamic_knowledge_transfer`.
        distillation: :func:`~incrlt.losses.knowledge_distillation` to the teacher's logits ``[K, B, O]``.
        ranking: :func:`~incrlt.losses.margin_ranking` on the cosines.
        mutual_prior: The mutual term reads logits plus prior (NCL), otherwise logits alone (SHIKE).
        num_hard: Hard categories of an image, the label included, chosen by the mean of the raw logits.
        first_class: First class of the diversity term, usually the number of old classes.
        temperature: Softens both sides of the distillation.
        num_old: Old classes of the ranking.
        margin: Margin of the ranking, in cosine.
        num_negatives: Hardest negatives per old sample.
        negatives: ``new`` ranks against new classes, ``all`` against every other class.
    """

    classification: float = 0.0
    mutual: float = 0.0
    hard_classification: float = 0.0
    hard_mutual: float = 0.0
    diversity: float = 0.0
    transfer: float = 0.0
    distillation: float = 0.0
    ranking: float = 0.0
    mutual_prior: bool = True
    num_hard: int = 2
    first_class: int = 0
    temperature: float = 2.0
    num_old: int = 0
    margin: float = 0.5
    num_negatives: int = 2
    negatives: Literal["new", "all"] = "new"

    def __post_init__(self) -> None:
        if not self.names:
            raise UserError(f"TermSpec has no term; give at least one of {', '.join(TERMS)} a weight.")
        if self.temperature <= 0:
            raise UserError(f"TermSpec.temperature is {self.temperature}; it must be above 0.")
        for name in WHOLE_NUMBERS:
            if getattr(self, name) < 0:
                raise UserError(f"TermSpec.{name} is {getattr(self, name)}; it cannot be negative.")
        if self.negatives not in ("new", "all"):
            raise UserError(f"TermSpec.negatives is {self.negatives!r}; allowed: new, all.")

    @cached_property
    def text(self) -> str:
        """All of it as one string, for ops that take no objects; :meth:`parse` reads it."""
        return ";".join(f"{name}={getattr(self, name)}" for name in KIND)

    @staticmethod
    @lru_cache(maxsize=256)
    def parse(text: str) -> TermSpec:
        """Return the spec whose :attr:`text` is given."""
        values = dict(part.split("=", 1) for part in text.split(";"))
        kinds: dict[str, Any] = {"float": float, "int": int, "bool": lambda value: value == "True"}
        return TermSpec(**{name: kinds.get(KIND[name], str)(value) for name, value in values.items()})

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the terms with a weight, in the order of :data:`TERMS`."""
        return tuple(name for name in TERMS if getattr(self, name))

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights of :attr:`names`."""
        return tuple(getattr(self, name) for name in self.names)

    @property
    def needs_hard(self) -> bool:
        """A term works on the hard categories."""
        return bool(self.hard_classification or self.hard_mutual)


KIND = {one.name: str(one.type) for one in fields(TermSpec)}
WHOLE_NUMBERS = tuple(name for name, kind in KIND.items() if kind == "int")
