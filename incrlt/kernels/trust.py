"""What ``auto`` chose is believed after it has shown its values: on first use, against the readable mathematics.

A backend that computes wrongly, cannot be compiled, or finds no memory gives way to the next plainer one for the rest
of the process, with one warning that names what to report. A backend asked for by name is not looked at here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import lru_cache
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from incrlt import losses
from incrlt.errors import short
from incrlt.kernels.backends import backend_module
from incrlt.kernels.compared import Agreement, distance, exactly, of_gradient
from incrlt.kernels.spec import TermSpec
from incrlt.kernels.tensors import TermTensors

PLAINER: Final = {"triton": "closed_form", "closed_form": "reference"}
"""What computes instead."""
ROWS: Final = 16
"""Images of the small case."""
NUMBERS: Final = 2**20
"""Largest K * B * C of the small case; beyond it there are fewer images."""
ALLOWED: Final = Agreement(1e-4, {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3})
"""More than fp32 leaves, since sizes are those of the user; a gradient is rounded to its type."""
HALF: Final = (torch.bfloat16, torch.float16)

_shown: set[Hashable] = set()
_given_up: dict[tuple[str, str], str] = {}


def forget() -> None:
    """Believe and distrust nobody: for tests."""
    _shown.clear()
    _given_up.clear()


def trusted(
    name: str,
    logits: Tensor,
    spec: TermSpec,
    tensors: TermTensors,
    load: Callable[[str], ModuleType] = backend_module,
) -> str:
    """Return the backend that may compute, which is ``name`` unless it has failed to show its values.

    Args:
        name: What ``auto`` chose.
        logits: ``[K, B, C]``; their type, sizes and device count, their values do not.
        spec: Terms; they are looked at once for each set of them and each number of classes.
        tensors: What the terms read.
        load: Returns a backend; a test's stand-in.
    """
    if torch.compiler.is_compiling() or (logits.is_cuda and torch.cuda.is_current_stream_capturing()):
        return name
    while name in PLAINER:
        if (name, str(logits.device)) in _given_up:
            name = PLAINER[name]
            continue
        key = _key(name, logits, spec, tensors)
        if key in _shown:
            return name
        wrong = _failure(lambda name=name: _wrong(load(name), logits, spec, tensors))  # type: ignore[misc]
        if wrong is None:
            _shown.add(key)
            return name
        name = give_up(name, logits.device, wrong)
    return name


def trusted_less_forget(features: Tensor, fused: Callable[..., tuple[Tensor, Tensor | None]]) -> bool:
    """Return whether a fused less-forget may compute.

    Args:
        features: ``[K, B, D]``; their type, sizes and device count.
        fused: ``fused(features, teacher, True)`` returns value and gradient.
    """
    place = ("triton", str(features.device))
    if torch.compiler.is_compiling() or (features.is_cuda and torch.cuda.is_current_stream_capturing()):
        return True
    if place in _given_up:
        return False
    key = ("less_forget", *place, features.dtype, features.shape[0], features.shape[2])
    if key in _shown:
        return True
    wrong = _failure(lambda: _wrong_less_forget(features, fused))
    if wrong is not None:
        give_up("triton", features.device, wrong)
        return False
    _shown.add(key)
    return True


def give_up(name: str, device: torch.device, reason: str) -> str:
    """Warn, once, that a backend is not used any more on a device; return the one that computes instead."""
    instead = PLAINER[name]
    if (name, str(device)) not in _given_up:
        _given_up[name, str(device)] = reason
        warnings.warn(
            f"kernels: {name} is not used on {device}, {reason}; {instead} computes instead. Set training.kernels: "
            f"{instead}, and report this with the output of python -m incrlt.doctor --json.",
            stacklevel=4,
        )
    return instead


def _failure(look: Callable[[], str | None]) -> str | None:
    """Return what a look says, or what it raised."""
    try:
        with torch.inference_mode(False):
            return look()
    except Exception as error:  # a compiler, a driver or a stranger's code may raise anything
        return f"{type(error).__name__}: {short(error)}"


def _key(name: str, logits: Tensor, spec: TermSpec, tensors: TermTensors) -> Hashable:
    given = tuple(value is not None for value in vars(tensors).values())
    return (name, logits.device, logits.dtype, logits.shape[0], logits.shape[2], _structure(spec), given)


@lru_cache(maxsize=256)
def _structure(spec: TermSpec) -> TermSpec:
    """Return the terms without their weights, which may follow the epoch."""
    weights: dict[str, Any] = dict.fromkeys(spec.names, 1.0)
    return replace(spec, **weights)


def _wrong(backend: ModuleType, logits: Tensor, spec: TermSpec, tensors: TermTensors) -> str | None:
    """Return how a backend differs from the reference in fp64 on the CPU, None if it does not."""
    small, labels, given = _case(logits, tensors)
    right = exactly(small, labels, spec, given)
    found = backend.terms_and_gradients(small, labels, spec, given)
    return distance(found, right, spec, small.dtype, ALLOWED).wrong


def _wrong_less_forget(features: Tensor, fused: Callable[..., tuple[Tensor, Tensor | None]]) -> str | None:
    generator = torch.Generator().manual_seed(0)
    shape = (features.shape[0], ROWS, features.shape[2])
    new, old = (torch.randn(shape, generator=generator).to(features) for _ in range(2))
    exact = new.cpu().double().requires_grad_()
    with torch.enable_grad():
        value = losses.less_forget(exact, old.cpu().double())
        (right,) = torch.autograd.grad(value, exact)
        value = value.detach()
    found, gradient = fused(new, old, True)
    allowed = ALLOWED.of_gradient(new.dtype)
    if not abs(float(found) - float(value)) <= allowed:
        return f"its less-forget is {float(found):.6g} for {float(value):.6g}"
    return of_gradient("features", gradient, right, allowed).wrong


def _case(logits: Tensor, tensors: TermTensors) -> tuple[Tensor, Tensor, TermTensors]:
    """Return logits, labels and tensors of a few images: drawn but for what belongs to classes and experts.

    Half types hold the numbers exactly and without ties in a row, so that no backend may choose another hardest class;
    where they cannot, beyond 256 classes, fp32 is looked at.
    """
    experts, _, classes = logits.shape
    rows = max(2, min(ROWS, NUMBERS // (experts * classes)))
    generator = torch.Generator().manual_seed(0)
    kind = logits.dtype if logits.dtype not in HALF or classes <= 256 else torch.float32

    def drawn(*shape: int) -> Tensor:
        if kind not in HALF or shape[-1] > 256:
            return torch.randn(*shape, generator=generator)
        order = torch.rand(*shape, generator=generator).argsort(-1)
        return (order - shape[-1] // 2).float() / 64

    prior = tensors.prior
    seen = torch.arange(classes) if prior is None else (prior > -torch.inf).nonzero().flatten().cpu()
    seen = seen if len(seen) else torch.arange(classes)
    labels = seen[torch.randint(len(seen), (rows,), generator=generator)]
    labels[0] = -1  # a row that is ignored
    teacher, cosines = tensors.teacher_logits, tensors.cosines
    small = {name: None if value is None else value.detach().clone() for name, value in vars(tensors).items()}
    if teacher is not None:
        small["teacher_logits"] = drawn(experts, rows, teacher.shape[2]).to(teacher.device, kind)
    if cosines is not None:
        small["cosines"] = drawn(experts, rows, classes).to(cosines.device, kind)
    numbers = 2 * drawn(experts, rows, classes)
    return numbers.to(logits.device, kind), labels.to(logits.device), replace(tensors, **small)
