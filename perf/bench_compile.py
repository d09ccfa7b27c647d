"""Does ``torch.compile`` pay on a CPU? Forward and backward of a backbone, eager and compiled, and the compile time.

The compiler's time is that of the processor, C++ compilers included, since on a busy machine the wall's says nothing.
``TORCHINDUCTOR_COMPILE_THREADS=1 python -m perf.run_cpu compile`` writes the figures with the machine's facts.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import incrlt.models
from perf.alternate import alternate, ratio, spread

CACHE = "TORCHINDUCTOR_CACHE_DIR"
SETTINGS = {"fp32": (torch.float32, False), "bf16, channels_last": (torch.bfloat16, True)}


def step_of(model: nn.Module, extract: Any, images: Tensor, dtype: torch.dtype) -> Any:
    """Return forward and backward of a batch as a training step makes them."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            features = extract(images)
        features.float().square().mean().backward()

    return step


def processor_seconds() -> float:
    """Return what this process and its finished children have used."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def seconds_of_first(compiled: Callable[[], None]) -> float:
    """Return processor seconds of the first compiled step, nothing being found in a cache on disk."""
    kept = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE] = folder
        begun = processor_seconds()
        compiled()
        used = processor_seconds() - begun
    os.environ.pop(CACHE)
    if kept is not None:
        os.environ[CACHE] = kept
    return used


def measure(
    rounds: int = 20,
    seconds: float = float("inf"),
    threads: int = 1,
    network: str = "resnet32",
    batch: int = 128,
    side: int = 32,
) -> dict[str, Any]:
    """Measure both precisions.

    Args:
        rounds: Turns of eager and compiled.
        seconds: Start no round after this time, per precision.
        threads: Of the operators.
        network: Backbone.
        batch: Images.
        side: Pixels.

    Returns:
        By precision: milliseconds, how many times as fast as eager the compiled step is, paired by round, and
        processor seconds of the first compiled step.
    """
    torch.set_num_threads(threads)
    found: dict[str, Any] = {"settings": {"network": network, "batch": batch, "threads": threads}}
    for name, (dtype, channels_last) in SETTINGS.items():
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        torch.manual_seed(0)
        model = incrlt.models.build(network).to(memory_format=memory_format)
        images = torch.randn(batch, 3, side, side).to(memory_format=memory_format)
        eager = step_of(model, model.extract, images, dtype)
        compiled = step_of(model, torch.compile(model.extract), images, dtype)
        first = seconds_of_first(compiled)
        times = alternate({"eager": eager, "compiled": compiled}, rounds, seconds)
        found[name] = {
            "milliseconds": {kind: spread([1e3 * t for t in each]) for kind, each in times.items()},
            "times_as_fast_as_eager": ratio(times, "eager", "compiled"),
            "first_compiled_step_processor_seconds": first,
        }
    return found


def test_a_rehearsal(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    found = measure(3, network="resnet8", batch=4, side=8)
    assert set(found) == {"settings", *SETTINGS}
    assert all(found[name]["times_as_fast_as_eager"]["n"] == 3 for name in SETTINGS)
