"""The terms and their gradients written out in stacked PyTorch: no autograd graph, no loop over pairs, no host sync.

Axes: K experts, B batch, C classes, O old classes, T terms. ``z`` are logits, ``a`` logits plus log prior, ``p`` a
softmax. Passes over ``[K, B, C]`` are what costs, so that they are shared between terms and made in place on buffers of
our own; conditions are numbers 0 and 1, since masks of bool are many times slower on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from incrlt.kernels.spec import TermSpec
from incrlt.kernels.tensors import TermTensors, accumulator

FAR_BELOW = 1e30
"""Subtracted from the logits of categories that are not hard: nothing is left of them in a softmax. Unlike infinity it
can be multiplied by the 0 of those that stay."""


def terms_and_gradients(
    logits: Tensor,
    labels: Tensor,
    spec: TermSpec,
    tensors: TermTensors,
    upstream: Tensor | None = None,
    need_logits_grad: bool = True,
    need_cosines_grad: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Compute the weighted terms and the gradient of their sum.

    Args:
        logits: ``[K, B, C]``, any strides. Ignored rows hold finite numbers all the same.
        labels: Class positions ``[B]``; rows with a negative one contribute nothing.
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
    with torch.no_grad():
        work = _Work(logits, labels, spec, tensors, upstream, need_logits_grad, need_cosines_grad)
        for compute, names in _COMPUTE.items():
            if any(getattr(spec, name) for name in names):
                compute(work)
        terms = torch.stack([work.terms.get(name, work.zero) for name in spec.names])
        return terms, work.logits_gradient(logits), work.cosines_gradient()


class _Work:
    """One call: inputs in working precision, and the terms and gradients found so far."""

    def __init__(
        self,
        logits: Tensor,
        labels: Tensor,
        spec: TermSpec,
        tensors: TermTensors,
        upstream: Tensor | None,
        need_logits_grad: bool,
        need_cosines_grad: bool,
    ) -> None:
        precision = accumulator(logits.dtype)
        self.spec, self.tensors, self.upstream = spec, tensors, upstream
        self.need_logits_grad = need_logits_grad
        self.need_cosines_grad = need_cosines_grad and bool(spec.ranking)
        self.z = logits.detach().to(precision).contiguous()
        self.num_experts, self.batch, self.num_classes = logits.shape
        self.total = self.z.sum(0)  # [B, C]
        self.label = labels.clamp(min=0).unsqueeze(-1)  # [B, 1], ignored rows point at class 0
        self.labels = self.label.expand(self.num_experts, -1, -1)  # [K, B, 1]
        self.valid = labels >= 0  # [B]
        weight = self.valid.to(precision)
        self.share = weight / weight.sum().clamp(min=1)  # [B], of a row in the mean
        self.zero = self.total.new_zeros(())
        self.terms: dict[str, Tensor] = {}
        self.each: Tensor | None = None  # [K, B, C], gradient by expert
        self.alike: Tensor | None = None  # [B, C], to be subtracted from that of every expert
        self.cosines: Tensor | None = None  # [K, B, C], gradient

    def small(self, tensor: Tensor) -> Tensor:
        """Return a tensor of classes or experts in working precision."""
        return tensor.detach().to(self.z)

    def of_label(self, tensor: Tensor) -> Tensor:
        """Return a class tensor's entry at each row's label ``[B]``."""
        return self.small(tensor).gather(0, self.label.squeeze(-1))

    def set(self, name: str, rows: Tensor, share: Tensor, factor: float = 1.0) -> None:
        """Store a term: its weight times the sum over rows ``[B]``, where ``share`` is 0 for rows without part."""
        kept = torch.where(share > 0, rows, self.zero)  # an ignored row may be infinite, and 0 times that
        self.terms[name] = (kept * share).sum() * (getattr(self.spec, name) * factor)

    def slope(self, name: str, factor: float = 1.0) -> Tensor | float:
        """Return what the gradient of a term is multiplied by."""
        weight: float = getattr(self.spec, name) * factor
        return weight if self.upstream is None else self.upstream[self.spec.names.index(name)] * weight

    def add(self, each: Tensor, start: int = 0) -> None:
        """Add to the gradient of the columns from ``start`` on; the buffer is taken over."""
        if self.each is None and each.shape == self.z.shape:
            self.each = each
            return
        if self.each is None:
            self.each = torch.zeros_like(self.z)
        self.each.narrow(-1, start, each.shape[-1]).add_(each)

    def subtract_alike(self, alike: Tensor) -> None:
        """Subtract ``[B, C]`` from the gradient of every expert."""
        self.alike = alike if self.alike is None else self.alike.add_(alike)

    def logits_gradient(self, like: Tensor) -> Tensor | None:
        """Return the sum of what was added."""
        if not self.need_logits_grad:
            return None
        if self.each is None:
            return torch.zeros_like(like, memory_format=torch.contiguous_format)
        return (self.each if self.alike is None else self.each.sub_(self.alike)).to(like.dtype)

    def cosines_gradient(self) -> Tensor | None:
        """Return the gradient by the cosines, None without a ranking term."""
        like = self.tensors.cosines
        if like is None or not self.need_cosines_grad:
            return None
        if self.cosines is None:
            return torch.zeros_like(like, memory_format=torch.contiguous_format)
        return self.cosines.to(like.dtype)


# ------------------------------------------------------------------- classification and mutual, on all or hard classes


def _softmax_terms(work: _Work) -> None:
    """Terms that need ``softmax(a)``; those that need the same one share it.

    Mutual: with ``d_k = K z_k - sum_i z_i`` and ``M_k = <p_k, d_k>`` the sum of ``KL(p_j || p_i)`` over pairs is
    ``sum_k M_k``, and its gradient ``p_k (d_k - M_k + K) - sum_j p_j``. The prior cancels in ``d``, so that ``-inf``
    does no harm.
    """
    spec = work.spec
    a = work.z if work.tensors.prior is None else work.z + work.small(work.tensors.prior)
    pairs = work.num_experts > 1 and bool(spec.mutual or spec.hard_mutual)
    apart = torch.add(-work.total, work.z, alpha=work.num_experts) if pairs else work.z
    mutual = "mutual" if spec.mutual and pairs else None
    of_mutual = a if spec.mutual_prior else work.z
    if spec.classification:
        own = _with_margins(work, a)
        shared = mutual if own is of_mutual else None
        _share_softmax(work, own, apart, "classification", shared, _row_weights(work))
        mutual = None if shared else mutual
    if mutual:
        _share_softmax(work, of_mutual, apart, None, mutual, work.share)
    classification = "hard_classification" if spec.hard_classification else None
    mutual = "hard_mutual" if spec.hard_mutual and pairs else None
    if classification or mutual:
        _share_softmax(work, a + _hardness(work), apart, classification, mutual, work.share)


def _share_softmax(
    work: _Work, a: Tensor, apart: Tensor, classification: str | None, mutual: str | None, weights: Tensor
) -> None:
    """Compute one classification term, one mutual term, or both, from the same probabilities.

    Args:
        work: The call.
        a: Logits of the softmax ``[K, B, C]``.
        apart: ``K z - sum of z`` ``[K, B, C]``, of the mutual term.
        classification: Name of the first term or None.
        mutual: Name of the second term or None.
        weights: Weight of each row in the first ``[B]``, of sum 1.
    """
    p = a.softmax(-1)
    per_expert, per_pair = 1 / work.num_experts, 1 / (work.num_experts * max(work.num_experts - 1, 1))
    own = work.zero  # then [B, 1] or [K, B, 1]: what p is multiplied by in the gradient
    if classification:
        nll = _log_partition(a, p) - a.gather(-1, work.labels).squeeze(-1)
        work.set(classification, nll.sum(0), weights, per_expert)
        own = gain = (weights * work.slope(classification, per_expert)).unsqueeze(-1)
    if mutual:
        product = p * apart
        mean = product.sum(-1, keepdim=True)  # [K, B, 1]
        work.set(mutual, mean.sum((0, 2)), work.share, per_pair)
        pull = (work.share * work.slope(mutual, per_pair)).unsqueeze(-1)  # [B, 1]
        own = (work.num_experts - mean) * pull + own
    if not work.need_logits_grad:
        return
    if mutual:
        work.subtract_alike(p.sum(0) * pull)
        gradient = product.mul_(pull).addcmul_(p, own)
    else:
        gradient = p.mul_(own)
    if classification:
        gradient.scatter_add_(-1, work.labels, (-gain).expand_as(work.labels))
    work.add(gradient)


def _log_partition(a: Tensor, p: Tensor) -> Tensor:
    """Return ``log sum exp a`` ``[..., B]`` from ``p = softmax(a)``: exact, since the largest p is at least 1 / C."""
    return a.amax(-1) - p.amax(-1).log_()


def _with_margins(work: _Work, a: Tensor) -> Tensor:
    """Lower the label's logit by the scaled margin, in a buffer of our own."""
    if work.tensors.margins is None:
        return a
    margin = work.of_label(work.tensors.margins).unsqueeze(-1).expand_as(work.labels)
    if work.tensors.scales is not None:
        margin = margin * work.small(work.tensors.scales)[:, None, None]
    return a.scatter_add(-1, work.labels, -margin)


