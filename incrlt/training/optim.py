"""What must happen to an optimizer when a head grows, and how a stage gets one of its own."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from incrlt.errors import UserError
from incrlt.roles import State
from incrlt.types import Stage


def held_by(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters of all groups of an optimizer."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def replace_parameters(optimizer: Optimizer, replaced: Sequence[tuple[nn.Parameter, nn.Parameter]]) -> None:
    """Put grown parameters in the place of the old ones and carry their state row by row.

    Momentum and Adam moments of old rows are kept, those of new rows start at zero; Avalanche's own update
    throws the state of a grown parameter away.

    Args:
        optimizer: Changed in place; parameters it does not hold are left alone.
        replaced: (old, new) pairs whose leading rows are the same classes.
    """
    new_of = {id(old): new for old, new in replaced}
    for group in optimizer.param_groups:
        group["params"] = [new_of.get(id(parameter), parameter) for parameter in group["params"]]
    for old, new in replaced:
        if old in optimizer.state:
            state = optimizer.state.pop(old)
            optimizer.state[new] = {key: _fit(value, old, new) for key, value in state.items()}


def _fit(value: object, old: nn.Parameter, new: nn.Parameter) -> object:
    if not isinstance(value, Tensor) or value.shape != old.shape:
        return value  # a step counter
    grown = torch.zeros_like(new, dtype=value.dtype)
    kept = min(len(old), len(new))
    grown[:kept] = value[:kept]
    return grown


def stage_optimizer(like: Optimizer, stage: Stage, model: nn.Module) -> Optimizer:
    """Build the optimizer of a stage: the class and defaults of the strategy's, the stage's parameters and rate.

    Args:
        like: The strategy's optimizer.
        stage: Gives ``lr`` and ``parameters``.
        model: Its parameters outside the stage's groups do not train.

    Raises:
        UserError: The optimizer cannot be built anew from its defaults.
    """
    assert stage.lr is not None
    groups = stage.parameters(model) if stage.parameters else [{"params": list(model.parameters())}]
    rates = [{"lr": stage.lr, **group} for group in groups]
    try:
        return type(like)(rates, **{**_settings(like), "lr": stage.lr})
    except (TypeError, ValueError) as reason:
        raise UserError(
            f"stage '{stage.name}' trains with an optimizer of its own, and {type(like).__name__} cannot be built "
            f"from parameters and its defaults: {reason}. Take one of torch.optim, or leave the stage out."
        ) from reason


def _settings(optimizer: Optimizer) -> State:
    """Return the defaults that the constructor takes; AdamW keeps one that it sets itself."""
    taken = inspect.signature(type(optimizer)).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return dict(optimizer.defaults)
    return {name: value for name, value in optimizer.defaults.items() if name in taken}
