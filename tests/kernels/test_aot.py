"""The Triton kernels compiled to machine code of every GPU generation, without a GPU: do they compile, do they spill?

What the interpreter accepts need not compile, and the other way round. By hand:
``TRITON_CACHE_DIR=$(mktemp -d) pytest tests/kernels/ahead_of_time.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from kernels.own_process import run_alone


@pytest.mark.slow
def test_kernels_compile_ahead_of_time(tmp_path: Path) -> None:
    run_alone("ahead_of_time.py", TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.soak
def test_kernels_compile_for_every_generation(tmp_path: Path) -> None:
    run_alone("ahead_of_time.py", "--soak", TRITON_CACHE_DIR=str(tmp_path))
