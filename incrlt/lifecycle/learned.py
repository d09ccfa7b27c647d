"""What stands between two experiences: a model with everything it needs to learn the next one, in memory or on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from incrlt.checkpoint import CheckpointFolder, one_sentence
from incrlt.errors import UserError
from incrlt.experiment import schema
from incrlt.experiment.sections import Experiment
from incrlt.files import Plain
from incrlt.manifest import Keeper
from incrlt.metrics import StreamRecord
from incrlt.plugins.evaluation import EvaluationRecorder
from incrlt.runner import kept
from incrlt.runner.folder import RunFolder
from incrlt.runner.kept import Facts, Pictures, Preparation
from incrlt.runner.resume import binding

CONFIG_FILE: Final = "config.yaml"
CHECKPOINTS: Final = "checkpoints"
NO_MARK: Final = -2
"""In the place of what a recorder knows the last experience by: whatever comes next is another one."""


@dataclass(frozen=True, eq=False)
class Learned:
    """A model and what it goes on with.

    Args:
        experiment: How it learns.
        facts: Classes, counts, preparation.
        strategy: State of the strategy after its last experience; None before the first.
        recorder: State of the recorder; None before the first.
        exemplars: Pictures it goes on with, best first within a class.
        tests: Test pictures so far.
        seconds: Time spent on learning.
    """

    experiment: Experiment
    facts: Facts
    strategy: Plain | None
    recorder: Plain | None
    exemplars: Pictures
    tests: Pictures
    seconds: float = 0.0

    def __getstate__(self) -> Plain:
        """Write the experiment as values: the classes of its sections are made when they are asked for."""
        return {**vars(self), "experiment": self.experiment.resolved()}

    def __setstate__(self, state: Plain) -> None:
        """Restore :meth:`__getstate__`."""
        experiment = schema.parse(state["experiment"], with_data=False)
        self.__dict__.update(state | {"experiment": experiment})

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in arrival order."""
        return self.facts.class_names

    @property
    def experiences(self) -> int:
        """Experiences learned so far."""
        return 0 if self.strategy is None else int(self.strategy["progress"]["experience"])

    def recorded(self) -> EvaluationRecorder:
        """Return a recorder that goes on counting."""
        recorder = EvaluationRecorder()
        if self.recorder is not None:
            recorder.load_state_dict({**self.recorder, "mark": [NO_MARK]})
        return recorder

    def records(self) -> dict[str, StreamRecord]:
        """Return the counts of every evaluation so far by read-out; groups by all pictures ever seen."""
        recorder = self.recorded()
        return recorder.records(list(self.facts.seen), self.class_names)


def nothing(experiment: Experiment, preparation: Preparation) -> Learned:
    """Return a model that knows no class yet."""
    empty = Pictures.none(preparation.shape)
    return Learned(experiment, Facts((), (), preparation, ""), None, None, empty, empty)


def read(folder: Path, tests: bool = True) -> Learned:
    """Read a finished run, or a version of it.

    Args:
        folder: Its folder.
        tests: Read the test pictures too.

    Raises:
        UserError: It is no finished run, or damaged.
    """
    facts = kept.read_facts(folder)
    experiment = schema.load(folder / CONFIG_FILE, with_data=False)
    checkpoints = CheckpointFolder(folder / CHECKPOINTS)
    state = checkpoints.newest()
    if state is None:
        damaged = ", ".join(checkpoints.damaged)
        raise UserError(
            f"{folder} holds no checkpoint that can be read{f': {damaged}' if damaged else ''}; take the folder from a "
            "copy."
        )
    with one_sentence(f"the checkpoint {checkpoints.chosen}", "Load it with the version that wrote it."):
        trained = bool(state["strategy"]["progress"]["trained"])
        strategy, recorder, seconds = state["strategy"], state["recorder"], float(state["seconds"])
    if not trained:
        raise UserError(f"the run in {folder} is not finished; finish it with the command that began it.")
    return Learned(
        experiment=experiment,
        facts=facts,
        strategy=strategy,
        recorder=recorder,
        exemplars=kept.read_pictures(folder / kept.EXEMPLARS_FILE, facts),
        tests=kept.read_pictures(folder / kept.TESTS_FILE, facts)
        if tests
        else Pictures.none(facts.preparation.shape),
        seconds=seconds,
    )


def checkpoint_of(learned: Learned) -> Plain:
    """Return what a checkpoint of a finished version holds: no momentum, since every experience begins without."""
    assert learned.strategy is not None
    strategy = {**learned.strategy, "optimizer": _without_momentum(learned.strategy["optimizer"])}
    return {
        "run": binding(learned.experiment, learned.facts.stream),
        "strategy": strategy,
        "recorder": learned.recorder,
        "seconds": learned.seconds,
    }


def _without_momentum(optimizer: Mapping[str, object]) -> Plain:
    return {**optimizer, "state": {}}


def write(folder: RunFolder, learned: Learned, extra: Mapping[str, object]) -> Learned:
    """Write a finished version into its folder: a run folder like any other.

    Args:
        folder: Its own.
        learned: What it holds.
        extra: For ``results.json``.

    Returns:
        The same, with what could not be kept in its notes.
    """
    path = folder.path
    folder.write_text(CONFIG_FILE, learned.experiment.resolved_yaml())
    facts = kept.write(path, learned.facts, learned.exemplars, learned.tests)
    if learned.recorder is not None and any(learned.recorder["confusions"].values()):
        labels = list(range(len(learned.class_names)))
        folder.write_counts(learned.records(), labels, dict(extra))
        learned.recorded().write(path)
    else:
        _write_names(folder, learned)
    checkpoints = CheckpointFolder(path / CHECKPOINTS)
    newest = checkpoints.save(checkpoint_of(learned))
    for older in newest.parent.glob(
        "*.pt"
    ):  # those of its epochs, with the momentum that nobody needs any more
        if older != newest:
            older.unlink(missing_ok=True)
    bound = binding(learned.experiment, learned.facts.stream)
    Keeper(path, bound["config"], learned.facts.stream).renew(finished=True)
    folder.write_text("DONE", "")
    return replace(learned, facts=facts)


def _write_names(folder: RunFolder, learned: Learned) -> None:
    """Write the classes of a model that was never evaluated, so that :func:`incrlt.models.load` knows their names."""
    from incrlt.metrics import save_classes

    assert learned.recorder is not None
    arrived = learned.recorder["experience_of_class"]
    labels = list(range(len(learned.class_names)))
    save_classes(folder.path / "classes.json", arrived, list(learned.facts.seen), learned.class_names, labels)


def labels_of(names: list[str], known: Mapping[str, int]) -> torch.Tensor:
    """Return the arrival position of each name, int64 ``[N]``."""
    return torch.tensor([known[name] for name in names], dtype=torch.int64)
