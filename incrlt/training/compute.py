"""Where and how networks run: device, precision, memory order, backend of the losses, and the update of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from incrlt.errors import UserError
from incrlt.kernels.backends import BACKENDS
from incrlt.models.maps import Maps
from incrlt.models.precision import at_least_float
from incrlt.roles import State
from incrlt.training.network import Network
from incrlt.training.optim import held_by
from incrlt.types import ModelOutput

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names that ``precision`` may take, and the autocast type of each."""

M = TypeVar("M", bound=nn.Module)


class Compute:
    """How one strategy's networks run; it knows no strategy and no stage.

    Args:
        device: Where.
        precision: A name of :data:`PRECISIONS`; ``fp16`` scales its losses, on CUDA only.
        channels_last: Keep images and weights in channels-last order.
        kernels: Backend of the fused losses.
        grad_clip: Largest gradient norm; None does not clip.

    Attributes:
        scaler: Scales losses in fp16, and does nothing otherwise.
        cast_cache: Whether autocast may keep casts of weights; a CUDA graph must not hold casts made outside of it.

    Raises:
        UserError: A name that is not known, or fp16 on a CPU.
    """

    def __init__(
        self,
        device: torch.device,
        precision: str = "fp32",
        channels_last: bool = False,
        kernels: str = "auto",
        grad_clip: float | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise UserError(f"precision {precision!r} is not known; allowed: {', '.join(PRECISIONS)}.")
        if kernels not in BACKENDS:
            raise UserError(f"kernels {kernels!r} is not known; allowed: {', '.join(BACKENDS)}.")
        if precision == "fp16" and device.type != "cuda":
            raise UserError("precision fp16 needs a CUDA device; use bf16 or fp32 on the CPU.")
        self.device, self.precision, self.channels_last = device, precision, channels_last
        self.kernels, self.grad_clip = kernels, grad_clip
        self.cast_cache = True
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._compiled: dict[tuple[int, bool], Callable[[Tensor], Any]] = {}

    def place(self, module: M) -> M:
        """Move a module to the device, in the memory order."""
        memory_format = torch.channels_last if self.channels_last else torch.preserve_format
        return module.to(self.device).to(memory_format=memory_format)

    def freeze(self, network: M) -> M:
        """Place a network that is only asked: in evaluation mode, without gradients."""
        return self.place(network).eval().requires_grad_(False)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which networks run."""
        dtype = PRECISIONS[self.precision]
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype, cache_enabled=self.cast_cache)

    def compile(self, network: Network) -> None:
        """Run the training passes of a network by ``torch.compile``; it is compiled when it first runs."""
        extract = network.extract_maps if network.tells_maps else network.extract
        self._compiled[id(network), network.tells_maps] = torch.compile(extract)

    def features(self, network: Network, images: Tensor, *, backbone_trains: bool = True) -> Tensor:
        """Run stem and branches in training: features ``[K, B, D]`` in fp32.

        Args:
            network: The bare one; where it was compiled, that callable runs.
            images: ``[B, c, H, W]``.
            backbone_trains: Keep what a gradient needs.
        """
        extract = self._compiled.get((id(network), False), network.extract)
        with self.autocast(), torch.set_grad_enabled(torch.is_grad_enabled() and backbone_trains):
            features: Tensor = extract(images).float()
        return features

    def features_and_maps(
        self, network: Network, images: Tensor, *, backbone_trains: bool = True
    ) -> tuple[Tensor, Maps]:
        """Do what :meth:`features` does, and tell the map of each stage ``[K, B, c, h, w]``, in fp32 too."""
        extract = self._compiled.get((id(network), True), network.extract_maps)
        with self.autocast(), torch.set_grad_enabled(torch.is_grad_enabled() and backbone_trains):
            features, maps = extract(images)
        return features.float(), tuple(map(at_least_float, maps))

    def run(self, network: Network, images: Tensor, *, rebalanced: bool, maps: bool = False) -> ModelOutput:
        """Ask a network: features under autocast, logits in fp32.

        Args:
            network: The bare one.
            images: ``[B, c, H, W]``.
            rebalanced: Read the logits as evaluation does.
            maps: Tell the map of each stage too.
        """
        if maps:
            features, told = self.features_and_maps(network, images)
            return network.classify(features, rebalanced, told)
        with self.autocast():
            features = network.extract(images)
        return network.classify(features.float(), rebalanced)

    def backward(self, loss: Tensor, optimizer: Optimizer, retain_graph: bool) -> None:
        """Run the backward pass; gradients are unscaled before plugins and clipping see them."""
        self.scaler.scale(loss).backward(retain_graph=retain_graph)
        if self.scaler.is_enabled():
            self.scaler.unscale_(optimizer)

    def update(self, optimizer: Optimizer) -> None:
        """Clip and step."""
        if self.grad_clip is not None:
            # only what trains: parameters outside a stage's optimizer keep gradients nobody clears
            nn.utils.clip_grad_norm_(held_by(optimizer), self.grad_clip)
        if self.scaler.is_enabled():
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            optimizer.step()

    def state_dict(self) -> State:
        """Return the state of the loss scaler."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Restore the loss scaler."""
        self.scaler.load_state_dict(state)
