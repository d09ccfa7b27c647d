"""Every source of randomness of a run, as plain data that a checkpoint can hold."""

from __future__ import annotations

import random

import numpy as np
import torch

from incrlt.roles import State


def global_state(device: torch.device) -> State:
    """Return the states of Python's, NumPy's and torch's global generators."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # type: ignore[misc]
    return {
        "python": [list(random.getstate()[1]), random.getstate()[2]],
        "numpy": [
            str(name),
            torch.as_tensor(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "torch": torch.random.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_global_state(state: State, device: torch.device) -> None:
    """Restore :func:`global_state`."""
    python, gauss_next = state["python"]
    random.setstate((3, tuple(python), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.random.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
