"""Fused losses of several experts: one op, three backends that agree.

The mathematics is that of :mod:`incrlt.losses`; here it is arranged for speed. Expert methods ask for terms as data
(:class:`TermSpec`) and get them by name.
"""

from __future__ import annotations

from torch import Tensor

from incrlt.errors import short
from incrlt.kernels import trust
from incrlt.kernels.backends import BACKENDS, choose_backend
from incrlt.kernels.features import less_forget
from incrlt.kernels.ops import expert_terms
from incrlt.kernels.spec import TERMS, TermSpec
from incrlt.kernels.tensors import TermTensors

__all__ = ["BACKENDS", "TERMS", "TermSpec", "TermTensors", "choose_backend", "expert_loss", "less_forget"]


def expert_loss(
    logits: Tensor,
    labels: Tensor,
    spec: TermSpec,
    tensors: TermTensors | None = None,
    *,
    kernels: str = "auto",
) -> dict[str, Tensor]:
    """Return weighted loss terms of K experts by name, with one pass over the logits.

    Args:
        logits: ``[K, B, C]``, fp32, bf16, fp16 or fp64; never overwritten.
        labels: Class positions ``[B]``, int64; rows with a negative label are ignored.
        spec: Terms and their weights.
        tensors: What they read beside the logits; None: nothing.
        kernels: Backend, one of :data:`~incrlt.kernels.backends.BACKENDS`. What ``auto`` chooses is compared with the
            reference on first use (:mod:`incrlt.kernels.trust`).

    Returns:
        Scalars in fp32 (fp64 of fp64 logits) in the order of ``spec.names``, to be summed and differentiated with
        respect to the logits and the cosines. A second derivative raises.

    Raises:
        UserError: Shapes, types or names that do not fit.
    """
    tensors = TermTensors() if tensors is None else tensors
    tensors.check(spec, logits, labels)
    name = choose_backend(kernels, logits)
    if kernels == "auto":
        name = trust.trusted(name, logits, spec, tensors)
    try:
        terms = expert_terms(logits, labels, spec, tensors, name)
    except Exception as error:  # compiled anew for another batch size, no memory for it
        if kernels != "auto" or name != "triton":
            raise
        name = trust.give_up(name, logits.device, f"{type(error).__name__}: {short(error)}")
        terms = expert_terms(logits, labels, spec, tensors, name)
    return dict(zip(spec.names, terms.unbind(), strict=True))