def _row_weights(work: _Work) -> Tensor:
    """Return each row's weight in the mean of the classification term ``[B]``."""
    if work.tensors.class_weights is None:
        return work.share
    weights = work.of_label(work.tensors.class_weights) * work.valid
    return weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def _hardness(work: _Work) -> Tensor | float:
    """Return 0 for the hard categories of each image, far below 0 for the others ``[B, C]``.

    Of equal logits those of the lowest classes are taken, as many as there is room for.
    """
    number = max(work.spec.num_hard, 1)
    if number >= work.num_classes:
        return 0.0
    first = work.total.scatter(-1, work.label, torch.inf)
    last = _nth_largest(first, number)
    chosen = first.clone().gt_(last)
    room = number - chosen.sum(-1, keepdim=True)
    equal = first.eq_(last)
    chosen.addcmul_(equal, equal.cumsum(-1).le_(room))
    return chosen.sub_(1).mul_(FAR_BELOW)


def _nth_largest(values: Tensor, number: int) -> Tensor:
    """Return the ``number``-th largest value of each row ``[B, 1]``."""
    if values.device.type == "cpu" and type(values) is Tensor:  # numpy selects ten times as fast as PyTorch
        place = values.shape[-1] - number
        return torch.from_numpy(np.partition(values.numpy(), place, axis=-1)[:, place, None])
    return values.topk(number, dim=-1, sorted=False).values.amin(-1, keepdim=True)


