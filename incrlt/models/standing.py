"""Parts of a network that stand still while it trains: no gradient, and statistics that stay.

What stands still is a wish of the experiment (``model.train``, ``model.norm``) and no part of a saved network: it
answers the same. A network that is put into training mode leaves it standing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Train = Literal["all", "branches", "heads", "adapters"]
"""What trains beside the heads: everything, the experts' own parts, nothing, or additions to the experts' own parts
(:mod:`incrlt.models.adapters`, which let the rest of them stand)."""


@dataclass(frozen=True)
class Standing:
    """What stands still.

    Attributes:
        stem: The part that experts share.
        branches: The experts' own parts.
        norm: Batch norms of stem and branches: statistics, factors and shifts.
    """

    stem: bool = False
    branches: bool = False
    norm: bool = False

    @staticmethod
    def of(train: Train, norm: Literal["train", "frozen"]) -> Standing:
        """Return what stands still by the words of an experiment."""
        return Standing(train != "all", train == "heads", norm == "frozen")

    def modules(self, stem: nn.Module, branches: nn.Module) -> Iterator[nn.Module]:
        """Yield the modules that stand still."""
        for still, part in ((self.stem, stem), (self.branches, branches)):
            if still:
                yield part
            elif self.norm:
                yield from (inner for inner in part.modules() if isinstance(inner, _BatchNorm))
