"""A queue of full-length trainings: ``python -m perf.trainings [TABLE] [--lanes 2] [--data DIR] [--dry-run]``.

The table names runs in the order in which they are wanted. Each lane is a process with one thread. A run that is done
is skipped, one that was cut off goes on where it stopped, so that the same command continues the queue after a restart
of the machine. (The module is not called queue: as a script it would hide Python's own.)
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from incrlt.errors import UserError
from incrlt.experiment import schema as config
from incrlt.experiment.plan import plan

HERE = Path(__file__).resolve().parent
EXPERIMENTS = HERE.parent / "experiments"
KEYS = {"experiment", "seeds", "overrides"}


@dataclass(frozen=True)
class Training:
    """One run of the table: an experiment, its overrides, a seed, and where it writes."""

    experiment: Path
    overrides: tuple[str, ...]
    seed: int
    out: Path
    data: str | None = None

    @property
    def words(self) -> list[str]:
        """The arguments of ``python -m incrlt.run``."""
        data = ["--data", self.data] if self.data else []
        return [
            str(self.experiment),
            *self.overrides,
            "--seed",
            str(self.seed),
            "--out",
            str(self.out),
            *data,
        ]

    def checked(self) -> config.Experiment:
        """Return the experiment, read and checked without data.

        Raises:
            UserError: The file or an override is wrong.
        """
        return config.load(self.experiment, [*self.overrides, f"seeds.all={self.seed}"])

    def folders(self) -> list[Path]:
        """Return this run's folders: the data's hash stands first in their names, the run's own hash and seed last."""
        experiment = self.checked()
        return sorted((self.out / experiment.name).glob(f"*-{experiment.hash()[:8]}-s{self.seed}"))

    def is_done(self) -> bool:
        """Say whether the run has finished."""
        return any((folder / "DONE").is_file() for folder in self.folders())

    def progress(self) -> tuple[int, int]:
        """Return the epochs logged and those planned; stages that are skipped are planned as well."""
        total = sum(row["epochs"] + row["later_epochs"] for row in plan(self.checked()))
        logs = [folder / "log.jsonl" for folder in self.folders()]
        lines = [line for log in logs if log.is_file() for line in log.read_text("utf-8").splitlines()]
        return sum('"event": "epoch"' in line for line in lines), total

    def __str__(self) -> str:
        """Return what tells the run from its neighbours."""
        return shlex.join([self.experiment.stem, *self.overrides, f"seed {self.seed}"])


def read(table: Path, out: Path, data: str | None) -> list[Training]:
    """Return the runs of a table, all of them checked before the first one starts.

    Raises:
        UserError: The table, an experiment or an override is wrong.
    """
    try:
        rows = yaml.safe_load(table.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{table} cannot be read as YAML: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "experiment" in row for row in rows):
        raise UserError(
            f"{table} must be a list of rows such as {{experiment: quickstart.yaml, seeds: [0, 1]}}."
        )
    runs = [run for row in rows for run in _runs(row, table, out, data)]
    for run in runs:
        run.checked()
    return runs


def _runs(row: dict[str, object], table: Path, out: Path, data: str | None) -> Iterator[Training]:
    unknown = sorted(map(str, set(row) - KEYS))
    if unknown:
        raise UserError(f"{table} has {', '.join(unknown)}; a row takes {', '.join(sorted(KEYS))}.")
    seeds, overrides = row.get("seeds", [0]), row.get("overrides", [])
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise UserError(f"{table}: seeds is {seeds!r}; give a list of whole numbers such as [0, 1].")
    if not isinstance(overrides, list):
        raise UserError(f"{table}: overrides is {overrides!r}; give a list such as [training.epochs=30].")
    for seed in seeds:
        yield Training(EXPERIMENTS / str(row["experiment"]), tuple(map(str, overrides)), seed, out, data)


def work_off(runs: Sequence[Training], lanes: int, wait: float = 2.0) -> list[Training]:
    """Train what is not done, so many at a time, in the order given; return what failed.

    Ctrl-C stops the lanes too; the same call then goes on with them.
    """
    waiting = [run for run in runs if not run.is_done()]
    at_work: dict[Training, subprocess.Popen[bytes]] = {}
    failed: list[Training] = []
    try:
        while waiting or at_work:
            while waiting and len(at_work) < lanes:
                run = waiting.pop(0)
                at_work[run] = _start(run)
                say(f"started   {run}")
            time.sleep(wait)
            for run in [run for run, process in at_work.items() if process.poll() is not None]:
                good = at_work.pop(run).returncode == 0
                say(f"{'done' if good else 'FAILED':9} {run}")
                failed += [] if good else [run]
    finally:
        for process in at_work.values():
            process.terminate()
            process.wait()
    return failed


def _start(run: Training) -> subprocess.Popen[bytes]:
    run.out.mkdir(parents=True, exist_ok=True)
    name = f"{run.experiment.stem}-{run.checked().hash()[:8]}-s{run.seed}.log"
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with open(run.out / name, "ab") as log:
        command = [sys.executable, "-m", "incrlt.run", *run.words, "training.threads=1"]
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=one_thread
        )


def show(runs: Sequence[Training]) -> None:
    """Print what each run has done of what it has to do."""
    for run in runs:
        epochs, total = run.progress()
        state = "done" if run.is_done() else f"{100 * epochs / max(1, total):.0f} %"
        say(f"{state:>6}  {epochs:>5} of {total} epochs  {run}")


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Work a table off; return 0 when all is done, 1 when a run failed, 2 for bad input."""
    command = argparse.ArgumentParser(prog="python -m perf.trainings", description=__doc__.split("\n")[0])
    command.add_argument("table", nargs="?", type=Path, default=HERE / "trainings.yaml", help="list of runs")
    command.add_argument("--lanes", type=int, default=2, help="trainings at a time, one thread each")
    command.add_argument("--data", help="folder of the datasets")
    command.add_argument("--out", type=Path, default=Path("runs/queue"), help="folder of the run folders")
    command.add_argument("--dry-run", action="store_true", help="say how far each run is, train nothing")
    given = command.parse_args(arguments)
    try:
        if given.lanes < 1:
            raise UserError(f"--lanes {given.lanes} trains nothing; give 1 or more.")
        runs = read(given.table, given.out, given.data)
    except UserError as error:
        say(f"error: {error}")
        return 2
    show(runs)
    failed = [] if given.dry_run else work_off(runs, given.lanes)
    for run in failed:
        say(f"failed: {run}; its log is in {given.out}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
