"""One run on two processes against one, on gloo and CPUs: seconds and processor seconds of an epoch.

LUCIR on noise of 32 x 32 pixels, ResNet-32, one thread a process. Strong scaling: two processes share the same batch;
weak: they share a batch twice as large. On a machine with other load the ratio of processor seconds says more than that
of seconds: two processes that used no more than one would be twice as fast on two free cores. Turns alternate.
``python -m perf.bench_processes [--turns N] [--out FILE]``
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import incrlt._compat

import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin

import incrlt.models
from incrlt import processes
from incrlt.strategies import LUCIR
from incrlt.testing.digits import quiet
from perf.machine import machine
from perf.output import write

BATCH, STEPS, CLASSES = 32, 2, 10
KINDS = {"one": (1, 1), "strong": (2, 1), "weak": (2, 2)}
"""Processes, and the batch in units of :data:`BATCH`."""


class Clock(SupervisedPlugin):  # type: ignore[misc]
    """Seconds and processor seconds of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[tuple[float, float]] = []
        self._begun = (0.0, 0.0)

    def before_training_epoch(self, *args: object, **kwargs: object) -> None:
        """Begin."""
        self._begun = time.perf_counter(), time.process_time()

    def after_training_epoch(self, *args: object, **kwargs: object) -> None:
        """Note."""
        wall, processor = self._begun
        self.epochs.append((time.perf_counter() - wall, time.process_time() - processor))


def train(batch: int) -> tuple[float, float]:
    """Train two epochs of :data:`STEPS` steps; return seconds and processor seconds of the second."""
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(batch * STEPS, 3, 32, 32, generator=draw)
    labels = torch.arange(len(images)) % CLASSES
    data = torch.utils.data.TensorDataset(images, labels)
    data.targets = labels.tolist()  # type: ignore[attr-defined]
    parts = [as_classification_dataset(data)]
    made = with_classes_timeline(benchmark_from_datasets(train=parts, test=parts))
    clock, model = Clock(), incrlt.models.build("resnet32")
    strategy = LUCIR(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        train_mb_size=batch,
        train_epochs=2,
        evaluator=quiet(),
        plugins=[clock],
    )
    strategy.train(made.train_stream[0])
    return clock.epochs[-1]


def start(rank: int, size: int, port: int, batch: int, writing: int) -> None:
    """Be one process of a run; write its two figures into a pipe and end."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    code = 1
    try:
        with processes.joined(), contextlib.redirect_stdout(sys.stderr):
            os.write(writing, json.dumps(train(batch)).encode())
        code = 0
    finally:
        os._exit(code)


def turn(size: int, batch: int) -> dict[str, float]:
    """Run once; return the seconds of the slowest process and the processor seconds of all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = []
    for rank in range(size):
        reading, writing = os.pipe()
        if os.fork() == 0:
            start(rank, size, port, batch, writing)
        os.close(writing)
        pipes.append(reading)
    told = []
    for reading in pipes:
        with open(reading, "rb") as pipe:
            told.append(json.loads(pipe.read()))
    for _ in pipes:
        os.wait()
    return {"seconds": max(wall for wall, _ in told), "processor": sum(own for _, own in told)}


def ratios(turns: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return, per kind and figure, the median and the range over turns of its ratio to one process."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        for figure in ("seconds", "processor"):
            values = [one[kind][figure] / one["one"][figure] for one in turns]
            found[f"{kind}/{figure}"] = [round(f(values), 3) for f in (statistics.median, min, max)]
    return found


def main() -> None:
    """Alternate turns of each kind."""
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--turns", type=int, default=3)
    command.add_argument("--out", type=Path, help="JSON file of the figures")
    given = command.parse_args()
    torch.set_num_threads(1)  # a fork must not inherit a pool of threads
    facts = machine()
    turns = []
    for _ in range(given.turns):
        turns.append({kind: turn(size, BATCH * times) for kind, (size, times) in KINDS.items()})
        sys.stderr.write(f"{turns[-1]}\n")
    write({"machine": facts, "n": given.turns, "ratios": ratios(turns), "turns": turns}, given.out)


if __name__ == "__main__":
    main()
