"""``python -m incrlt.sweep FILE.yaml --grid KEY=VALUES ...``: many runs, one table, a comparison at the end."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from incrlt.endings import DONE, SOME_FAILED, ended
from incrlt.errors import UserError, shown
from incrlt.experiment.yamltext import parse
from incrlt.files import write_atomic
from incrlt.sweep import engines, table, work
from incrlt.sweep.asha import asha
from incrlt.sweep.show import Show

EPILOG: Final = """\
examples:
  python -m incrlt.sweep experiments/quickstart.yaml --grid seeds.all=0..4 --grid experts.name=single,shike
  python -m incrlt.sweep experiments/quickstart.yaml benchmark.holdout=long-tailed-cil \\
      --search "training.lr=log(0.01,0.3)" --trials 20 --stop-early
  python -m incrlt.sweep perf/trainings.yaml --lanes 2 --data ~/datasets --dry-run

Runs that have finished are skipped, and those that were cut off go on to the same bits: after Ctrl-C, a kill or a
restart the same command goes on. FILE is an experiment, or a sweep of such with its grid written down.
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    command = argparse.ArgumentParser(
        prog="python -m incrlt.sweep",
        description="Run a grid or a search of experiments and compare them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("file", metavar="YAML", type=Path, help="experiment file, or sweep file")
    command.add_argument(
        "overrides", metavar="section.key=value", nargs="*", help="change a value of the experiment"
    )
    what = command.add_argument_group("what is run")
    what.add_argument(
        "--grid", metavar="KEY=VALUES", action="append", default=[], help="such as seeds.all=0..4"
    )
    what.add_argument(
        "--search", metavar="KEY=SPACE", action="append", default=[],
        help="log(low,high), linear(low,high) or choice(a,b): drawn at random",
    )  # fmt: skip
    what.add_argument(
        "--trials", metavar="N", type=int, help="draws of the search, at each place in the grid"
    )
    what.add_argument("--search-seed", metavar="N", type=int, help="seed of the draws (0)")
    what.add_argument("--metric", metavar="NAME", help=f"what chooses: {' or '.join(table.METRICS)}")
    what.add_argument("--stop-early", action="store_true", help="stop poor trials by ASHA on that metric")
    where = command.add_argument_group("where")
    where.add_argument("--data", metavar="DIR", help="folder of the datasets (data.root)")
    where.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("runs"), help="folder of the run folders (runs)"
    )
    where.add_argument("--lanes", metavar="N", type=int, help="runs at a time (cores; with --gpu what fits)")
    where.add_argument(
        "--on", metavar="ENGINE", default="lanes", help="lanes, ray, ray:ADDRESS, slurm, slurm:local"
    )
    where.add_argument(
        "--gpu", metavar="SHARE", type=float, default=0.0, help="share of a GPU per run, such as 0.25"
    )
    where.add_argument(
        "--slurm",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="of submitit, such as timeout_min=240",
    )
    command.add_argument(
        "--dry-run", action="store_true", help="check all, say how far each run is, train nothing"
    )
    command.add_argument("--print-sweep", action="store_true", help="print the sweep as a file, and stop")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; those of the process by default.

    Returns:
        0: all done, 1: a run failed, 2: bad input, 130: Ctrl-C, 143: SIGTERM.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = parser().parse_intermixed_args(words)
    on = _go_on(words)
    return ended(lambda: _run(given, words), stopped=f"stopped; {on}", terminated=f"stopped by SIGTERM; {on}")


def _go_on(words: Sequence[str]) -> str:
    command = shlex.join(["python", "-m", "incrlt.sweep", *words])
    return f"every run stays as its last finished epoch left it. The same command goes on: {command}"


def _run(given: argparse.Namespace, words: Sequence[str]) -> int:
    sweep = _asked(given)
    if given.print_sweep:
        Show(1).plain(sweep.yaml().rstrip())
        return DONE
    lanes, per_gpu = _lanes(given)
    tasks = sweep.tasks(given.out, given.data)
    folder = given.out / "sweeps" / f"{sweep.name}-{sweep.hash[:8]}"
    judge = work.Judge(sweep.rows, folder / "state.json")
    show = Show(lanes)
    show.plain(f"sweep {sweep.name}, hash {sweep.hash[:12]}, in {folder}")
    if given.dry_run:
        show.table(work.look(tasks, judge))
        show.plain("dry run: nothing was trained; leave out --dry-run to run it")
        return DONE
    logs = folder / "logs"
    _make(logs)
    write_atomic(folder / "sweep.yaml", sweep.yaml())
    queue = work.Queue(
        tasks, _engine(given, lanes, per_gpu, folder), lanes, judge, logs, show.tell, show.look
    )
    try:
        queue.work()
    finally:
        show.close()
    return _end(sweep, queue, folder, show)


