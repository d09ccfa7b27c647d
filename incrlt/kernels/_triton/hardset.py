# mypy: ignore-errors
"""The N classes of largest summed logit of each row, by bisection: no sort, no index lists.

A row's hard classes are those whose key lies above a threshold, and of those that lie on it the first few. Two integers
per row say it all, and any tile can be tested against them. Compared with ``tl.topk`` a block of 8192 compiles in a
seventh of the time and to far fewer barriers.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(2**31))
HIGHEST = tl.constexpr(2**31 - 1)


@triton.jit
def ordered(values):
    """Return int32 keys in the order of fp32 values; both zeros have the same."""
    values = tl.where(values == 0.0, 0.0, values)
    bits = values.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & HIGHEST)


@triton.jit
def hard_bounds(total, columns, inside, label, num_hard, C):
    """Return the row's threshold and tie bound.

    Args:
        total: Sum of the logits over experts ``[WHOLE]``, the entire row.
        columns: ``[WHOLE]``.
        inside: Columns that exist ``[WHOLE]``.
        label: Hard whatever its logit.
        num_hard: Hard classes, clamped to ``[1, C]`` here.
        C: Classes.
    """
    number = tl.minimum(tl.maximum(num_hard, 1), C)
    keys = tl.where(columns == label, HIGHEST, ordered(total))
    keys = tl.where(inside, keys, LOWEST)
    # the largest threshold that still lets `number` keys through, bit by bit from the sign down
    threshold = tl.where(tl.sum((keys >= 0).to(tl.int32), 0) >= number, 0, LOWEST)
    step = tl.full((), 2**30, tl.int32)
    for _ in range(31):
        trial = threshold | step
        threshold = tl.where(tl.sum((keys >= trial).to(tl.int32), 0) >= number, trial, threshold)
        step = step >> 1
    room = number - tl.sum((keys > threshold).to(tl.int32), 0)
    # the largest bound below which no more equal keys lie than there is room for
    equal = keys == threshold
    bound = tl.full((), 0, tl.int32)
    step = tl.full((), 2**15, tl.int32)
    for _ in range(16):
        trial = bound + step
        below = tl.sum((equal & (columns < trial)).to(tl.int32), 0)
        bound = tl.where(below <= room, trial, bound)
        step = step >> 1
    return threshold, bound


@triton.jit
def is_hard(total, columns, label, threshold, bound):
    """Return which classes of a tile are hard ``[BLOCK]``, the label among them."""
    keys = ordered(total)
    on = (keys == threshold) & (columns < bound)
    return (keys > threshold) | on | (columns == label)
