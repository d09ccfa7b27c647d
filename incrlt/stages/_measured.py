"""A stage whose work is done before its first epoch: what follows is one epoch that measures and changes nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from incrlt.models.network import ExpertNetwork
from incrlt.stages.lws import classification
from incrlt.types import Stage


def measured(name: str, prepare: Callable[[ExpertNetwork, int], None]) -> Stage:
    """Return a stage of one epoch at learning rate 0, for classifiers that are computed and not trained.

    Args:
        name: Shown in logs, with the cross entropy of the new classifier on classes drawn alike.
        prepare: Computes it; see :class:`incrlt.types.Stage`.
    """
    return Stage(
        name,
        1,
        lr=0.0,
        parameters=_scales,
        sampler="class_aware",
        frozen_backbone=True,
        freeze_old=False,
        loss=classification,
        steady=True,
        rebalanced=True,
        prepare=prepare,
    )


def cleared(first: Stage, clear: Callable[[ExpertNetwork], None]) -> Stage:
    """Return the first stage, which takes away what evaluation reads: later stages of the experts read as it does.

    Args:
        first: The strategy's first stage; what it prepares comes before.
        clear: Takes it away.
    """
    return replace(first, prepare=functools.partial(_prepare_and_clear, first.prepare, clear))


def _prepare_and_clear(
    before: Callable[[ExpertNetwork, int], None] | None,
    clear: Callable[[ExpertNetwork], None],
    network: ExpertNetwork,
    num_old: int,
) -> None:
    if before is not None:
        before(network, num_old)
    clear(network)


def _scales(model: nn.Module) -> list[dict[str, object]]:
    """An optimizer wants something to hold; without rate and decay it stays."""
    return [{"params": [head.class_scale for head in model.final_heads], "lr": 0.0, "weight_decay": 0.0}]
