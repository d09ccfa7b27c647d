"""Train on everything that has arrived: the upper bound of a memory without limits."""

from __future__ import annotations

from typing import Any, ClassVar

from incrlt.errors import UserError
from incrlt.training.template import IncrTemplate


class Joint(IncrTemplate):
    """Minimise the expert method's loss on all images of all experiences so far.

    The network goes on from the experience before (it is not drawn anew). Arguments are those of
    :class:`~incrlt.training.template.IncrTemplate`; a memory would double old images and is refused.

    Raises:
        UserError: A memory is given.
    """

    name: ClassVar[str] = "joint"
    title: ClassVar[str] = "Joint"
    keeps_images: ClassVar[bool] = True
    clashes: ClassVar[dict[str, str]] = {
        "memory": "strategy 'joint' keeps all images already, but memory is given. Set memory: null."
    }
    steady: ClassVar[bool] = True

    def __init__(self, **template: Any) -> None:
        super().__init__(**template)
        if self.memory is not None:
            raise UserError("strategy 'joint' keeps all images already; remove memory.")
        self._past: dict[int, Any] = {}  # an experience that is trained again counts once

    def _after_train_dataset_adaptation(self, **kwargs: Any) -> None:
        now = _number(self.experience)
        for dataset in (dataset for number, dataset in self._past.items() if number != now):
            self.adapted_dataset = self.adapted_dataset.concat(dataset.train())
        super()._after_train_dataset_adaptation(**kwargs)

    def end_experience(self, experience: Any) -> None:
        """Keep the images of the experience."""
        self._past[_number(experience)] = experience.dataset

    def past_data(self) -> list[Any]:
        """Return the data sets of the experiences so far, in order."""
        return list(self._past.values())

    def load_state_dict(self, state: dict[str, Any], train_stream: Any) -> None:
        """Restore the state; images of past experiences are looked up in ``train_stream``."""
        super().load_state_dict(state, train_stream)
        seen = train_stream[: self.experience_index]
        self._past = {_number(experience): experience.dataset for experience in seen}


def _number(experience: Any) -> int:
    """Return the experience's place in its stream."""
    return int(experience.logging().current_experience)
