"""What a run says as it goes: the lines of ``log.jsonl``, which the console and TensorBoard show too."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class Score(TypedDict):
    """How held-out images were answered, :meth:`incrlt.runner.validation.Validation.score`."""

    accuracy: float | None
    classes: int
    images: int
    readouts: NotRequired[dict[str, float]]


class Validated(TypedDict, total=False):
    """Part of an event where a run looks at held-out images."""

    validation: Score


class EpochEvent(Validated):
    """An epoch that has just ended."""

    event: str
    experience: int
    stage: str
    epoch: int
    epochs: int
    lr: float
    loss: float
    terms: dict[str, float]
    images_per_second: float
    seconds: float
    images: int
    stored: bool
    processes: int
    peak_bytes: int


class Cost(TypedDict):
    """What :func:`incrlt.metrics.spent.spent` asks of an experience beside its epochs."""

    between_seconds: float
    test_images: int
    macs: float
    head_macs: float
    processes: int
    peak_bytes: int


class ExperienceEvent(Cost, Validated):
    """An experience that was trained and evaluated."""

    event: str
    experience: int
    train_seconds: float
    eval_seconds: float
    classes_seen: int
    memory_images: int
