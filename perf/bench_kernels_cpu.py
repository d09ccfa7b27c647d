"""Expert losses on a CPU: the closed form of :mod:`incrlt.kernels` against the form in which they were published.

Competitors compute the same set of terms over the same logits, and the gradient, in alternation in one process:
``published`` loops over experts and ordered pairs of them as the official codes do; ``stacked`` is the sane flavor of
:mod:`incrlt.losses` under autograd; ``closed_form`` returns terms and gradient without a graph.

``python -m perf.bench_kernels_cpu`` prints JSON; with ``--out perf/data/<date>_kernels_cpu.json`` it writes a file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from incrlt import losses
from incrlt.kernels import closed_form, reference
from incrlt.kernels.spec import TermSpec
from incrlt.kernels.tensors import TermTensors
from perf.alternate import alternate, ratio, spread
from perf.machine import machine

SHAPES = ((3, 128, 100), (3, 64, 1000), (6, 128, 100), (3, 64, 8142))
"""Experts, batch, classes: CIFAR-100, ImageNet-LT, six experts, iNaturalist 2018."""
GOALS = {("ncl", 3, 128, 100): 3.5, ("ncl", 3, 64, 1000): 6.0}
"""How many times as fast as the published form, one thread."""
SCALE, RHO, DIVERSITY = 30.0, 0.05, -0.45
FLOOR = 1e-9
"""NCL's, inside a logarithm."""
Problem = tuple[Tensor, Tensor, Tensor]
"""Logits ``[K, B, C]``, labels ``[B]``, images per class ``[C]``."""


# ------------------------------------------------------------------------------------------- as they were published


