"""Experience replay: the experience and the exemplars of old classes in one stream."""

from __future__ import annotations

from typing import ClassVar

from incrlt.training.template import IncrTemplate


class Replay(IncrTemplate):
    """Minimise the expert method's loss on the experience and the memory's exemplars, sampled uniformly.

    Arguments are those of :class:`~incrlt.training.template.IncrTemplate`; ``memory`` is required.
    """

    name: ClassVar[str] = "replay"
    title: ClassVar[str] = "Replay"
    steady: ClassVar[bool] = True
    needs_memory: ClassVar[bool] = True
