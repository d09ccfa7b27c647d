"""What tests of losses against stored arrays share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def double():
    """Priors and margins are computed in double precision too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