# ------------------------------------------------------------------------------------------------------- diversity


def _diversity(work: _Work) -> None:
    """``sum_k KL(q || r_k) = sum_k lse(z_k / tau) - K lse(z_mean / tau)``; gradient ``(r_k - q) / tau``.

    q, the answer of the mean, takes no gradient; r_k are the experts' answers.
    """
    start, num_experts = work.spec.first_class, work.num_experts
    if num_experts < 2 or work.num_classes - start < 2:
        return
    z, mean = work.z[..., start:], work.total[..., start:] / num_experts
    temperatures = None
    if work.tensors.temperatures is not None:
        temperatures = work.small(work.tensors.temperatures)[start:]
        z, mean = z / temperatures, mean / temperatures
    r, q = z.softmax(-1), mean.softmax(-1)
    share = work.share * (work.label.squeeze(-1) >= start)
    work.set("diversity", (_log_partition(z, r) - _log_partition(mean, q)).sum(0), share, 1 / num_experts)
    if work.need_logits_grad:
        slope = (share * work.slope("diversity", 1 / num_experts)).unsqueeze(-1)
        work.add(r.sub_(q).mul_(slope if temperatures is None else slope / temperatures), start)


# -------------------------------------------------------------------------------------------------------- transfer


def _transfer(work: _Work) -> None:
    """``sum_k KL(t || s_k) = <t, G>`` over wrong classes, ``G = K log t - sum_k log s_k``.

    t is the softmax of u, the largest logit of any expert, and of the hardest class the mean. The students' gradient is
    ``s_k - t``; through the teacher ``t (G - <t, G>)`` goes to the expert with the largest logit, in equal parts to
    several, and of the hardest class to all.
    """
    num_experts = work.num_experts
    if num_experts < 2 or work.num_classes < 3:
        return
    students = work.z.scatter(-1, work.labels, -torch.inf)
    u, hardest = _teacher(work, students)
    s, t = students.softmax(-1), u.softmax(-1)
    partitions = _log_partition(students, s).sum(0) - num_experts * _log_partition(u, t)  # [B]
    u.scatter_(-1, work.label, 0.0)  # infinity times the teacher's 0 there is not a number
    gap = torch.sub(u * num_experts, work.total).add_(partitions.unsqueeze(-1))  # G, [B, C]
    rows = (t * gap).sum(-1)
    work.set("transfer", rows, work.share, 1 / num_experts)
    if not work.need_logits_grad:
        return
    slope = (work.share * work.slope("transfer", 1 / num_experts)).unsqueeze(-1)
    work.subtract_alike(t * slope)
    winners = students.eq_(u).scatter_(-1, hardest.expand_as(work.labels), 1.0)  # [K, B, C]
    through_teacher = t.mul_(gap.sub_(rows.unsqueeze(-1))).div_(winners.sum(0).clamp_(min=1))
    work.add(s.addcmul_(winners, through_teacher).mul_(slope))


