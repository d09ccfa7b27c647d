"""LUCIR's less-forget on the features of several experts, fused on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from incrlt import losses
from incrlt.kernels import trust
from incrlt.kernels.backends import backend_module, choose_backend


class _LessForget(torch.autograd.Function):
    """The kernel computes value and gradient at once; backward multiplies."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, teacher_features: Tensor) -> Tensor:
        fused = backend_module("triton").less_forget
        loss, gradient = fused(features, teacher_features, bool(ctx.needs_input_grad[0]))
        ctx.save_for_backward(gradient)
        return loss  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None]:
        (gradient,) = ctx.saved_tensors
        return None if gradient is None else (gradient * upstream).to(gradient.dtype), None


def less_forget(features: Tensor, teacher_features: Tensor, *, kernels: str = "auto") -> Tensor:
    """Return :func:`incrlt.losses.less_forget`; on a GPU in two launches.

    Args:
        features: ``[K, B, D]``.
        teacher_features: Same shape, without gradient.
        kernels: Backend, one of :data:`~incrlt.kernels.backends.BACKENDS`; on the CPU there is one form.
    """
    if not features.is_cuda or choose_backend(kernels, features) != "triton":
        return losses.less_forget(features, teacher_features)
    if kernels == "auto" and not trust.trusted_less_forget(features, backend_module("triton").less_forget):
        return losses.less_forget(features, teacher_features)
    return _LessForget.apply(features, teacher_features.detach())  # type: ignore[no-any-return, no-untyped-call]
