"""Expert losses on a GPU: Triton against closed form, published eager form, compiled forms and cross entropies.

Device time is that of a replayed CUDA graph that computes over rotating buffers larger than twice the L2 cache, so that
neither launches nor a warm cache flatter anyone; host time is that of calls in eager mode with one wait at the end.
Bytes are those that must move (logits read, gradient written); a copy's bandwidth is measured in the same run.

``python -m perf.bench_kernels --out perf/data/<date>_kernels_<gpu>.json``; ``--quick`` for two shapes. On the CPU
(``--device cpu``) only host times are taken: a rehearsal.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from incrlt.kernels import closed_form
from incrlt.kernels.backends import backend_module
from incrlt.runfolder import environment
from perf.bench_kernels_cpu import PUBLISHED, fused, problem
from perf.bench_routing import finished
from perf.output import write

SHAPES = tuple(
    (experts, batch, classes)
    for batch, classes in ((128, 100), (512, 100), (1024, 1000), (512, 8142), (4096, 8142))
    for experts in (1, 3, 6)
)
QUICK = ((3, 128, 100), (3, 512, 8142))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COPIES = 40
"""Calls in one captured graph, at most."""

Turn = Callable[[int], object]
"""``turn(i)`` computes loss and gradient of buffer i."""


def buffers(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Return copies of the logits that together exceed twice the L2 cache; two on a CPU."""
    logits, _, _ = problem(*shape)
    logits = logits.to(device, dtype)
    number = 2
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        number = 2 + 2 * cache // (logits.numel() * logits.element_size())
    return [logits.clone() for _ in range(min(number, COPIES))]