def _teacher(work: _Work, students: Tensor) -> tuple[Tensor, Tensor]:
    """Return the teacher's logits ``[B, C]``, ``-inf`` at the label, and the hardest wrong class ``[B, 1]``."""
    mean = (work.total / work.num_experts).scatter_(-1, work.label, -torch.inf)
    hardest = mean.argmax(-1, keepdim=True)
    return students.amax(0).scatter_(-1, hardest, mean.gather(-1, hardest)), hardest


# ---------------------------------------------------------------------------------------- distillation and ranking


def _distillation(work: _Work) -> None:
    """``tau^2 KL(t || s)`` of softened old classes; gradient ``tau (s - t)``."""
    teacher, tau = work.tensors.teacher_logits, work.spec.temperature
    assert teacher is not None
    if not teacher.shape[-1]:
        return
    student = work.z[..., : teacher.shape[-1]] / tau
    teacher = work.small(teacher) / tau
    s, t = student.softmax(-1), teacher.softmax(-1)
    partitions = _log_partition(student, s) - _log_partition(teacher, t)
    rows = torch.sub(teacher, student, out=teacher).mul_(t).sum(-1).add_(partitions).sum(0)
    work.set("distillation", rows, work.share, tau**2 / work.num_experts)
    if work.need_logits_grad:
        slope = (work.share * work.slope("distillation", tau / work.num_experts)).unsqueeze(-1)
        work.add(s.sub_(t).mul_(slope))


def _ranking(work: _Work) -> None:
    """Hinges of an old image's cosine against the largest of other classes; 1 and -1 where they are active."""
    spec, cosines = work.spec, work.tensors.cosines
    assert cosines is not None
    start = spec.num_old if spec.negatives == "new" else 0
    taken = min(spec.num_negatives, work.num_classes - (spec.num_old if spec.negatives == "new" else 1))
    if taken < 1 or spec.num_old < 1:
        return
    cosines = work.small(cosines)
    others = cosines[..., start:] if start else cosines.scatter(-1, work.labels, -torch.inf)
    found = others.topk(taken, dim=-1)
    hinge = (spec.margin + found.values - cosines.gather(-1, work.labels)).relu_()  # [K, B, K']
    old = (work.valid & (work.label.squeeze(-1) < spec.num_old)).to(cosines.dtype)  # [B]
    share = old / (old.sum() * (taken * work.num_experts)).clamp(min=1)
    work.set("ranking", hinge.sum((0, 2)), share)
    if work.need_cosines_grad:
        active = hinge.gt_(0).mul_((share * work.slope("ranking")).unsqueeze(-1))
        work.cosines = torch.zeros_like(cosines, memory_format=torch.contiguous_format)
        work.cosines.scatter_add_(-1, found.indices + start, active)
        work.cosines.scatter_add_(-1, work.labels, -active.sum(-1, keepdim=True))


_COMPUTE: dict[Callable[[_Work], None], tuple[str, ...]] = {
    _softmax_terms: ("classification", "mutual", "hard_classification", "hard_mutual"),
    _diversity: ("diversity",),
    _transfer: ("transfer",),
    _distillation: ("distillation",),
    _ranking: ("ranking",),
}
