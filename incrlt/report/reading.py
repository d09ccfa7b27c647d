"""Read a run folder as it is: each file that is missing, damaged or of another version becomes a sentence."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

import incrlt
from incrlt import manifest
from incrlt.errors import UserError
from incrlt.experiment.yamltext import BROKEN
from incrlt.files import LARGEST_JSON, LARGEST_LOG, Plain, event_of, read_text
from incrlt.metrics import StreamRecord, load_records, main_readout, summarise
from incrlt.metrics.evaluation import EVALUATIONS_FILE, EvaluationRecord, load_evaluations, misfit
from incrlt.metrics.results import FORMAT
from incrlt.metrics.routing import ROUTING_FILE, SWEEP_FILE
from incrlt.report.thumbnails import THUMBNAILS_FILE, Sheet, load_thumbnails
from incrlt.written import cut

T = TypeVar("T")

LARGEST_YAML = 300_000
"""Bytes that are read of a configuration; ten times what the largest runs write."""
MOST_VALUES, DEEPEST = 20_000, 60
"""Values and depth of a configuration, its anchors written out."""
LONGEST_MESSAGE = 300
"""Letters of a reason; what a damaged file holds may stand in its message, whole."""

_LOSS = {
    "config.yaml": "the configuration is not shown",
    "protocol.json": "protocol and hash are unknown, so nothing may be compared with this run",
    "environment.json": "versions, device and commit are not shown",
    "log.jsonl": "loss curves and cost are not shown",
    "classes.json": "long-tail and per-class views are not shown",
    "confusions.npz": "curves per class are not shown",
}
"""What the page loses with each file."""


@dataclass(frozen=True, eq=False)
class Run:
    """What could be read of a run folder."""

    folder: Path
    config: Plain = field(default_factory=dict)
    protocol: Plain = field(default_factory=dict)
    environment: Plain = field(default_factory=dict)
    results: Plain = field(default_factory=dict)
    log: tuple[Plain, ...] = ()
    """Events of log.jsonl in their order; damaged lines are left out."""
    records: Mapping[str, StreamRecord] = field(default_factory=dict)
    """Counts per read-out, that of the run's answers first."""
    summaries: Mapping[str, Plain] = field(default_factory=dict)
    """Metrics per read-out, in the same order: from the counts, or from results.json where those cannot be read."""
    evaluations: EvaluationRecord = field(default_factory=EvaluationRecord)
    """Confidence, experts and memory; empty for runs of versions that did not record them."""
    routing: tuple[Plain, ...] = ()
    """Rows of routing.csv, one per experience; empty without a router."""
    sweep: tuple[Plain, ...] = ()
    """Rows of routing_sweep.csv: accuracy over computation."""
    thumbnails: Sheet | None = None
    """Training images of every class; None for runs of versions that did not keep any."""
    finished: bool = False
    problems: tuple[str, ...] = ()
    """Sentences on what is missing, damaged or of another version."""

    @property
    def name(self) -> str:
        """``<experiment>/<run>``: the last two parts of the folder."""
        return "/".join(self.folder.parts[-2:])

    @property
    def experiment(self) -> str:
        """The YAML's name, which is the name of the folder above."""
        return self.folder.parent.name

    @property
    def method(self) -> str:
        """The method as results.json names it, else the log's first line, else the strategy of the configuration."""
        said = [self.results, *self.events("start")[-1:]]
        found = next((source["method"] for source in said if source.get("method")), None)
        return str(found or section_name(self.config.get("strategy")) or "unknown method")

    @property
    def protocol_name(self) -> str:
        """The protocol's id, e.g. "lfh-shuffled-10"."""
        return str(self.protocol.get("name") or self.results.get("protocol") or "unknown protocol")

    @property
    def protocol_hash(self) -> str | None:
        """The content hash that decides which runs may be compared."""
        found = self.protocol.get("hash") or self.results.get("protocol_hash")
        return str(found) if found else None

    @property
    def readout(self) -> str | None:
        """The read-out the run answers with, by which it is headed and compared; None before any evaluation."""
        return next(iter(self.summaries), None)

    @property
    def num_planned(self) -> int | None:
        """Experiences of the whole stream, or None where the protocol is unknown."""
        sizes = self.protocol.get("classes_per_experience")
        return len(sizes) if isinstance(sizes, list) else None

    @property
    def complete(self) -> bool:
        """Whether the run has finished and every read-out it reports has the counts of all experiences."""
        return self.finished and not self.gaps

    @property
    def gaps(self) -> dict[str, int]:
        """Read-outs of a finished run that lack experiences, with how many they have."""
        saved = self.results.get("readouts")
        done = dict.fromkeys(saved if isinstance(saved, dict) else (), 0)
        done |= {name: summary["num_experiences"] for name, summary in self.summaries.items()}
        wanted = self.num_planned or self.num_done
        return {name: num for name, num in done.items() if num < wanted} if self.finished else {}

    @property
    def progress(self) -> str:
        """How far the stream has been learned, such as "3 of 11 experiences"."""
        planned = self.num_planned or "?"
        return f"{self.num_done} of {planned} experience{'s' * (planned != 1)}"

    @property
    def num_done(self) -> int:
        """Experiences evaluated so far."""
        return max((summary["num_experiences"] for summary in self.summaries.values()), default=0)

    def events(self, kind: str) -> list[Plain]:
        """Return the log's events of one kind: "start", "epoch", "experience", "stage", "end"."""
        return [event for event in self.log if event.get("event") == kind]


