"""Networks that are only asked: the one of the experience before, and a method's guide."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from incrlt.errors import UserError
from incrlt.models.network import ExpertNetwork
from incrlt.roles import State
from incrlt.training.compute import Compute
from incrlt.types import ModelOutput


class Teacher:
    """A frozen network and its answers.

    Args:
        compute: How it runs.
        network: Frozen and placed here; None until :meth:`take`.
    """

    def __init__(self, compute: Compute, network: ExpertNetwork | None = None) -> None:
        self._compute = compute
        self.network = None if network is None else compute.freeze(network)

    def take(self, network: ExpertNetwork) -> None:
        """Keep a frozen copy of a network as it is now."""
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def output(self, images: Tensor, *, rebalanced: bool) -> ModelOutput | None:
        """Return its answer to a batch ``[B, c, H, W]``, or None where there is no network."""
        if self.network is None:
            return None
        maps = self.network.tells_maps
        return self._compute.run(self.network, images, rebalanced=rebalanced, maps=maps)

    def state_dict(self) -> State | None:
        """Return the network's state, None where there is none."""
        return None if self.network is None else self.network.state()

    def load_state_dict(self, state: State | None, like: ExpertNetwork) -> None:
        """Restore the network; a copy of ``like`` takes the state."""
        if state is None:
            return
        network = copy.deepcopy(like)
        network.load_state(state)
        self.network = self._compute.freeze(network)


def check_guide(guide: ExpertNetwork, network: ExpertNetwork, names: Sequence[str] | None) -> None:
    """Refuse a guide that was taught other classes, or the same ones in another order.

    Args:
        guide: Trained before.
        network: The one that trains, grown.
        names: Names of the benchmark's classes by label id; None where it does not tell them.

    Raises:
        UserError: What differs.
    """
    if guide.class_ids != network.class_ids:
        raise UserError(
            f"experts.teacher knows {guide.num_classes} classes, in its own order; this experience has "
            f"{network.num_classes}. Distil a teacher that was trained on the same classes in one task."
        )
    if guide.class_names is None or names is None:  # label ids are all that is known
        return
    for label in network.class_ids:
        if guide.class_names.get(label) != names[label]:
            raise UserError(
                f"class {label} is {guide.class_names.get(label)!r} to experts.teacher and {names[label]!r} here. "
                "Distil a teacher that was trained with the same class order (benchmark.order, seeds.class_order)."
            )
