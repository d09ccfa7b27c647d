# ruff: noqa: RUF005 (kernels know no unpacking)
# mypy: ignore-errors
"""Softmaxes of one row, seen tile by tile: a tile is ``[BLOCK]``, a statistic a number.

The statistics of several softmaxes are one flat tuple of three each: maximum, sum of exponentials, and a weighted sum
of them that some terms need. A tuple can be carried through a loop; a list cannot.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def finite(maximum):
    """Return what to subtract before exponentials: 0 of a row of nothing but ``-inf``, whose sum then is 0, not NaN."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit
def inverse(summed):
    """Return 1 / sum, and 0 of a row in which nothing is possible."""
    return tl.where(summed > 0.0, 1.0 / summed, 0.0)


@triton.jit
def nothing_seen(NUMBER: tl.constexpr):
    """Return the statistics of ``NUMBER`` softmaxes before the first tile."""
    zero = tl.full((), 0.0, tl.float32)
    lowest = tl.full((), float("-inf"), tl.float32)
    state = ()
    for _ in tl.static_range(NUMBER):
        state = state + (lowest, zero, zero)
    return state


@triton.jit
def see(maximum, summed, x):
    """Add a tile to one softmax.

    Returns:
        Maximum and sum with the tile; the tile's exponentials; the factor by which older sums shrink.
    """
    highest = tl.maximum(maximum, tl.max(x, 0))
    top = finite(highest)
    exponentials = tl.exp(x - top)
    shrink = tl.exp(maximum - top)
    return highest, summed * shrink + tl.sum(exponentials, 0), exponentials, shrink


@triton.jit
def see_experts(state, z, total, shift, K: tl.constexpr, APART: tl.constexpr):
    """Add a tile to the softmax of ``z + shift`` of each expert.

    With ``APART`` the third statistic sums ``K z_k - total``, weighted by the exponentials: divided by the second it is
    the expert's part in the sum of divergences over pairs.
    """
    news = ()
    for k in tl.static_range(K):
        highest, summed, exponentials, shrink = see(state[3 * k], state[3 * k + 1], z[k] + shift)
        weighted = state[3 * k + 2]
        if APART:
            weighted = weighted * shrink + tl.sum(exponentials * (z[k] * K - total), 0)
        news = news + (highest, summed, weighted)
    return news


@triton.jit
def with_label(maximum, others, label):
    """Complete a softmax over the other classes by the label's logit.

    Kept apart until now, the label can be lowered by a margin or left out at no cost, and what the others hold is
    known to full precision even where it is next to nothing.

    Returns:
        Reference, sum, the others' part of the sum, the label's part.
    """
    top = finite(tl.maximum(maximum, label))
    others = others * tl.exp(maximum - top)
    own = tl.exp(label - top)
    return top, others + own, others, own
