"""The loss terms of an epoch: kept on the device step by step, looked at in one transfer when the epoch ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from incrlt.errors import UserError
from incrlt.types import LossTerms

UNMOVED = (
    "It was so before any step was made: look for a division by 0, a logarithm of 0 or a mean over nothing in the "
    "term, and for numbers that are not finite in the images; half precision overflows too (training.precision: fp32)."
)


def named(terms: LossTerms, method: str) -> LossTerms:
    """Return what a loss gave, held to be named terms.

    Args:
        terms: What it gave.
        method: Name of the expert method.

    Raises:
        UserError: It is something else, such as a bare tensor.
    """
    if not isinstance(terms, dict):
        raise UserError(
            f"the loss of experts '{method}' is a {type(terms).__name__}; return named terms, such as "
            '{"focal": value}.'
        )
    return terms


class TermLog:
    """Collects the named terms of each step.

    Attributes:
        means: Mean of each term over the last epoch.
    """

    def __init__(self) -> None:
        self.means: dict[str, float] = {}
        self._steps: list[tuple[Sequence[str], Tensor]] = []

    def clear(self) -> None:
        """Forget the steps so far; called when an epoch begins."""
        self._steps = []

    def add(self, terms: LossTerms) -> Tensor:
        """Keep the terms of a step without waiting for the device; return their sum, with its gradient.

        Raises:
            UserError: A term is no tensor, or has more numbers than one.
        """
        for name, term in terms.items():
            if not isinstance(term, Tensor) or term.dim():
                given = (
                    f"a tensor {list(term.shape)}" if isinstance(term, Tensor) else f"a {type(term).__name__}"
                )
                raise UserError(
                    f"loss term '{name}' is {given}; a term is a scalar tensor, such as a mean over the batch."
                )
        values = torch.stack(list(terms.values()))
        self._steps.append((list(terms), values.detach()))
        return values.sum()

    def add_captured(self, names: Sequence[str], values: Tensor) -> Tensor:
        """The same for the values ``[T]`` of a captured step, which the next batch overwrites."""
        kept = values.clone()
        self._steps.append((names, kept))
        return kept.sum()

    def collect(self, where: str) -> None:
        """Average the epoch's terms into :attr:`means`.

        Args:
            where: Names the epoch in an error.

        Raises:
            UserError: A term is not finite: which one, in which step.
        """
        if not self._steps:
            return
        names = self._steps[0][0]
        values = torch.stack([values for _, values in self._steps]).cpu()
        self._steps = []
        broken = (~values.isfinite()).nonzero()
        if len(broken):
            step, term = broken[0].tolist()
            unmoved = step == 0 and where.endswith(
                "epoch 1"
            )  # no step of the stage was made: no rate is to blame
            raise UserError(
                f"loss term '{names[term]}' became {values[step, term].item()} in {where}, step {step + 1}. "
                + (
                    UNMOVED
                    if unmoved
                    else "Lower training.lr, set training.grad_clip, or use training.precision: fp32."
                )
            )
        self.means = dict(zip(names, values.double().mean(0).tolist(), strict=True))
