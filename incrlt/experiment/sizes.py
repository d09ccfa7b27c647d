"""Networks that no machine holds, refused before anything is read.

Every size of its own has a bound in the schema (``incrlt.experiment.fields``); what is large only together (64 experts
of 1,024 channels) is estimated here.
"""

from __future__ import annotations

import re
from typing import Any, Final

from incrlt.experiment.sections import Experiment

MOST_GIGABYTES: Final = 256
"""Memory that the weights, gradients and momentum of a network may take: more than any accelerator has."""
BYTES_PER_WEIGHT: Final = 12
"""A weight, its gradient and its momentum in fp32."""
STAGES: Final = 1 + 2**2 + 4**2
"""Squared channels of the three stages over those of the first."""


def too_large(experiment: Experiment) -> list[str]:
    """Return a sentence where the network would not fit into any memory."""
    weights = weights_of(experiment.model.name, experiment.model.width, experiment.experts.hyper_parameters)
    gigabytes = weights * BYTES_PER_WEIGHT / 1e9
    if gigabytes <= MOST_GIGABYTES:
        return []
    return [
        f"the network would have about {weights:.1g} weights, which take {gigabytes:,.0f} GB with gradients and "
        f"momentum; at most {MOST_GIGABYTES} GB are taken. Make model.width or the number or width of experts smaller."
    ]


def weights_of(name: str, width: int, experts: dict[str, Any]) -> float:
    """Return about how many weights a network has, experts that share nothing; 0 of one that is not known here.

    Args:
        name: ``resnet32``.
        width: Channels of its first stage.
        experts: Hyper-parameters of the expert method.

    Example:
        >>> round(weights_of("resnet32", 16, {}))  # the paper's has 464,154 with its head and batch norms
        483840
    """
    match = re.fullmatch(r"resnet([0-9]{1,4})", name)
    blocks = (int(match[1]) - 2) // 6 if match else 0
    one = 9 * 2 * blocks * width**2 * STAGES
    count, factor = experts.get("num_experts", 1), experts.get("width_factor", 1.0)
    return float(one * count * max(1.0, factor) ** 2)
