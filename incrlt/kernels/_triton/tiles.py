# ruff: noqa: RUF005 (kernels know no unpacking)
# mypy: ignore-errors
"""What the kernels read: tiles ``[BLOCK]`` of each expert, numbers of classes ``[BLOCK]``."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def columns_from(start, BLOCK: tl.constexpr):
    """Return the columns of a tile. Not every compiler sees by itself that they begin at a multiple of BLOCK."""
    return tl.max_contiguous(tl.multiple_of(start + tl.arange(0, BLOCK), BLOCK), BLOCK)


@triton.jit
def load_experts(pointers, stride, columns, inside, K: tl.constexpr):
    """Return the K tiles of a tensor as fp32, 0 outside. Expert by expert: K times a stride may pass 2**31."""
    tiles = ()
    for _ in tl.static_range(K):
        tiles = tiles + (tl.load(pointers + columns, mask=inside, other=0.0).to(tl.float32),)
        pointers += stride
    return tiles


@triton.jit
def sum_experts(tiles, K: tl.constexpr):
    """Return the sum over experts, always in the same order: hard classes are found by it in each read."""
    total = tiles[0]
    for k in tl.static_range(1, K):
        total = total + tiles[k]
    return total


@triton.jit
def read_shift(prior, columns, inside):
    """Return what is added to the logits: the prior, 0 without one; ``-inf`` outside."""
    if prior is None:
        shift = tl.where(inside, 0.0, float("-inf"))
    else:
        shift = tl.load(prior + columns, mask=inside, other=float("-inf")).to(tl.float32)
    return shift


@triton.jit
def read_cold(temperatures, columns, inside):
    """Return one over the temperatures."""
    cold = 1.0
    if temperatures is not None:
        cold = 1.0 / tl.load(temperatures + columns, mask=inside, other=1.0).to(tl.float32)
    return cold


@triton.jit
def teacher_of(z, total, columns, hardest, K: tl.constexpr):
    """Return the transfer's teacher, and the distance ``K u - total`` of the experts from it.

    u is the largest logit of any expert, of the hardest wrong class the mean, where the distance is 0.
    """
    u = z[0]
    for k in tl.static_range(1, K):
        u = tl.maximum(u, z[k])
    is_hardest = columns == hardest
    distance = tl.where(is_hardest, 0.0, u * K - total)
    return tl.where(is_hardest, total * (1.0 / K), u), distance