def turns(name: str, shape: tuple[int, int, int], leaves: list[Tensor], compiled: bool) -> dict[str, Turn]:
    """Return what is compared, by name."""
    logits, labels, counts = problem(*shape)
    device = leaves[0].device
    labels, counts = labels.to(device), counts.to(device)
    spec, tensors = fused(name, logits, counts)
    tensors = type(tensors)(**{key: _on(value, device) for key, value in vars(tensors).items()})
    extra = {"tables": tensors} if name == "ride" else {}
    grown = [leaf.requires_grad_() for leaf in leaves]

    def published(leaf: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(PUBLISHED[name](leaf, labels, counts, **extra), leaf)

    def closed(leaf: Tensor) -> Tensor | None:
        return closed_form.terms_and_gradients(leaf, labels, spec, tensors)[1]

    found: dict[str, Turn] = {
        "published": lambda i: published(grown[i]),
        "closed_form": lambda i: closed(grown[i]),
    }
    if device.type == "cuda":
        triton = backend_module("triton")
        found["triton"] = lambda i: triton.terms_and_gradients(grown[i], labels, spec, tensors)[1]
    if compiled:
        fast_published = torch.compile(PUBLISHED[name], dynamic=False)
        fast_closed = torch.compile(closed, dynamic=False)
        found["published_compiled"] = lambda i: torch.autograd.grad(
            fast_published(grown[i], labels, counts, **extra), grown[i]
        )
        found["closed_form_compiled"] = lambda i: fast_closed(grown[i])
    return found | _cross_entropies(grown, labels)


def _on(value: Tensor | None, device: torch.device) -> Tensor | None:
    return None if value is None else value.to(device)


def _cross_entropies(leaves: list[Tensor], labels: Tensor) -> dict[str, Turn]:
    """Cross entropy alone, expert after expert: a floor of what others take for much less than the whole set."""

    def plain(i: int) -> tuple[Tensor, ...]:
        total = sum(F.cross_entropy(each.float(), labels) for each in leaves[i])
        assert isinstance(total, Tensor)
        return torch.autograd.grad(total, leaves[i])

    found: dict[str, Turn] = {"cross_entropy_alone": plain}
    try:
        from liger_kernel.transformers import LigerCrossEntropyLoss
    except ImportError:
        return found
    liger = LigerCrossEntropyLoss()

    def with_liger(
        i: int,
    ) -> tuple[Tensor, ...]:  # it overwrites its input: on a copy, as a second loss would need
        total = sum(liger(each.clone(), labels) for each in leaves[i])
        assert isinstance(total, Tensor)
        return torch.autograd.grad(total, leaves[i])

    return found | {"liger_cross_entropy_alone": with_liger}


# ------------------------------------------------------------------------------------------------------ measurement


def measure_turn(turn: Turn, number: int, device: torch.device, repeats: int) -> dict[str, Any]:
    """Return first-call seconds, host and device microseconds, launches and peak memory of one competitor."""
    begun = time.perf_counter()
    turn(0)
    finished(device)
    row: dict[str, Any] = {"first_call_seconds": time.perf_counter() - begun}
    row["host_us"] = _quantiles([_host(turn, number, device) for _ in range(repeats)])
    if device.type != "cuda":
        return row
    row["launches"] = _launches(turn)
    row["peak_bytes"] = _peak(turn)
    try:
        row["device_us"] = _quantiles(_device(turn, number, repeats))
    except RuntimeError as error:  # what cannot be captured has no device time: the host is in it
        row["not_captured"] = str(error).splitlines()[0]
        torch.cuda.synchronize()
    return row


def _host(turn: Turn, number: int, device: torch.device) -> float:
    finished(device)
    begun = time.perf_counter()
    for i in range(number):
        turn(i)
    finished(device)
    return 1e6 * (time.perf_counter() - begun) / number


def _device(turn: Turn, number: int, repeats: int) -> list[float]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(number):
            turn(i)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(number):
            turn(i)
    times = []
    for _ in range(repeats + 2):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        times.append(1e3 * first.elapsed_time(last) / number)
    return times[2:]


def _launches(turn: Turn) -> int:
    turn(0)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        turn(0)
        torch.cuda.synchronize()
    kernels = torch.autograd.DeviceType.CUDA
    return sum(event.count for event in profile.key_averages() if event.device_type == kernels)


def _peak(turn: Turn) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    turn(0)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _quantiles(values: list[float]) -> list[float]:
    low, *_, high = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else values * 2
    return [low, statistics.median(values), high]


def copy_bandwidth(device: torch.device) -> float | None:
    """Return bytes read and written per second by a copy of 1 GiB; None on a CPU."""
    if device.type != "cuda":
        return None
    source = torch.empty(2**28, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    times = _device(lambda i: target.copy_(source), 4, 10)
    return 2 * source.numel() * 4 / (statistics.median(times) * 1e-6)


def measure(
    shapes: tuple[tuple[int, int, int], ...],
    device: torch.device,
    repeats: int,
    compiled: bool,
    seconds: float,
) -> dict[str, Any]:
    """Measure all methods, shapes and types.

    Args:
        shapes: Experts, batch, classes.
        device: A GPU, or a CPU for host times alone.
        repeats: Of each measurement.
        compiled: Compile the eager forms as well, which takes seconds each.
        seconds: Start no row after this time; rows left out are named.
    """
    end, bandwidth = time.perf_counter() + seconds, copy_bandwidth(device)
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for shape in shapes:
        for dtype in DTYPES:
            for name in PUBLISHED:
                facts = {"terms": name, "shape": list(shape), "dtype": dtype}
                if time.perf_counter() > end:
                    left_out.append(str(facts))
                    continue
                leaves = buffers(shape, DTYPES[dtype], device)
                for kind, turn in turns(name, shape, leaves, compiled).items():
                    row = facts | {"kind": kind} | measure_turn(turn, len(leaves), device, repeats)
                    rows.append(row | _speeds(row, leaves[0], bandwidth))
                del leaves
                torch.compiler.reset()
    return {"copy_bytes_per_second": bandwidth, "rows": rows, "left_out": left_out}


def _speeds(row: dict[str, Any], logits: Tensor, bandwidth: float | None) -> dict[str, float]:
    if "device_us" not in row or bandwidth is None:
        return {}
    speed = 2 * logits.numel() * logits.element_size() / (row["device_us"][1] * 1e-6)
    return {"gigabytes_per_second": speed / 1e9, "share_of_copy": speed / bandwidth}


def main(arguments: list[str] | None = None) -> None:
    """Measure and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="two shapes")
    parser.add_argument("--compiled", action="store_true", help="the compiled forms as well")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=240.0, help="start no row after this time")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    found = measure(
        QUICK if options.quick else SHAPES, device, options.repeats, options.compiled, options.seconds
    )
    write({"machine": environment(device, ""), **found}, options.out)


if __name__ == "__main__":
    main()


def test_a_rehearsal_on_the_cpu():
    found = measure(((3, 8, 20), (1, 4, 10)), torch.device("cpu"), 2, compiled=False, seconds=60)
    kinds = {"published", "closed_form", "cross_entropy_alone"}
    assert len(found["rows"]) >= 2 * len(DTYPES) * len(PUBLISHED) * len(kinds) and not found["left_out"]
    assert kinds <= {row["kind"] for row in found["rows"]}
    assert all(row["host_us"][1] > 0 for row in found["rows"])
