"""What a router decides on every test image: counts for the run folder, and the curve of accuracy over computation."""

from __future__ import annotations

import os
from typing import Protocol

import incrlt._compat  # noqa: F401  (before avalanche)

import numpy.typing as npt
import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from incrlt.losses import running_means
from incrlt.metrics.routing import (
    RoutingTable,
    computation,
    count_experts_used,
    routing_rows,
    sweep,
    write_routing,
)
from incrlt.metrics.yardsticks import YardstickCounts, in_words
from incrlt.models.cost import macs_by_experts
from incrlt.plugins.confusion import arrival_of, warn_of_gap
from incrlt.plugins.steps import Steps
from incrlt.plugins.yardsticks import YardstickCounting
from incrlt.roles import State, Strategy
from incrlt.types import ModelOutput


class Routed(Strategy, Protocol):
    """A strategy with a router, while it evaluates a batch."""

    mb_out: ModelOutput
    mb_experts_used: Tensor


class RoutingRecorder(SupervisedPlugin):
    """Collect scores and answers of a routed strategy in each evaluation; without a router it does nothing.

    Attach it to one of our strategies with a ``router``; on others it does nothing either. As with
    :class:`~incrlt.plugins.confusion.ConfusionRecorder` the last evaluation after an experience counts, and those
    inside training do not.

    Attributes:
        used: Per experience the number of test images of each class by experts used, int64 ``[C_t, K]``.
        macs: Per experience what an image costs with 1, 2, ... K experts, multiply-adds.
        yardsticks: Per experience what the router is held against; None where an older version recorded it.
        table: Scores and answers of the last evaluation, for a sweep of thresholds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.used: list[Tensor] = []
        self.macs: list[list[float]] = []
        self.yardsticks: list[YardstickCounts | None] = []
        self.table: RoutingTable | None = None
        self._batches: list[tuple[Tensor, ...]] = []
        self._counting: YardstickCounting | None = None
        self._steps = Steps()
        self._inside_training = False

    @property
    def _experience(self) -> int:
        """Number of the experience trained last."""
        return self._steps.number

    def before_training(self, strategy: object, **kwargs: object) -> None:
        """Evaluations from here on happen inside training and are not kept."""
        self._inside_training = True

    def after_training(self, strategy: object, **kwargs: object) -> None:
        """Evaluations from here on are kept."""
        self._inside_training = False

    def before_training_exp(self, strategy: Strategy, **kwargs: object) -> None:
        """Take note of the experience."""
        self._steps.arrive(strategy.experience)

    def before_eval(self, strategy: Strategy, **kwargs: object) -> None:
        """Start collecting."""
        self._batches, self._counting = [], None
        if getattr(strategy.model, "class_ids", None):
            width = max(strategy.model.class_ids) + 1
            self._table = strategy.model.positions(torch.arange(width)).to(strategy.device)

    def after_eval_iteration(self, strategy: Routed, **kwargs: object) -> None:
        """Keep the decisions on a batch, on the device, without a host sync."""
        if getattr(strategy, "mb_experts_used", None) is None or self._inside_training:
            return
        output, router = strategy.mb_out, strategy.model.router
        scores = router(output.expert_logits, output.known_features, output.combine)
        answers = running_means(output.expert_logits, output.combine).argmax(-1)
        known = arrival_of(strategy.mb_y, self._table)
        self._image_shape = tuple(strategy.mb_x.shape[1:])
        self._batches.append((scores, answers, known, strategy.mb_experts_used))
        if self._counting is None:
            self._counting = YardstickCounting(strategy.model.num_classes, len(answers))
        self._counting.add(output, answers, strategy.mb_experts_used, known)

    def after_eval(self, strategy: Strategy, **kwargs: object) -> None:
        """Count under the experience trained last; as in a confusion record, nothing follows a gap."""
        if self._batches:
            warn_of_gap(self, len(self.used), self._experience)
        if not self._batches or len(self.used) not in (self._experience, self._experience + 1):
            return
        columns = zip(*self._batches, strict=True)
        tensors = [torch.cat(parts, dim=-1).cpu() for parts in columns]
        known = tensors[2] >= 0  # test images of classes yet to come are left out
        self._batches, counting = [], self._counting
        if not known.any():  # the confusion recorder says so
            return
        scores, answers, labels, used = (tensor[..., known].numpy() for tensor in tensors)
        network = strategy.model
        experts = network.num_experts
        counts = torch.as_tensor(count_experts_used(labels, used, network.num_classes, experts))
        costs = macs_by_experts(network, self._image_shape)
        assert counting is not None
        found = counting.found(counts.sum(1))
        self.used = [*self.used[: self._experience], counts]
        self.macs = [*self.macs[: self._experience], costs]
        self.yardsticks = [*self.yardsticks[: self._experience], found]
        self.table = RoutingTable(scores, answers, labels)

    def line(self) -> str | None:
        """Return what the router did in the last evaluation, in a line for the terminal; None without a router.

        Beside it stand the answers of the same experts without a router, and the ceilings.
        """
        if not self.used:
            return None
        used, beside = self.used[-1].numpy(), self.yardsticks[-1]
        found = computation(used, self.macs[-1])
        mean, saved = found["mean_experts"], found["macs_saved"]
        line = f"router: {mean:.2f} experts per image, {saved:.1f} % of multiply-adds saved"
        return line if beside is None else f"{line}; {in_words(beside, used.sum(axis=1))}"

    def rows(
        self, experience_of_class: npt.ArrayLike, images_of_class: npt.ArrayLike
    ) -> list[dict[str, float | None]]:
        """Return the rows of ``routing.csv``, one per experience; none without a router.

        Args:
            experience_of_class: Experience in which each class arrived ``[C]``.
            images_of_class: Training images of each class ``[C]``.
        """
        used = [counts.numpy() for counts in self.used]
        return routing_rows(used, experience_of_class, images_of_class, self.macs, self.yardsticks)

    def write(
        self,
        folder: str | os.PathLike[str],
        experience_of_class: npt.ArrayLike,
        images_of_class: npt.ArrayLike,
    ) -> None:
        """Write ``routing.csv`` and, after an evaluation in this process, ``routing_sweep.csv``.

        Args:
            folder: The run folder.
            experience_of_class: Experience in which each class arrived ``[C]``.
            images_of_class: Training images of each class ``[C]``.
        """
        if not self.used:
            return
        rows = self.rows(experience_of_class, images_of_class)
        curve = None if self.table is None else sweep(self.table, self.macs[-1], images_of_class)
        write_routing(folder, rows, curve)

    def state_dict(self) -> State:
        """Return the counts and costs as tensors and plain data."""
        return {
            "used": list(self.used),
            "macs": [list(costs) for costs in self.macs],
            "yardsticks": [_saved(found) for found in self.yardsticks],
            **self._steps.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore :meth:`state_dict`; one of an older version has no yardsticks, and none are made up for it."""
        self.used, self.macs = list(state["used"]), [list(costs) for costs in state["macs"]]
        self.yardsticks = [_loaded(saved) for saved in state.get("yardsticks", [None] * len(self.used))]
        self._steps.load_state_dict(
            {"experience": len(self.used) - 1} | state
        )  # older versions kept no number


def _saved(found: YardstickCounts | None) -> State | None:
    return None if found is None else {"right": torch.as_tensor(found.right), "weights": list(found.weights)}


def _loaded(saved: State | None) -> YardstickCounts | None:
    return None if saved is None else YardstickCounts(saved["right"].numpy(), tuple(saved["weights"]))
