"""Runs a file of tests in a pytest process of its own, for what is bound when Triton is first imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SECONDS = 280


def run_alone(file: str, *options: str, **environment: str) -> None:
    """Run ``tests/kernels/<file>`` with options of pytest; skips without Triton.

    Fails with its output unless all of its tests pass.
    """
    pytest.importorskip("triton", reason="the package triton is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", str(HERE / file)]
    command += options
    variables = {
        key: value for key, value in os.environ.items() if not key.startswith(("TRITON_", "PYTEST_"))
    }
    variables |= {"OMP_NUM_THREADS": "1", **environment}
    run = subprocess.run(
        command, env=variables, cwd=HERE.parents[1], capture_output=True, text=True, timeout=SECONDS
    )
    assert run.returncode == 0, (
        f"{file} ended with {run.returncode}:\n{run.stdout[-8000:]}\n{run.stderr[-2000:]}"
    )
    assert " passed" in run.stdout