def _end(sweep: table.Sweep, queue: work.Queue, folder: Path, show: Show) -> int:
    """Show the table, write the comparison, say what was chosen and what failed."""
    from incrlt.sweep import outcome, page

    show.table(queue.items)
    for name, setting in outcome.chosen(outcome.settings(queue.items, sweep.rows)).items():
        if setting.metric is not None:
            show.plain(f"chosen  {name}: {setting.changed}, {setting.metric} {setting.validation.mean:.2f}")
    written = page.write(sweep, queue.items, folder / "report")
    if written is not None:
        show.plain(f"report  {written}")
    failed = [item for item in queue.items if item.state == work.FAILED]
    for item in failed:
        show.plain(f"failed  {item.task.label}; see {queue.log_of(item.task)}")
    return SOME_FAILED if failed else DONE


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {folder}: {error.strerror}. Choose another folder with --out."
        ) from error


def _asked(given: argparse.Namespace) -> table.Sweep:
    """Return the sweep that file and options ask for.

    Raises:
        UserError: Options of a search for a sweep file, which has its own, or what is wrong with either.
    """
    content = table.read(given.file)
    if table.is_sweep(content):
        own = {"overrides": given.overrides, "--grid": given.grid, "--search": given.search, "--trials": given.trials,
               "--search-seed": given.search_seed, "--metric": given.metric,
               "--stop-early": given.stop_early}  # fmt: skip
        extra = [name for name, value in own.items() if value]
        if extra:
            raise UserError(
                f"{given.file} is a sweep, which says itself what is run; leave out {', '.join(extra)}, or write it "
                "into the file."
            )
        return table.from_file(given.file, content)
    row = table.from_words(given.file, given.overrides, given.grid, given.search)
    asked = {
        "trials": given.trials,
        "search_seed": given.search_seed,
        "metric": given.metric,
        "stop_early": asha(given.stop_early),
    }
    row = dataclasses.replace(row, **{name: value for name, value in asked.items() if value is not None})
    if given.search and given.trials is None:
        raise UserError("a search needs --trials, the number of its draws, such as --trials 20.")
    return table.Sweep(given.file.stem, (row,))


def _lanes(given: argparse.Namespace) -> tuple[int, int]:
    """Return the runs at a time, and those on each GPU."""
    if not 0 <= given.gpu <= 1:
        raise UserError(f"--gpu {given.gpu} is no share of a GPU; give a number up to 1, such as 0.25.")
    if given.gpu and given.on.startswith("slurm"):
        raise UserError("--gpu is for lanes and Ray; ask Slurm for GPUs with --slurm gpus_per_node=1.")
    per_gpu = int(1 / given.gpu + 1e-9) if given.gpu else 0
    gpus = len(engines.gpus_here()) if given.gpu and given.on == "lanes" else 0
    if per_gpu and given.on == "lanes" and not gpus:
        raise UserError(f"--gpu {given.gpu} shares out GPUs, and this machine shows none; leave it out.")
    lanes = given.lanes if given.lanes is not None else per_gpu * gpus or os.cpu_count() or 1
    if lanes < 1:
        raise UserError(f"--lanes {lanes} trains nothing; give 1 or more.")
    return (min(lanes, per_gpu * gpus) if gpus else lanes), per_gpu


def _engine(given: argparse.Namespace, lanes: int, per_gpu: int, folder: Path) -> engines.Engine:
    name, _, more = given.on.partition(":")
    if name not in ("lanes", "ray", "slurm") or (name == "lanes" and more):
        raise UserError(
            f"--on {shown(given.on)} is unknown; allowed: lanes, ray, ray:ADDRESS, slurm, slurm:local."
        )
    if given.slurm and name != "slurm":
        raise UserError(f"--slurm is for --on slurm, not for --on {given.on}; leave it out.")
    if name == "ray":
        return engines.Ray(lanes, more or None, given.gpu)
    if name == "slurm":
        return engines.Slurm(
            folder / "slurm", more or "slurm", dict(_parameter(text) for text in given.slurm)
        )
    return engines.Lanes(engines.gpus_here() if per_gpu else (), max(1, per_gpu))


def _parameter(text: str) -> tuple[str, object]:
    key, sign, value = text.partition("=")
    if not sign or not key.isidentifier():
        raise UserError(f"--slurm {shown(text)} is not of the form key=value, such as timeout_min=240.")
    return key, parse(value, f"the value of --slurm {key}")


if __name__ == "__main__":
    sys.exit(main())
