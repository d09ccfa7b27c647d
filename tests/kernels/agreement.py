"""How close a backend in single or half precision has to come to the exact result."""

from __future__ import annotations

from dataclasses import fields
from types import ModuleType

import torch
from kernels.cases import Case, Inputs, build
from torch import Tensor

from incrlt.kernels import reference

HALF = (torch.float16, torch.bfloat16)


def run(module: ModuleType, inputs: Inputs, **options: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Call a backend."""
    return module.terms_and_gradients(
        inputs.logits, inputs.labels, inputs.spec, inputs.tensors, inputs.upstream, **options
    )


def check(case: Case, inputs: Inputs, found: tuple[Tensor, Tensor | None, Tensor | None]) -> None:
    """Compare with float64 on the same rounded numbers; twice the error of eager PyTorch is allowed, and rounding."""
    exact_terms, *exact_gradients = run(reference, build(case, dtype=torch.float64))
    eager_terms, *eager_gradients = run(reference, build(case))
    terms, *gradients = (None if one is None else one.cpu() for one in found)
    assert terms.dtype == torch.float32 and terms.isfinite().all()
    slack = 2 * (eager_terms - exact_terms).abs() + 1e-5 * exact_terms.abs() + 2e-6
    assert ((terms - exact_terms).abs() <= slack).all(), (terms, exact_terms)
    # float32 holds a logit to eps of its size, which is the relative error of its probability
    rounding = torch.finfo(torch.float32).eps * float(inputs.logits.abs().max())
    ulp = torch.finfo(case.dtype).eps if case.dtype in HALF else 5e-6
    likes = (inputs.logits, inputs.tensors.cosines)
    for gradient, eager, exact, like in zip(gradients, eager_gradients, exact_gradients, likes, strict=True):
        assert (gradient is None) == (like is None)
        if gradient is None:
            continue
        assert (gradient.shape, gradient.dtype) == (like.shape, like.dtype) and gradient.is_contiguous()
        allowed = 2 * largest(eager - exact) + max(ulp, rounding) * largest(exact) + 1e-7
        assert largest(gradient - exact) <= allowed


def largest(tensor: Tensor) -> float:
    """Return the largest magnitude, 0 of nothing; NaN stays."""
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """Return all tensors of a call."""
    rest = [getattr(inputs.tensors, field.name) for field in fields(inputs.tensors)]
    return [one for one in (inputs.logits, inputs.labels, inputs.upstream, *rest) if one is not None]
