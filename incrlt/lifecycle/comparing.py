"""Update or retrain: what an update cost and saved, against training anew on every picture that is at hand.

At hand are the exemplars and what arrived: the data of earlier experiences may be gone. The network is drawn anew and
learns all classes at once, with the settings of the run; nobody answers from it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import torch

from incrlt.benchmarks.longtail import GROUPS
from incrlt.errors import UserError
from incrlt.lifecycle import gate, learned
from incrlt.lifecycle.learned import Learned
from incrlt.lifecycle.lesson import Batch, Lesson, facts_after, measure
from incrlt.lifecycle.versions import Version
from incrlt.runner.kept import Pictures

COLUMNS: Final = ("old", "new", "many", "medium", "few", "all", "seconds", "pictures")
"""Of the table: accuracy by age and by group, percent, every class counting the same; then what it took. Groups count
new classes too, but for the first row, which knows none."""


def check(parent: Learned, batch: Batch) -> None:
    """Refuse a comparison for which pictures are missing, before anything is trained.

    Raises:
        UserError: A known class has neither exemplars nor new pictures.
    """
    there = {parent.class_names[label] for label in parent.exemplars.labels.unique().tolist()}
    lost = [name for name in parent.class_names if name not in there | set(batch.names)]
    if lost:
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        raise UserError(
            f"--compare joint trains on every class anew, and of {', '.join(lost[:5])}{more} no picture is kept. Leave "
            "it out, or begin with a run that keeps exemplars (memory: {per_class: 20})."
        )


def joint(parent: Learned, batch: Batch, tests: Pictures) -> dict[str, float | None]:
    """Train on everything at hand and measure it as a new version is measured.

    Args:
        parent: Before the update.
        batch: What arrived.
        tests: Pictures that the new version is judged on; labels by arrival position.

    Returns:
        The measures of :func:`incrlt.lifecycle.gate.measures`, ``seconds`` of training, and ``pictures`` trained on.
    """
    facts = facts_after(parent, batch)
    place = {name: label for label, name in enumerate(facts.class_names)}
    new = Pictures(batch.images, learned.labels_of(list(batch.names), place))
    arriving = set(new.hashes())
    old = parent.exemplars.only(
        torch.tensor([h not in arriving for h in parent.exemplars.hashes()], dtype=torch.bool)
    )
    everything = old.joined(new)
    names = tuple(facts.class_names[label] for label in everything.labels.tolist())
    whole = Batch(everything.images, names, batch.test_images[:0], (), facts.class_names)
    begun = time.perf_counter()
    anew = Lesson(learned.nothing(parent.experiment, parent.facts.preparation), whole).learn()
    seconds = time.perf_counter() - begun
    assert anew.class_names == facts.class_names
    anew = replace(anew, facts=replace(anew.facts, seen=facts.seen))  # groups are those of the update
    found = gate.measures(measure(parent, tests), measure(anew, tests), facts.seen)
    return {**found, "seconds": round(seconds, 1), "pictures": float(len(everything))}


def table(version: Version, kept: int) -> list[str]:
    """Return what a version shows as a Markdown table, beside its parent and, where that was trained, all anew.

    Args:
        version: One that was measured.
        kept: Pictures that the update trained on: exemplars and what arrived.
    """
    update: dict[str, float | None] = {
        **version.measures,
        "seconds": version.seconds,
        "pictures": float(kept),
    }
    before = {name: version.measures.get(f"{name}_before") for name in ("old", *GROUPS)}
    rows: dict[str, Mapping[str, float | None]] = {"before": before, "this update": update}
    if version.joint:
        rows["all anew"] = version.joint
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'--:|' * len(COLUMNS)}"]
    for name, values in rows.items():
        lines.append(f"| {name} | {' | '.join(_cell(column, values) for column in COLUMNS)} |")
    return [*lines, "", _verdict(update, version.joint)] if version.joint else lines


def _cell(column: str, values: Mapping[str, float | None]) -> str:
    value = values.get(column)
    if value is None:
        return ""
    return f"{value:.0f}" if column == "pictures" else f"{value:.1f}"


def _verdict(update: Mapping[str, float | None], anew: Mapping[str, float | None]) -> str:
    """Return in a sentence what updating cost and saved."""
    mine, other, saved = update.get("all"), anew.get("all"), (anew["seconds"] or 0) - (update["seconds"] or 0)
    if mine is None or other is None:
        return "There are no test pictures to compare on."
    points = f"{abs(mine - other):.1f} points over all classes"
    worth = f"gained {points}" if mine >= other else f"cost {points}"
    time_ = f"saved {saved:.1f} s" if saved >= 0 else f"took {-saved:.1f} s more"
    return f"Updating {worth} and {time_}."
