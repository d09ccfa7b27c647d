"""Who competes in the benchmark of the loss kernels: one forward and backward each, on buffers that take turns.

Terms are the whole sets of NCL, RIDE, SHIKE and LUCIR, then cross entropy alone, and cross entropy together with the
linear heads before it. Axes: K experts, B batch, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from incrlt import losses
from incrlt.kernels import TermSpec, TermTensors
from incrlt.kernels.backends import backend_module
from perf import bench_kernels_cpu
from perf.bench_kernels_cpu import PUBLISHED, fused

Shape = tuple[int, int, int]
"""K, B, C."""
Turn = Callable[[int], object]
"""``turn(i)`` computes loss and gradient of buffer i."""

problem = lru_cache(maxsize=1)(bench_kernels_cpu.problem)
"""Drawing the largest logits takes seconds."""

TERMS = (*PUBLISHED, "lucir", "cross_entropy", "head_and_cross_entropy")
"""What is computed; the last two are floors that others take, for less than a method needs."""
MARGIN, NEGATIVES = 0.5, 2
SCALE = 16.0
"""Of the cosine heads of LUCIR."""


@dataclass
class Leaves:
    """Tensors that take gradient in one turn.

    Attributes:
        logits: ``[K, B, C]``.
        cosines: ``[K, B, C]``, LUCIR's ranking.
        features: ``[K, B, D]``, LUCIR's less-forget, and the input of linear heads.
        weights: ``[K, C, D]``, of linear heads.
    """

    logits: Tensor | None = None
    cosines: Tensor | None = None
    features: Tensor | None = None
    weights: Tensor | None = None

    @property
    def all(self) -> list[Tensor]:
        """Those that are there."""
        return [leaf for leaf in vars(self).values() if leaf is not None]

    def clone(self) -> Leaves:
        """Return copies in memory of their own."""
        copies = {name: leaf.clone() for name, leaf in vars(self).items() if leaf is not None}
        return Leaves(**{name: leaf.requires_grad_() for name, leaf in copies.items()})

    @property
    def known_logits(self) -> Tensor:
        """Logits of a set that has them."""
        assert self.logits is not None
        return self.logits


def width(classes: int) -> int:
    """Return features D of the usual network: ResNet-32 on CIFAR, ResNeXt-50 and its like on larger sets."""
    return 64 if classes <= 100 else 2048


def leaves_of(terms: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> Leaves:
    """Return the first buffer of a set of terms."""
    experts, batch, classes = shape
    generator = torch.Generator().manual_seed(1)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, dtype)

    if terms == "head_and_cross_entropy":
        d = width(classes)
        return Leaves(features=normal(experts, batch, d), weights=normal(experts, classes, d) / d**0.5)
    logits = problem(*shape)[0].to(device, dtype)
    if terms != "lucir":
        return Leaves(logits)
    return Leaves(logits, logits / SCALE, normal(experts, batch, width(classes)))


def model_bytes(terms: str, leaves: Leaves) -> int:
    """Return bytes that must move: each leaf read, each gradient written; less-forget reads the teacher's, too."""
    moved = sum(2 * leaf.numel() * leaf.element_size() for leaf in leaves.all)
    if terms == "lucir":
        assert leaves.features is not None
        moved += leaves.features.numel() * leaves.features.element_size()
    return moved


def turns(terms: str, shape: Shape, buffers: Sequence[Leaves], compiled: bool) -> dict[str, Turn]:
    """Return who computes these terms, by name: those that run as they are, or those that are compiled first."""
    if terms == "head_and_cross_entropy":
        return {} if compiled else _heads(shape, buffers)
    if terms == "cross_entropy":
        return {} if compiled else _cross_entropies(shape, buffers)
    return _method(terms, shape, buffers, compiled)


def skipped() -> dict[str, str]:
    """Return who cannot compete here, and why."""
    found = {}
    if _liger() is None:
        found["liger_cross_entropy"] = (
            "the package liger-kernel is not installed (pip install liger-kernel), or fails"
        )
    if not hasattr(F, "linear_cross_entropy"):
        found["linear_cross_entropy"] = f"torch {torch.__version__} has no functional.linear_cross_entropy"
    return found


