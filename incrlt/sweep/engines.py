"""Where runs are run: lanes of this machine, Ray, or Slurm. All of them run the words of ``python -m incrlt.run``."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final, Protocol

from incrlt.errors import UserError

LOST: Final = -1
"""Code of a run whose worker was lost: killed, its node gone, its time over."""
PATIENCE: Final = 30.0
"""Seconds in which a run that is asked to stop must have stopped; a step of training lasts less."""
STARTS: Final = 3
"""Times that Ray is started before it is given up."""
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Job(Protocol):
    """One run under way."""

    def code(self) -> int | None:
        """Return the exit code of the run, None while it runs, :data:`LOST` where nobody can tell."""

    def stop(self) -> None:
        """Ask the run to stop; what it has saved stays."""


class Engine(Protocol):
    """Runs runs."""

    def start(self, words: Sequence[str], log: Path) -> Job:
        """Begin a run.

        Args:
            words: Arguments of ``python -m incrlt.run``.
            log: File to which what it prints is added.
        """

    def close(self) -> None:
        """Let go of what the engine holds; all jobs have been stopped."""


def perform(words: Sequence[str], folder: str, log: str) -> int:
    """Run one run in this process, a worker's own; return its exit code.

    Args:
        words: Arguments of ``python -m incrlt.run``.
        folder: Working folder, on storage that all workers share.
        log: File to which output is added.
    """
    os.chdir(folder)
    os.environ.update({name: value for name, value in ONE_THREAD.items() if name not in os.environ})
    with open(log, "ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from incrlt.run import main

    return main(list(words))


class Lane:
    """A run in a process of this machine."""

    def __init__(self, process: subprocess.Popen[bytes], leave: Callable[[], None]) -> None:
        self._process, self._leave = process, leave

    def code(self) -> int | None:
        """Return the exit code; a negative one is the signal that ended the run."""
        found = self._process.poll()
        if found is not None:
            self._leave()
        return found

    def stop(self) -> None:
        """Send SIGTERM, on which a run closes its files and says so; SIGKILL if it has been sent long ago."""
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """End the process at once; checkpoints are whole or absent."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Lanes:
    """Processes of this machine, one thread each on CPUs.

    Args:
        gpus: Numbers of the GPUs to share out; none leaves the choice to the runs.
        per_gpu: Runs at a time on each.
    """

    def __init__(self, gpus: Sequence[str] = (), per_gpu: int = 1) -> None:
        self._free = [gpu for _ in range(per_gpu) for gpu in gpus]
        self._shared = bool(gpus)
        self._lanes: list[Lane] = []

    def start(self, words: Sequence[str], log: Path) -> Lane:
        """Begin a run in a process group of its own, so that Ctrl-C is ours to hand on."""
        own, leave = self._place()
        with open(log, "ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "incrlt.run", *words],
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **ONE_THREAD, **own},
                start_new_session=True,
            )
        self._lanes.append(Lane(process, leave))
        return self._lanes[-1]

    def _place(self) -> tuple[Mapping[str, str], Callable[[], None]]:
        """Return the environment of a place on a GPU, and what gives the place back, once."""
        if not self._shared:
            return {}, lambda: None
        gpu = self._free.pop(0)
        held = [gpu]
        return {"CUDA_VISIBLE_DEVICES": gpu}, lambda: self._free.append(held.pop()) if held else None

    def close(self) -> None:
        """End what has not stopped."""
        for lane in self._lanes:
            lane.kill()


