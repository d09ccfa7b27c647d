"""Expert losses on a GPU: Triton against closed form, published eager form, compiled forms and cross entropies.

Device time is that of a replayed CUDA graph that computes over rotating buffers: together larger than twice the L2
cache, or as many as make :data:`MOST_NODES` launches, whichever is less, so that neither launches nor a warm cache
flatter anyone. What waits for the host cannot be captured: there the profiler's sum of kernel times stands. Host time
is that of calls in eager mode with one wait at the end. Bytes are those that must move (see
:func:`perf.kernel_turns.model_bytes`); a copy's bandwidth is measured in the same run.

``python -m perf.bench_kernels --out perf/data/<date>_kernels_<gpu>.json`` goes through the grid, most wanted first,
until the time is over, and names what it left out. On the CPU (``--device cpu``) only host times are taken: a
rehearsal.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from perf.kernel_turns import TERMS, Leaves, Shape, Turn, leaves_of, model_bytes, skipped, turns
from perf.machine import machine
from perf.output import write

SIZES = ((128, 100), (512, 8142), (512, 100), (1024, 1000), (4096, 8142))
"""Batch and classes: CIFAR-100 at two batch sizes, ImageNet-LT, iNaturalist 2018 with images and with stored features;
those that goals are about come first."""
GRID = tuple((k, b, c) for k in (3, 1, 6) for b, c in SIZES)
GOALS = ((3, 128, 100), (3, 512, 8142))
CHOICES = {"all": GRID, "goals": GOALS, "rest": tuple(shape for shape in GRID if shape not in GOALS)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MOST_NODES = 6000
"""Launches in one captured graph: many more take seconds to instantiate."""
MOST_BUFFERS = 1000
SECONDS_PER_MEASUREMENT = 0.1
"""Repeat host and device times this long, at least three times."""


@dataclass(frozen=True)
class Item:
    """What is measured in one go.

    Attributes:
        terms: One of :data:`perf.kernel_turns.TERMS`.
        shape: K, B, C.
        dtype: Key of :data:`DTYPES`.
        compiled: The compiled forms, otherwise all the others.
    """

    terms: str
    shape: Shape
    dtype: str
    compiled: bool

    def __str__(self) -> str:
        return f"{self.terms} {self.shape} {self.dtype}{' compiled' * self.compiled}"

    @property
    def facts(self) -> dict[str, Any]:
        """What a row says of it."""
        return {"terms": self.terms, "shape": list(self.shape), "dtype": self.dtype}


def plan(grid: tuple[Shape, ...] = GRID, compiled: bool = True) -> list[Item]:
    """Return what is to be measured on a grid of shapes, in the order of interest.

    The shapes of the goals come first, with the compiled forms in fp32; then the grid without compiled forms, three
    experts before one and six; then the compiled forms of the rest, which take seconds each, as far as the time goes.
    """
    goals = tuple(shape for shape in grid if shape in GOALS)
    wanted = itertools.chain(
        _items(goals, tuple(DTYPES), False),
        _items(goals, ("fp32",), True),
        _items(grid, tuple(DTYPES), False),
        _items(grid, tuple(DTYPES), True),
    )
    return [item for item in dict.fromkeys(wanted) if compiled or not item.compiled]


def _items(shapes: tuple[Shape, ...], dtypes: tuple[str, ...], compiled: bool) -> Iterator[Item]:
    for shape, dtype, terms in itertools.product(shapes, dtypes, TERMS):
        if not compiled or terms in TERMS[:4]:
            yield Item(terms, shape, dtype, compiled)


# ------------------------------------------------------------------------------------------------------ measurement


def buffers(item: Item, device: torch.device) -> list[Leaves]:
    """Return copies of the leaves that together exceed twice the L2 cache; two on a CPU."""
    leaves = leaves_of(item.terms, item.shape, DTYPES[item.dtype], device)
    number = 2
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        number = 2 + 2 * cache // sum(leaf.numel() * leaf.element_size() for leaf in leaves.all)
    return [leaves.clone() for _ in range(min(number, MOST_BUFFERS))]


def measure_turn(turn: Turn, most: int, device: torch.device) -> dict[str, Any]:
    """Measure one competitor.

    Args:
        turn: Its forward and backward.
        most: Buffers there are.
        device: Where.

    Returns:
        ``first_call_seconds``, compilation included; ``host_us``, quintile, median and quintile; on a GPU also
        ``launches``, ``kernels_us`` (the profiler's sum), ``peak_bytes`` beyond the inputs, ``device_us`` and the
        number ``buffers`` it rotated over, or ``not_captured`` with the reason.
    """
    begun = time.perf_counter()
    turn(0)
    wait(device)
    row: dict[str, Any] = {"first_call_seconds": time.perf_counter() - begun}
    if device.type != "cuda":
        return row | {"host_us": quantiles(_host(turn, min(most, 4), device))}
    row |= _profiled(turn)
    number = max(2, min(most, MOST_NODES // max(row["launches"], 1)))
    row |= {"host_us": quantiles(_host(turn, min(number, 40), device)), "peak_bytes": _peak(turn)}
    reason = _wait_inside(turn)
    if reason is not None:  # a capture that fails would leave its stream behind
        return row | {"not_captured": reason}
    return row | {"device_us": quantiles(_device(turn, number)), "buffers": number}


def wait(device: torch.device) -> None:
    """Wait for the GPU, if it is one."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _wait_inside(turn: Turn) -> str | None:
    """Return how a turn makes the host wait for the device, which a graph cannot; None if it does not."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        turn(0)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def _host(turn: Turn, number: int, device: torch.device) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + SECONDS_PER_MEASUREMENT
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 50):
        wait(device)
        begun = time.perf_counter()
        for i in range(number):
            turn(i)
        wait(device)
        times.append(1e6 * (time.perf_counter() - begun) / number)
    return times


def _device(turn: Turn, number: int) -> list[float]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(min(number, 3)):
            turn(i)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(number):
            turn(i)
    times: list[float] = []
    end = time.perf_counter() + SECONDS_PER_MEASUREMENT
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 52):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        times.append(1e3 * first.elapsed_time(last) / number)
    return times[2:]


def _profiled(turn: Turn) -> dict[str, Any]:
    """Return kernels of one turn, copies and fills included, and the sum of their times."""
    turn(0)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        turn(0)
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    events = [event for event in profile.key_averages() if event.device_type == on_device]
    return {
        "launches": sum(event.count for event in events),
        "kernels_us": sum(event.self_device_time_total for event in events),
    }


def _peak(turn: Turn) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    turn(0)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def quantiles(values: list[float]) -> list[float]:
    """Return first quintile, median and last quintile."""
    low, *_, high = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else values * 2
    return [low, statistics.median(values), high]


def copy_bandwidth(device: torch.device) -> float | None:
    """Return bytes read and written per second by a copy of 1 GiB; None on a CPU."""
    if device.type != "cuda":
        return None
    source = torch.empty(2**28, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    times = _device(lambda i: target.copy_(source), 4)
    return 2 * source.numel() * 4 / (statistics.median(times) * 1e-6)


def measure(
    items: list[Item],
    device: torch.device,
    seconds: float,
    keep: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Measure items in their order.

    Args:
        items: See :func:`plan`.
        device: A GPU, or a CPU for host times alone.
        seconds: Start no item after this time; items left out are named.
        keep: Called with all figures so far after each item: who is killed has lost one item.

    Returns:
        The copy's bandwidth, rows (a competitor that raises has ``failed`` with the first line), what was left out,
        and who could not compete.
    """
    end, bandwidth = time.perf_counter() + seconds, copy_bandwidth(device)
    found: dict[str, Any] = {"copy_bytes_per_second": bandwidth, "rows": [], "skipped": skipped()}
    found["left_out"] = [str(item) for item in items]
    for item in items:
        if time.perf_counter() > end:
            break
        found["rows"] += measure_item(item, device, bandwidth)
        found["left_out"].remove(str(item))
        if keep is not None:
            keep(found)
        torch.compiler.reset()
    return found


def measure_item(item: Item, device: torch.device, bandwidth: float | None) -> list[dict[str, Any]]:
    """Return a row for each competitor; one that fails does not take the others with it."""
    rows, held = [], buffers(item, device)
    moved = model_bytes(item.terms, held[0])
    for kind, turn in turns(item.terms, item.shape, held, item.compiled).items():
        row = item.facts | {"kind": kind, "model_bytes": moved}
        try:
            row |= measure_turn(turn, len(held), device)
        except Exception as error:  # out of memory, or a compiler's
            row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[:1]}"
            wait(device)
        rows.append(row | _speeds(row, bandwidth))
    return rows


