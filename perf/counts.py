"""What can be counted without a GPU and does not depend on the machine: registers, spills, accesses, launches, passes.

``python -m perf.counts`` writes ``perf/data/counts.json``, the baseline that a test compares with
(``tests/kernels/ahead_of_time.py``) and that ``python -m perf.gate`` reads. Refresh it with a change that is meant, and
say in the commit what moved.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from incrlt.kernels import closed_form
from perf.aot import compiled, launches
from perf.bench_kernels_cpu import PUBLISHED, fused, problem
from perf.output import write

BASELINE = Path(__file__).resolve().parent / "data" / "counts.json"
KERNELS = (
    # method, K, C (padded to a multiple of 16), dtype, compute capability times 10
    ("plain", 1, 112, "float32", 90),
    ("balanced", 3, 8144, "float32", 90),
    ("ncl", 3, 112, "float32", 75),
    ("ncl", 3, 112, "float32", 90),
    ("ncl", 3, 4096, "float32", 90),
    ("ncl", 3, 8144, "float32", 90),
    ("ncl", 3, 8144, "bfloat16", 90),
    ("ncl", 3, 8144, "float32", 120),
    ("ncl", 6, 1008, "float32", 90),
    ("ride", 3, 112, "float32", 90),
    ("ride", 6, 2032, "float32", 90),
    ("shike", 3, 112, "float32", 90),
    ("shike", 3, 4096, "float32", 90),
    ("lucir", 1, 4096, "float32", 90),
    ("every", 3, 1008, "float32", 90),
)
SHAPE = (3, 128, 100)
"""K, B, C of the closed form's counts."""


def of_kernels(folder: Path) -> dict[str, dict[str, int]]:
    """Compile the main kernels and count what they need; launches are those of a call, forward and gradient."""
    found = {}
    for method, experts, classes, dtype, generation in KERNELS:
        call = launches(method, experts, classes, getattr(torch, dtype))
        code = compiled(call["expert_loss"], generation, folder)
        found[f"{method} K={experts} C={classes} {dtype} sm_{generation}"] = {
            "registers": code.registers,
            "spilled_bytes": code.stack,
            "bytes_loaded": code.bytes_of("ld"),
            "bytes_stored": code.bytes_of("st"),
            "launches": len(call),
        }
    return found


class Passes(TorchDispatchMode):
    """Counts operators that move data, and the bytes they read and write; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.operators, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operator."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func.namespace == "aten":
            self.operators += 1
            self.bytes += sum(map(_size, (*_tensors(args), *_tensors(kwargs), *_tensors(result))))
        return result


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def of_closed_form() -> dict[str, dict[str, float]]:
    """Count operators of the closed form, and bytes in units of reading the logits and writing the gradient."""
    found = {}
    logits, labels, counts = problem(*SHAPE)
    for method in PUBLISHED:
        spec, tensors = fused(method, logits, counts)
        with Passes() as passes:
            closed_form.terms_and_gradients(logits, labels, spec, tensors)
        found[f"{method} {SHAPE}"] = {
            "operators": passes.operators,
            "bytes_per_byte_that_must_move": round(passes.bytes / (2 * _size(logits)), 3),
        }
    return found


def versions() -> dict[str, str]:
    """Return what counts depend on."""
    return {"triton": triton.__version__, "torch": torch.__version__.split("+")[0]}


def measure(folder: Path) -> dict[str, Any]:
    """Return all counts with the versions they depend on; ``folder`` takes a file in between."""
    from perf.step_counts import of_steps  # Avalanche: its import takes longer than many of the compilations

    return {
        "machine": versions(),
        "counts": {"kernels": of_kernels(folder), "closed_form": of_closed_form(), "steps": of_steps()},
    }


def main(arguments: list[str] | None = None) -> None:
    """Count, and write the baseline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=BASELINE)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        write(measure(Path(folder)), options.out)


if __name__ == "__main__":
    main()
