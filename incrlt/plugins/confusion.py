"""Counts of (true class, predicted class) after every experience: what all metrics are computed from."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import incrlt._compat  # noqa: F401  (before avalanche)

import numpy as np
import numpy.typing as npt
import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from incrlt.benchmarks.identity import labels_of
from incrlt.errors import UserError
from incrlt.metrics import StreamRecord
from incrlt.metrics.counts import Tables
from incrlt.plugins.counting import Counting, loaded, saved
from incrlt.plugins.steps import Steps
from incrlt.roles import State, Strategy


class ConfusionRecorder(SupervisedPlugin):
    """Count predictions over all seen classes in each evaluation, for every read-out of the strategy.

    Works on any Avalanche strategy: where a strategy offers no read-outs of its own, ``mb_output`` is counted as
    ``cnn``; where it does, ``mb_output`` is the first of them, as other plugins may have changed it. Predictions are
    the best of the seen classes; test images of unseen classes are left out. Counts stay on the device until the
    evaluation ends. Classes are kept in order of arrival.

    Attributes:
        class_ids: Label id of each class, in order of arrival.
        experience_of_class: Experience in which each class arrived.
        images_of_class: Training images of each class when it arrived, exemplars not counted.
        confusions: Per read-out one int64 ``[C_t, C_t]`` per experience; evaluating again replaces the last one. Large
            ones are held by their cells that are not 0 (:mod:`incrlt.metrics.counts`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.class_ids: list[int] = []
        self.experience_of_class: list[int] = []
        self.images_of_class: list[int] = []
        self.confusions: dict[str, Tables] = {}
        self._steps = Steps()
        self._inside_training = False
        self._counting: dict[str, Counting] = {}

    @property
    def _experience(self) -> int:
        """Number of the experience trained last."""
        return self._steps.number

    def before_training(self, strategy: Strategy, **kwargs: object) -> None:
        """Evaluations from here on (``eval_every``) happen inside training and are not kept."""
        self._inside_training = True

    def after_training(self, strategy: Strategy, **kwargs: object) -> None:
        """Evaluations from here on are kept."""
        self._inside_training = False

    def before_training_exp(self, strategy: Strategy, **kwargs: object) -> None:
        """Take note of the classes that arrive; an experience trained again (resumed) is not counted twice.

        Raises:
            UserError: The benchmark calls a label by another name than one before it.
        """
        self._steps.arrive(strategy.experience)
        labels, images = labels_of(strategy.experience.dataset).unique(return_counts=True)
        known = set(self.class_ids)
        for label, count in zip(labels.tolist(), images.tolist(), strict=True):
            if label not in known:
                self.class_ids.append(label)
                self.experience_of_class.append(self._experience)
                self.images_of_class.append(count)

    def before_eval(self, strategy: Strategy, **kwargs: object) -> None:
        """Start counting."""
        self._counting = {}
        size = max(self.class_ids, default=-1) + 1
        table = torch.full((size,), -1, dtype=torch.long)
        table[self.class_ids] = torch.arange(len(self.class_ids))
        self._table = table.to(strategy.device)
        self._columns = torch.as_tensor(self.class_ids, device=strategy.device)
        known = getattr(strategy.model, "class_ids", self.class_ids)
        same = known == self.class_ids or not set(self.class_ids) <= set(known)
        place = {label: column for column, label in enumerate(known)}
        order = None if same else [place[label] for label in self.class_ids]
        self._order = None if order is None else torch.as_tensor(order, device=strategy.device)

    def after_eval_iteration(self, strategy: Strategy, **kwargs: object) -> None:
        """Count a batch, without a host sync."""
        if not self.class_ids:
            return
        true = arrival_of(strategy.mb_y, self._table)
        for readout, values in self._scores_of(strategy).items():
            self._add(readout, true, values.argmax(1))

    def _scores_of(self, strategy: Strategy) -> dict[str, Tensor]:
        """Return the scores ``[B, C]`` of the batch by read-out, classes in the order of arrival.

        The first one is ``mb_output``, which plugins may have changed.
        """
        named = getattr(strategy, "mb_scores", None) or {"cnn": None}
        first, *others = named
        scores = {name: self._in_order(named[name]) for name in others}
        return {first: strategy.mb_output[:, self._columns], **scores}

    def _in_order(self, values: Tensor) -> Tensor:
        """Bring columns ``[..., C]`` from the network's order of arrival to the recorder's."""
        return values if self._order is None else values[..., self._order]

    def _add(self, readout: str, true: Tensor, predicted: Tensor) -> None:
        size = len(self.class_ids)
        self._counting.setdefault(readout, Counting(size)).add(true, predicted)

    def after_eval(self, strategy: Strategy, **kwargs: object) -> None:
        """Keep the counts under the experience trained last, unless this evaluation happened inside training.

        A record has no gaps: where an experience was left out, what follows is dropped, with a warning. So is an
        evaluation without a single image of a class that has arrived.
        """
        tables = {readout: counting.table() for readout, counting in self._counting.items()}
        if (
            self.class_ids
            and not self._inside_training
            and not any(Tables([table]).tested(0).any() for table in tables.values())
        ):
            warnings.warn(
                f"{type(self).__name__} drops the evaluation after experience {self._experience}: it showed no image "
                "of a class that has arrived; give strategy.eval test images of those.",
                stacklevel=2,
            )
            tables = {}
        if tables and not self._inside_training:
            warn_of_gap(self, self._recorded, self._experience)
        for readout, table in tables.items():
            kept = self.confusions.setdefault(readout, Tables())
            if not self._inside_training and len(kept) in (self._experience, self._experience + 1):
                self.confusions[readout] = Tables([*kept.held[: self._experience], table])
        self._counting = {}

    @property
    def _recorded(self) -> int:
        """Experiences recorded so far, by the read-out that has most."""
        return max(map(len, self.confusions.values()), default=0)

    def records(
        self,
        images_of_class: Sequence[int] | npt.NDArray[np.int64] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> dict[str, StreamRecord]:
        """Return one record per read-out that was there after every experience so far.

        Args:
            images_of_class: Images per class for many / medium / few; by default those that were trained on.
            class_names: Names in arrival order.

        Raises:
            UserError: Nothing has been evaluated, or not after the first experience.
        """
        longest = self._recorded
        if not longest and self._experience > 0:
            raise UserError(f"nothing is recorded: {_left_out(0, self._experience)}.")
        if not longest:
            raise UserError("nothing has been evaluated yet: call strategy.eval after strategy.train.")
        images = self.images_of_class if images_of_class is None else images_of_class
        experiences = np.asarray(self.experience_of_class)
        names = None if class_names is None else tuple(class_names)
        return {
            readout: StreamRecord(kept, experiences, np.asarray(images[: len(experiences)]), names)
            for readout, kept in self.confusions.items()
            if len(kept) == longest
        }

    def state_dict(self) -> State:
        """Return classes and counts as plain data and tensors."""
        return {
            "class_ids": list(self.class_ids),
            "experience_of_class": list(self.experience_of_class),
            "images_of_class": list(self.images_of_class),
            **self._steps.state_dict(),
            "confusions": {
                name: [saved(table) for table in kept.held] for name, kept in self.confusions.items()
            },
        }

    def load_state_dict(self, state: State) -> None:
        """Restore :meth:`state_dict`."""
        self.class_ids = list(state["class_ids"])
        self.experience_of_class = list(state["experience_of_class"])
        self.images_of_class = list(state["images_of_class"])
        self._steps.load_state_dict(state)
        self.confusions = {name: Tables(map(loaded, kept)) for name, kept in state["confusions"].items()}


def warn_of_gap(recorder: SupervisedPlugin, recorded: int, experience: int) -> None:
    """Warn that an evaluation is dropped, where experiences before it have not been evaluated.

    Args:
        recorder: Named in the warning.
        recorded: Experiences recorded so far.
        experience: The one trained last.
    """
    if recorded < experience:
        warnings.warn(
            f"{type(recorder).__name__} drops the evaluation after experience {experience}: "
            f"{_left_out(recorded, experience)}.",
            stacklevel=3,
        )


def _left_out(first: int, experience: int) -> str:
    numbers = ", ".join(map(str, range(first, experience)))
    return (
        f"there was no evaluation after training experience {numbers}, and a record has no gaps; call strategy.eval "
        "after every strategy.train"
    )


def arrival_of(labels: Tensor, table: Tensor) -> Tensor:
    """Return each label's place in the order of arrival ``[B]``, -1 for classes yet to come; no host sync.

    Args:
        labels: Label ids ``[B]``.
        table: Place of each label id from 0 on, -1 where it has not arrived; at least one entry.
    """
    known = labels < len(table)
    return torch.where(known, table[labels.clamp(max=len(table) - 1)], -1)