def section_name(section: object) -> str:
    """Return the name in a configuration section: ``lucir`` or ``{name: lucir, ...}``."""
    return str(section.get("name", "")) if isinstance(section, Mapping) else str(section or "")


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run folder, whatever state it is in.

    Raises:
        UserError: The path is not a folder, or holds no file of a run.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a run folder such as runs/<experiment>/<run>.")
    if not any((folder / name).exists() for name in (*_LOSS, "results.json")):
        inner = sorted(path.parent.name for path in folder.glob("*/protocol.json"))[:3]
        hint = f" Did you mean one of the runs in it: {', '.join(inner)}?" if inner else ""
        raise UserError(f"{folder} holds no file of a run (config.yaml, confusions.npz, ...).{hint}")
    problems = _manifest_problems(folder)
    environment = _mapping(folder / "environment.json", json.loads, problems)
    results = _results(folder / "results.json", problems)
    config = _mapping(folder / "config.yaml", _config, problems)
    records = _own_first(_records(folder, problems), config)
    summaries = {name: summarise(record) for name, record in records.items()}
    run = Run(
        folder=folder,
        config=config,
        protocol=_mapping(folder / "protocol.json", json.loads, problems),
        environment=environment,
        results=results,
        log=_log(folder / "log.jsonl", problems),
        records=records,
        summaries=summaries or _own_first(_saved_summaries(results, problems), config),
        evaluations=_evaluations(folder / EVALUATIONS_FILE, records, problems),
        routing=_table(folder / ROUTING_FILE, problems),
        sweep=_table(folder / SWEEP_FILE, problems),
        thumbnails=_thumbnails(folder / THUMBNAILS_FILE, records, problems),
        finished=(folder / "DONE").exists(),
    )
    return _with_problems(run, problems)


def _manifest_problems(folder: Path) -> list[str]:
    """Return what differs from the folder's manifest; checkpoints and TensorBoard's files are not read here.

    Of a run that is under way, results may be newer than the manifest for the moment in which they are written.
    """
    try:
        found = manifest.read(folder)
    except UserError as error:
        return [f"{error}."]
    if found is None:  # written by a version without one
        return []
    differs = found.differences(folder, [name for name in found.files if "/" not in name])
    earlier = [f"When the run went on: {sentence}." for sentence in found.noticed]
    return [*(f"{sentence}." for sentence in differs), *earlier]


