"""cRT: re-train the classifier on frozen features, from the start.

Kang et al., Decoupling Representation and Classifier, ICLR 2020; official code facebookresearch/classifier-balancing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from incrlt.experiment.fields import Count, Positive
from incrlt.experiment.ranges import check_fields
from incrlt.models.network import ExpertNetwork
from incrlt.schedules import cosine
from incrlt.stages.lws import classification
from incrlt.training.hooks import Hooks
from incrlt.types import Stage


@dataclass(frozen=True)
class CRT:
    r"""Freeze the backbone, draw new rows for all classes, draw classes uniformly, and train the head alone.

    .. math:: L = L_{ce}(\bar z), \quad z = W f, \quad W \text{ drawn anew, } f \text{ frozen}

    Counts: none; the sampler evens classes out. The next experience goes on from the new rows.

    Deviations: epochs and rate are those of LWS here, so that the two compare; official 10 epochs of 512 images a step
    at 0.2, where an epoch draws as many images as if all classes were as large as the largest. The scale of a cosine
    head, which the paper does not have, stays.
    """

    name = "crt"
    kind = "rebalance"
    title = "cRT"
    needs: ClassVar[dict[str, str]] = {"tensors": "cache_features"}
    later_stages = (("crt", "epochs", "stream"),)

    epochs: Count = 30
    """Epochs of the stage, each as long as one of the first."""
    lr: Positive = 0.1
    """Learning rate, cosine schedule to 0."""
    restart: bool = True
    """Draw the rows anew; otherwise training goes on from the rows of the first stage."""
    cache_features: bool = False
    """Compute the frozen features once per stage, of images without random augmentation: faster, other numbers."""

    def __post_init__(self) -> None:
        check_fields(self)

    def stages(self, strategy: Hooks, first: Stage) -> Sequence[Stage]:
        """Return the strategy's first stage and this one."""
        return first, Stage(
            "crt",
            self.epochs,
            lr=self.lr,
            parameters=_rows,
            schedule=cosine(),
            sampler="class_aware",
            frozen_backbone=True,
            cache_features=self.cache_features,
            freeze_old=False,
            loss=classification,
            steady=True,
            rebalanced=True,
            prepare=_restart if self.restart else None,
        )


def _rows(model: nn.Module) -> list[dict[str, object]]:
    return [{"params": [parameter for head in model.final_heads for parameter in head.classifier]}]


def _restart(network: ExpertNetwork, num_old: int) -> None:
    for head in network.final_heads:
        head.restart()
