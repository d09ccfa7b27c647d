"""What a run will do, experience by experience, worked out before any data are read.

The figures of ``--dry-run``, of the start banner and of the time that is left. NumPy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from incrlt.benchmarks.protocols import Protocol
    from incrlt.experiment.schema import Experiment, Memory


def plan(experiment: Experiment) -> list[dict[str, Any]]:
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
    rows: list[dict[str, Any]] = []
    seen = 0
    for row in protocol.plan():
        exemplars = _exemplars(experiment.memory, counts[:seen])
        first, later = _epochs(experiment, seen > 0)
        stream = row["images"] + exemplars
        if experiment.strategy.name == "joint":
            stream += sum(earlier["images"] for earlier in rows)
        seen += len(row["classes"])
        work = stream * (first + later["stream"]) + exemplars * later["exemplars"]
        own = {
            "classes_seen": seen,
            "exemplars": exemplars,
            "epochs": first,
            "later_epochs": sum(later.values()),
        }
        rows.append({**row, **own, "work": work})
    return rows


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


def _epochs(experiment: Experiment, has_old: bool) -> tuple[int, dict[str, int]]:
    """Return the epochs of the first stage, and those of later ones by the data they draw from."""
    training, chosen = experiment.training, experiment.strategy.hyper_parameters
    first = training.epochs if has_old else training.base_epochs or training.epochs
    second = experiment.experts.hyper_parameters.get("classifier_epochs", 0)
    for stage in (experiment.rebalance, experiment.router):
        second += stage.hyper_parameters.get("epochs", 0) if stage else 0
    finetunes = ("class_balanced_finetune", "balanced_epochs")
    on_exemplars = sum(chosen.get(key, 0) for key in finetunes) if has_old else 0
    return first, {"stream": second, "exemplars": on_exemplars}