def _with_problems(run: Run, problems: list[str]) -> Run:
    """Put first what the reader must know first: an unfinished run, another version."""
    first = []
    if not run.finished:
        done = f"{run.num_done} of {run.num_planned or '?'} experiences are evaluated"
        first.append(f"The run has not finished: {done}; averages are over these.")
    for readout, num in run.gaps.items():
        first.append(
            f"The run has finished, but {readout} has counts of {num} of {run.num_planned or run.num_done} experiences "
            "without a gap: averages are over these, and no mean over seeds takes this run in."
        )
    version = run.environment.get("incrlt")
    if version and version != incrlt.__version__:
        first.append(f"The run was written by incrlt {version}; this page by {incrlt.__version__}.")
    if not run.summaries:
        first.append("No experience has been evaluated, so there are no accuracies to show.")
    said = tuple(cut(problem, 2 * LONGEST_MESSAGE) for problem in first + problems)
    return Run(**{**vars(run), "problems": said})


def _mapping(path: Path, parse: Callable[[str], Any], problems: list[str]) -> Plain:
    """Return the mapping in a JSON or YAML file; what is wrong is added to ``problems``."""
    loss = _LOSS.get(path.name, "it is left out")
    try:
        content = parse(read_text(path, LARGEST_YAML if path.suffix == ".yaml" else LARGEST_JSON))
    except FileNotFoundError:
        problems.append(f"{path.name} is missing: {loss}.")
        return {}
    except (OSError, *BROKEN) as error:
        problems.append(f"{path.name} is damaged ({_first_line(error)}): {loss}.")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name} is damaged (holds no mapping): {loss}.")
        return {}
    return content


def _config(text: str) -> object:
    """Parse a configuration.

    Raises:
        RecursionError: A section holds itself, as YAML's anchors allow.
        ValueError: Written out, without anchors, it is far larger than any configuration.
    """
    content = yaml.safe_load(text)
    if (size := _size(content, {}, ())) > MOST_VALUES:
        raise ValueError(f"its anchors stand for {size:.3g} values; at most {MOST_VALUES:,} are read")
    return content