def _speeds(row: dict[str, Any], bandwidth: float | None) -> dict[str, float]:
    time_us = row["device_us"][1] if "device_us" in row else row.get("kernels_us")
    if not time_us or bandwidth is None:
        return {}
    speed = row["model_bytes"] / (time_us * 1e-6)
    return {"gigabytes_per_second": speed / 1e9, "share_of_copy": speed / bandwidth}


def main(arguments: list[str] | None = None) -> None:
    """Measure and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", choices=tuple(CHOICES), default="all", help="goals: what goals are about")
    parser.add_argument("--no-compiled", action="store_true", help="without the compiled forms")
    parser.add_argument("--seconds", type=float, default=240.0, help="start nothing after this time")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    items = plan(CHOICES[options.shapes], compiled=not options.no_compiled)
    facts = {"machine": machine(device)}

    def keep(found: dict[str, Any]) -> None:
        if options.out is not None:
            write(facts | found, options.out)

    write(facts | measure(items, device, options.seconds, keep), options.out)


if __name__ == "__main__":
    main()


# ---------------------------------------------------------------------------------------------------------- tests


def test_the_plan_is_the_whole_grid_with_the_goals_first():
    items = plan()
    shapes = {(k, b, c) for k in (1, 3, 6) for b, c in SIZES}
    assert {(item.terms, item.shape, item.dtype) for item in items} == set(
        itertools.product(TERMS, shapes, DTYPES)
    )
    methods = ("ncl", "ride", "shike", "lucir")
    assert {(i.terms, i.shape, i.dtype) for i in items if i.compiled} == set(
        itertools.product(methods, shapes, DTYPES)
    )
    assert len(items) == len(set(items))
    assert {item.shape for item in items[: len(GOALS) * len(DTYPES) * len(TERMS)]} == set(GOALS)


def test_a_rehearsal_on_the_cpu():
    items = plan(((3, 8, 20), (1, 4, 10)), compiled=False)
    found = measure(items, torch.device("cpu"), 60)
    assert not found["left_out"] and not [row for row in found["rows"] if "failed" in row]
    kinds = {(row["terms"], row["kind"]) for row in found["rows"]}
    assert kinds >= set(itertools.product(TERMS[:4], ("published", "closed_form")))
    assert kinds >= {("cross_entropy", "closed_form"), ("head_and_cross_entropy", "fused_op")}
    assert all(row["host_us"][1] > 0 for row in found["rows"])
    assert measure(items, torch.device("cpu"), -1)["left_out"][0] == "ncl (3, 8, 20) fp32"


def test_competitors_compute_the_same():
    """What is timed against each other is the same gradient."""
    shape = (3, 16, 20)
    for terms in ("lucir", "head_and_cross_entropy", "cross_entropy"):
        held = [leaves_of(terms, shape, torch.float32, torch.device("cpu")).clone()]
        found = [turn(0) for turn in turns(terms, shape, held, False).values()]
        first, *others = [[one] if isinstance(one, torch.Tensor) else list(one) for one in found]
        for other in others:
            assert len(other) == len(first)
            for left, right in zip(other, first, strict=True):
                torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)