class Ray:
    """Tasks of a Ray cluster, in worker processes that end with their run.

    Plain tasks, not Ray Tune: what is tried, stopped and gone on with is decided in one place for all engines.

    Args:
        lanes: Runs at a time, where Ray is started here.
        address: A running cluster's; None starts Ray on this machine.
        gpu: Share of a GPU that a run takes; 0 takes none.

    Raises:
        UserError: Ray is not installed, or not there.
    """

    def __init__(self, lanes: int, address: str | None = None, gpu: float = 0.0) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault(
            "RAY_agent_register_timeout_ms", "300000"
        )  # else its node dies on a busy machine
        if address is None:
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else it writes a token into the home folder
        self._ray = _module("ray", "ray")
        here = {} if address else {"num_cpus": lanes, "include_dashboard": False}
        self._join(address or "local", here)
        # max_calls: a process that has trained once has state; retries: a run that was lost is our own business
        self._perform = self._ray.remote(num_cpus=1, num_gpus=gpu, max_calls=1, max_retries=0)(perform)

    def _join(self, address: str, here: Mapping[str, object]) -> None:
        """Start Ray or join a cluster; Ray gives itself 30 seconds, which a busy machine may not have."""
        for start in range(1, STARTS + 1):
            try:
                self._ray.init(address=address, log_to_driver=False, logging_level="ERROR", **here)
                return
            except Exception as error:  # Ray raises Exception itself
                self._ray.shutdown()
                if start == STARTS:
                    raise UserError(
                        f"Ray does not start at {address}, tried {STARTS} times: {error}"
                    ) from error

    def start(self, words: Sequence[str], log: Path) -> RayJob:
        """Begin a run on whichever node has room."""
        return RayJob(self._ray, self._perform.remote(list(words), os.getcwd(), str(log.resolve())))

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self._ray.shutdown()


class RayJob:
    """A task of Ray."""

    def __init__(self, ray: ModuleType, reference: object) -> None:
        self._ray, self._reference = ray, reference

    def code(self) -> int | None:
        """Return what the task returned, LOST if its worker died."""
        done, _ = self._ray.wait([self._reference], timeout=0)
        if not done:
            return None
        try:
            return int(self._ray.get(self._reference))
        except self._ray.exceptions.RayError:
            return LOST

    def stop(self) -> None:
        """Raise KeyboardInterrupt in the worker, as Ctrl-C does in a run."""
        self._ray.cancel(self._reference)


class Slurm:
    """Jobs of Slurm, by submitit; ``local`` runs the same jobs on this machine.

    Args:
        folder: For submitit's own files, on storage that all nodes share.
        cluster: ``slurm`` or ``local``.
        parameters: Of submitit: ``timeout_min``, ``slurm_partition``, ``gpus_per_node``, ...

    Raises:
        UserError: submitit is not installed, there is no Slurm, or a parameter is unknown.
    """

    def __init__(self, folder: Path, cluster: str, parameters: Mapping[str, object]) -> None:
        submitit = _module("submitit", "slurm")
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            usual = {"name": "incrlt", "timeout_min": 24 * 60, "cpus_per_task": 1}
            self._executor.update_parameters(**{**usual, **parameters})
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            raise UserError(f"submitit refuses {cluster}: {error}") from error
        self._lost = (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError)

    def start(self, words: Sequence[str], log: Path) -> SlurmJob:
        """Submit a run; one whose time is over is lost, and submitted again by the queue."""
        job = self._executor.submit(perform, list(words), os.getcwd(), str(log.resolve()))
        return SlurmJob(job, self._lost)

    def close(self) -> None:
        """Nothing is held."""


class SlurmJob:
    """A job of submitit."""

    def __init__(self, job: _Submitted, lost: tuple[type[Exception], ...]) -> None:
        self._job, self._lost = job, lost

    def code(self) -> int | None:
        """Return what the job returned, LOST if it did not come to its end."""
        if not self._job.done():
            return None
        try:
            return int(self._job.result())
        except self._lost:
            return LOST

    def stop(self) -> None:
        """Cancel the job."""
        self._job.cancel()


class _Submitted(Protocol):
    """What is asked of submitit's jobs."""

    def done(self) -> bool: ...

    def result(self) -> int: ...

    def cancel(self) -> None: ...


def stop_all(jobs: Sequence[Job], patience: float = PATIENCE, wait: float = 0.1) -> None:
    """Ask jobs to stop and wait until they have, or until patience is over (seconds)."""
    for job in jobs:
        job.stop()
    end = time.monotonic() + patience
    while time.monotonic() < end and any(job.code() is None for job in jobs):
        time.sleep(wait)


def _module(name: str, extra: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"this engine needs the package {name}, which is not here ({error}); install it with "
            f"pip install 'incrlt[{extra}]', or leave --on out for lanes of this machine."
        ) from error


def gpus_here() -> list[str]:
    """Return the numbers of this machine's GPUs that may be used, without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [number for number in visible.split(",") if number.strip()]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True
        ).stdout
        return [str(number) for number in range(sum(line.startswith("GPU ") for line in told.splitlines()))]
    return []
