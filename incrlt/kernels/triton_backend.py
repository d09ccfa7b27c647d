"""The terms and their gradients in fused CUDA kernels: three launches, four with a ranking; the host waits for none.

A tiny launch reads the labels and leaves what each term is multiplied by on the device; the main one reads the logits
and writes each row's part in each term together with the gradient; a last one adds up the rows in a fixed order, so
that results repeat bit by bit. Inputs are never overwritten.

Axes: K experts, B batch, C classes, O old classes, D features, T terms.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from incrlt.errors import UserError
from incrlt.kernels._triton import heuristics
from incrlt.kernels._triton.plans import plan
from incrlt.kernels.spec import TermSpec
from incrlt.kernels.tensors import TermTensors
from incrlt.losses.distillation import SQUARED_NORM_EPS


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
        logits: ``[K, B, C]``, fp32, bf16 or fp16; copied where neighbouring classes do not lie side by side.
        labels: Class positions ``[B]``; rows with a negative one contribute nothing. One of C or more makes every
            term NaN: to refuse it the host would have to wait.
        spec: Terms and their weights.
        tensors: What they need.
        upstream: What each term's gradient is multiplied by ``[T]``; None means 1.
        need_logits_grad: Return the gradient of the logits.
        need_cosines_grad: Return the gradient of the cosines, where a term reads them.

    Returns:
        Terms ``[T]`` in fp32 in the order of ``spec.names``, weights in them; gradient of ``sum(upstream * terms)`` by
        the logits and by the cosines, contiguous, each in the type and shape of its input, or None.

    Raises:
        UserError: fp64 logits.
    """
    call = _Call(logits, labels, spec, tensors, upstream)
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format) if need_logits_grad else None
    of_cosines = None
    if tensors.cosines is not None and spec.ranking and need_cosines_grad:
        of_cosines = torch.empty_like(tensors.cosines, memory_format=torch.contiguous_format)
    values = logits.new_empty((len(spec.names), call.batch), dtype=torch.float32)
    terms = logits.new_empty(len(spec.names), dtype=torch.float32)
    launches = [call.factors()]
    launches += call.main(values, gradient, rescale=False)
    launches += call.ranking(values, of_cosines, rescale=False)
    launches.append(call.sums(values, terms))
    run(launches, logits.device)
    return terms, gradient, of_cosines


