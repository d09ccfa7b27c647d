# mypy: ignore-errors
"""Margin ranking on cosines ``[K, B, C]``: the largest few negatives of each old row, found one after the other.

Each round takes the largest that comes after the last one taken, so that nothing but that one is remembered. The row is
read once per round, from the first-level cache after the first, and may have any length.
"""

from __future__ import annotations

import triton
import triton.language as tl

from incrlt.kernels._triton.tiles import columns_from


@triton.jit
def read_candidates(pointers, columns, first_negative, at, C):
    """Return a tile of cosines, ``-inf`` where a column is no negative."""
    x = tl.load(pointers + columns, mask=columns < C, other=float("-inf")).to(tl.float32)
    return tl.where((columns >= first_negative) & (columns != at), x, float("-inf"))


@triton.jit
def comes_after(x, columns, last, last_at):
    """Say what comes after the last negative taken, in the order from large to small and from left to right."""
    return (x < last) | ((x == last) & (columns > last_at))


@triton.jit(do_not_specialize=["B", "num_old", "first_negative", "taken", "num_experts"])
def ranking_kernel(
    cosines, labels, factors, upstream, values, gradient,
    B, C, num_experts, num_old, first_negative, taken, margin,
    cosines_K, cosines_B, gradient_K, gradient_B,
    TERM: tl.constexpr, RESCALE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the row's part in the term, and the gradient; one program per row, all experts in turn.

    Args:
        cosines: ``[K, B, C]``, columns side by side.
        labels: ``[B]`` int64.
        factors: Weights over denominators ``[T]``.
        upstream: ``[T]`` or None.
        values: Result ``[T, B]`` fp32, or None.
        gradient: Result ``[K, B, C]``, columns side by side, or None.
        B: Rows.
        C: Classes.
        num_experts: K.
        num_old: Rows of these classes are ranked.
        first_negative: Negatives are the classes from here on, other than the label.
        taken: Negatives per row; there are at least as many.
        margin: In cosine.
        cosines_K: Stride from expert to expert.
        cosines_B: Stride from row to row.
        gradient_K: As of the cosines.
        gradient_B: As of the cosines.
        TERM: Place of the term.
        RESCALE: The gradient is there, for an upstream of 1; write it again unless that is what came.
        BLOCK: Columns per tile.
    """
    if RESCALE and tl.load(upstream + TERM).to(tl.float32) == 1.0:
        return
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    is_old = (label >= 0) & (label < num_old)
    at = tl.minimum(tl.maximum(label, 0), C - 1).to(tl.int32)
    factor = tl.load(factors + TERM)
    slope = factor
    if upstream is not None:
        slope *= tl.load(upstream + TERM).to(tl.float32)
    value = tl.full((), 0.0, tl.float32)
    pointers = cosines + row * cosines_B
    target = gradient
    if gradient is not None:
        target = gradient + row * gradient_B
    for _ in range(0, num_experts):
        own = tl.load(pointers + at).to(tl.float32)
        number = tl.full((), 0.0, tl.float32)
        last = tl.full((), float("inf"), tl.float32)
        last_at = tl.full((), -1, tl.int32)
        for _ in range(0, taken):
            best = tl.full((), float("-inf"), tl.float32)
            best_at = tl.full((), 0, tl.int32)
            for start in range(0, C, BLOCK):
                columns = columns_from(start, BLOCK)
                x = read_candidates(pointers, columns, first_negative, at, C)
                x = tl.where(comes_after(x, columns, last, last_at), x, float("-inf"))
                highest = tl.max(x, 0)
                best_at = tl.where(highest > best, start + tl.argmax(x, 0), best_at)
                best = tl.maximum(best, highest)
            hinge = tl.where(is_old, tl.maximum(margin + best - own, 0.0), 0.0)
            value += hinge
            number += tl.where(hinge > 0.0, slope, 0.0)
            last = best
            last_at = best_at
        if gradient is not None:
            for start in range(0, C, BLOCK):
                columns = columns_from(start, BLOCK)
                x = read_candidates(pointers, columns, first_negative, at, C)
                beyond = comes_after(x, columns, last, last_at) | (margin + x - own <= 0.0)
                change = tl.where(beyond, 0.0, tl.where(is_old, slope, 0.0))
                change -= tl.where(columns == at, number, 0.0)
                tl.store(target + columns, change.to(gradient.dtype.element_ty), mask=columns < C)
            target += gradient_K
        pointers += cosines_K
    if values is not None:
        value = tl.where(label < C, value * factor, float("nan"))
        tl.store(values + row + TERM * B.to(tl.int64), value)
