"""K branches of equal shape as one module: grouped convolutions, and batch norms over all experts' channels.

Batch statistics are per channel, so that nothing but the order of rounding differs from running the branches one
after the other. Fewer and larger kernels can help where launching them is what takes the time; on a CPU they cost a few
per cent (``perf/bench_experts.py``), so that networks run their branches in turn unless told otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from incrlt.errors import UserError
from incrlt.models.backbones.resnet import LateBranch, PaddingShortcut


class GroupedBranches(nn.Module):
    """The branches of K experts as one module that owns its parameters.

    Every parameter and statistic is those of the branches, one after the other along the first axis, under the name
    that it has in a branch.

    Args:
        body: A branch whose convolutions and batch norms have been widened to K experts.
        num_experts: Number K of experts.

    Example:
        >>> from incrlt.models import build
        >>> network = build("resnet8", num_experts=2)
        >>> grouped = GroupedBranches.from_branches(network.branches)
        >>> grouped(network.shared(torch.zeros(3, 3, 8, 8))).shape  # [K, B, D]
        torch.Size([2, 3, 64])
    """

    def __init__(self, body: nn.Module, num_experts: int) -> None:
        super().__init__()
        self.body = body
        self.num_experts = num_experts

    @classmethod
    def from_branches(cls, branches: Sequence[nn.Module]) -> GroupedBranches:
        """Copy branches into one module.

        Raises:
            UserError: Branches differ in shape.
        """
        check_equal_shapes(branches)
        grouped = cls(widened(branches[0], len(branches)), len(branches))
        states = [branch.state_dict() for branch in branches]
        with torch.no_grad():
            for name, tensor in grouped.body.state_dict().items():
                parts = [state[name] for state in states]
                tensor.copy_(parts[0] if tensor.dim() == 0 else torch.cat(parts))
        return grouped.train(branches[0].training)

    def forward(self, x: Tensor) -> Tensor:
        """Map what one branch takes ``[B, c, H, W]`` to the results of all, ``[K, B, D]`` or ``[K, B, d, H', W']``."""
        return separated(self.body(repeated(x, self.num_experts)), self.num_experts)


class GroupedRun:
    """Runs branches as one module without moving their parameters: they are joined anew in every call.

    Optimizer, checkpoint and whoever runs a single branch find everything where it was. Not a module itself: it holds
    shapes alone.
    """

    def __init__(self) -> None:
        self._body: nn.Module | None = None

    def __call__(self, branches: Sequence[nn.Module], shared: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Return the features of all branches ``[K, B, D]``.

        Of branches that fuse a shallower map (SHIKE) the third stages are joined; the shallow parts differ.

        Args:
            branches: K branches of equal shape, all in training or all in evaluation mode.
            shared: What each of them takes.

        Raises:
            UserError: Branches differ in shape.
        """
        if isinstance(shared, Tensor):
            return self._joined(list(branches), shared)
        late = [branch for branch in branches if isinstance(branch, LateBranch)]
        if len(late) != len(branches):
            raise UserError("branches that take several maps cannot run as one; set grouped to False.")
        maps = self._joined([branch.stage3 for branch in late], shared[-1])
        return torch.stack([branch.fuse(deep, shared) for branch, deep in zip(late, maps, strict=True)])

    def _joined(self, modules: list[nn.Module], x: Tensor) -> Tensor:
        count, training = len(modules), modules[0].training
        if self._body is None:
            check_equal_shapes(modules)
            self._body = widened(modules[0], count).to("meta")
        if self._body.training != training:
            self._body.train(training)
        parameters = _join([dict(module.named_parameters()) for module in modules])
        own = [dict(module.named_buffers()) for module in modules]
        buffers = _join(own)
        out = functional_call(self._body, {**parameters, **buffers}, (repeated(x, count),))
        if training:
            _write_back(own, buffers)
        return separated(out, count)


def check_equal_shapes(modules: Sequence[nn.Module]) -> None:
    """Refuse modules that cannot run as one.

    Raises:
        UserError: Their parameters differ in name or shape.
    """
    shapes = [{name: tensor.shape for name, tensor in module.state_dict().items()} for module in modules]
    if any(other != shapes[0] for other in shapes[1:]):
        raise UserError("branches of different shapes cannot run as one; set grouped to False.")


def repeated(x: Tensor, count: int) -> Tensor:
    """Give each expert its own copy of the input: ``[B, c, H, W]`` to ``[B, K c, H, W]``."""
    return torch.cat([x] * count, dim=1)


def separated(out: Tensor, count: int) -> Tensor:
    """Take the experts' channels apart: ``[B, K d, ...]`` to ``[K, B, d, ...]``."""
    return out.unflatten(1, (count, -1)).transpose(0, 1)


def _join(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Put the tensors of K modules one after the other along the first axis, all of them in one copy."""
    sized = [name for name, tensor in states[0].items() if tensor.dim()]
    joined = {name: tensor.clone() for name, tensor in states[0].items() if not tensor.dim()}
    if not sized:
        return joined
    flat = torch.cat([state[name].flatten() for name in sized for state in states])
    parts = flat.split([len(states) * states[0][name].numel() for name in sized])
    for name, part in zip(sized, parts, strict=True):
        joined[name] = part.view(-1, *states[0][name].shape[1:])
    return joined


@torch.no_grad()
def _write_back(own: Sequence[dict[str, Tensor]], joined: dict[str, Tensor]) -> None:
    """Copy what a forward pass did to the joined statistics to where they came from."""
    targets = [state[name] for name in joined for state in own]
    sources = [
        part
        for tensor in joined.values()
        for part in (tensor.chunk(len(own)) if tensor.dim() else [tensor] * len(own))
    ]
    torch._foreach_copy_(targets, sources)


def widened(module: nn.Module, factor: int) -> nn.Module:
    """Return a copy of a module with the channels of ``factor`` modules, side by side; its weights have no meaning."""

    def times(number: int) -> int:
        return number * factor

    out = copy.deepcopy(module)
    for part in out.modules():
        if isinstance(part, nn.Conv2d):
            part.in_channels, part.out_channels = times(part.in_channels), times(part.out_channels)
            part.groups = times(part.groups)
        elif isinstance(part, nn.BatchNorm2d):
            part.num_features = times(part.num_features)
        elif isinstance(part, PaddingShortcut):
            part.groups = times(part.groups)
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(_empty(parameter, times), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _empty(buffer, times)
    return out


def _empty(tensor: Tensor, times: Callable[[int], int]) -> Tensor:
    return tensor.new_empty((times(len(tensor)), *tensor.shape[1:])) if tensor.dim() else tensor.clone()
