"""One epoch at work: how many images it saw, how long it took, at which rate it trained."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from torch.optim import Optimizer


class EpochRun:
    """An epoch while it trains; what it was stays readable until the next begins.

    Attributes:
        images: Seen so far.
        seconds: Of training, callbacks before and after the epoch left out.
        lr: Learning rate of the first param group when it began.
    """

    def __init__(self) -> None:
        self.images, self.seconds, self.lr = 0, 0.0, 0.0

    @contextlib.contextmanager
    def measured(self, optimizer: Optimizer) -> Iterator[None]:
        """Measure what runs inside as one epoch of an optimizer."""
        begun, self.lr = time.perf_counter(), float(optimizer.param_groups[0]["lr"])
        self.images = 0
        yield
        self.seconds = time.perf_counter() - begun