def rescale_gradients(
    logits_gradient: Tensor,
    cosines_gradient: Tensor,
    arguments: Sequence[Any],
    upstream: Tensor,
    spec: TermSpec,
    needed: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """Make gradients that were computed for an upstream of ones those for another upstream, in place.

    Usually the terms are added up and ``backward()`` is called: ones arrive, and the gradients are right as they are.
    Only the device knows, and the host must not wait for it. So the kernels are launched regardless and look for
    themselves: all ones, and they return at once; one and the same number for all terms and an fp32 gradient, and they
    multiply; otherwise, and for half gradients always, they compute the gradient anew from the logits. (It costs as
    many bytes as to multiply, rounds once, and under fp16 loss scaling brings back what underflowed at scale 1.)

    Because the gradients are overwritten, their version counters go up: autograd then refuses a second backward
    through the same graph instead of multiplying twice.

    Args:
        logits_gradient: ``[K, B, C]``, from :func:`terms_and_gradients` with ``upstream=None``; empty if not needed.
        cosines_gradient: The same of the cosines.
        arguments: Logits, labels and the fields of :class:`TermTensors` in their order, as the forward pass had them.
        upstream: ``[T]``, on the device.
        spec: Terms and their weights.
        needed: Whether the gradient of the logits, and of the cosines, is wanted.

    Returns:
        The two gradients, the same tensors as were given.
    """
    logits, labels, *rest = arguments
    call = _Call(logits, labels, spec, TermTensors(*rest), upstream)
    launches = []
    if needed[0] and logits_gradient.numel():
        launches += call.main(None, logits_gradient, rescale=True)
    if needed[1] and cosines_gradient.numel():
        launches += call.ranking(None, cosines_gradient, rescale=True)
    if launches:
        run([call.factors(), *launches], logits.device)
        for gradient in (logits_gradient, cosines_gradient):
            torch.autograd.graph.increment_version(gradient)
    return logits_gradient, cosines_gradient


def less_forget(
    features: Tensor, teacher_features: Tensor, need_gradient: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Compute :func:`incrlt.losses.less_forget` and its gradient, with two launches.

    Args:
        features: ``[K, B, D]``, fp32, bf16 or fp16.
        teacher_features: ``[K, B, D]``; no gradient.
        need_gradient: Return the gradient.

    Returns:
        The loss in fp32, without the weight; its gradient by the features, contiguous and in their type, or None.

    Raises:
        UserError: Shapes that differ or are not ``[K, B, D]``; fp64.
    """
    if features.dim() != 3 or features.shape != teacher_features.shape:
        raise UserError(
            f"features have shape {list(features.shape)}, teacher_features {list(teacher_features.shape)}; both must "
            "be [K, B, D]. One expert is features[None]."
        )
    _refuse_double(features)
    features, teacher_features = _rows(features.detach()), _rows(teacher_features.detach())
    num_experts, batch, size = features.shape
    gradient = torch.empty_like(features, memory_format=torch.contiguous_format) if need_gradient else None
    values = features.new_empty((1, num_experts * batch), dtype=torch.float32)
    loss = features.new_empty(1, dtype=torch.float32)
    tiles = heuristics.tile_launch(size)
    arguments = dict(
        features=features, teacher=teacher_features, values=values, gradient=gradient, B=batch,
        D=size, share=1 / max(num_experts * batch, 1),
        **_strides("features", features), **_strides("teacher", teacher_features),
        EPS=SQUARED_NORM_EPS, BLOCK=tiles.block,
    )  # fmt: skip
    launches = [
        Launch("less_forget", num_experts * batch, arguments, tiles.warps),
        _sums(values, loss, computed=1),
    ]
    run(launches, features.device)
    return loss[0], gradient


# -------------------------------------------------------------------------------------------------------- launches


@dataclass(frozen=True)
class Launch:
    """A kernel with everything it is given.

    Attributes:
        kernel: Name of the kernel, see :func:`kernel`.
        programs: Size of the grid.
        arguments: By name, constants of the compilation included.
        warps: Per program.
    """

    kernel: str
    programs: int
    arguments: dict[str, Any]
    warps: int = 4

    @property
    def options(self) -> dict[str, Any]:
        """Compiler options. Fused multiply-add is asked for because the default changes between Triton versions.

        Loops are not pipelined: their loads are few and independent, and stages would cost registers.
        """
        return {"num_warps": self.warps, "num_stages": 1, "enable_fp_fusion": True}


def run(launches: list[Launch], device: torch.device) -> None:
    """Launch kernels one after the other on the device's current stream, whichever device is current."""
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        for launch in launches:
            if launch.programs:
                kernel(launch.kernel)[(launch.programs,)](**launch.arguments, **launch.options)


@cache
def kernel(name: str) -> Any:
    """Import a kernel when it is first used: Triton is not everywhere."""
    from incrlt.kernels._triton import expert_loss, less_forget, ranking, sums

    kernels = {
        "factors": sums.factors_kernel,
        "expert_loss": expert_loss.expert_loss_kernel,
        "ranking": ranking.ranking_kernel,
        "sums": sums.sum_kernel,
        "less_forget": less_forget.less_forget_kernel,
    }
    return kernels[name]


class _Call:
    """The launches of one call, and what they share."""

    def __init__(
        self, logits: Tensor, labels: Tensor, spec: TermSpec, tensors: TermTensors, upstream: Tensor | None
    ) -> None:
        _refuse_double(logits)
        self.spec, self.tensors = spec, tensors
        self.logits, self.labels = _rows(logits.detach()), labels.contiguous()
        self.upstream = None if upstream is None else upstream.detach().contiguous()
        self.num_experts, self.batch, self.num_classes = logits.shape
        teacher = tensors.teacher_logits
        self.plan = plan(
            spec,
            self.num_experts,
            self.num_classes,
            not self.batch,
            0 if teacher is None else teacher.shape[-1],
            tensors.prior is not None,
            tensors.margins is not None,
        )
        self.factor = logits.new_empty(len(self.plan.places), dtype=torch.float32)

    def small(self, tensor: Tensor | None) -> Tensor | None:
        """Return a tensor of classes or experts with neighbours side by side."""
        return None if tensor is None else tensor.detach().contiguous()

    def factors(self) -> Launch:
        """Weights with their constants, to be divided by the number of rows."""
        places = self.plan.places
        arguments = dict(
            labels=self.labels, class_weights=self.small(self.tensors.class_weights), factors=self.factor,
            B=self.batch, C=self.num_classes, num_old=self.spec.num_old, **self.plan.weights,
            T=len(places), CLASSIFICATION=places.get("classification", -1),
            RANKING=places.get("ranking", -1), BLOCK=heuristics.LABELS,
        )  # fmt: skip
        return Launch("factors", 1, arguments)

    def main(self, values: Tensor | None, gradient: Tensor | None, rescale: bool) -> list[Launch]:
        """All terms on the logits; with nothing to compute, zeros."""
        tensors = self.tensors
        if not self.plan.has_main:
            if gradient is not None:
                gradient.zero_()
            return []
        teacher = _rows(tensors.teacher_logits.detach()) if "distillation" in self.plan.active else None  # type: ignore[union-attr]
        size = heuristics.main_launch(self.num_experts, self.num_classes, self.plan.parts)
        arguments = dict(
            logits=self.logits, labels=self.labels, prior=self.small(tensors.prior),
            margins=self.small(tensors.margins),
            scales=self.small(tensors.scales), class_weights=self.small(tensors.class_weights),
            temperatures=self.small(tensors.temperatures), teacher=teacher, factors=self.factor,
            upstream=self.upstream, values=values, gradient=gradient,
            B=self.batch, C=self.num_classes, num_old=0 if teacher is None else teacher.shape[-1],
            first_class=self.spec.first_class, num_hard=self.spec.num_hard, temperature=float(self.spec.temperature),
            **_strides("logits", self.logits), **_strides("teacher", teacher), **_strides("gradient", gradient),
            K=self.num_experts, **self.plan.main, RESCALE=rescale, BLOCK=size.block, WHOLE=size.whole,
        )  # fmt: skip
        return [Launch("expert_loss", self.batch, arguments, size.warps)]

    def ranking(self, values: Tensor | None, gradient: Tensor | None, rescale: bool) -> list[Launch]:
        """The term on the cosines; without negatives or old classes, zeros."""
        if "ranking" not in self.plan.active:
            if gradient is not None:
                gradient.zero_()
            return []
        assert self.tensors.cosines is not None
        cosines = _rows(self.tensors.cosines.detach())
        size = heuristics.tile_launch(self.num_classes)
        arguments = dict(
            cosines=cosines, labels=self.labels, factors=self.factor, upstream=self.upstream, values=values,
            gradient=gradient, B=self.batch, C=self.num_classes, num_experts=self.num_experts,
            num_old=self.spec.num_old, first_negative=self.spec.num_old if self.spec.negatives == "new" else 0,
            taken=self.plan.num_negatives, margin=float(self.spec.margin),
            **_strides("cosines", cosines), **_strides("gradient", gradient),
            TERM=self.plan.places["ranking"], RESCALE=rescale, BLOCK=size.block,
        )  # fmt: skip
        return [Launch("ranking", self.batch, arguments, size.warps)]

    def sums(self, values: Tensor, terms: Tensor) -> Launch:
        """Rows to terms."""
        return _sums(values, terms, computed=self.plan.computed)


def _sums(values: Tensor, terms: Tensor, computed: int) -> Launch:
    arguments = {"values": values, "terms": terms, "B": values.shape[1], "computed": computed}
    arguments["BLOCK"] = heuristics.LABELS
    return Launch("sums", len(terms), arguments)


def _rows(tensor: Tensor) -> Tensor:
    """Return a tensor whose last axis lies side by side in memory."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _strides(name: str, tensor: Tensor | None) -> dict[str, int]:
    """Return the strides over experts and rows as arguments of a kernel."""
    steps = (0, 0) if tensor is None else tensor.stride()[:2]
    return {f"{name}_K": steps[0], f"{name}_B": steps[1]}


def _refuse_double(tensor: Tensor) -> None:
    if tensor.dtype == torch.float64:
        raise UserError(
            "The Triton kernels compute in fp32; fp64 was given. Take the backend closed_form, or float32 tensors."
        )
