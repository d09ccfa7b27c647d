"""Batch norm over the rows of all processes, on any device; torch's own refuses CPUs.

Ioffe & Szegedy, ICML 2015. The mean is exchanged first and the squares of what is left of it then, so that nothing is
lost where the mean is large beside the deviation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from incrlt.models.precision import at_least_float
from incrlt.processes import World


class Synced(_BatchNorm):
    """What a batch norm does once its statistics are those of all processes; evaluation stays as it is.

    Attributes:
        world: The processes.
    """

    world: World

    def forward(self, x: Tensor) -> Tensor:
        """Normalise own rows ``[b, C, ...]`` by mean and variance of the global batch."""
        if not self.training:
            return super().forward(x)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.dim())]
        rows = at_least_float(x)
        own = rows.new_tensor([rows.numel() / x.shape[1]])
        sums = self.world.sum(torch.cat([rows.sum(axes), own]))
        count, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        centred = rows - mean.view(shape)
        variance = self.world.sum(centred.square().sum(axes)) / count
        self._track(mean.detach(), variance.detach(), float(count))
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: float) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        unbiased = variance * (count / max(count - 1, 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), factor)


def synced(module: nn.Module, world: World) -> None:
    """Let every batch norm inside a module take the statistics of all processes; parameters and names stay."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm) and not isinstance(norm, Synced):
            kind = type(norm)
            norm.__class__ = type(f"Synced{kind.__name__}", (Synced, kind), {})
            norm.world = world  # type: ignore[assignment]
