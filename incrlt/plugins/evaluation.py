"""More of every evaluation than who was taken for whom: confidence, experts, memory, and the last answers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from incrlt.losses.routing import running_means
from incrlt.metrics.evaluation import BINS, EVALUATIONS_FILE, MILLION, save_evaluations
from incrlt.models import cost
from incrlt.plugins.confusion import ConfusionRecorder, arrival_of
from incrlt.roles import State, Strategy
from incrlt.types import ModelOutput

LOGITS = ("cnn", "routed")
"""Read-outs whose scores are logits; a similarity to class means has no softmax that means anything."""


class EvaluationRecorder(ConfusionRecorder):
    """A :class:`ConfusionRecorder` that also keeps what :mod:`incrlt.metrics.evaluation` lists.

    Works on any Avalanche strategy: without experts or memory those parts stay out. Sums stay on the device until
    the evaluation ends, and are whole numbers, so that neither the batches' size nor their order changes them.

    Attributes:
        evaluations: Experience -> name -> int64 sums per class; evaluating again replaces an experience.
        answers: ``labels`` and ``predicted_<readout>`` of the last evaluation ``[N]``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.evaluations: dict[int, dict[str, Tensor]] = {}
        self.answers: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._parts: dict[str, list[Tensor]] = {}
        self._image_shape: tuple[int, ...] = ()

    def before_eval(self, strategy: Strategy, **kwargs: object) -> None:
        """Start counting."""
        super().before_eval(strategy, **kwargs)
        self._sums, self._parts = {}, {}

    def after_eval_iteration(self, strategy: Strategy, **kwargs: object) -> None:
        """Count a batch, without a host sync."""
        super().after_eval_iteration(strategy, **kwargs)
        if self._inside_training or not self.class_ids:
            return
        true = arrival_of(strategy.mb_y, self._table)
        self._parts.setdefault("labels", []).append(true)
        for readout, scores in self._scores_of(strategy).items():
            self._parts.setdefault(f"predicted_{readout}", []).append(scores.argmax(1))
            if readout in LOGITS:
                self._sum(f"confidence_{readout}", true, confidence_counts(scores, true))
        output = getattr(strategy, "mb_out", None)
        if output is not None and len(output.expert_logits) > 1:
            self._image_shape = tuple(strategy.mb_x.shape[1:])
            self._count_experts(output, true)

    def _count_experts(self, output: ModelOutput, true: Tensor) -> None:
        alone = self._in_order(output.expert_logits).argmax(-1)
        together = self._in_order(running_means(output.expert_logits, output.combine)).argmax(-1)
        right = torch.stack([alone == true, together == true]).permute(2, 0, 1)
        self._sum("right", true, right.long())
        self._sum("disagree", true, (alone[:, None] != alone[None]).permute(2, 0, 1).long())

    def _sum(self, name: str, true: Tensor, values: Tensor) -> None:
        """Add whole numbers per image ``[B, ...]`` to the rows of their classes."""
        if name not in self._sums:  # the last row takes unseen classes
            shape = (len(self.class_ids) + 1, *values.shape[1:])
            self._sums[name] = torch.zeros(shape, dtype=torch.long, device=values.device)
        row = torch.where(true >= 0, true, len(self.class_ids))
        self._sums[name].index_add_(0, row, values)

    def after_eval(self, strategy: Strategy, **kwargs: object) -> None:
        """Keep the sums under the experience trained last, unless this evaluation happened inside training."""
        seen_any = bool(self._parts) and any(bool((part >= 0).any()) for part in self._parts["labels"])
        super().after_eval(strategy, **kwargs)
        if seen_any:
            kept = {name: sums[:-1].cpu() for name, sums in self._sums.items()}
            self.evaluations[self._experience] = kept | self._memory(strategy) | self._costs(strategy)
            columns = {name: torch.cat(parts).cpu() for name, parts in self._parts.items()}
            seen = columns["labels"] >= 0
            self.answers = {name: column[seen].to(torch.int32) for name, column in columns.items()}
        self._sums, self._parts = {}, {}

    def _memory(self, strategy: Strategy) -> dict[str, Tensor]:
        memory = getattr(strategy, "memory", None)
        if not hasattr(memory, "counts"):
            return {}
        kept = memory.counts()
        return {"memory": torch.tensor([kept.get(label, 0) for label in self.class_ids])}

    def _costs(self, strategy: Strategy) -> dict[str, Tensor]:
        if "right" not in self._sums:
            return {}
        costs = cost.macs_by_experts(strategy.model, self._image_shape)
        return {"macs": torch.tensor([round(value) for value in costs])}

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write ``evaluations.npz``; nothing before the first evaluation."""
        if self.evaluations:
            steps = {t: _arrays(step) for t, step in self.evaluations.items()}
            save_evaluations(Path(folder) / EVALUATIONS_FILE, steps, _arrays(self.answers))

    def state_dict(self) -> State:
        """Return classes, counts, sums and answers as plain data and tensors."""
        steps = {t: dict(step) for t, step in self.evaluations.items()}
        return {**super().state_dict(), "evaluations": steps, "answers": dict(self.answers)}

    def load_state_dict(self, state: State) -> None:
        """Restore :meth:`state_dict`, or that of a :class:`ConfusionRecorder`: then earlier sums are missing."""
        super().load_state_dict(state)
        self.evaluations = {t: dict(step) for t, step in state.get("evaluations", {}).items()}
        self.answers = dict(state.get("answers", {}))


def confidence_counts(scores_BC: Tensor, true: Tensor) -> Tensor:
    """Return per image, in the bin of the winner's probability: 1, whether it is right, millionths ``[B, 3, BINS]``.

    Args:
        scores_BC: Logits.
        true: True class ``[B]``; a class that is not there is never right.
    """
    probability, winner = scores_BC.float().softmax(1).max(1)
    inside = torch.nn.functional.one_hot((probability * BINS).long().clamp(max=BINS - 1), BINS)
    millionths = (probability.double() * MILLION).round().long()
    per_image = torch.stack([torch.ones_like(true), (winner == true).long(), millionths], dim=1)
    return per_image[:, :, None] * inside[:, None, :]


def _arrays(values: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in values.items()}
