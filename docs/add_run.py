"""Take a run into the gallery: ``python docs/add_run.py RUN [EXPERIMENT]``.

Copies what a report is made of to ``docs/gallery/runs/<EXPERIMENT>/<RUN>`` and takes out what is the machine's
own business: checkpoints, pages, absolute paths, the time of day. Numbers stay as they are, but for the log's,
which keep four digits so that a run stays small.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from incrlt.errors import UserError
from incrlt.experiment.yamltext import BROKEN

RUNS = Path(__file__).resolve().parent / "gallery" / "runs"

AS_THEY_ARE = (
    "DONE", "protocol.json", "classes.json", "results.json", "confusions.npz", "evaluations.npz", "routing.csv",
    "routing_sweep.csv",
)  # fmt: skip
NEEDED = (
    "DONE",
    "config.yaml",
    "environment.json",
    "protocol.json",
    "classes.json",
    "confusions.npz",
    "log.jsonl",
)
LARGEST = 600_000
"""Bytes of a file that the repository takes: the log of a full-length run, 2,100 epochs, has 430,000."""

_PATH = re.compile(r"(?<![\w.~/])(?:~|/[\w.+~-]+)/[\w./+~-]+")
"""An absolute path: a slash, a name, a slash and more."""
_PLACES = ("--out", "--data")
"""Options that say where files are on one machine; nothing else hangs on them."""


def add(run: Path, experiment: str | None = None, runs: Path = RUNS) -> Path:
    """Copy a finished run into the gallery, replacing the same run.

    Args:
        run: The run's folder, ``<experiment>/<run>``.
        experiment: What the gallery calls its experiment; by default the name of the folder above.
        runs: The gallery's folder of runs.

    Returns:
        The folder written.

    Raises:
        UserError: The run is not whole or not finished, a file is too large, or a path of the machine is left.
    """
    run = run.resolve()
    missing = [name for name in NEEDED if not (run / name).is_file()]
    if missing:
        raise UserError(
            f"{run} is no finished run: {', '.join(missing)} missing. Give runs/<experiment>/<run>."
        )
    files = {name: (run / name).read_bytes() for name in AS_THEY_ARE if (run / name).is_file()}
    files |= {name: _cleaned(run / name, clean).encode() for name, clean in CLEANED.items()}
    for name, content in files.items():
        _check(name, content)
    to = runs / (experiment or run.parent.name) / run.name
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    for name, content in files.items():
        (to / name).write_bytes(content)
    return to


def _cleaned(path: Path, clean: Callable[[str], str]) -> str:
    try:
        return clean(path.read_text("utf-8"))
    except BROKEN as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path.name} is damaged ({reason}). Give a run whose files are whole.") from error


def _check(name: str, content: bytes) -> None:
    if len(content) > LARGEST:
        raise UserError(f"{name} has {len(content):,} bytes; the gallery takes at most {LARGEST:,} a file.")
    found = paths(_text(name, content)) if not name.endswith(".npz") else []
    if found:
        raise UserError(
            f"{name} names paths of this machine: {', '.join(found[:3])}. Take them out of the run's copy."
        )


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text. Give a run whose files are whole.") from error


def paths(text: str) -> list[str]:
    """Return the absolute paths in a text."""
    return sorted(set(_PATH.findall(text)))


def clean_config(text: str) -> str:
    """Return a resolved configuration with the places of output and data as they are by default."""
    config = _mapping(yaml.safe_load(text))
    config["output"] = {**_mapping(config.get("output") or {}), "folder": "runs"}
    config["data"] = {**_mapping(config.get("data") or {}), "root": None}
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100)


def _mapping(content: Any) -> dict[Any, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"a mapping belongs where {str(content)[:40]!r} stands")
    return dict(content)


def clean_environment(text: str) -> str:
    """Return the environment with a command that works from any checkout, and the system without its build."""
    environment = _of_any_machine(_mapping(json.loads(text)))
    sessions = [
        _of_any_machine(_mapping(one)) for one in environment.get("sessions", ())
    ]  # one per process that worked
    if sessions:
        environment["sessions"] = sessions
    return json.dumps(environment, indent=1) + "\n"


def _of_any_machine(environment: dict[Any, Any]) -> dict[Any, Any]:
    told = {key: value for key, value in environment.items() if key not in ("begun", "process")}
    told["platform"] = str(told.get("platform", "")).split("-")[0]
    told["command"] = clean_command(str(told.get("command", "")))
    return told


def clean_command(command: str) -> str:
    """Return a command without the places of output and data, its experiment relative to the repository.

    Example:
        >>> clean_command("python -m incrlt.run /home/me/incrlt/experiments/a.yaml --out /big/runs --seed 1")
        'python -m incrlt.run experiments/a.yaml --seed 1'
    """
    words = iter(shlex.split(command))
    kept = []
    for word in words:
        if word in _PLACES:
            next(words, None)
        elif not word.startswith((*(f"{place}=" for place in _PLACES), "output.folder=", "data.root=")):
            kept.append(re.sub(r"^.*/(experiments/)", r"\1", word))
    return shlex.join(kept)


def clean_log(text: str) -> str:
    """Return a log without times of day and with numbers of four digits; a torn last line is dropped, as reports do."""
    lines = [line for line in text.splitlines() if line.strip()]
    events = [_short(_mapping(json.loads(line))) for line in lines[:-1]]
    with contextlib.suppress(ValueError):
        events += [_short(_mapping(json.loads(line))) for line in lines[-1:]]
    return "".join(json.dumps(event, separators=(",", ":")) + "\n" for event in events)


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(inner) for key, inner in value.items() if key != "time"}
    return float(f"{value:.4g}") if isinstance(value, float) else value


CLEANED: dict[str, Callable[[str], str]] = {
    "config.yaml": clean_config,
    "environment.json": clean_environment,
    "log.jsonl": clean_log,
}


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    if len(arguments) not in (1, 2):
        sys.stderr.write("usage: python docs/add_run.py RUN [EXPERIMENT]\n")
        return 2
    try:
        to = add(Path(arguments[0]), *arguments[1:])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{to}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