def _size(node: object, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Return how many values a parsed file is when written out; each part is counted once, however often it is named.

    Raises:
        RecursionError: A part holds itself, or lies more than :data:`DEEPEST` deep.
    """
    if not isinstance(node, dict | list):
        return 1
    if id(node) in above or len(above) > DEEPEST:
        raise RecursionError("a section holds itself or lies too deep")
    if id(node) not in known:
        parts = [*node, *node.values()] if isinstance(node, dict) else node
        known[id(node)] = 1 + sum(_size(part, known, (*above, id(node))) for part in parts)
    return known[id(node)]


def _first_line(error: BaseException) -> str:
    """Return the head of an error's message, without the machine's paths."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return cut((text.splitlines() or [type(error).__name__])[0], LONGEST_MESSAGE)


def _results(path: Path, problems: list[str]) -> Plain:
    if not path.exists():
        return {}  # an unfinished run has none; everything in it is computed from the counts
    content = _mapping(path, json.loads, problems)
    if content and content.get("format") != FORMAT:
        problems.append(
            f"results.json has format {content.get('format')}, this version reads {FORMAT}: it is left out."
        )
        return {}
    return content


def _saved_summaries(results: Plain, problems: list[str]) -> dict[str, Plain]:
    """Return the summaries of results.json that have the parts a page needs."""
    readouts = results.get("readouts")
    items = readouts.items() if isinstance(readouts, dict) else ()
    found = {str(name): clean for name, summary in items if (clean := _clean(summary)) is not None}
    if found:
        problems.append("The numbers are those saved in results.json, since the counts could not be read.")
    return found


def _clean(summary: object) -> Plain | None:
    """Return a saved summary with numbers where numbers belong, or None where it is no summary."""
    parts = summary if isinstance(summary, dict) else {}
    size, numbers, steps = (parts.get(key) for key in ("num_experiences", "numbers", "per_experience"))
    if not isinstance(size, int) or size < 1 or not isinstance(numbers, dict) or not isinstance(steps, dict):
        return None
    rows = parts.get("accuracy_matrix")
    square = isinstance(rows, list) and all(isinstance(row, list) and len(row) == len(rows) for row in rows)
    return {
        **parts,
        "numbers": {name: number(value) for name, value in numbers.items()},
        "per_experience": {
            name: [number(value) for value in values]
            for name, values in steps.items()
            if isinstance(values, list) and len(values) == size
        },
        "accuracy_matrix": [[number(value) for value in row] for row in rows or []] if square else [],
    }


def _records(folder: Path, problems: list[str]) -> dict[str, StreamRecord]:
    for name in ("confusions.npz", "classes.json"):
        if not (folder / name).exists():
            problems.append(f"{name} is missing: {_LOSS[name]}.")
            return {}
    try:
        records = load_records(folder)
    except UserError as error:
        reason = cut(str(error).replace(str(folder) + os.sep, "").rstrip("."), LONGEST_MESSAGE)
        problems.append(f"{reason}: {_LOSS['confusions.npz']}.")
        return {}
    return dict(sorted(records.items(), key=lambda item: (item[0] != "cnn", item[0])))


def _own_first(of_readouts: Mapping[str, T], config: Plain) -> dict[str, T]:
    """Return what there is per read-out, that of the run's own answers first."""
    if not of_readouts:
        return {}
    strategy = config.get("strategy")
    main = main_readout(of_readouts, strategy.get("readout") if isinstance(strategy, Mapping) else None)
    return {main: of_readouts[main], **of_readouts}


def _evaluations(path: Path, records: Mapping[str, StreamRecord], problems: list[str]) -> EvaluationRecord:
    """Return what was recorded of confidence and experts."""
    record = next(iter(records.values()), None)
    sizes = [] if record is None else [record.seen_after(t) for t in range(record.num_experiences)]

    def wrong(found: EvaluationRecord) -> str | None:
        reason = misfit(found, sizes)
        return None if reason is None else f"does not fit the counts: {reason}"

    lost = "calibration, experts and what the memory holds"
    return _of_newer_runs(path, load_evaluations, wrong, lost, problems) or EvaluationRecord()


def _thumbnails(path: Path, records: Mapping[str, StreamRecord], problems: list[str]) -> Sheet | None:
    """Return the classes' pictures."""
    seen = max((record.num_seen for record in records.values()), default=0)

    def wrong(sheet: Sheet) -> str | None:  # it holds the classes yet to come as well
        number = len(sheet.counts)
        return None if number >= seen else f"has {number} classes, the counts {seen}"

    return _of_newer_runs(path, load_thumbnails, wrong, "pictures of the classes", problems)


def _of_newer_runs(
    path: Path, load: Callable[[Path], T], wrong: Callable[[T], str | None], lost: str, problems: list[str]
) -> T | None:
    """Return what a file holds if it can be read and belongs here; older runs have none, which is no problem."""
    if not path.exists():
        return None
    try:
        found = load(path)
    except UserError as error:
        reason = str(error).replace(str(path.parent) + os.sep, "")
    else:
        misfitting = wrong(found)
        if misfitting is None:
            return found
        reason = f"{path.name} {misfitting}"
    problems.append(f"{reason}; {lost} are not shown.")
    return None


def _log(path: Path, problems: list[str]) -> tuple[Plain, ...]:
    try:
        lines = read_text(path, LARGEST_LOG, errors="replace").splitlines()
    except (OSError, ValueError) as error:
        state = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({_first_line(error)})"
        problems.append(f"{path.name} {state}: {_LOSS[path.name]}.")
        return ()
    events = [event_of(line) for line in lines if line.strip()]
    good = tuple(event for event in events if event)
    if len(good) < len(events):
        problems.append(
            f"{len(events) - len(good)} of {len(events)} lines of log.jsonl are damaged and left out."
        )
    return good


def _table(path: Path, problems: list[str]) -> tuple[Plain, ...]:
    """Return the rows of a CSV file of numbers, empty cells as None; only runs with a router have one."""
    if not path.exists():
        return ()
    try:
        text = read_text(path, LARGEST_JSON)
        rows = [
            {key: number(float(value)) if value else None for key, value in row.items()}
            for row in csv.DictReader(text.splitlines())
        ]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        problems.append(f"{path.name} is damaged ({_first_line(error)}): the router's figures are not shown.")
        return ()
    return tuple(rows)


def number(value: object) -> float | None:
    """Return a finite number, or None for anything else; an integer beyond all floats is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None
