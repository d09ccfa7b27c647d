"""Images per second of whole training steps: LUCIR with one and several experts, eager, compiled and as a graph.

Random images of CIFAR's shape, 50 classes and then 10 more, ResNet-32, batch 128, exemplars and teacher as in a run:
what is timed are epochs of the second experience, data path and optimizer included. The first epochs, in which
libraries choose algorithms and the step is compiled or captured, stand apart.

``python -m perf.bench_steps --device cuda --out perf/data/<date>_steps_<gpu>.json``
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import incrlt._compat

import torch
from avalanche.benchmarks import nc_benchmark

import incrlt.models
from incrlt.data import augment
from incrlt.data.tensors import ImageTensors
from incrlt.experts import ExpertMethod
from incrlt.experts.ncl import NCL
from incrlt.experts.ride import RIDE
from incrlt.experts.shike import SHIKE
from incrlt.experts.single import Single
from incrlt.plugins import ExemplarMemory
from incrlt.plugins.quiet import quiet_evaluator
from incrlt.runner.build import choose_precision
from incrlt.strategies.lucir import LUCIR
from perf.machine import machine
from perf.output import write

METHODS: dict[str, ExpertMethod] = {
    "lucir": Single(),
    "lucir + ride, 3 experts": RIDE(),
    "lucir + ncl, 1 expert": NCL(num_experts=1),
    "lucir + ncl, 3 experts": NCL(),
    "lucir + shike, 3 experts": SHIKE(classifier_epochs=0),
}
STEPS = ("eager", "graph", "compile")
"""In the order of interest: compilation takes most of the time."""
WARM_UP = 2
BASE, NEW = 50, 10


def stream(images_per_class: int, side: int = 32) -> Any:
    """Return two experiences of random images."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(BASE + NEW).repeat_interleave(images_per_class)
    images = torch.randint(256, (len(labels), 3, side, side), generator=generator).to(torch.uint8)
    shape, mean, std = (3, side, side), (0.5,) * 3, (0.25,) * 3
    return nc_benchmark(
        ImageTensors(images, labels),
        ImageTensors(images[::images_per_class], labels[::images_per_class]),
        n_experiences=2,
        task_labels=False,
        per_exp_classes={0: BASE, 1: NEW},
        fixed_class_order=list(range(BASE + NEW)),
        train_transform=augment.build("crop-flip", shape, mean, std, train=True),
        eval_transform=augment.build("none", shape, mean, std, train=False),
    )


def strategy_of(
    experts: ExpertMethod,
    step: str,
    kernels: str,
    device: torch.device,
    epochs: int,
    network: str,
    precision: str = "auto",
) -> LUCIR:
    """Return LUCIR as a run builds it."""
    torch.manual_seed(0)
    model = incrlt.models.build(network, layout=experts.layout)
    precision = choose_precision(precision, device)
    return LUCIR(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4),
        experts=experts,
        memory=ExemplarMemory(per_class=20),
        train_mb_size=128,
        train_epochs=epochs,
        base_epochs=1,
        device=device,
        evaluator=quiet_evaluator(),
        precision=precision,
        channels_last=precision != "fp32",
        kernels=kernels,
        step=step,
    )


def measure_one(strategy: LUCIR, benchmark: Any) -> dict[str, Any]:
    """Train both experiences and return images per second of the second one's epochs."""
    speeds: list[float] = []
    seconds: list[float] = []
    strategy.train(benchmark.train_stream[0])

    def note(strategy: Any) -> None:
        seconds.append(strategy.epoch_seconds)
        speeds.append(strategy.epoch_images / strategy.epoch_seconds)

    strategy.on_epoch_end = note
    strategy.train(benchmark.train_stream[1])
    low, _, high = statistics.quantiles(speeds[WARM_UP:], n=4, method="inclusive")
    return {
        "images_per_second": statistics.median(speeds[WARM_UP:]),
        "quartiles": [low, high],
        "epochs": len(speeds) - WARM_UP,
        "first_epoch_seconds": seconds[0],
        "step": strategy.stepper.name,
        "reason": strategy.stepper.reason,
    }


def measure(
    device: torch.device,
    images_per_class: int = 200,
    epochs: int = 8,
    steps: tuple[str, ...] = STEPS,
    kernels: tuple[str, ...] = ("auto", "reference"),
    seconds: float = 240.0,
    network: str = "resnet32",
    keep: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[dict[str, Any]]:
    """Measure every method with every step and two backends of the losses.

    Args:
        device: Where.
        images_per_class: Of the random data.
        epochs: Of the second experience, the first two of which are warm-up.
        steps: Names of steps; ``graph`` is left out where there is no GPU.
        kernels: Backends of the losses.
        seconds: Start nothing after this time; what is left out is named.
        network: Backbone.
        keep: Called with the rows so far after each one.
    """
    end, rows, benchmark = time.perf_counter() + seconds, [], stream(images_per_class)
    for step, backend, (name, experts) in itertools.product(steps, kernels, METHODS.items()):
        facts = {"method": name, "asked": step, "kernels": backend}
        if time.perf_counter() > end:
            rows.append(facts | {"left_out": "no time left"})
            continue
        if step == "graph" and device.type != "cuda":
            continue
        torch.compiler.reset()
        rows.append(
            facts | measure_one(strategy_of(experts, step, backend, device, epochs, network), benchmark)
        )
        if keep is not None:
            keep(rows)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=200, help="per class")
    parser.add_argument("--steps", nargs="+", default=list(STEPS))
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    facts = {"machine": machine(device)}

    def keep(rows: list[dict[str, Any]]) -> None:
        if options.out is not None:
            write({**facts, "rows": rows}, options.out)

    steps = tuple(options.steps)
    rows = measure(device, options.images, options.epochs, steps, seconds=options.seconds, keep=keep)
    write({**facts, "rows": rows}, options.out)


if __name__ == "__main__":
    main()


def test_a_rehearsal_on_the_cpu():
    rows = measure(torch.device("cpu"), 2, 4, steps=("eager", "graph"), kernels=("auto",), network="resnet8")
    assert [row["method"] for row in rows] == list(METHODS)
    assert all(row["images_per_second"] > 0 and row["step"] == "eager" for row in rows)
