"""What a network answers in evaluation, by name of read-out: heads, second stage, router."""

from __future__ import annotations

from torch import Tensor, nn

from incrlt.roles import Rebalance, RouterStage
from incrlt.types import ModelOutput

Scores = dict[str, Tensor]
"""Scores ``[B, C]`` by name of read-out; the first one is what Avalanche's metrics see."""


def all_scores(
    own: Scores,
    output: ModelOutput,
    model: nn.Module,
    rebalance: Rebalance | None,
    router: RouterStage | None,
) -> tuple[Scores, Tensor | None]:
    """Return the scores of every read-out of a batch, and how many experts the router would have run ``[B]``.

    Args:
        own: The strategy's read-outs.
        output: The network's answer.
        model: The network.
        rebalance: A second stage that answers beside the heads has ``readouts(model, output)``.
        router: Answers as "routed", once there is a class to answer with.
    """
    beside = getattr(rebalance, "readouts", None)
    scores = dict(own) if beside is None else {**own, **beside(model, output)}
    if router is None or not output.logits.shape[1]:
        return scores, None
    scores["routed"], experts_used = router.read_out(model.router, output)
    return scores, experts_used
