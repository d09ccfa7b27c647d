"""A ledger of how fast finished runs were on this machine, from which a dry run estimates.

One small JSON file for each kind of run, in ``rates/`` of the user's cache folder (``INCRLT_CACHE``, else
``~/.cache/incrlt``), written when a run ends; the newest counts. Runs are of one kind when they share machine, data set
and size of images, network, methods, memory, batch size and precision; epochs, seeds, order and imbalance do not matter
for the speed. Runs of several processes are not noted: no dry run is one.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from incrlt.errors import UserError
from incrlt.files import Plain, cache_folder, read_json, write_atomic
from incrlt.words import duration

if TYPE_CHECKING:
    from incrlt.experiment.sections import Experiment

FORMAT: Final = 1
WHOLE: Final = ("model", "experts", "strategy", "memory", "rebalance", "router", "device")
PARTS: Final = {
    "benchmark": ("dataset", "image_size", "augmentation"),
    "training": ("batch_size", "precision", "channels_last", "step", "kernels", "threads", "eval_batch_size"),
    "data": ("on_device", "hold", "workers"),
}
"""What the speed hangs on, of each section."""
LENGTHS: Final = ("epochs", "class_balanced_finetune")
"""Settings of methods that say how long something lasts, not how fast it is."""


def note(experiment: Experiment, hardware: str, stages: Sequence[Plain]) -> Path | None:
    """Write how fast a finished run was; return the file, None where nothing can be said or written.

    Args:
        experiment: What ran.
        hardware: Name of what computed.
        stages: Rows of :func:`incrlt.metrics.spent.spent`; the images of every stage over all seconds, those of
            evaluation and between the stages included.
    """
    images = sum(row["images"] or 0 for row in stages if row["epochs"])
    seconds = sum(row["device_seconds"] for row in stages)
    if images <= 0 or seconds <= 0:
        return None
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    entry = {"format": FORMAT, "date": today, "hardware": hardware, "images_per_second": images / seconds}
    path = _file(experiment)
    with contextlib.suppress(OSError, UserError):  # the run is whole without it
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_atomic(path, json.dumps(entry) + "\n")
    return None


def told(experiment: Experiment, work: float) -> dict[str, str]:
    """Return the estimate by its label, for people; nothing where no such run has finished on this machine.

    Args:
        experiment: What would run.
        work: Images times epochs over all stages, of :func:`incrlt.experiment.plan.plan`.
    """
    try:
        entry = read_json(_file(experiment))
        rate, day, hardware = entry["images_per_second"], str(entry["date"]), str(entry["hardware"])
        if entry["format"] != FORMAT or not (math.isfinite(rate) and rate > 0):
            return {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    said = f"measured on this machine on {day} at {rate:,.0f} images/s, all told ({hardware})"
    return {"time": f"about {duration(work / rate)}, {said}"}


def _file(experiment: Experiment) -> Path:
    values = experiment.resolved()
    kind: Plain = {name: _without_lengths(values[name]) for name in WHOLE}
    kind |= {name: {key: values[name][key] for key in keys} for name, keys in PARTS.items()}
    told = json.dumps({"machine": platform.node(), **kind}, sort_keys=True, default=str)
    return cache_folder("rates") / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"


def _without_lengths(section: object) -> object:
    if not isinstance(section, Mapping):
        return section
    return {key: value for key, value in section.items() if key not in LENGTHS}
