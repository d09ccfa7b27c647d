"""Learning-rate schedules as functions of the epoch: ``schedule(optimizer, epochs)`` builds a fresh one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from incrlt.errors import UserError
from incrlt.types import Schedule

Factor = Callable[[int, int], float]
"""``factor(epoch, epochs)`` multiplies the initial learning rate in that epoch (from 0)."""


def multistep_with_warmup(
    milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1, warmup_epochs: int = 0
) -> Schedule:
    """Multiply the rate by ``gamma`` at fractions of the epochs, after a linear warm-up.

    Args:
        milestones: Fractions of the epochs, 0 to 1. LUCIR's epochs 80 and 120 of 160 are the default.
        gamma: Factor at each milestone, > 0.
        warmup_epochs: Epoch e < ``warmup_epochs`` (from 0) has ``(e + 1) / warmup_epochs`` of the rate.

    Returns:
        ``schedule(optimizer, epochs)`` for :class:`~incrlt.plugins.SchedulerFactory` or a stage.

    Raises:
        UserError: A value out of its range.
    """
    if any(not 0 <= fraction <= 1 for fraction in milestones):
        raise UserError(f"milestones are fractions of the epochs between 0 and 1; got {list(milestones)}.")
    _check_positive("gamma", gamma)
    _check_warmup(warmup_epochs)
    factor = partial(
        _multistep_factor, milestones=tuple(milestones), gamma=gamma, warmup_epochs=warmup_epochs
    )
    return partial(_scaled, factor=factor)


def cosine(warmup_epochs: int = 0, final_fraction: float = 0.0) -> Schedule:
    """Let the rate fall along half a cosine, after a linear warm-up.

    As in torch's ``CosineAnnealingLR`` the final value would be reached in the epoch after the last one.

    Args:
        warmup_epochs: Epoch e < ``warmup_epochs`` (from 0) has ``(e + 1) / warmup_epochs`` of the rate.
        final_fraction: Final rate over initial rate, 0 to 1.

    Returns:
        ``schedule(optimizer, epochs)`` for :class:`~incrlt.plugins.SchedulerFactory` or a stage.

    Raises:
        UserError: A value out of its range.
    """
    if not 0 <= final_fraction <= 1:
        raise UserError(f"final_fraction is final over initial rate, 0 to 1; got {final_fraction}.")
    _check_warmup(warmup_epochs)
    return partial(
        _scaled, factor=partial(_cosine_factor, warmup_epochs=warmup_epochs, final_fraction=final_fraction)
    )


def slowed(schedule: Schedule, factor: float) -> Schedule:
    """Return the schedule with all of its rates multiplied by ``factor``.

    Args:
        schedule: Builds a fresh scheduler on the optimizer's rates.
        factor: > 0; 1 changes nothing.
    """
    return schedule if factor == 1 else partial(_slowed, schedule=schedule, factor=factor)


def _slowed(optimizer: Optimizer, epochs: int, schedule: Schedule, factor: float) -> LRScheduler:
    for group in optimizer.param_groups:
        group["lr"] *= factor
        group["initial_lr"] = group["lr"]  # torch keeps that of the first schedule
    return schedule(optimizer, epochs)


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{name} must be greater than 0; got {value}.")


def _check_warmup(warmup_epochs: int) -> None:
    if warmup_epochs < 0:
        raise UserError(f"warmup_epochs is a number of epochs, 0 for none; got {warmup_epochs}.")


def _scaled(optimizer: Optimizer, epochs: int, factor: Factor) -> LambdaLR:
    return LambdaLR(optimizer, partial(_factor_at, epochs=epochs, factor=factor))


def _factor_at(epoch: int, *, epochs: int, factor: Factor) -> float:
    return factor(epoch, epochs)


def _multistep_factor(
    epoch: int, epochs: int, *, milestones: Sequence[float], gamma: float, warmup_epochs: int
) -> float:
    if epoch < warmup_epochs:
        return (epoch + 1) / warmup_epochs
    return gamma ** sum(epoch >= round(fraction * epochs) for fraction in milestones)


def _cosine_factor(epoch: int, epochs: int, *, warmup_epochs: int, final_fraction: float) -> float:
    if epoch < warmup_epochs:
        return (epoch + 1) / warmup_epochs
    progress = min(1.0, (epoch - warmup_epochs) / max(1, epochs - warmup_epochs))
    return final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * progress)) / 2
