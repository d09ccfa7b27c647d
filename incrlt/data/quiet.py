"""Random states that are put back: for what looks at images or models without a trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def quiet_random(device: torch.device | str = "cpu") -> Iterator[None]:
    """Put the random states of torch (CPU and ``device``), NumPy and Python back on leaving."""
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
