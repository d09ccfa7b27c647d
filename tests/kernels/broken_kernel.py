"""A kernel that Triton's interpreter runs and its compiler refuses."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def last_tile_sum(numbers, result, N, BLOCK: tl.constexpr):
    """Use a variable of the loop's body after the loop, where a compiled kernel has none."""
    for start in range(0, N, BLOCK):
        tile = tl.load(numbers + start + tl.arange(0, BLOCK))
    tl.store(result, tl.sum(tile, 0))
