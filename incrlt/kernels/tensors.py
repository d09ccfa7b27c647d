"""The tensors a fused op reads besides logits and labels, and the check that they fit. Axes: K experts, B batch, C."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from incrlt.errors import UserError
from incrlt.kernels.spec import TermSpec


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which terms are computed: fp64 for fp64, fp32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class TermTensors:
    """What the terms of a :class:`~incrlt.kernels.spec.TermSpec` need; None where a term does without.

    None of them takes gradient, except ``cosines``.

    Attributes:
        prior: Log prior ``[C]``, added to the logits; ``-inf`` for classes that were not seen.
        margins: ``[C]`` in cosine, see :func:`~incrlt.losses.ldam_margins`; classification alone.
        scales: Scale of each expert's head ``[K]``, which multiplies the margins; None means 1.
        class_weights: ``[C]``, see :func:`~incrlt.losses.class_balanced_weights`; classification alone.
        temperatures: ``[C]``, see :func:`~incrlt.losses.class_temperatures`; None means 1; diversity alone.
        teacher_logits: ``[K, B, O]`` with O <= C; distillation.
        cosines: ``[K, B, C]``, before any scale; ranking.
    """

    prior: Tensor | None = None
    margins: Tensor | None = None
    scales: Tensor | None = None
    class_weights: Tensor | None = None
    temperatures: Tensor | None = None
    teacher_logits: Tensor | None = None
    cosines: Tensor | None = None

    def check(self, spec: TermSpec, logits: Tensor, labels: Tensor) -> None:
        """Raise unless shapes and types fit together. Reads no values, hence no host sync.

        Args:
            spec: Terms to compute.
            logits: ``[K, B, C]``.
            labels: Class positions ``[B]``; negative ones are ignored.

        Raises:
            UserError: Naming what was given, what is allowed and what to do.
        """
        _check_logits_and_labels(logits, labels)
        num_experts, batch, num_classes = logits.shape
        for name in ("prior", "margins", "class_weights", "temperatures"):
            _check_shape(name, getattr(self, name), (num_classes,), "[C], one number per logit column")
        _check_shape("scales", self.scales, (num_experts,), "[K], one number per expert")
        _check_shape("cosines", self.cosines, (num_experts, batch, num_classes), "that of the logits")
        if spec.ranking and self.cosines is None:
            raise UserError(
                "The ranking term reads cosines [K, B, C]; none were given. Give them, or weight 0."
            )
        if spec.distillation and self.teacher_logits is None:
            raise UserError(
                "The distillation term reads teacher_logits [K, B, O]; none were given. Give the old model's logits, "
                "or weight 0."
            )
        if self.teacher_logits is not None:
            _check_teacher(self.teacher_logits, logits)


def _check_logits_and_labels(logits: Tensor, labels: Tensor) -> None:
    if logits.dim() != 3 or not logits.is_floating_point() or 0 in (logits.shape[0], logits.shape[2]):
        raise UserError(
            f"logits are {logits.dtype} {list(logits.shape)}; floating-point [K, B, C] with K and C at least 1 are "
            "needed. Stack the experts' logits; one expert is logits[None]."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype.itemsize != 8:
        raise UserError(f"labels are {labels.dtype}; int64 class positions are needed. Call labels.long().")
    _check_shape("labels", labels, (logits.shape[1],), "[B], one label per row of the logits")


def _check_shape(name: str, tensor: Tensor | None, shape: tuple[int, ...], meaning: str) -> None:
    if tensor is not None and tuple(tensor.shape) != shape:
        raise UserError(
            f"{name} has shape {list(tensor.shape)}; {list(shape)} is needed ({meaning}). Give {name} of the classes, "
            "experts and images that the logits have."
        )


def _check_teacher(teacher: Tensor, logits: Tensor) -> None:
    num_experts, batch, num_classes = logits.shape
    if teacher.dim() != 3 or teacher.shape[:2] != logits.shape[:2] or teacher.shape[2] > num_classes:
        raise UserError(
            f"teacher_logits have shape {list(teacher.shape)}; [{num_experts}, {batch}, O] with O <= {num_classes} is "
            "needed (one row per expert and image, the old classes first). Drop the teacher's surplus columns."
        )
