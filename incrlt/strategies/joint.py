"""Train on everything that has arrived: the upper bound of a memory without limits."""

from __future__ import annotations

from typing import Any, ClassVar

from incrlt.errors import UserError
from incrlt.strategies.template import IncrTemplate


class Joint(IncrTemplate):
    """Minimise the expert method's loss on all images of all experiences so far.

    The network goes on from the experience before (it is not drawn anew). Arguments are those of
    :class:`~incrlt.strategies.template.IncrTemplate`; a memory would double old images and is refused.

    Raises:
        UserError: A memory is given.
    """

    name: ClassVar[str] = "joint"
    steady: ClassVar[bool] = True

    def __init__(self, **template: Any) -> None:
        super().__init__(**template)
        if self.memory is not None:
            raise UserError("strategy 'joint' keeps all images already; remove memory.")
        self._past: list[Any] = []

    def _after_train_dataset_adaptation(self, **kwargs: Any) -> None:
        for dataset in self._past:
            self.adapted_dataset = self.adapted_dataset.concat(dataset.train())
        super()._after_train_dataset_adaptation(**kwargs)

    def end_experience(self, experience: Any) -> None:
        """Keep the images of the experience."""
        self._past.append(experience.dataset)

    def load_state_dict(self, state: dict[str, Any], train_stream: Any) -> None:
        """Restore the state; images of past experiences are looked up in ``train_stream``."""
        super().load_state_dict(state, train_stream)
        self._past = [experience.dataset for experience in train_stream[: self.experience_index]]
