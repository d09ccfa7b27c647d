"""Seeds of random tests: a few always, all of them under ``make soak``."""

from __future__ import annotations

from typing import Any

import pytest


def seeds(few: int, whole: int, step: int = 1) -> list[Any]:
    """Return the seeds 0, ``step``, ... below ``whole``; from ``few`` on they are marked ``soak``.

    Each seed is another draw of the same test: a few show that it holds, many look for what nobody thought of.
    """
    late = [pytest.param(seed, marks=pytest.mark.soak) for seed in range(few, whole, step)]
    return [*range(0, few, step), *late]
