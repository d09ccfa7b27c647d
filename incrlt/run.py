"""Run one experiment: ``python -m incrlt.run experiments/quickstart.yaml [section.key=value ...]``.

Reads and checks the file, says what is wrong in a sentence, and hands a valid experiment to
``incrlt.runner.run``, the first module that loads torch. Exit codes: 0 done, 2 bad input, 130 stopped with
Ctrl-C, 143 stopped with SIGTERM, as by a batch system whose time is over.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from incrlt.endings import DONE, ended
from incrlt.runner.options import RunOptions

if TYPE_CHECKING:
    from incrlt.experiment.sections import Experiment

MOST_LISTED: Final = 20
"""Experiences whose classes a dry run names."""
EPILOG: Final = """\
examples:
  python -m incrlt.run experiments/quickstart.yaml
  python -m incrlt.run experiments/cifar100lt_10tasks.yaml --data ~/datasets --dry-run
  python -m incrlt.run experiments/cifar100lt_10tasks.yaml training.epochs=30 rebalance.name=lws --seed 1

An interrupted run goes on where it stopped; a finished one is not run again, unless --restart is given.
INCRLT_DATA names the folder of the datasets, INCRLT_DEBUG=1 shows the traceback of an error.
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser; a frozen surface, held by a test."""
    command = argparse.ArgumentParser(
        prog="python -m incrlt.run",
        description="Train one experiment from start to report.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument(
        "experiment", metavar="YAML", help="experiment file, e.g. experiments/quickstart.yaml"
    )
    command.add_argument(
        "overrides", metavar="section.key=value", nargs="*", help="change a value of the file"
    )
    command.add_argument("--data", metavar="DIR", help="folder of the datasets (data.root)")
    command.add_argument("--out", metavar="DIR", help="folder of the run folders (output.folder)")
    command.add_argument(
        "--seed", metavar="N", type=int, help="seed of everything not seeded apart (seeds.all)"
    )
    command.add_argument(
        "--skip-broken",
        action="store_true",
        help="go on without pictures that cannot be used (data.skip_broken)",
    )
    command.add_argument(
        "--batch-norm",
        choices=("sync", "local"),
        default="sync",
        help="several processes (torchrun): statistics of the whole batch, or of each process's own rows",
    )
    again = command.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with an unfinished run (the default)")
    again.add_argument(
        "--restart", action="store_true", help="begin anew, replacing what an earlier run left"
    )
    only = command.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="check everything, show the plan, train nothing")
    only.add_argument(
        "--print-config", action="store_true", help="print every value, defaults included, and stop"
    )
    command.add_argument(
        "--measure",
        action="store_true",
        help="dry run that measures ten seconds and estimates hours, memory and disk",
    )
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = parser().parse_intermixed_args(words)
    return ended(
        lambda: _run(given, words),
        terminated="stopped by SIGTERM; what was saved up to the last finished epoch stays. Run the same command "
        "again to go on.",
    )


def _run(given: argparse.Namespace, words: Sequence[str]) -> int:
    from incrlt.console import Console
    from incrlt.experiment import schema

    experiment = schema.load(given.experiment, _overrides(given))
    if given.print_config:
        Console().plain(experiment.resolved_yaml().rstrip())
        return DONE
    if given.dry_run or given.measure:
        _dry_run(experiment, given.measure)
        return DONE
    from incrlt.runner.run import execute

    command = shlex.join(["python", "-m", "incrlt.run", *words])
    options = RunOptions(
        resume="restart" if given.restart else "auto", batch_norm=given.batch_norm, command=command
    )
    return execute(experiment, options)


def _overrides(given: argparse.Namespace) -> list[str]:
    """Return the overrides; options come last and are quoted, so that a folder named 1e3 stays text."""
    import json

    options = {
        "data.root": given.data,
        "output.folder": given.out,
        "seeds.all": given.seed,
        "data.skip_broken": given.skip_broken or None,
    }
    named = [
        f"{key}={json.dumps(value, ensure_ascii=False)}"
        for key, value in options.items()
        if value is not None
    ]
    return [*given.overrides, *named]


def _dry_run(experiment: Experiment, measure: bool) -> None:
    from incrlt.console import Console, quantity
    from incrlt.experiment.plan import plan, untold

    rows, protocol = plan(experiment), experiment.protocol()
    epochs = sum(row["epochs"] + row["later_epochs"] for row in rows)
    work = sum(row["work"] for row in rows)
    steps = work / experiment.training.batch_size
    facts = {
        "experiment": experiment.name,
        "changed": " ".join(experiment.overrides),
        "protocol": f"{protocol.name} of {protocol.dataset}, rule {protocol.rule_hash}",
        "config hash": experiment.hash()[:8],
        "cost": f"{epochs} epochs, {quantity(work)} images, about {quantity(steps)} steps",
        **_pictures(experiment),
        **(_measured(experiment) if measure else _known(experiment, work)),
        **_not_counted(untold(experiment)),
        "results in": experiment.run_folder("<protocol hash>").with_name(
            f"<protocol hash>-{experiment.hash()[:8]}-s{experiment.seeds.all}"
        ),
        "dry run": f"nothing was trained; leave out {'--measure' if measure else '--dry-run'} to run it",
    }
    Console().dry_run(facts, experiment.resolved_yaml(), rows)


def _known(experiment: Experiment, work: float) -> dict[str, str]:
    """Return how long finished runs of these methods say that it would take; nothing without any on this machine."""
    from incrlt.experiment import rates

    return rates.told(experiment, work)


def _measured(experiment: Experiment) -> dict[str, str]:
    """Return what a run would take, measured on this machine."""
    from incrlt.runner.measure import measured

    return measured(experiment)


def _pictures(experiment: Experiment) -> dict[str, str]:
    """Return what a folder holds: every file accounted for, and the classes of each experience with their counts."""
    found = experiment.pictures()
    if found is None:
        return {}
    if experiment.benchmark.dataset != "folder":
        return {"pictures": found.account}
    protocol = experiment.protocol()
    sizes = protocol.class_sizes()
    untested = [name for name, own in zip(found.class_names, found.test, strict=True) if not own]
    return {
        "pictures": found.account,
        **({"left out": found.left_out} if found.left_out else {}),
        **({"not tested": ", ".join(untested)} if untested else {}),
        **{
            f"experience {t + 1}": ", ".join(f"{found.class_names[c]} {sizes[c]}" for c in own)
            for t, own in enumerate(protocol.classes[:MOST_LISTED])
        },
    }


def _not_counted(methods: Sequence[str]) -> dict[str, str]:
    """Return a line on stages that the plan leaves out, none where there are none."""
    if not methods:
        return {}
    return {
        "not counted": f"later stages of {', '.join(methods)}: the class writes stages and no later_stages"
    }


if __name__ == "__main__":
    sys.exit(main())
