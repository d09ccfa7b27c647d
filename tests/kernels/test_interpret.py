"""The Triton kernels in Triton's interpreter, hence on a CPU: their values, not their speed.

The interpreter has to be chosen before Triton is imported, and an access out of bounds ends the process: both are
reasons for a process of its own. By hand: ``TRITON_INTERPRET=1 pytest tests/kernels/interpreted.py``.
"""

from __future__ import annotations

import pytest
from kernels.own_process import run_alone


@pytest.mark.slow
def test_kernels_under_the_interpreter() -> None:
    run_alone("interpreted.py", TRITON_INTERPRET="1")
