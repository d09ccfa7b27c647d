"""Peak memory of a whole short run of the main experiment, with data, exemplars, teacher and report."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
EXPERIMENT = "experiments/cifar100lt_10tasks.yaml"
GOAL_GIB = 3.0


def peak_of(command: list[str]) -> tuple[int, float, float]:
    """Run a command to its end.

    Returns:
        Exit code, largest resident set of the process in GiB (Linux counts in KiB, macOS in bytes), seconds.
    """
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as quiet:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=quiet, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)  # the usage of this child alone
        process.returncode = os.waitstatus_to_exitcode(status)
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return process.returncode, usage.ru_maxrss / unit, time.perf_counter() - begun


def measure(epochs: int = 1, threads: int = 1) -> dict[str, Any]:
    """Return the peak memory of all eleven experiences at ``epochs`` epochs each.

    Raises:
        RuntimeError: The run failed.
    """
    overrides = [f"training.epochs={epochs}", f"training.threads={threads}", "device=cpu"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "incrlt.run", EXPERIMENT, *overrides, "--out", folder]
        code, peak, seconds = peak_of(command)
    if code:
        raise RuntimeError(f"{EXPERIMENT} ended with exit code {code}; run it by hand to see why")
    return {"experiment": EXPERIMENT, "overrides": overrides, "peak_gib": peak, "seconds": seconds}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_peak_memory_of_a_whole_run(benchmark):
    figures = benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info.update(figures)
    assert figures["peak_gib"] < GOAL_GIB
