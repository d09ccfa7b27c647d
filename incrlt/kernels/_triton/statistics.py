# ruff: noqa: RUF005 (kernels know no unpacking)
# mypy: ignore-errors
"""The first read of a row: the statistics of every softmax that some term needs."""

from __future__ import annotations

import triton
import triton.language as tl

from incrlt.kernels._triton.hardset import is_hard
from incrlt.kernels._triton.softmax import see, see_experts
from incrlt.kernels._triton.tiles import read_cold, read_shift, sum_experts, teacher_of


@triton.jit
def observe(
    z, teacher, columns, inside, label, hardest, threshold, bound,
    prior, temperatures, num_old, first_class, cold,
    adjusted, plain, hard, diverse, average, taught, student, taught_old,
    K: tl.constexpr, ADJUSTED: tl.constexpr, APART: tl.constexpr, PLAIN: tl.constexpr, PLAIN_APART: tl.constexpr,
    HARD: tl.constexpr, HARD_APART: tl.constexpr, DIVERSITY: tl.constexpr, TRANSFER: tl.constexpr,
    DISTILLATION: tl.constexpr,
):  # fmt: skip
    """Add a tile to the statistics; those of a term that is off stay what they are.

    Those are of logits plus prior (``adjusted``), of logits alone where the prior makes a difference (``plain``), and
    of logits plus prior of the hard classes (``hard``), all three without the label; of logits over temperatures
    (``diverse``) and their mean (``average``); of the transfer's teacher (``taught``); and of old classes, softened
    (``student``, ``taught_old``). K softmaxes each, or one.
    """
    total = sum_experts(z, K)
    others = inside & (columns != label)
    shift = tl.where(others, read_shift(prior, columns, inside), float("-inf"))
    if ADJUSTED:
        adjusted = see_experts(adjusted, z, total, shift, K, APART)
    if PLAIN:
        plain = see_experts(plain, z, total, tl.where(others, 0.0, float("-inf")), K, PLAIN_APART)
    if HARD:
        kept = is_hard(total, columns, label, threshold, bound)
        hard = see_experts(hard, z, total, tl.where(kept, shift, float("-inf")), K, HARD_APART)
    if DIVERSITY:
        scale = read_cold(temperatures, columns, inside)
        takes_part = inside & (columns >= first_class)
        diverse = see_scaled(diverse, z, scale, takes_part, K)
        average = see_scaled(average, (total * (1.0 / K),), scale, takes_part, 1)
    if TRANSFER:
        u, distance = teacher_of(z, total, columns, hardest, K)
        highest, summed, exponentials, shrink = see(taught[0], taught[1], tl.where(others, u, float("-inf")))
        taught = (highest, summed, taught[2] * shrink + tl.sum(exponentials * distance, 0))
    if DISTILLATION:
        student = see_scaled(student, z, cold, columns < num_old, K)
        taught_old = see_old(taught_old, z, teacher, cold, columns < num_old, K)
    return adjusted, plain, hard, diverse, average, taught, student, taught_old


@triton.jit
def see_scaled(state, z, scale, takes_part, K: tl.constexpr):
    """Add a tile to the softmax of ``z * scale`` over the columns that take part."""
    news = ()
    for k in tl.static_range(K):
        x = tl.where(takes_part, z[k] * scale, float("-inf"))
        highest, summed, _, _ = see(state[3 * k], state[3 * k + 1], x)
        news = news + (highest, summed, state[3 * k + 2])
    return news


@triton.jit
def see_old(state, z, teacher, cold, takes_part, K: tl.constexpr):
    """Add a tile to the softmax of the old model; the third statistic weighs how far its logits are above ``z``."""
    news = ()
    for k in tl.static_range(K):
        x = tl.where(takes_part, teacher[k] * cold, float("-inf"))
        highest, summed, exponentials, shrink = see(state[3 * k], state[3 * k + 1], x)
        above = tl.sum(exponentials * ((teacher[k] - z[k]) * cold), 0)
        news = news + (highest, summed, state[3 * k + 2] * shrink + above)
    return news
