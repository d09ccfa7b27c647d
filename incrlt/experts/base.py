"""What a strategy asks of an expert method."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from incrlt.models import ExpertNetwork
from incrlt.models.layout import Layout
from incrlt.types import LossContext, LossTerms, ModelOutput, Stage


class ExpertMethod:
    """Network layout, loss terms and stages of one method; a frozen dataclass, so that all state lives elsewhere.

    A subclass is one file of ``incrlt/experts`` with fields for its hyper-parameters, :attr:`layout` and
    :meth:`loss`; the rest has a default.

    Attributes:
        name: The name in YAML; also the name of the file.
        needs_cosine: The losses need cosine heads.
    """

    name: ClassVar[str]
    needs_cosine: ClassVar[bool] = False

    @property
    def layout(self) -> Layout:
        """What the method asks of the network: number of experts, what they share, how heads begin."""
        return Layout()

    def loss(self, context: LossContext, output: ModelOutput, labels: Tensor) -> LossTerms:
        """Return the classification terms of the batch by name.

        Args:
            context: Counts, progress and the number of old classes.
            output: The network's answer, classes in arrival order.
            labels: Class positions ``[B]``.
        """
        raise NotImplementedError

    def stages(self) -> tuple[Stage, ...]:
        """Return what trains after the first stage of each experience."""
        return ()

    def guide(self) -> ExpertNetwork | None:
        """Return a network trained before that the method distils, or None; called once per run."""
        return None

    def begin_experience(self, network: Any) -> None:
        """Prepare the grown network before the first epoch; not called when a run is resumed."""


def scaled(terms: LossTerms, factor: float) -> LossTerms:
    """Multiply every term: published codes sum over experts where ours average."""
    return terms if factor == 1 else {name: factor * term for name, term in terms.items()}
