"""On what a benchmark ran: the facts that decide whether two files may be compared."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from incrlt.runner.folder import environment

KEPT = (
    "incrlt", "python", "torch", "torchvision", "avalanche", "numpy", "gpu", "threads", "git_commit", "git_dirty",
)  # fmt: skip


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return processor, cores, load, GPU, threads, versions and commit as plain data."""
    facts = environment(torch.device(device), "")
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_average_at_start": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "triton": _version("triton"),
        **{name: facts.get(name) for name in KEPT},
    }


def processor() -> str:
    """Return the processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
