"""Early stopping by asynchronous successive halving, on figures that are handed in.

Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020, in the variant that stops what is not
promoted: at a rung a run goes on if it is among the best 1/eta of those that have been there, itself included. Nobody
waits for the others, so what is stopped depends on who comes first; the numbers of a run never do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from incrlt.errors import UserError, shown

ETA: Final = 3
FIRST: Final = 1 / 9
"""Share of its epochs after which a run is first looked at: two halvings by three before its end."""


@dataclass(frozen=True)
class Asha:
    """When runs are compared, and how many go on."""

    eta: int = ETA
    """One of so many goes on."""
    first: float = FIRST
    """Share of a run's epochs at the first rung; the next are ``eta`` times as far."""

    @property
    def rungs(self) -> tuple[float, ...]:
        """Shares of a run's epochs, rising, all below 1."""
        found, share = [], self.first
        while share < 1 - 1e-9:
            found.append(share)
            share *= self.eta
        return tuple(found)


def asha(given: object) -> Asha | None:
    """Read the early stopping of a sweep: a yes or no, or a mapping.

    Raises:
        UserError: It is neither.
    """
    if given is None or isinstance(given, bool):
        return Asha() if given else None
    values = dict(given) if isinstance(given, Mapping) else None
    if values is None or not values.keys() <= {"eta", "first"}:
        raise UserError(f"stop_early is {shown(given)}; give true, or {{eta: 3, first: 0.111}}.")
    eta, first = values.get("eta", ETA), values.get("first", FIRST)
    if type(eta) is not int or eta < 2:
        raise UserError(f"stop_early: eta is {shown(eta)}; give a whole number from 2 on.")
    if not isinstance(first, float) or not 0 < first < 1:
        raise UserError(f"stop_early: first is {shown(first)}; give a share of the epochs between 0 and 1.")
    return Asha(eta, first)


def goes_on(rule: Asha, seen: dict[str, dict[str, float]], run: str, figures: Mapping[float, float]) -> bool:
    """Take note of a run's figures and say whether it goes on.

    Args:
        rule: When, and how many go on.
        seen: Number of the rung (as text, so that JSON keeps it) -> run -> figure, of the runs that are compared with
            one another; this run's are added.
        run: Its name.
        figures: Share of the epochs -> figure, larger is better, for the rungs that the run has passed. At a rung where
            it was judged before, it is not judged again.
    """
    for number, share in enumerate(rule.rungs):
        if share not in figures:
            return True
        others = seen.setdefault(str(number), {})
        if run in others:
            continue
        others[run] = figures[share]
        better = sum(value > figures[share] for value in others.values())
        if better >= max(1, len(others) // rule.eta):
            return False
    return True