def _liger() -> Callable[[Tensor, Tensor], Tensor] | None:
    try:
        from liger_kernel.transformers import LigerCrossEntropyLoss
    except Exception:  # it imports whatever its version likes, and not only ImportError comes out
        return None
    return LigerCrossEntropyLoss()


# ------------------------------------------------------------------------------------------------- whole methods


def _method(terms: str, shape: Shape, buffers: Sequence[Leaves], compiled: bool) -> dict[str, Turn]:
    device = buffers[0].known_logits.device
    published, (spec, tensors), labels, teacher = _parts(terms, shape, device)

    def by_loops(i: int) -> tuple[Tensor, ...]:
        return torch.autograd.grad(published(buffers[i]), buffers[i].all)

    def by(backend: str) -> Callable[[Leaves], list[Tensor | None]]:
        compute = backend_module(backend)

        def once(leaves: Leaves) -> list[Tensor | None]:
            given = replace(tensors, cosines=leaves.cosines)
            found = list(compute.terms_and_gradients(leaves.known_logits, labels, spec, given)[1:])
            if teacher is not None and leaves.features is not None:
                found.append(_less_forget_gradient(backend, leaves.features, teacher))
            return found

        return once

    if compiled:
        fast_published = torch.compile(published, dynamic=False)
        fast_closed = torch.compile(by("closed_form"), dynamic=False)
        return {
            "published_compiled": lambda i: torch.autograd.grad(fast_published(buffers[i]), buffers[i].all),
            "closed_form_compiled": lambda i: fast_closed(buffers[i]),
        }
    closed = by("closed_form")
    found: dict[str, Turn] = {"published": by_loops, "closed_form": lambda i: closed(buffers[i])}
    if device.type == "cuda":
        triton = by("triton")
        found["triton"] = lambda i: triton(buffers[i])
    return found


def _less_forget_gradient(backend: str, features: Tensor, teacher: Tensor) -> Tensor | None:
    if backend == "triton":
        gradient: Tensor | None = backend_module("triton").less_forget(features, teacher)[1]
        return gradient
    with torch.enable_grad():
        leaf = features.detach().requires_grad_()
        return torch.autograd.grad(losses.less_forget(leaf, teacher), leaf)[0]


def _parts(
    terms: str, shape: Shape, device: torch.device
) -> tuple[Callable[[Leaves], Tensor], tuple[TermSpec, TermTensors], Tensor, Tensor | None]:
    """Return the published form, the same as data, the labels and the teacher's features."""
    logits, labels, counts = problem(*shape)
    labels, counts = labels.to(device), counts.to(device)
    if terms == "lucir":
        num_old = shape[2] // 2
        generator = torch.Generator().manual_seed(2)
        teacher = torch.randn(*shape[:2], width(shape[2]), generator=generator).to(device)
        spec = TermSpec(
            classification=1.0, ranking=1.0, num_old=num_old, margin=MARGIN, num_negatives=NEGATIVES
        )
        return (
            lambda leaves: published_lucir(leaves, labels, num_old, teacher),
            (spec, TermTensors()),
            labels,
            teacher,
        )
    spec, tensors = fused(terms, logits, counts.cpu())
    tensors = TermTensors(**{key: None if v is None else v.to(device) for key, v in vars(tensors).items()})
    extra = {"tables": tensors} if terms == "ride" else {}
    return (
        lambda leaves: PUBLISHED[terms](leaves.known_logits, labels, counts, **extra),
        (spec, tensors),
        labels,
        None,
    )


