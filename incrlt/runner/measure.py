"""How long a run would take and what it would need, from a few seconds of measuring on this machine.

The network of the experiment trains on random pictures of its size, over exactly the calls of a run: two steps of the
first experience, then as many of a second one, with teacher and exemplars, as there is time for. Of pictures from files
a few are decoded. What later stages and herding add is in the images that the plan counts, not in the speed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from incrlt.benchmarks import facts, streams
from incrlt.benchmarks.holding import expected
from incrlt.benchmarks.protocols import Protocol
from incrlt.benchmarks.surveying import Listed, decoded
from incrlt.data.ahead import workers
from incrlt.data.stores import StreamedPictures
from incrlt.data.tensors import ImageTensors
from incrlt.experiment.plan import plan
from incrlt.experiment.sections import Experiment
from incrlt.models import cost
from incrlt.runner.build import build_strategy, choose_device, holding_of
from incrlt.runner.memory import peak_memory
from incrlt.training.template import IncrTemplate
from incrlt.words import counted, duration, size

SECONDS: Final = 10.0
"""Of measuring, about; a step that takes longer is waited for."""
DECODING: Final = 0.3
"""Share of them for decoding, where there is any."""
SHOWN: Final = 256
"""Pictures of an evaluation that is timed, at most."""


@dataclass(frozen=True)
class Measured:
    """What was seen.

    Args:
        trains: Images that a training step takes per second, with a teacher where the strategy has one.
        answers: Images per second in evaluation.
        reads: Pictures decoded per second, by all threads; None where none is.
        steps: Training steps that were timed.
    """

    trains: float
    answers: float
    reads: float | None
    steps: int


class _EnoughError(Exception):
    """Time is up."""


def measured(experiment: Experiment) -> dict[str, str]:
    """Return what a run would take and need, by label, for people.

    Args:
        experiment: What would run.

    Raises:
        UserError: The device or the pictures are not there.
    """
    listed, protocol = _listed(experiment), experiment.protocol()
    reads = None if listed is None else _decode(listed, experiment, DECODING * SECONDS)
    left = SECONDS * (1 if listed is None else 1 - DECODING)
    device = choose_device(experiment.device)
    shape = facts.info(experiment.benchmark.dataset).image_shape if listed is None else listed.shape
    strategy, trains, steps, answers = _train(experiment, protocol, device, shape, left)
    found = Measured(trains, answers, reads, steps)
    rows = plan(experiment)
    weights = 4 * cost.parameters(strategy.model)
    told = {
        "measured": f"{found.trains:,.0f} images/s in training ({counted(steps, 'step')}), {found.answers:,.0f} in "
        f"evaluation" + (f", {reads:,.0f} pictures/s decoded" if reads else ""),
        "time": _time(found, rows, experiment, listed),
        "memory": f"{size(peak_memory(torch.device('cpu')))} seen here, pictures apart",
        "checkpoints": f"about {size(2 * 3 * weights)}, two of weights, momentum and teacher",
    }
    return told | ({} if listed is None else _pictures(listed, experiment))


def _listed(experiment: Experiment) -> Listed | None:
    """Return the pictures of a data set from files; None of one that is in memory anyway."""
    found = experiment.pictures()
    return None if found is None else Listed.of(found)


def _decode(listed: Listed, experiment: Experiment, seconds: float) -> float:
    """Return pictures decoded per second, evenly spread over all."""
    threads = workers(experiment.data.workers)
    store = StreamedPictures(listed.paths, listed.shape, lambda path: decoded(path, listed.shape), threads)
    rows = np.random.default_rng(0).permutation(len(listed.paths))
    batches = np.array_split(rows, max(1, len(rows) // max(1, 4 * threads)))
    begun, done = time.perf_counter(), 0
    for images in store.read_ahead(batches):
        done += len(images)
        if time.perf_counter() - begun > seconds:
            break
    return done / (time.perf_counter() - begun)


def _train(
    experiment: Experiment,
    protocol: Protocol,
    device: torch.device,
    shape: tuple[int, int, int],
    seconds: float,
) -> tuple[IncrTemplate, float, int, float]:
    """Return the strategy, images per second and steps of training, and images per second of evaluation."""
    batch, groups = experiment.training.batch_size, protocol.classes_per_experience
    sizes = [groups[0], groups[-1]] if len(groups) > 1 else [groups[0]]
    endless = experiment.training.model_copy(update={"epochs": 1000, "base_epochs": 1})
    only = endless if len(sizes) > 1 else endless.model_copy(update={"base_epochs": 1000})
    short = experiment.model_copy(update={"training": only, "rebalance": None, "router": None})
    strategy = build_strategy(short, shape[0], device, [])
    if experiment.training.threads:
        torch.set_num_threads(experiment.training.threads)
    benchmark = _random(sizes, shape, batch, protocol.augmentation)
    times: list[float] = []
    real = strategy.optimizer_step

    def step() -> None:
        real()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter())
        if strategy.experience_index == len(sizes) - 1 and len(times) > 4 and times[-1] - begun > seconds:
            raise _EnoughError

    strategy.optimizer_step = step  # type: ignore[method-assign]
    begun = time.perf_counter()
    try:
        for experience in benchmark.train_stream:
            before = len(times)
            strategy.train(experience)
    except _EnoughError:
        pass
    taken = np.diff(times[before:])[1:]  # the first step of a network takes its time
    return (
        strategy,
        batch / statistics.median(taken),
        len(taken),
        _answers(strategy, device, shape, experiment),
    )


def _answers(
    strategy: IncrTemplate, device: torch.device, shape: tuple[int, int, int], experiment: Experiment
) -> float:
    """Return images per second of evaluation."""
    images = torch.zeros((min(SHOWN, experiment.training.eval_batch_size), *shape), device=device)
    strategy.model.eval()
    begun = time.perf_counter()
    with torch.no_grad():
        strategy.compute.run(strategy.network, images, rebalanced=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return len(images) / (time.perf_counter() - begun)


def _random(
    sizes: list[int], shape: tuple[int, int, int], batch: int, augmentation: str
) -> streams.Benchmark:
    """Return a benchmark of random pictures, two batches in each experience."""
    draw, parts, first = torch.Generator().manual_seed(0), [], 0
    for number in sizes:
        images = torch.randint(0, 256, (2 * batch, *shape), dtype=torch.uint8, generator=draw)
        parts.append(ImageTensors(images, first + torch.arange(2 * batch) % number))
        first += number
    names = [str(label) for label in range(first)]
    middle = (0.5,) * shape[0]
    return streams.of_parts(parts, parts[0], names, augmentation, middle, middle)


def _time(found: Measured, rows: list[dict[str, Any]], experiment: Experiment, listed: Listed | None) -> str:
    """Return how long it would take, and what of it decoding is."""
    tested, work = list(_tested(rows, experiment, listed)), sum(row["work"] for row in rows)
    seconds = work / found.trains + sum(tested) / found.answers
    if listed is None or found.reads is None:
        return f"about {duration(seconds)}"
    if expected(listed, holding_of(experiment))[0] == "stream":
        reading = (work + sum(tested)) / found.reads
        slower = "reading" if reading > seconds else "the network"
        return f"about {duration(max(reading, seconds))}; {slower} is what it waits for"
    once = duration(len(listed.paths) / found.reads)
    return f"about {duration(seconds)}, and before the first of them {once} of decoding"


def _tested(rows: list[dict[str, Any]], experiment: Experiment, listed: Listed | None) -> Iterator[float]:
    """Yield the test images of each evaluation, as many for each class."""
    classes = rows[-1]["classes_seen"]
    test = facts.info(experiment.benchmark.dataset).test_images if listed is None else len(listed.test)
    for row in rows:
        yield test * row["classes_seen"] / classes


def _pictures(listed: Listed, experiment: Experiment) -> dict[str, str]:
    """Return where pictures would be held, in the memory and on the disk."""
    hold, sentence = expected(listed, holding_of(experiment))
    disk = size(listed.nbytes) if hold == "cache" else "nothing"
    return {"pictures held": sentence, "disk for pictures": disk}
