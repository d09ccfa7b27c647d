"""Experiments that no machine holds, refused before anything is read.

Every size of its own has a bound in the schema (``incrlt.experiment.fields``); what is large only together (64 experts
of 1,024 channels, a batch of 100,000 images on them) is estimated here, from below.
"""

from __future__ import annotations

import re
from typing import Final

from incrlt.benchmarks import facts
from incrlt.experiment.sections import Experiment
from incrlt.files import Plain

MOST_GIGABYTES: Final = 256
"""Memory that an experiment may ask for: more than any accelerator has."""
BYTES_PER_NUMBER: Final = 4
"""fp32."""
BYTES_PER_WEIGHT: Final = 12
"""A weight, its gradient and its momentum in fp32."""
STAGES: Final = 1 + 2**2 + 4**2
"""Squared channels of the three stages over those of the first."""
FOLDER_SIDE: Final = 32
"""Side in pixels of a folder's pictures where none is given."""

Part = tuple[float, str, str]
"""Bytes, what takes them, and which settings they follow."""


def too_large(experiment: Experiment) -> list[str]:
    """Return a sentence where the experiment would not fit into any memory."""
    parts = [_network(experiment), _batch(experiment), _queue(experiment), _router(experiment)]
    gigabytes = sum(part[0] for part in parts) / 1e9
    if gigabytes <= MOST_GIGABYTES:
        return []
    _, what, settings = max(parts)
    return [
        f"the experiment would take {gigabytes:,.0f} GB of memory or more, most of it for {what}; at most "
        f"{MOST_GIGABYTES} GB are taken. Make {settings} smaller."
    ]


def weights_of(name: str, width: int, experts: Plain) -> float:
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


def _network(experiment: Experiment) -> Part:
    weights = weights_of(experiment.model.name, experiment.model.width, experiment.experts.hyper_parameters)
    what = f"a network of about {weights:.1g} weights, with gradients and momentum"
    return weights * BYTES_PER_WEIGHT, what, "model.width or the number or width of experts"


def _batch(experiment: Experiment) -> Part:
    """The images of a step and the first map that the network makes of them."""
    chosen, training = experiment.benchmark, experiment.training
    side, channels = chosen.image_size or FOLDER_SIDE, 3
    if chosen.dataset != "folder":
        channels, side, _ = facts.info(chosen.dataset).image_shape
        side = chosen.image_size or side
    images = max(training.batch_size, training.eval_batch_size)
    numbers = images * side**2 * (channels + experiment.model.width)
    settings = "training.batch_size, training.eval_batch_size, model.width or benchmark.image_size"
    return numbers * BYTES_PER_NUMBER, f"a batch of {images:,} images", settings


def _queue(experiment: Experiment) -> Part:
    """What a contrastive term remembers; other methods have no queue."""
    experts = experiment.experts.hyper_parameters
    numbers = experts.get("num_experts", 1) * experts.get("queue", 0) * experts.get("projection", 0)
    used = bool(experts.get("contrastive"))
    return (
        used * numbers * BYTES_PER_NUMBER,
        "the queue of experts.contrastive",
        "experts.queue or projection",
    )


def _router(experiment: Experiment) -> Part:
    """Its layers between logits and decisions."""
    if experiment.router is None:
        return 0.0, "", ""
    router, experts = experiment.router.hyper_parameters, experiment.experts.hyper_parameters
    features = 4 * experiment.model.width * experts.get("width_factor", 1.0)
    decisions = experts.get("num_experts", 1) - 1
    weights = decisions * (
        features * router.get("hidden", 0) + router.get("hidden", 0) + router.get("top", 0)
    )
    return weights * BYTES_PER_WEIGHT, "the router's layers", "router.top or router.hidden"
