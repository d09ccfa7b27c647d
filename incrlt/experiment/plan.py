"""What a run will do, experience by experience, worked out before any data are read.

The figures of ``--dry-run``, of the start banner and of the time that is left. NumPy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from incrlt.experiment.declared import LaterStage
from incrlt.files import Plain

if TYPE_CHECKING:
    from incrlt.benchmarks.protocols import Protocol
    from incrlt.experiment.sections import Experiment, Memory


def plan(experiment: Experiment) -> list[Plain]:
    """Return one dict of plain data per experience.

    Beside what ``Protocol.plan`` says (``experience``, ``classes``, ``images``, ``held_out`` and the groups):
    ``classes_seen``, ``exemplars`` (of old classes, in the training stream), ``epochs`` of the first stage,
    ``later_epochs`` of the stages after it, and ``work``: images times epochs over all stages.

    Args:
        experiment: A validated experiment.

    Raises:
        UserError: The classes cannot be split so.
    """
    protocol = experiment.protocol()
    counts = _counts_by_arrival(protocol)
    strategy, _ = experiment.chosen["strategy"]
    rows: list[Plain] = []
    seen = 0
    for row in protocol.plan():
        exemplars = _exemplars(experiment.memory, counts[:seen])
        first, later = _epochs(experiment, seen, len(row["classes"]), row["images"])
        stream = row["images"] + exemplars
        if strategy.facts.get("keeps_images"):
            stream += sum(earlier["images"] for earlier in rows)
        seen += len(row["classes"])
        drawn = {"stream": stream, "exemplars": exemplars}
        own = {
            "classes_seen": seen,
            "exemplars": exemplars,
            "epochs": first,
            "later_epochs": sum(stage.epochs for stage in later),
        }
        work = stream * first + sum(drawn[stage.data] * stage.epochs for stage in later)
        rows.append({**row, **own, "work": work})
    return rows


def untold(experiment: Experiment) -> list[str]:
    """Return the methods whose later stages the plan cannot count: their classes make some and tell no lengths."""
    return [declared.place for declared, _ in experiment.chosen.values() if not declared.tells_its_stages]


def _counts_by_arrival(protocol: Protocol) -> list[int]:
    """Return the images of each class before a hold-out, in arrival order."""
    return [int(count) for count in protocol.class_sizes()[list(protocol.class_order)]]


def _exemplars(memory: Memory | None, counts: list[int]) -> int:
    """Return how many exemplars of classes with these many images the memory holds."""
    if memory is None or not counts:
        return 0
    budget = memory.total or (memory.per_class or 0) * len(counts)
    if memory.redistribute:
        return min(budget, sum(counts))
    return sum(min(budget // len(counts), count) for count in counts)


def _epochs(experiment: Experiment, num_old: int, num_new: int, images: int) -> tuple[int, list[LaterStage]]:
    """Return the epochs of the first stage of an experience, and the stages after it."""
    training = experiment.training
    first = training.epochs if num_old else training.base_epochs or training.epochs
    about = {"num_old": num_old, "num_new": num_new, "images": images}
    later: list[LaterStage] = []
    for declared, entry in experiment.chosen.values():
        values = entry.hyper_parameters | about
        first = declared.first_epochs(values | {"train_epochs": first})
        later += declared.later_stages(values)
    return first, later
