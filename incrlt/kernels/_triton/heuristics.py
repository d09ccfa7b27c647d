"""Sizes of the launches, by rule: nothing is tried out at run time, so that a first step costs one compilation.

The rules follow what the compiler reports for sm_90 (``cuobjdump --dump-resource-usage``); tests hold them to it. They
have not been tuned on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

LABELS = 1024
"""Labels, or rows of values, that the small launches read at a time."""


@dataclass(frozen=True)
class Launch:
    """Sizes of a launch with one program per row.

    Attributes:
        block: Columns per tile.
        whole: Columns per row, rounded up to a power of two; equal to ``block`` where the row stays in registers.
        warps: Per program.
    """

    block: int
    whole: int
    warps: int


WEIGHTS = {
    "classification": 1.0,
    "mutual": 0.3,  # shares the exponentials of the classification ...
    "mutual_apart": 1.0,  # ... unless margins or a prior of its own tell them apart
    "hard": 1.0,
    "diversity": 0.7,
    "transfer": 1.3,
    "distillation": 2.0,  # the old model's logits are a second set of tiles
}
"""Registers of a term, for every expert and column, in units of one tile."""

MANY_REGISTERS, FEW_REGISTERS = 195, 140
"""Largest estimates without spills at 255 and at 128 registers per thread, that is with up to 8 and with 16 warps. The
estimate counts no temporaries, and 16 warps get by with fewer of them: the compiler recomputes where it is short."""


def registers(num_experts: int, terms: frozenset[str], columns: float) -> float:
    """Estimate registers per thread.

    Args:
        num_experts: K.
        terms: Keys of :data:`WEIGHTS`.
        columns: Columns per thread. Of more than 8 the compiler interleaves fewer.
    """
    tiles = num_experts * (1 + sum(WEIGHTS[term] for term in terms))
    return 20 + tiles * (2 + 1.2 * min(columns, 8) + 0.5 * max(columns - 8, 0))


@cache
def main_launch(num_experts: int, num_classes: int, terms: frozenset[str]) -> Launch:
    """Return the sizes of the main kernel: a row in registers if it fits, else tiles.

    Four columns per thread make a 16-byte load of fp32, hence one warp for 128 classes and no barrier at all. More
    warps with fewer columns each are second choice. The largest row that fits has about 12k logits over all experts,
    24k with the classification alone.

    Args:
        num_experts: K.
        num_classes: C.
        terms: Keys of :data:`WEIGHTS`.
    """
    whole = power_of_two(num_classes)
    warps = min(max(whole // 128, 1), 16)
    most = 16 if terms <= {"classification"} else 8  # columns per thread
    for number in (warps, 2 * warps, 4 * warps):
        columns = whole / (32 * number)
        limit = FEW_REGISTERS if number > 8 else MANY_REGISTERS
        if columns <= most and number <= 16 and registers(num_experts, terms, columns) <= limit:
            return Launch(whole, whole, number)
    if whole <= 128:  # all terms of many experts: tiles would save nothing
        return Launch(whole, whole, 4)
    return _tiled(num_experts, whole, terms)


def _tiled(num_experts: int, whole: int, terms: frozenset[str]) -> Launch:
    """Return tiles of four columns per thread, or fewer.

    The hard classes are found on the summed row, all of it in registers: from 32k columns on that takes 16 warps (and
    spills some of them, since half the registers of a multiprocessor hold the row).
    """
    warps = 16 if whole > 16_384 and "hard" in terms else 8
    limit = FEW_REGISTERS if warps > 8 else MANY_REGISTERS
    columns = next((n for n in (4, 2) if registers(num_experts, terms, n) <= limit), 1)
    return Launch(min(columns * 32 * warps, whole), whole, warps)


def tile_launch(num_columns: int) -> Launch:
    """Return the sizes of the kernels that read one row of one expert: 8 columns per thread, tiles of at most 2048."""
    whole = power_of_two(num_columns)
    block = min(whole, 2048)
    return Launch(block, whole, max(block // 256, 1))


def power_of_two(number: int) -> int:
    """Return the next power of two, at least 16: fewer columns than lanes gain nothing."""
    return 1 << max(number - 1, 15).bit_length()
