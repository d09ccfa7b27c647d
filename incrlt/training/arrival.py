"""What an experience tells of its classes, and how a network takes the new ones in."""

from __future__ import annotations

from collections.abc import Sequence

from incrlt.benchmarks.identity import check_names
from incrlt.models.heads import Replaced
from incrlt.models.network import ExpertNetwork
from incrlt.roles import Experience


def classes_of(experience: Experience) -> list[int]:
    """Return the label ids of an experience, ascending; benchmarks without a class timeline are read by target."""
    classes = getattr(experience, "classes_in_this_experience", None)
    return sorted({int(label) for label in (experience.dataset.targets if classes is None else classes)})


def class_names_of(experience: Experience) -> Sequence[str] | None:
    """Return the names of a benchmark's classes by label id; None where it does not tell them."""
    stream = getattr(experience, "origin_stream", None)
    return getattr(getattr(stream, "benchmark", None), "class_names", None)


def take_in(network: ExpertNetwork, experience: Experience) -> Replaced:
    """Grow the heads by the classes that are new; return the parameters that growth replaced.

    Args:
        network: Learns the names of the classes too, where the benchmark tells them.
        experience: The one that arrives.

    Raises:
        UserError: The benchmark calls a class by another name than one before it.
    """
    network.class_names = check_names(network.class_names or {}, experience) or None
    known = set(network.class_ids)
    new = [label for label in classes_of(experience) if label not in known]
    return network.grow(new) if new else []
