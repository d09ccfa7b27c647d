"""Numbers the experiences that a strategy trains on, in the order in which it does: what a recorder's tables count by.

The number that a stream gives an experience starts again with every stream. Here the experience that was trained last,
trained once more, keeps its number; everything else is a new step, an earlier experience that comes again as well.
"""

from __future__ import annotations

import numpy as np

from incrlt.benchmarks.identity import Pictures, check_names, contents, labels_of
from incrlt.data.contents import labels_hash
from incrlt.plugins.saved_exemplars import place_in_stream
from incrlt.roles import Experience, State

LOOKED_AT = 8
"""Pictures of an experience whose content is noted, evenly spaced: labels alone may be those of another one."""


class Steps:
    """The number of the experience that is trained on, from 0; -1 before the first.

    Attributes:
        number: Of the experience that was trained last.
        names: Class names by label id, as far as benchmarks told them.
    """

    def __init__(self) -> None:
        self.number = -1
        self.names: dict[int, str] = {}
        self._last: object = None  # data set of the step; None in a process that has not seen it yet
        self._mark: list[int] = []  # what it is known by in another process

    def __getstate__(self) -> State:
        """Leave the images out of a pickle; the mark is enough to know them by."""
        return vars(self) | {"_last": None}

    def arrive(self, experience: Experience) -> int:
        """Take note of the experience that is trained on now; return its number.

        Raises:
            UserError: Its benchmark calls a label by another name than one before it.
        """
        self.names = check_names(self.names, experience)
        dataset, mark = experience.dataset, _mark_of(experience)
        known = self._last is not None
        again = Pictures().same(self._last, dataset) if known else self.number >= 0 and self._knows(mark)
        self.number += not again
        self._last, self._mark = dataset, mark
        return self.number

    def _knows(self, mark: list[int]) -> bool:
        """Say whether a mark is that of the last step; older states tell no more than the place in the stream."""
        return mark == self._mark if self._mark else mark[0] == self.number

    def state_dict(self) -> State:
        """Return plain data."""
        return {"experience": self.number, "mark": list(self._mark), "names": dict(self.names)}

    def load_state_dict(self, state: State) -> None:
        """Restore :meth:`state_dict`; the same experience is then known by its content."""
        self.number, self._last = int(state["experience"]), None
        self._mark, self.names = list(state.get("mark", [])), dict(state.get("names", {}))


def _mark_of(experience: Experience) -> list[int]:
    """Return place in the stream, images, hash of the labels, and contents of some pictures."""
    dataset = experience.dataset
    targets = labels_of(dataset)
    some = np.unique(np.linspace(0, len(targets) - 1, min(LOOKED_AT, len(targets))).astype(np.int64))
    pictures = contents(dataset, some).tolist()
    return [place_in_stream(experience), len(targets), labels_hash(targets), *pictures]
