"""The differentiable op over any backend, in eager mode and under ``torch.compile``.

A backend computes values and gradients in one go (see :mod:`incrlt.kernels.closed_form`); the autograd function here
keeps the gradients until backward asks for them. In eager mode it calls the backend directly; under
``torch.compile`` it goes through a ``torch.library`` op, which the compiler need not look into. (Calling that op in
eager mode as well would cost more host time than a launch.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from incrlt.kernels.backends import backend_module
from incrlt.kernels.spec import TermSpec
from incrlt.kernels.tensors import TermTensors, accumulator

SCHEMA = (
    "(Tensor logits, Tensor labels, Tensor? prior, Tensor? margins, Tensor? scales, Tensor? class_weights, "
    "Tensor? temperatures, Tensor? teacher_logits, Tensor? cosines, Tensor? upstream, str spec, str backend, "
    "bool need_logits, bool need_cosines) -> (Tensor, Tensor, Tensor)"
)
"""Terms, gradient of the logits, gradient of the cosines; a gradient that is not needed is empty."""

torch.library.define("incrlt::expert_terms", SCHEMA)


def _run(logits: Tensor, labels: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Compute; ``rest`` as in :data:`SCHEMA`: the fields of :class:`TermTensors`, then the upstream and the options."""
    *small, upstream, spec, backend, need_logits, need_cosines = rest
    terms, *gradients = backend_module(backend).terms_and_gradients(
        logits, labels, _known(spec), TermTensors(*small), upstream, need_logits, need_cosines
    )
    left, right = (logits.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return terms, left, right


def _known(spec: TermSpec | str) -> TermSpec:
    """Return the spec: the op of the library gets a text, eager calls the object."""
    return TermSpec.parse(spec) if isinstance(spec, str) else spec


def _run_fake(logits: Tensor, labels: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return tensors of the shapes that :func:`_run` returns."""
    *_, cosines, _, spec, _, need_logits, need_cosines = rest
    names = TermSpec.parse(spec).names
    terms = logits.new_empty(len(names), dtype=accumulator(logits.dtype))
    left = logits.new_empty(logits.shape if need_logits else (0,))
    wanted = cosines is not None and need_cosines and "ranking" in names
    right = cosines.new_empty(cosines.shape) if wanted else logits.new_empty(0)
    return terms, left, right


torch.library.impl("incrlt::expert_terms", ("CPU", "CUDA"), _run)
torch.library.register_fake("incrlt::expert_terms", _run_fake)


class _ExpertTerms(torch.autograd.Function):
    """Terms ``[T]`` of the logits and the cosines; the other tensors take no gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, cosines: Tensor | None, *rest: Any) -> Tensor:
        labels, prior, margins, scales, class_weights, temperatures, teacher, spec, backend = rest
        needed = (bool(ctx.needs_input_grad[0]), bool(ctx.needs_input_grad[1]))
        arguments = (
            logits, labels, prior, margins, scales, class_weights, temperatures, teacher, cosines,
        )  # fmt: skip
        run = torch.ops.incrlt.expert_terms if torch.compiler.is_compiling() else _run
        later = _cannot_ask(logits, backend)
        terms, *gradients = run(*arguments, None, spec, backend, *((False, False) if later else needed))
        ctx.save_for_backward(*gradients, *arguments)
        ctx.options = spec, backend, needed, later
        return terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        left, right, *arguments = ctx.saved_tensors
        spec, backend, needed, later = ctx.options
        if later:
            run = torch.ops.incrlt.expert_terms if torch.compiler.is_compiling() else _run
            _, left, right = run(*arguments, upstream, spec, backend, *needed)
        else:
            left, right = _for_upstream(left, right, arguments, upstream, spec, backend, needed)
        gradients = (left if needed[0] else None, right if needed[1] and right.numel() else None)
        return (*gradients, *(None,) * 9)


def _cannot_ask(logits: Tensor, backend: str) -> bool:
    """Return whether backward cannot look at the upstream gradient: then it computes what forward leaves out.

    Under a compiler, and on a GPU, where looking would wait for all work in the queue and break a graph's capture;
    Triton's kernels look for themselves.
    """
    return torch.compiler.is_compiling() or (logits.is_cuda and backend != "triton")


def _for_upstream(
    left: Tensor,
    right: Tensor,
    arguments: list[Any],
    upstream: Tensor,
    spec: TermSpec | str,
    backend: str,
    needed: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """Return the gradients for what arrives from above ``[T]``; those at hand are for ones, the usual case."""
    if backend == "triton":
        rescale = backend_module(backend).rescale_gradients
        return rescale(left, right, arguments, upstream, _known(spec), needed)  # type: ignore[no-any-return]
    if bool((upstream == upstream[0]).all()):
        factor = upstream[0]
        return (left, right) if factor == 1 else (left * factor, right * factor)
    _, left, right = _run(*arguments, upstream, spec, backend, *needed)
    return left, right


def expert_terms(
    logits: Tensor, labels: Tensor, spec: TermSpec, tensors: TermTensors, backend: str
) -> Tensor:
    """Return the weighted terms ``[T]`` in the order of ``spec.names``, differentiable in logits and cosines.

    Args:
        logits: ``[K, B, C]``.
        labels: Class positions ``[B]``; rows with a negative label are ignored.
        spec: Terms and weights.
        tensors: What they read.
        backend: ``reference``, ``closed_form`` or ``triton``.
    """
    return _ExpertTerms.apply(
        logits,
        tensors.cosines,
        labels,
        tensors.prior,
        tensors.margins,
        tensors.scales,
        tensors.class_weights,
        tensors.temperatures,
        tensors.teacher_logits,
        spec.text if torch.compiler.is_compiling() else spec,
        backend,
    )  # type: ignore[no-untyped-call]
