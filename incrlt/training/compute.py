"""Where and how networks run: device, precision, memory order, processes, backend of the losses, a step's update."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from incrlt.errors import UserError, short
from incrlt.experiment.clashes import NARROWEST_CHANNELS_LAST
from incrlt.kernels.backends import BACKENDS
from incrlt.models.maps import Maps
from incrlt.models.network import ExpertNetwork
from incrlt.models.precision import at_least_float
from incrlt.models.synced_norm import synced
from incrlt.processes import world
from incrlt.roles import State
from incrlt.training.network import Network
from incrlt.training.optim import held_by
from incrlt.training.randomness import global_state, set_global_state
from incrlt.types import ModelOutput

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names that ``precision`` may take, and the autocast type of each."""

COMPILERS = ("torch._dynamo", "torch._inductor")
"""Where errors of ``torch.compile`` itself come from."""

M = TypeVar("M", bound=nn.Module)


def _step(optimizer: Optimizer) -> None:
    """Step, and say whose error it is where an optimizer of a user's own turns out to need a closure."""
    try:
        optimizer.step()
    except (AssertionError, TypeError) as error:
        kind = type(optimizer)
        if kind.__module__.startswith("torch.") or "closure" not in inspect.signature(kind.step).parameters:
            raise
        raise UserError(
            f"the optimizer {kind.__name__} cannot step without a closure ({short(error)}); a strategy computes the "
            "loss once and calls step(). Take another one, such as SGD or AdamW."
        ) from error


def overwriting(module: nn.Module) -> str | None:
    """Return the name of a convolution that overwrites memory in channels-last order on a CPU, None without one.

    Those are strided 1x1 convolutions of few channels (torch 2.14, in each of three shapes tried under glibc's checks;
    3x3 ones, larger patches and 1x1 ones without a stride did not, nor did narrow outputs).
    """
    for name, part in module.named_modules():
        strided = isinstance(part, nn.Conv2d) and set(part.kernel_size) == {1} and max(part.stride) > 1
        if strided and part.in_channels // part.groups < NARROWEST_CHANNELS_LAST:
            return name
    return None


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
        world: The processes that share the passes of images.
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
        self.world = world()
        self.cast_cache = True
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._compiled: dict[tuple[int, bool], Callable[[Tensor], Any]] = {}

    def place(self, module: M) -> M:
        """Move a module to the device, in the memory order.

        Raises:
            UserError: See :meth:`check_order`.
        """
        self.check_order(module)
        memory_format = torch.channels_last if self.channels_last else torch.preserve_format
        return module.to(self.device).to(memory_format=memory_format)

    def check_order(self, module: nn.Module) -> None:
        """Refuse, before anything runs, channels-last order where PyTorch overwrites memory with it.

        Raises:
            UserError: The convolution.
        """
        name = overwriting(module) if self.channels_last and self.device.type == "cpu" else None
        if name is not None:
            raise UserError(
                f"channels_last on a CPU takes strided 1x1 convolutions of {NARROWEST_CHANNELS_LAST} channels or more; "
                f"{name} of the {type(module).__name__} has {module.get_submodule(name).in_channels}, with which "
                "PyTorch writes beyond its memory. Set channels_last=False, or take a wider network."
            )

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

    def share(self, network: Network) -> None:
        """Prepare a network for several processes: one beginning, and the batch statistics of all where wanted.

        Raises:
            UserError: A model that is not an expert network, whose passes nobody could share out.
        """
        if self.world.size == 1:
            return
        if not isinstance(network, ExpertNetwork):
            raise UserError(
                f"{self.world.size} processes share an expert network, not a model of another kind; build it with "
                "incrlt.models.build(...), or run one process."
            )
        beginning = {name: value.cpu() for name, value in network.state_dict().items()}
        network.load_state_dict(self.world.tell(beginning))
        if self.world.batch_norm == "sync":
            for part in _spread_parts(network):
                synced(part, self.world)

    def draw_alike(self) -> None:
        """Give every process the random states of the first, so that they draw the same numbers."""
        if self.world.size > 1:
            set_global_state(self.world.tell(global_state(self.device)), self.device)

    def agree(self, network: Network) -> None:
        """Make local running statistics those of all processes, and see that all hold the same network.

        Raises:
            UserError: They do not.
        """
        if self.world.size == 1 or not isinstance(network, ExpertNetwork):
            return
        if self.world.batch_norm == "local":
            self.world.average([buffer for part in _spread_parts(network) for buffer in part.buffers()])
        self.world.check_same("the network", network.state_dict().values())

    def features(self, network: Network, images: Tensor, *, backbone_trains: bool = True) -> Tensor:
        """Run stem and branches in training: features ``[K, B, D]`` in fp32.

        Args:
            network: The bare one; where it was compiled, that callable runs.
            images: ``[B, c, H, W]``.
            backbone_trains: Keep what a gradient needs.

        Raises:
            UserError: The network cannot be compiled here.
        """
        with self.autocast(), torch.set_grad_enabled(torch.is_grad_enabled() and backbone_trains):
            return at_least_float(self.extract(network, images))

    def features_and_maps(
        self, network: Network, images: Tensor, *, backbone_trains: bool = True
    ) -> tuple[Tensor, Maps]:
        """Do what :meth:`features` does, and tell the map of each stage ``[K, B, c, h, w]``, in fp32 too."""

        def flat(images: Tensor) -> tuple[Tensor, ...]:
            features, maps = self._compiled.get((id(network), True), network.extract_maps)(images)
            return (features, *maps)

        gradients = torch.set_grad_enabled(torch.is_grad_enabled() and backbone_trains)
        with self.autocast(), gradients, self._compiler_explained():
            features, *maps = self.world.spread_all(flat, images)
        return at_least_float(features), tuple(map(at_least_float, maps))

    def extract(self, network: Network, images: Tensor) -> Tensor:
        """Run stem and branches ``[K, B, D]``, each process its own rows, in whatever context there is."""
        with self._compiler_explained():
            return self.world.spread(self._compiled.get((id(network), False), network.extract), images)

    @contextlib.contextmanager
    def _compiler_explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self._compiled and type(error).__module__.startswith(COMPILERS):
                raise UserError(
                    f"step 'compile': torch.compile fails here ({type(error).__name__}: {short(error)}). A C++ "
                    "compiler is needed on a CPU, Triton on a GPU; or set step: eager."
                ) from error
            raise

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
            features = self.world.spread(network.extract, images)
        return network.classify(at_least_float(features), rebalanced)

    def backward(self, loss: Tensor, optimizer: Optimizer, retain_graph: bool, module: nn.Module) -> None:
        """Run the backward pass; gradients are whole and unscaled before plugins and clipping see them."""
        self.scaler.scale(loss).backward(retain_graph=retain_graph)
        self.world.average([p.grad for p in module.parameters() if p.grad is not None])
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
            _step(optimizer)

    def state_dict(self) -> State:
        """Return the state of the loss scaler."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Restore the loss scaler."""
        self.scaler.load_state_dict(state)


def _spread_parts(network: ExpertNetwork) -> list[nn.Module]:
    """Return what runs on a process's own rows: the parts whose batch norms see the statistics of all, or of a few."""
    contrast = [] if network.contrast is None else [network.contrast.key_branches]
    return [network.stem, network.branches, *contrast]
