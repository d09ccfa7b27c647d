"""What a backend computed against the readable mathematics in fp64: one comparison for all who look."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from incrlt.kernels import reference
from incrlt.kernels.spec import TermSpec
from incrlt.kernels.tensors import TermTensors

Result = tuple[Tensor, Tensor | None, Tensor | None]
"""Terms ``[n]``, gradient of the logits ``[K, B, C]``, gradient of the cosines ``[K, B, C]`` or None."""


@dataclass(frozen=True)
class Agreement:
    """Errors that are allowed."""

    terms: float
    """Of a term, relative to its size or 1."""
    gradients: dict[torch.dtype, float]
    """Of a gradient, relative to its largest number, by the type it is rounded to."""

    def of_gradient(self, kind: torch.dtype) -> float:
        """Return what is allowed in a type; what is not named is allowed what fp32 is."""
        return self.gradients.get(kind, self.gradients[torch.float32])


@dataclass(frozen=True)
class Distance:
    """How far a result is from the right one."""

    largest: float
    """Largest relative error that was found."""
    wrong: str | None
    """A clause on the first error that is not allowed, such as "its term mutual is off by 3.0e-01"; None: it agrees."""


def exactly(logits: Tensor, labels: Tensor, spec: TermSpec, tensors: TermTensors) -> Result:
    """Return what the readable mathematics gives in fp64 on the CPU.

    Args:
        logits: ``[K, B, C]``, of any type and device.
        labels: ``[B]``.
        spec: Terms.
        tensors: What they read.
    """
    given = replace(tensors, **{name: _exact(value) for name, value in vars(tensors).items()})
    return reference.terms_and_gradients(_exact(logits), labels.cpu(), spec, given)


def distance(found: Result, right: Result, spec: TermSpec, kind: torch.dtype, allowed: Agreement) -> Distance:
    """Compare a backend's result with the right one.

    Args:
        found: Of the backend, on any device.
        right: Of :func:`exactly`.
        spec: Terms, for their names.
        kind: Type of the logits.
        allowed: Errors that are none.
    """
    terms = found[0].detach().double().cpu()
    if terms.shape != right[0].shape:
        return Distance(0.0, f"it gives {len(terms)} terms for {len(right[0])}")
    errors = [0.0]
    far = (terms - right[0]).abs() / right[0].abs().clamp(min=1.0)
    for name, error in zip(spec.names, far.tolist(), strict=True):
        errors.append(error)
        if not error <= allowed.terms:
            return Distance(error, f"its term {name} is off by {error:.1e}")
    for name, gradient, wanted in zip(("logits", "cosines"), found[1:], right[1:], strict=True):
        if wanted is not None:
            one = of_gradient(name, gradient, wanted, allowed.of_gradient(kind))
            errors.append(one.largest)
            if one.wrong:
                return one
    return Distance(max(errors), None)


def of_gradient(name: str, gradient: Tensor | None, right: Tensor, allowed: float) -> Distance:
    """Compare one gradient with the right one, relative to its largest number.

    Args:
        name: Of what it is the gradient.
        gradient: The backend's, on any device.
        right: The right one.
        allowed: Error that is none.
    """
    if gradient is None or gradient.shape != right.shape:
        return Distance(0.0, f"its gradient of the {name} is not there")
    largest = right.abs().max().clamp(min=1e-12)
    error = float((gradient.detach().double().cpu() - right).abs().max() / largest)
    return Distance(error, None if error <= allowed else f"its gradient of the {name} is off by {error:.1e}")


def _exact(value: object) -> Any:
    return value.cpu().double() if isinstance(value, Tensor) else value
