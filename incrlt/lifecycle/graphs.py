"""A network as graphs that ONNX can hold: one with all experts, and one per expert for a true early exit.

Pixels go in as uint8 ``[B, C, H, W]``; normalisation, router and softmax are inside. In ONNX a decision is one for the
whole batch, so an early exit of single pictures needs a graph per expert: the stem with the first expert, and each
later expert on the stem's maps of the pictures that are left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from incrlt.lifecycle.answers import NEAREST_SCALE
from incrlt.losses.routing import running_means
from incrlt.models.inference import expert_answer
from incrlt.models.network import ExpertNetwork

Scores = Callable[[Any], Tensor]


class Pixels(nn.Module):
    """uint8 pixels ``[B, C, H, W]`` to what the network takes."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: ExpertNetwork) -> None:
        super().__init__()
        assert network.normalisation is not None
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(network.normalisation[name]).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise, as :meth:`ExpertNetwork.prepare` does."""
        return (pixels.float() / 255 - self.mean) / self.std


class AllExperts(nn.Module):
    """Everything in one graph: probabilities ``[B, C]`` of the routed answer, logits ``[B, C]``, experts used ``[B]``.

    Args:
        network: In evaluation mode.
        readout: Makes scores of the network's output where the head does not answer (nearest mean of exemplars).
    """

    def __init__(self, network: ExpertNetwork, readout: Scores | None = None) -> None:
        super().__init__()
        self.pixels, self.network, self.readout = Pixels(network), network, readout

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Answer pictures uint8 ``[B, C, H, W]``."""
        network = self.network
        output = network.classify(network.extract(self.pixels(pixels)), rebalanced=True)
        experts = output.expert_logits
        if self.readout is not None:
            scores = NEAREST_SCALE * self.readout(output)
            return scores.softmax(1), scores, self._all(experts)
        if network.router is None:
            return output.logits.softmax(1), output.logits, self._all(experts)
        scores = network.router(experts, output.known_features, output.combine)
        goes_on, used = (
            torch.ones_like(scores[0], dtype=torch.bool),
            torch.ones_like(scores[0], dtype=torch.int64),
        )
        answers = running_means(experts, output.combine)
        answer = answers[0]
        for k in range(len(scores)):
            goes_on = goes_on & (scores[k] > network.router.threshold)
            used = used + goes_on.long()
            answer = torch.where(goes_on[:, None], answers[k + 1], answer)
        return answer.softmax(1), answer, used

    def _all(self, experts: Tensor) -> Tensor:
        return torch.full_like(experts[0, :, 0], len(experts)).long()


class FirstExpert(nn.Module):
    """Stem and first expert: logits and answer ``[B, C]``, what to decide by ``[B]``, and maps for later experts."""

    def __init__(self, network: ExpertNetwork) -> None:
        super().__init__()
        self.pixels, self.network = Pixels(network), network

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Answer pictures uint8 ``[B, C, H, W]``."""
        shared = self.network.shared(self.pixels(pixels))
        maps = shared if isinstance(shared, tuple) else (shared,)
        logits, features = expert_answer(self.network, 0, shared)
        answer = self.network.combine(logits[None])
        return logits, answer, _score(self.network, 0, answer, features), *maps


class LaterExpert(nn.Module):
    """Expert k on maps: its logits ``[B, C]``, the answer of the first k + 1 ``[B, C]``, what to decide by ``[B]``.

    Args:
        network: In evaluation mode.
        k: Number of the expert, from 1.
    """

    def __init__(self, network: ExpertNetwork, k: int) -> None:
        super().__init__()
        self.network, self.k = network, k

    def forward(self, before: Tensor, *maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Answer from the logits of the experts before ``[B, k, C]`` and the stem's maps."""
        shared = maps if len(maps) > 1 else maps[0]
        logits, features = expert_answer(self.network, self.k, shared)
        answer = self.network.combine(torch.cat([before.transpose(0, 1), logits[None]]))
        return logits, answer, _score(self.network, self.k, answer, features)


def _score(network: ExpertNetwork, k: int, answer: Tensor, features: Tensor) -> Tensor:
    """Return what the router decides by; the last expert, and a network without a router, have nothing to decide."""
    if network.router is None or k >= network.num_experts - 1:
        return torch.zeros_like(answer[:, 0])
    return network.router.score(k, answer, features)
