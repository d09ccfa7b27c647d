"""What must happen to an optimizer when a head grows, and how a stage gets one of its own."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Final, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from incrlt.errors import UserError
from incrlt.models.heads import Replaced
from incrlt.roles import State
from incrlt.types import Stage

STARTS: Final = {"step_size": "lr", "sum": "initial_accumulator_value"}
"""Values of a state that do not start at zero (Rprop, Adagrad), and the setting that says where."""


def held_by(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters of all groups of an optimizer."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def replace_parameters(optimizer: Optimizer, replaced: Sequence[tuple[nn.Parameter, nn.Parameter]]) -> None:
    """Put grown parameters in the place of the old ones and carry their state row by row.

    Moments of old rows are kept, those of new rows start where the optimizer starts them; Avalanche's own update
    throws the state of a grown parameter away. So do we where the rows of a state cannot be told.

    Args:
        optimizer: Changed in place; parameters it does not hold are left alone.
        replaced: (old, new) pairs whose leading rows are the same classes.
    """
    new_of = {id(old): new for old, new in replaced}
    group_of = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for group in optimizer.param_groups:
        group["params"] = [new_of.get(id(parameter), parameter) for parameter in group["params"]]
    for old, new in replaced:
        if old in optimizer.state:
            state = optimizer.state.pop(old)
            if _has_rows(state, old):
                group = group_of.get(id(old), {})
                optimizer.state[new] = {
                    key: _fit(value, old, new, group.get(STARTS.get(key, ""), 0.0))
                    for key, value in state.items()
                }


class Upkeep:
    """What a strategy's optimizer goes through from experience to experience, also one that a plugin has put in place.

    Args:
        optimizer: As the strategy was made with it: every experience begins with its rates.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._replaced: Replaced = []

    def note(self, replaced: Replaced) -> None:
        """Remember parameters that growth replaced."""
        self._replaced += replaced

    def carry(self, optimizer: Optimizer) -> None:
        """Put them where the old ones were, see :func:`replace_parameters`."""
        replace_parameters(optimizer, self._replaced)
        self._replaced = []

    def begin(self, optimizer: Optimizer, *, first_rates: bool, forget: bool) -> None:
        """Prepare the optimizer for an experience.

        Args:
            optimizer: The strategy's.
            first_rates: Bring the rates back to those of the beginning.
            forget: Forget momentum.
        """
        if first_rates:
            for group, rate in zip(optimizer.param_groups, self._rates, strict=False):
                group["lr"] = rate
        if forget:
            optimizer.state.clear()


def _has_rows(state: State, old: nn.Parameter) -> bool:
    """Tell whether it is known which values of a state belong to which row.

    A value of the parameter's shape has its rows, one that is 1 in some of its sizes (the factored moments of
    Adafactor) has them where its first size is the parameter's; others, and the two kinds of a single row, cannot be
    told apart.
    """
    tensors = [value for value in state.values() if isinstance(value, Tensor) and value.dim()]
    factored = [value for value in tensors if value.shape != old.shape]
    known = all(
        value.dim() == old.dim()
        and all(size in (1, whole) for size, whole in zip(value.shape, old.shape, strict=True))
        for value in factored
    )
    return known and not (factored and len(old) == 1)


def _fit(value: object, old: nn.Parameter, new: nn.Parameter, start: float) -> object:
    if not isinstance(value, Tensor) or value.dim() != old.dim() or len(value) != len(old):
        return value  # a step counter, or a moment over all rows
    if value.shape == new.shape:
        return value
    grown = value.new_full((len(new), *value.shape[1:]), start)
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
        UserError: The stage names no parameter, or the optimizer cannot be built anew from its defaults.
    """
    assert stage.lr is not None
    groups = stage.parameters(model) if stage.parameters else [{"params": list(model.parameters())}]
    groups = [{**group, "params": list(cast(Iterable[nn.Parameter], group["params"]))} for group in groups]
    _check_groups(groups, stage, model)
    rates = [{"lr": stage.lr, **group} for group in groups]
    try:
        return type(like)(rates, **{**_settings(like), "lr": stage.lr})
    except (TypeError, ValueError) as reason:
        raise UserError(
            f"stage '{stage.name}' trains with an optimizer of its own, and {type(like).__name__} cannot be built "
            f"from parameters and its defaults: {reason}. Take one of torch.optim, or leave the stage out."
        ) from reason


def _check_groups(groups: Sequence[State], stage: Stage, model: nn.Module) -> None:
    """Refuse a stage that would run and train nothing, such as the biases of cosine heads, which have none."""
    if any(group["params"] for group in groups):
        return
    heads = list(getattr(model, "heads", ()))
    have = f" The heads of this network have {', '.join(dict(heads[0].named_parameters()))}." if heads else ""
    raise UserError(
        f"stage '{stage.name}' would train nothing: its parameters(model) names none.{have} Name some, or leave the "
        "stage out."
    )


def _settings(optimizer: Optimizer) -> State:
    """Return the defaults that the constructor takes; AdamW keeps one that it sets itself."""
    taken = inspect.signature(type(optimizer)).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return dict(optimizer.defaults)
    return {name: value for name, value in optimizer.defaults.items() if name in taken}


def head_rows(model: nn.Module) -> list[dict[str, object]]:
    """Return the rows of all heads as the groups of a stage; scales stay, they are in no group of official scripts."""
    return [{"params": [head.weight for head in model.heads]}]
