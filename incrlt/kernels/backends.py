"""Which backend computes: by name, or the best one for the tensors at hand."""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from incrlt.errors import UserError

BACKENDS = ("auto", "reference", "closed_form", "triton")
"""``reference`` is the readable mathematics under autograd, ``closed_form`` stacked PyTorch with its own gradients,
``triton`` fused CUDA kernels; ``auto`` takes Triton on a GPU where it can, else the closed form."""

MODULES = {
    "reference": "incrlt.kernels.reference",
    "closed_form": "incrlt.kernels.closed_form",
    "triton": "incrlt.kernels.triton_backend",
}
MAX_CLASSES, MAX_EXPERTS = 32_768, 8
"""Largest sizes the Triton kernels are built for."""


@cache
def backend_module(name: str) -> ModuleType:
    """Import a backend when it is first used: Triton is not everywhere."""
    return importlib.import_module(MODULES[name])


def choose_backend(name: str, logits: Tensor) -> str:
    """Return the backend that computes on these logits.

    Args:
        name: One of :data:`BACKENDS`.
        logits: ``[K, B, C]``.

    Raises:
        UserError: Another name.

    Where Triton is asked for and cannot run, the closed form computes instead, with one warning per reason.
    """
    if name not in BACKENDS:
        raise UserError(f"kernels {name!r} is not known; allowed: {', '.join(BACKENDS)}.")
    if name in ("reference", "closed_form"):
        return name
    if not logits.is_cuda:
        if name == "triton":
            _warn_once(f"its kernels need a CUDA GPU, the logits are on {logits.device.type}")
        return "closed_form"
    reason = _obstacle(logits.dtype, logits.shape[0], logits.shape[2]) or _missing(logits.device.index)
    if reason:
        _warn_once(reason)
        return "closed_form"
    return "triton"


def _obstacle(dtype: torch.dtype, num_experts: int, num_classes: int) -> str | None:
    if dtype == torch.float64:
        return "its kernels compute in fp32, the logits are fp64"
    if num_experts > MAX_EXPERTS or num_classes > MAX_CLASSES:
        return (
            f"its kernels take up to {MAX_EXPERTS} experts and {MAX_CLASSES} classes, the logits have "
            f"{num_experts} and {num_classes}"
        )
    return None


@cache
def _missing(device: int | None) -> str | None:
    capability = torch.cuda.get_device_capability(device)
    if capability < (7, 5):
        return f"its kernels need compute capability 7.5, this GPU has {capability[0]}.{capability[1]}"
    try:
        import triton
    except ImportError:
        return "the package triton is not installed"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return None if version >= (3, 3) else f"triton {triton.__version__} is older than 3.3"


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"kernels: triton is not used, {reason}; closed_form computes instead.", stacklevel=3)
