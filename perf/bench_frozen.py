"""Stages that train heads alone: what it saves to keep nothing for the backbone, and to store its features.

Epochs of SHIKE's classifier stage in alternation, in one process, on random images: as if the backbone took a gradient,
without one (what happens), and on stored features (``cache_features``; the pass that stores them stands apart).
``python -m perf.run_cpu frozen`` writes the figures with the machine's facts.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from typing import Any

import incrlt._compat

import torch

import incrlt.models
from incrlt.experts.shike import SHIKE
from incrlt.plugins.quiet import quiet_evaluator
from incrlt.strategies.finetune import Finetune
from perf.alternate import ratio, spread
from perf.bench_steps import stream

KINDS = ("with gradient", "without gradient", "stored features")


class WithGradient(Finetune):
    """Runs the backbone of a frozen stage as that of any other, as if something in it trained."""

    @contextlib.contextmanager
    def _enter(self, index: int, stage: Any) -> Iterator[int]:
        with super()._enter(index, stage) as start:
            self.work.backbone_trains = True
            yield start


def strategy_of(kind: str, network: str, batch: int) -> Finetune:
    """Return a strategy whose experiences are one epoch of the classifier stage, in fp32."""
    torch.manual_seed(0)
    experts = SHIKE(classifier_epochs=1, classifier_warmup=0, cache_features=kind == KINDS[2])
    model = incrlt.models.build(network, layout=experts.layout)
    cls = WithGradient if kind == KINDS[0] else Finetune
    return cls(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        experts=experts,
        train_mb_size=batch,
        train_epochs=0,
        evaluator=quiet_evaluator(),
    )


def measure(
    rounds: int = 10,
    seconds: float = float("inf"),
    threads: int = 1,
    network: str = "resnet32",
    images_per_class: int = 5,
    batch: int = 125,
) -> dict[str, Any]:
    """Measure one epoch of the three.

    Args:
        rounds: Epochs of each.
        seconds: Start no round after this time; at least three are made.
        threads: Of the operators.
        network: Backbone.
        images_per_class: Of 50 classes.
        batch: Images per step.

    Returns:
        Milliseconds per epoch, the pass that stores features in its own row, and how many times as fast as with a
        gradient the others are, paired by round.
    """
    torch.set_num_threads(threads)
    experience = stream(images_per_class).train_stream[0]
    strategies = {kind: strategy_of(kind, network, batch) for kind in KINDS}
    times: dict[str, list[float]] = {name: [] for name in (*KINDS, "storing")}
    draw, end = random.Random(0), time.perf_counter() + seconds
    for number in range(-1, rounds):
        if number >= 3 and time.perf_counter() > end:
            break
        for kind in draw.sample(KINDS, len(KINDS)):
            begun = time.perf_counter()
            strategies[kind].train(experience)
            whole, epoch = time.perf_counter() - begun, strategies[kind].epoch_seconds
            if number >= 0:
                times[kind].append(epoch)
            if number >= 0 and kind == KINDS[2]:
                times["storing"].append(whole - epoch)
    return {
        "settings": {"network": network, "experts": 3, "images": 50 * images_per_class, "batch": batch},
        "milliseconds_per_epoch": {kind: spread([1e3 * t for t in each]) for kind, each in times.items()},
        "times_as_fast_as_with_gradient": {kind: ratio(times, KINDS[0], kind) for kind in KINDS[1:]},
    }


def test_a_rehearsal():
    found = measure(3, network="resnet8", images_per_class=1, batch=25)
    assert found["milliseconds_per_epoch"]["storing"]["n"] == 3
    assert found["times_as_fast_as_with_gradient"]["stored features"]["median"] > 1
