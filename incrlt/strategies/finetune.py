"""Train on each experience as it comes: the lower bound that shows how much is forgotten."""

from __future__ import annotations

from typing import ClassVar

from incrlt.training.template import IncrTemplate


class Finetune(IncrTemplate):
    """Minimise the expert method's loss on the current experience; nothing keeps the old.

    All arguments are those of :class:`~incrlt.training.template.IncrTemplate`.
    """

    name: ClassVar[str] = "finetune"
    title: ClassVar[str] = "Finetune"
    offline_title: ClassVar[str] = "CE"
    clashes: ClassVar[dict[str, str]] = {
        "memory": "strategy 'finetune' with exemplars is strategy 'replay'. Set memory: null, or name: replay."
    }
    steady: ClassVar[bool] = True
