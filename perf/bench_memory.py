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

from incrlt.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
EXPERIMENT = "experiments/cifar100lt_10tasks.yaml"
GOAL_GIB = 3.0
REFUSED = 2
"""Exit code of a run whose input is at fault."""


def peak_of(command: list[str]) -> tuple[int, str, float, float]:
    """Run a command to its end.

    Returns:
        Exit code, what it said, largest resident set of the process in GiB (Linux counts in KiB, macOS in bytes),
        seconds.
    """
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)  # the usage of this child alone
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read()
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return process.returncode, said, usage.ru_maxrss / unit, time.perf_counter() - begun


def measure(epochs: int = 1, threads: int = 1) -> dict[str, Any]:
    """Return the peak memory of all eleven experiences at ``epochs`` epochs each.

    Raises:
        UserError: The run was refused, as where the data are missing.
        RuntimeError: The run failed.
    """
    overrides = [f"training.epochs={epochs}", f"training.threads={threads}", "device=cpu"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "incrlt.run", EXPERIMENT, *overrides, "--out", folder]
        code, said, peak, seconds = peak_of(command)
    if code == REFUSED:
        raise UserError(said.strip())
    if code:
        raise RuntimeError(f"{EXPERIMENT} ended with exit code {code}:\n{said[-2000:]}")
    return {"experiment": EXPERIMENT, "overrides": overrides, "peak_gib": peak, "seconds": seconds}


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(3600)
def test_peak_memory_of_a_whole_run(benchmark):
    try:
        figures = benchmark.pedantic(measure, rounds=1)
    except UserError as reason:
        pytest.skip(str(reason))
    benchmark.extra_info.update(figures)
    assert figures["peak_gib"] < GOAL_GIB
