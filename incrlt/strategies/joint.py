"""Train on everything that has arrived: the upper bound of a memory without limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from incrlt.benchmarks.identity import PastData, check_names
from incrlt.errors import UserError
from incrlt.roles import Dataset, Experience, State
from incrlt.training.template import IncrTemplate


class Joint(IncrTemplate):
    """Minimise the expert method's loss on all images of all experiences so far, each image once.

    Images are told apart by what they are: several streams may follow one another, an experience may be cut into many,
    come again, or repeat images of earlier ones. The network goes on from the experience before (it is not drawn anew).
    Arguments are those of :class:`~incrlt.training.template.IncrTemplate`; a memory would double old images and is
    refused.

    Raises:
        UserError: A memory is given, or a benchmark calls a label by another name than one before it.
    """

    name: ClassVar[str] = "joint"
    title: ClassVar[str] = "Joint"
    keeps_images: ClassVar[bool] = True
    clashes: ClassVar[dict[str, str]] = {
        "memory": "strategy 'joint' keeps all images already, but memory is given. Set memory: null."
    }
    steady: ClassVar[bool] = True

    def __init__(self, **template: object) -> None:
        super().__init__(**template)
        if self.memory is not None:
            raise UserError("strategy 'joint' keeps all images already; remove memory.")
        self._past = PastData()
        self._names: dict[int, str] = {}  # label -> name, where benchmarks tell it

    def _after_train_dataset_adaptation(self, **kwargs: object) -> None:
        self._names = check_names(self._names, self.experience)
        for dataset in self._past.beside(self.experience.dataset):
            self.adapted_dataset = self.adapted_dataset.concat(dataset)
        super()._after_train_dataset_adaptation(**kwargs)

    def end_experience(self, experience: Experience) -> None:
        """Keep the images of the experience."""
        self._past.add(experience.dataset)

    def past_data(self) -> list[Dataset]:
        """Return the data sets of the experiences so far, each picture once, in order of arrival."""
        return self._past.all()

    def load_state_dict(self, state: State, train_stream: Sequence[Experience]) -> None:
        """Restore the state; images of past experiences are looked up in ``train_stream``.

        Args:
            state: As returned by :meth:`state_dict`.
            train_stream: Every experience that was trained on, in that order; with several streams, one after the
                other: ``[*first.train_stream, *second.train_stream]``.
        """
        super().load_state_dict(state, train_stream)
        self._past, self._names = PastData(), {}
        for experience in train_stream[: self.experience_index]:
            self._past.add(experience.dataset)
            self._names = check_names(self._names, experience)
