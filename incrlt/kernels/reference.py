"""The terms as :mod:`incrlt.losses` has them, with gradients by autograd: slow, plain, what others must equal.

Axes: K experts, B batch, C classes, T terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from incrlt import losses
from incrlt.kernels.spec import TermSpec
from incrlt.kernels.tensors import TermTensors, accumulator

LOW = -1e30
"""Log prior of an unseen class where two logarithms are subtracted: its probability is 0 as with ``-inf``, and 0 times
this stays 0. Far below any logit, so that no digit of the others is touched."""


def terms_and_gradients(
    logits: Tensor,
    labels: Tensor,
    spec: TermSpec,
    tensors: TermTensors,
    upstream: Tensor | None = None,
    need_logits_grad: bool = True,
    need_cosines_grad: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Compute the weighted terms and the gradient of their sum, row by row of the valid ones.

    Args:
        logits: ``[K, B, C]``.
        labels: Class positions ``[B]``; rows with a negative one are left out.
        spec: Terms and their weights.
        tensors: What they need.
        upstream: What each term's gradient is multiplied by ``[T]``; None means 1.
        need_logits_grad: Return the gradient of the logits.
        need_cosines_grad: Return the gradient of the cosines, where a term reads them.

    Returns:
        Terms ``[T]`` (float64 for float64 logits, otherwise float32) in the order of ``spec.names``, weights in them;
        gradient of ``sum(upstream * terms)`` by the logits and by the cosines, each in the type and shape of its
        input, or None.
    """
    precision = accumulator(logits.dtype)
    with torch.enable_grad():
        leaf = logits.detach().to(precision).requires_grad_()
        cosines = tensors.cosines
        cosines_leaf = None if cosines is None else cosines.detach().to(precision).requires_grad_()
        terms = _terms(leaf, labels, spec, replace(tensors, cosines=cosines_leaf))
        total = terms.sum() if upstream is None else (upstream * terms).sum()
    logits_gradient = _gradient(total, leaf, logits) if need_logits_grad else None
    wanted = need_cosines_grad and spec.ranking and cosines_leaf is not None and cosines is not None
    return terms.detach(), logits_gradient, _gradient(total, cosines_leaf, cosines) if wanted else None


def _gradient(total: Tensor, leaf: Tensor | None, like: Tensor | None) -> Tensor:
    assert leaf is not None
    assert like is not None
    (gradient,) = torch.autograd.grad(
        total, leaf, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return gradient.to(like.dtype)


def _terms(logits: Tensor, labels: Tensor, spec: TermSpec, tensors: TermTensors) -> Tensor:
    valid = labels >= 0
    if not valid.any():
        return logits.new_zeros(len(spec.names)) + 0.0 * logits[:, :0].sum()
    teacher, cosines = tensors.teacher_logits, tensors.cosines
    tensors = replace(
        tensors,
        teacher_logits=None if teacher is None else teacher[:, valid].to(logits),
        cosines=None if cosines is None else cosines[:, valid],
    )
    arguments = logits[:, valid], labels[valid], spec, tensors
    return torch.stack([getattr(spec, name) * TERM[name](*arguments) for name in spec.names])


def _with_prior(logits: Tensor, tensors: TermTensors, low: float = -torch.inf) -> Tensor:
    return logits if tensors.prior is None else logits + tensors.prior.to(logits).clamp(min=low)


def _hard_columns(logits: Tensor, labels: Tensor, spec: TermSpec) -> Tensor:
    """As :func:`incrlt.losses.hard_columns`, which leaves open which of several equal logits is taken."""
    number = min(max(spec.num_hard, 1), logits.shape[-1])
    first = logits.detach().mean(0).scatter(-1, labels.unsqueeze(-1), torch.inf)
    return first.sort(dim=-1, descending=True, stable=True).indices[:, :number]


def _classification(logits: Tensor, labels: Tensor, spec: TermSpec, tensors: TermTensors) -> Tensor:
    margins = logits.new_zeros(logits.shape[-1]) if tensors.margins is None else tensors.margins
    return losses.ldam(_with_prior(logits, tensors), labels, margins, tensors.scales, tensors.class_weights)


def _mutual(logits: Tensor, labels: Tensor, spec: TermSpec, tensors: TermTensors) -> Tensor:
    return losses.pairwise_divergence(_with_prior(logits, tensors, LOW) if spec.mutual_prior else logits)


def _hard_classification(logits: Tensor, labels: Tensor, spec: TermSpec, tensors: TermTensors) -> Tensor:
    no_prior = torch.ones_like(logits[0, 0])  # the loss's own is the logarithm of counts: 0
    columns = _hard_columns(logits, labels, spec)
    return losses.hard_category_cross_entropy(_with_prior(logits, tensors), labels, no_prior, columns)


def _hard_mutual(logits: Tensor, labels: Tensor, spec: TermSpec, tensors: TermTensors) -> Tensor:
    no_prior = torch.ones_like(logits[0, 0])
    columns = _hard_columns(logits, labels, spec)
    return losses.online_distillation(_with_prior(logits, tensors, LOW), no_prior, columns)


def _diversity(logits: Tensor, labels: Tensor, spec: TermSpec, tensors: TermTensors) -> Tensor:
    if logits.shape[-1] - spec.first_class < 2:
        return 0.0 * logits.sum()
    temperatures = torch.ones_like(logits[0, 0]) if tensors.temperatures is None else tensors.temperatures
    images = labels >= spec.first_class
    return losses.distribution_aware_diversity(
        logits, temperatures, first_class=spec.first_class, images=images
    )


def _transfer(logits: Tensor, labels: Tensor, spec: TermSpec, tensors: TermTensors) -> Tensor:
    return losses.dynamic_knowledge_transfer(logits, labels)


def _distillation(logits: Tensor, labels: Tensor, spec: TermSpec, tensors: TermTensors) -> Tensor:
    assert tensors.teacher_logits is not None
    if not tensors.teacher_logits.shape[-1]:
        return 0.0 * logits.sum()
    return losses.knowledge_distillation(logits, tensors.teacher_logits, spec.temperature)


def _ranking(logits: Tensor, labels: Tensor, spec: TermSpec, tensors: TermTensors) -> Tensor:
    assert tensors.cosines is not None
    return losses.margin_ranking(
        tensors.cosines,
        labels,
        spec.num_old,
        margin=spec.margin,
        num_negatives=spec.num_negatives,
        negatives=spec.negatives,
    )


TERM: dict[str, Callable[[Tensor, Tensor, TermSpec, TermTensors], Tensor]] = {
    "classification": _classification,
    "mutual": _mutual,
    "hard_classification": _hard_classification,
    "hard_mutual": _hard_mutual,
    "diversity": _diversity,
    "transfer": _transfer,
    "distillation": _distillation,
    "ranking": _ranking,
}
