"""A stage whose work is done before its first epoch: what follows is one epoch that measures and changes nothing."""

from __future__ import annotations

from collections.abc import Callable

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


def _scales(model: nn.Module) -> list[dict[str, object]]:
    """An optimizer wants something to hold; without rate and decay it stays."""
    return [{"params": [head.class_scale for head in model.final_heads], "lr": 0.0, "weight_decay": 0.0}]