def published_ncl(logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Balanced softmax, hard categories, and distillation between all ordered pairs on both.

    A top-k where the official code sorts all classes, which at 1000 classes takes four times as long.
    """
    columns = losses.hard_columns(logits[0], labels, _num_hard(logits))
    mask = torch.zeros_like(logits[0]).scatter(-1, columns, 1.0)
    full = [each + counts.log() for each in logits]
    hard = [each * mask for each in full]
    total = logits.new_zeros(())
    for answers in (full, hard):
        for each in answers:
            total = total + F.cross_entropy(each, labels)
        total = total + 0.6 * _pairs(answers, FLOOR) / (len(logits) - 1)
    return total


def _pairs(answers: list[Tensor], floor: float) -> Tensor:
    probabilities = [each.softmax(-1) for each in answers]
    logarithms = [(each + floor).log() for each in probabilities]
    total = answers[0].new_zeros(())
    for i, student in enumerate(logarithms):
        for j, teacher in enumerate(probabilities):
            if i != j:
                total = total + F.kl_div(student, teacher, reduction="batchmean")
    return total


def published_ride(
    logits: Tensor, labels: Tensor, counts: Tensor, tables: TermTensors | None = None
) -> Tensor:
    """LDAM with late weights, and divergence from the mean, expert by expert; tables change once per experience."""
    tables = tables or ride_tables(counts, len(logits))
    margins, weights, temperatures = tables.margins, tables.class_weights, tables.temperatures
    assert margins is not None and temperatures is not None
    is_label = F.one_hot(labels, logits.shape[-1]).bool()
    total = logits.new_zeros(())
    for each in logits:
        lowered = torch.where(is_label, each - SCALE * margins[labels].unsqueeze(-1), each)
        total = total + F.cross_entropy(lowered, labels, weights)
        with torch.no_grad():
            mean = (logits.mean(0) / temperatures).softmax(-1)
        student = (each / temperatures).log_softmax(-1)
        factor = DIVERSITY * temperatures.mean().square()
        total = total + factor * F.kl_div(student, mean, reduction="batchmean")
    return total


def published_shike(logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Cross entropy, transfer from the experts' common teacher, and mutual distillation between ordered pairs."""
    num_classes = logits.shape[-1]
    is_label = F.one_hot(labels, num_classes).bool()
    wrong = [each.masked_fill(is_label, -30.0) for each in logits]
    teacher = losses.transfer.non_target_teacher(torch.stack(wrong)).masked_fill(is_label, 0.0).softmax(-1)
    total = _pairs(list(logits), 0.0) / num_classes
    for each, student in zip(logits, wrong, strict=True):
        total = total + F.cross_entropy(each, labels)
        transfer = F.kl_div(student.softmax(-1).log(), teacher, reduction="batchmean")
        total = total + 10 / num_classes * transfer
    return total


PUBLISHED: dict[str, Callable[..., Tensor]] = {
    "ncl": published_ncl,
    "ride": published_ride,
    "shike": published_shike,
}


def vectorised(name: str, logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """The published flavor of :mod:`incrlt.losses`, which is tested against arrays of the official codes."""
    experts, _, classes = logits.shape
    if name == "ncl":
        columns = losses.hard_columns(logits[0], labels, _num_hard(logits))
        return experts * (
            losses.balanced_softmax(logits, labels, counts)
            + losses.hard_category_cross_entropy(logits, labels, counts, columns, flavor="published")
            + 0.6 * losses.online_distillation(logits, counts, floor=FLOOR)
            + 0.6 * losses.online_distillation(logits, counts, columns, floor=FLOOR, flavor="published")
        )
    if name == "ride":
        margins, weights = losses.ldam_margins(counts), losses.class_balanced_weights(counts)
        temperatures = losses.class_temperatures(counts, RHO)
        divergence = losses.distribution_aware_diversity(logits, temperatures)
        base = losses.ldam(logits, labels, margins, SCALE, weights)
        return experts * (base + DIVERSITY * temperatures.mean().square() * divergence)
    transfer = losses.dynamic_knowledge_transfer(logits, labels, flavor="published")
    return experts * (
        losses.cross_entropy(logits, labels) + (10 * transfer + losses.mutual_distillation(logits)) / classes
    )


# -------------------------------------------------------------------------------------------------- the same, fused


def fused(name: str, logits: Tensor, counts: Tensor) -> tuple[TermSpec, TermTensors]:
    """Return the method's terms and what they read; the small tensors change once per experience."""
    experts = len(logits)
    if name == "ncl":
        spec = TermSpec(
            classification=1.0,
            mutual=0.6,
            hard_classification=1.0,
            hard_mutual=0.6,
            num_hard=_num_hard(logits),
        )
        return spec, TermTensors(prior=counts.log())
    if name == "ride":
        tables = ride_tables(counts, experts)
        assert tables.temperatures is not None
        return TermSpec(
            classification=1.0, diversity=DIVERSITY * float(tables.temperatures.mean()) ** 2
        ), tables
    mutual = 0.01 * (experts - 1)
    return TermSpec(classification=1.0, transfer=0.1, mutual=mutual, mutual_prior=False), TermTensors()


def ride_tables(counts: Tensor, experts: int) -> TermTensors:
    """Return margins, scales, weights and temperatures of a stream."""
    return TermTensors(
        margins=losses.ldam_margins(counts),
        scales=torch.full((experts,), SCALE),
        class_weights=losses.class_balanced_weights(counts),
        temperatures=losses.class_temperatures(counts, RHO),
    )


def _num_hard(logits: Tensor) -> int:
    return round(0.3 * logits.shape[-1])


# ------------------------------------------------------------------------------------------------------ measurement


def problem(experts: int, batch: int, classes: int) -> Problem:
    """Return logits of a network in training, labels and a long-tailed stream."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(experts, batch, classes, generator=generator)
    counts = 500 * 0.01 ** (torch.arange(classes) / (classes - 1))
    return logits, torch.randint(0, classes, (batch,), generator=generator), counts.ceil()


def turns(name: str, data: Problem) -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    """Return one forward and backward of each competitor: loss and gradient."""
    logits, labels, counts = data
    spec, tensors = fused(name, logits, counts)
    leaf = logits.clone().requires_grad_()
    extra = {"tables": tensors} if name == "ride" else {}

    def published() -> tuple[Tensor, Tensor]:
        total = PUBLISHED[name](leaf, labels, counts, **extra)
        return total.detach(), torch.autograd.grad(total, leaf)[0]

    def stacked() -> tuple[Tensor, Tensor]:
        terms, gradient, _ = reference.terms_and_gradients(leaf, labels, spec, tensors)
        assert gradient is not None
        return terms.sum(), gradient

    def closed() -> tuple[Tensor, Tensor]:
        terms, gradient, _ = closed_form.terms_and_gradients(logits, labels, spec, tensors)
        assert gradient is not None
        return terms.sum(), gradient

    return {"published": published, "stacked": stacked, "closed_form": closed}


def several(once: Callable[[], object], calls: int) -> Callable[[], None]:
    """Return a turn of several calls: one takes less than a busy machine's hiccups."""

    def turn() -> None:
        for _ in range(calls):
            once()

    return turn


def measure(rounds: int = 40, threads: int = 1, seconds_per_turn: float = 0.03) -> dict[str, Any]:
    """Measure all methods at all shapes.

    Args:
        rounds: Turns of each competitor.
        threads: Of the operators.
        seconds_per_turn: Calls of a turn are as many as take the published form this long.

    Returns:
        Settings and, by method and shape, milliseconds of one forward and backward by competitor, and how many times as
        fast as the published form the others are, paired by round.
    """
    torch.set_num_threads(threads)
    found: dict[str, Any] = {"settings": {"threads": threads, "rounds": rounds, "dtype": "float32"}}
    for name in PUBLISHED:
        for shape in SHAPES:
            competitors = turns(name, problem(*shape))
            alone = alternate({"published": competitors["published"]}, rounds=5)["published"]
            calls = max(1, round(seconds_per_turn / min(alone)))
            times = alternate({kind: several(once, calls) for kind, once in competitors.items()}, rounds)
            found[f"{name} {shape}"] = {
                "calls_per_turn": calls,
                "milliseconds": {
                    kind: spread([1e3 * t / calls for t in each]) for kind, each in times.items()
                },
                "times_as_fast_as_published": {
                    kind: ratio(times, "published", kind) for kind in ("stacked", "closed_form")
                },
                "goal": GOALS.get((name, *shape)),
            }
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_loops_are_the_published_flavor(name):
    """Loss and gradient, so that what is timed is what the losses' golden tests are about."""
    logits, labels, counts = problem(3, 16, 100)
    leaf = logits.double().requires_grad_()
    counts = counts.double()
    expected = vectorised(name, leaf, labels, counts)
    total = PUBLISHED[name](leaf, labels, counts)
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, leaf)[0] for loss in (total, expected)), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_stacked_and_closed_form_agree(name):
    results = {kind: once() for kind, once in turns(name, problem(3, 16, 100)).items()}
    torch.testing.assert_close(results["closed_form"], results["stacked"], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_against_the_published_form(benchmark):
    """The closed form is at least twice as fast for the whole of NCL, whatever else the machine does."""
    figures = benchmark.pedantic(measure, kwargs={"rounds": 5}, rounds=1)
    benchmark.extra_info.update(figures)
    for name, *shape in GOALS:
        row = figures[f"{name} {tuple(shape)}"]["times_as_fast_as_published"]["closed_form"]
        assert row["median"] >= 2


def main(arguments: list[str] | None = None) -> None:
    """Print the figures as JSON, or write them with the machine's facts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds-per-turn", type=float, default=0.03)
    parser.add_argument("--out", type=Path, help="file to write, with the machine's facts")
    parser.add_argument("--note", default="", help="what else the machine was doing")
    options = parser.parse_args(arguments)
    figures = measure(options.rounds, options.threads, options.seconds_per_turn)
    if options.out is None:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
        return
    facts = machine() | {"note": options.note, "threads": options.threads}
    options.out.write_text(json.dumps({"kernels": {"machine": facts, "figures": figures}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
