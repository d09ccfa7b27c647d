"""What the template asks of a model, and the adapter by which any other module answers it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import incrlt._compat  # noqa: F401  (must come before avalanche)

import torch
from avalanche.models.utils import avalanche_forward
from torch import Tensor, nn

from incrlt.errors import UserError
from incrlt.models.heads import Replaced
from incrlt.models.maps import Maps
from incrlt.models.network import ExpertNetwork
from incrlt.roles import State
from incrlt.types import ModelOutput


class Network(Protocol):
    """A network as the template sees it; :class:`~incrlt.models.ExpertNetwork` is one."""

    class_ids: list[int]
    tells_maps: bool

    @property
    def num_classes(self) -> int:
        """Classes that have arrived."""

    @property
    def num_experts(self) -> int:
        """Experts K."""

    @property
    def own_parameters(self) -> list[nn.Parameter]:
        """Parameters that serve a single expert."""

    @property
    def has_cosine_heads(self) -> bool:
        """Whether every head is a cosine head."""

    def grow(self, new_class_ids: Sequence[int]) -> Replaced:
        """Append classes; return the parameters that growth replaced."""

    def extract(self, x: Tensor) -> Tensor:
        """Map images ``[B, c, H, W]`` to features ``[K, B, D]``."""

    def extract_maps(self, x: Tensor) -> tuple[Tensor, Maps]:
        """Return the map of each stage beside the features."""

    def classify(self, features: Tensor, rebalanced: bool, maps: Maps | None = None) -> ModelOutput:
        """Map features ``[K, B, D]`` to the output of all experts; maps are passed on."""

    def to_labels(self, logits: Tensor, width: int = 0) -> Tensor:
        """Move columns from arrival order to label ids."""

    def with_floor(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Make the loss of classes that have not arrived a number of ordinary size."""

    def positions(self, labels: Tensor) -> Tensor:
        """Map label ids ``[B]`` to arrival positions ``[B]``."""

    def freeze_old(self, num_rows: int) -> None:
        """Freeze the first rows of every head."""

    def restore_frozen(self) -> None:
        """Put frozen rows back."""

    def freeze_backbone(self) -> None:
        """Keep the statistics of stem and branches."""

    def state(self) -> State:
        """Return the network as tensors and plain data."""


class ForeignNetwork:
    """Any module that maps a batch to logits by label id, seen as a network with one expert and nothing to freeze.

    Avalanche adapts such a model itself, so that growth is not this class's business: no class ever arrives here, and
    positions are label ids.

    Args:
        model: The module; a multi-task one is given the task labels of the batch.
        tasks: Tells those.
    """

    num_classes, num_experts, has_cosine_heads = 0, 1, False
    tells_maps = False

    def __init__(self, model: nn.Module, tasks: Callable[[], Tensor]) -> None:
        self.model, self._tasks = model, tasks
        self.class_ids: list[int] = []
        self.own_parameters: list[nn.Parameter] = []

    def grow(self, new_class_ids: Sequence[int]) -> Replaced:
        """Nothing grows here."""
        return []

    def extract(self, x: Tensor) -> Tensor:
        """Run the module; its logits ``[1, B, L]`` stand for features."""
        logits: Tensor = avalanche_forward(self.model, x, self._tasks())
        return logits[None]

    def extract_maps(self, x: Tensor) -> tuple[Tensor, Maps]:
        """There are no maps to know."""
        return self.extract(x), ()

    def classify(self, features: Tensor, rebalanced: bool, maps: Maps | None = None) -> ModelOutput:
        """Return the logits."""
        return ModelOutput(features[0], features)

    def to_labels(self, logits: Tensor, width: int = 0) -> Tensor:
        """Columns are label ids already."""
        return logits

    def with_floor(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits are the module's own."""
        return logits

    def positions(self, labels: Tensor) -> Tensor:
        """Positions are label ids."""
        return labels

    def freeze_old(self, num_rows: int) -> None:
        """There are no rows to know."""

    def restore_frozen(self) -> None:
        """There are no rows to know."""

    def freeze_backbone(self) -> None:
        """There is no backbone to know."""

    def state(self) -> State:
        """A foreign model cannot be saved: only its own code can build it.

        Raises:
            UserError: Always.
        """
        raise UserError("only strategies with a network from incrlt.models.build can be saved")


def at_the_door(model: nn.Module, tasks: Callable[[], Tensor]) -> Network:
    """Return what the template works with: an expert network as it is, any other module in its adapter.

    Args:
        model: As the user gave it.
        tasks: Tells the task labels of the batch.

    Raises:
        UserError: An expert network in a wrapper, whose heads would never grow.
    """
    if isinstance(model, ExpertNetwork):
        return model
    if any(isinstance(part, ExpertNetwork) for part in model.modules()):
        raise UserError(
            f"model is an expert network inside a {type(model).__name__}, and its heads could not grow there; give the "
            "bare network. step='compile' compiles its backbone."
        )
    return ForeignNetwork(model, tasks)


def follow(network: Network, model: nn.Module) -> None:
    """Take the model that a plugin has put in ``strategy.model``, or refuse it.

    Args:
        network: What the template works with.
        model: ``strategy.model`` as it is now.

    Raises:
        UserError: An expert network was replaced, or takes the place of another model.
    """
    if isinstance(network, ForeignNetwork) and not isinstance(model, ExpertNetwork):
        network.model = model
    elif network is not model:
        raise UserError(
            f"a plugin put another model ({type(model).__name__}) in strategy.model; heads, teacher and optimizer "
            "belong to the one that the strategy was made with. Load its weights instead: "
            "strategy.model.load_state_dict(other.state_dict())."
        )


def stay(device: torch.device, own: torch.device) -> None:
    """Refuse another device than the network's: batches would go there alone.

    Args:
        device: ``strategy.device`` as it is now.
        own: Where the strategy was made.

    Raises:
        UserError: A plugin or a script changed it.
    """
    if device != own:
        raise UserError(
            f"strategy.device is {device}, and the strategy was made for {own}, where its network and its random "
            f"generators are. Make a strategy with device={str(device)!r}."
        )


def position_table(network: Network, device: torch.device) -> Tensor | None:
    """Return label id to arrival position ``[largest id + 1]`` on the device; None where they are the same.

    Looking a label up in it waits for no device, where :meth:`Network.positions` does.
    """
    if not network.class_ids:
        return None
    return network.positions(torch.arange(max(network.class_ids) + 1)).to(device)
