"""How many CPU threads a run takes: as many as its step can feed and the machine has free."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PER_THREAD: Final = 2.5e8
"""Multiply-adds of a step's forward pass that a thread must have to itself before a second one pays.

Ours. Threads of a small step wait for one another, spinning, longer than they compute: with one of two cores taken,
three epochs of the quickstart (2e7 a step) took 116 s with two threads and 8 s with one. ResNet-32 on CIFAR at 128
images has 9e9 and gains from every core.
"""
GLANCE: Final = 0.2
"""Seconds for which the cores are watched."""
CGROUPS: Final = (
    ("/sys/fs/cgroup/cpu.max", None),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)
"""Where a container's limit stands: version 2, version 1."""


@dataclass(frozen=True)
class Cores:
    """What this process may compute on."""

    total: int
    """Cores of the machine."""
    allowed: int
    """Cores that the system lets this process run on."""
    quota: float | None
    """Cores' worth of time that its container has; None without a limit."""
    busy: float
    """Cores that others keep busy: over the last minute, and still now."""

    @property
    def usable(self) -> int:
        """Cores that it may use while nobody else does."""
        return self.allowed if self.quota is None else max(1, min(self.allowed, math.floor(self.quota)))

    @property
    def free(self) -> int:
        """Cores that nobody else uses now, at least one."""
        return max(1, min(self.usable, self.total - round(self.busy)))


@dataclass(frozen=True)
class Threads:
    """A number of threads and why it was chosen."""

    number: int
    reason: str


def choose_threads(
    asked: int | None, work: float, known: int, cores: Cores, before: object = None
) -> Threads:
    """Return the number of threads.

    Args:
        asked: ``training.threads``; None: choose.
        work: Multiply-adds of a step's forward pass; 0 where the CPU does not compute it.
        known: Threads that torch would take; ``OMP_NUM_THREADS`` speaks through it, and is never exceeded.
        cores: What there is.
        before: Threads that the run had when it began, as its file says; kept where they can be, for the same rounding
            to the last bit.
    """
    if asked is not None:
        return Threads(asked, "training.threads")
    if type(before) is int and 1 <= before <= cores.usable:
        return Threads(before, "as the run began")
    if not work:
        number = min(known, cores.usable)
        return Threads(number, f"the device computes; {known} by torch, {cores.usable} usable")
    wanted = max(1, math.floor(work / PER_THREAD))
    number = min(wanted, cores.free, known)
    limits = f"{cores.usable} usable cores, {cores.busy:.1f} of {cores.total} busy, {known} by torch"
    return Threads(number, f"{work:.2g} multiply-adds a step feed {min(wanted, 4096)}; {limits}")


def cores() -> Cores:
    """Look at the machine; takes :data:`GLANCE` seconds."""
    total = os.cpu_count() or 1
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        allowed = total
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):
        load = 0.0
    # The average remembers for a minute the run that has just ended; a glance takes a short pause for the rule.
    return Cores(total, allowed, quota(), min(load, busy_now()) if load >= 0.5 else 0.0)


def busy_now(seconds: float = GLANCE, place: str = "/proc/stat") -> float:
    """Return how many cores are busy, averaged over a glance; endless where the system does not say.

    Args:
        seconds: Length of the glance.
        place: The system's clock of work and idleness; a test's own.
    """
    try:
        before = _ticks(place)
        time.sleep(seconds)
        after = _ticks(place)
    except (OSError, ValueError, IndexError):
        return math.inf
    idle, total = (now - then for now, then in zip(after, before, strict=True))
    return (os.cpu_count() or 1) * (1 - idle / total) if total > 0 else math.inf


def _ticks(place: str) -> tuple[int, int]:
    """Return the ticks of all cores that were idle, and all ticks."""
    with open(place, encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def quota(places: tuple[tuple[str, str | None], ...] = CGROUPS) -> float | None:
    """Return the cores' worth of time that the container has, or None without a limit.

    Args:
        places: Files of the two versions of control groups; a test's own.
    """
    for limit, period in places:
        try:
            words = Path(limit).read_text(encoding="ascii").split()
            if period is not None:
                words.append(Path(period).read_text(encoding="ascii").strip())
            given, every = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):  # no such file, or "max"
            continue
        if given > 0 and every > 0:
            return given / every
    return None