def published_lucir(leaves: Leaves, labels: Tensor, num_old: int, teacher: Tensor) -> Tensor:
    """Cross entropy, less-forget and margin ranking as the official code computes them, expert by expert.

    The mean over experts, all weights 1. It picks scores and old images by masks, whose sizes the host waits for: its
    device time cannot be captured.
    """
    assert leaves.logits is not None and leaves.cosines is not None and leaves.features is not None
    total = leaves.logits.new_zeros((), dtype=torch.float32)
    is_old = labels.lt(num_old)
    experts = zip(leaves.logits, leaves.cosines, leaves.features, teacher, strict=True)
    for logits, cosines, features, old_features in experts:
        total = total + F.cross_entropy(logits.float(), labels)
        ones = torch.ones(len(labels), device=labels.device)
        total = total + F.cosine_embedding_loss(features.float(), old_features, ones)
        is_label = torch.zeros_like(cosines).scatter(1, labels.view(-1, 1), 1).ge(0.5)
        target = cosines.float().masked_select(is_label)
        hardest = cosines.float()[:, num_old:].topk(NEGATIVES, dim=1).values
        if torch.nonzero(is_old).size(0):
            target = target[is_old].view(-1, 1).repeat(1, NEGATIVES).view(-1)
            hardest = hardest[is_old].view(-1)
            total = total + F.margin_ranking_loss(target, hardest, torch.ones_like(target), margin=MARGIN)
    return total / len(leaves.logits)


# -------------------------------------------------------------------------------- cross entropy, without and with heads


def _by_autograd(loss: Callable[[Leaves], Tensor], buffers: Sequence[Leaves]) -> Turn:
    return lambda i: torch.autograd.grad(loss(buffers[i]), buffers[i].all)


def _mean(losses_of_experts: list[Tensor]) -> Tensor:
    return torch.stack(losses_of_experts).mean()


def _cross_entropies(shape: Shape, buffers: Sequence[Leaves]) -> dict[str, Turn]:
    """Plain cross entropy, expert after expert and in one op."""
    device = buffers[0].known_logits.device
    labels, spec, none = problem(*shape)[1].to(device), TermSpec(classification=1.0), TermTensors()

    def eager(leaves: Leaves) -> Tensor:
        return _mean([F.cross_entropy(each.float(), labels) for each in leaves.known_logits])

    def by(backend: str) -> Turn:
        compute = backend_module(backend).terms_and_gradients
        return lambda i: compute(buffers[i].known_logits, labels, spec, none)[1]

    found = {"eager": _by_autograd(eager, buffers), "closed_form": by("closed_form")}
    if device.type != "cuda":
        return found
    found["triton"] = by("triton")
    liger = _liger()
    if (
        liger is not None
    ):  # it overwrites its input: on a copy, as a second loss of the same logits would need

        def with_liger(leaves: Leaves) -> Tensor:
            return _mean([liger(each.clone(), labels) for each in leaves.known_logits])

        found["liger_cross_entropy"] = _by_autograd(with_liger, buffers)
    return found


def _heads(shape: Shape, buffers: Sequence[Leaves]) -> dict[str, Turn]:
    """Linear heads and cross entropy: where the logits need not be kept, a loss could do without them."""
    from incrlt.kernels import expert_loss

    first = buffers[0].features
    assert first is not None
    labels, spec = problem(*shape)[1].to(first.device), TermSpec(classification=1.0)

    def pairs(leaves: Leaves) -> list[tuple[Tensor, Tensor]]:
        assert leaves.features is not None and leaves.weights is not None
        return list(zip(leaves.features, leaves.weights, strict=True))

    def eager(leaves: Leaves) -> Tensor:
        return _mean([F.cross_entropy(F.linear(x, w).float(), labels) for x, w in pairs(leaves)])

    def fused_op(leaves: Leaves) -> Tensor:
        logits = torch.stack([F.linear(x, w) for x, w in pairs(leaves)])
        return expert_loss(logits, labels, spec)["classification"]

    found = {"eager": _by_autograd(eager, buffers), "fused_op": _by_autograd(fused_op, buffers)}
    if hasattr(F, "linear_cross_entropy"):

        def together(leaves: Leaves) -> Tensor:
            return _mean([F.linear_cross_entropy(x, w, labels) for x, w in pairs(leaves)])

        found["linear_cross_entropy"] = _by_autograd(together, buffers)
    return found
