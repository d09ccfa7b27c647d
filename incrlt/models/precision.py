"""Numbers that losses and answers are computed in."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float(x: Tensor) -> Tensor:
    """Return numbers in fp32 where autocast has left fewer bits; those of a double network stay as they are."""
    return x if x.dtype == torch.float64 else x.float()
