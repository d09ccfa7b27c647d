# mypy: ignore-errors
"""The small launches around the main one: what each term is multiplied by, and its sum over rows."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["B", "C", "num_old"])
def factors_kernel(
    labels, class_weights, factors, B, C, num_old,
    w0, w1, w2, w3, w4, w5, w6, w7,
    T: tl.constexpr, CLASSIFICATION: tl.constexpr, RANKING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the weight of each term over the number of rows that it is averaged over ``[T]``; one program.

    The classification term divides by the sum of the rows' class weights, the ranking by the number of old rows, all
    others by the number of valid rows. A mean over nothing is 0.

    Args:
        labels: ``[B]`` int64.
        class_weights: ``[C]`` or None.
        factors: Result ``[T]`` fp32.
        B: Rows.
        C: Classes.
        num_old: Old classes of the ranking.
        w0: Weight of the first term, times whatever constant it carries.
        w1: Of the second; beyond the last term 0.
        w2: Of the third.
        w3: Of the fourth.
        w4: Of the fifth.
        w5: Of the sixth.
        w6: Of the seventh.
        w7: Of the eighth.
        T: Terms.
        CLASSIFICATION: Place of the classification term, -1 without one.
        RANKING: Place of the ranking term, -1 without one.
        BLOCK: Labels read at a time.
    """
    valid_rows = tl.zeros((BLOCK,), tl.float32)
    old_rows = tl.zeros((BLOCK,), tl.float32)
    weight = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, B, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        label = tl.load(labels + rows, mask=rows < B, other=-1)
        valid = label >= 0
        valid_rows += valid.to(tl.float32)
        old_rows += (valid & (label < num_old)).to(tl.float32)
        if class_weights is not None:
            weight += tl.load(class_weights + label, mask=valid & (label < C), other=0.0).to(tl.float32)
    num_valid = tl.sum(valid_rows, 0)
    weights = (w0, w1, w2, w3, w4, w5, w6, w7)
    for term in tl.static_range(T):
        denominator = num_valid
        if term == CLASSIFICATION and class_weights is not None:
            denominator = tl.sum(weight, 0)
        if term == RANKING:
            denominator = tl.sum(old_rows, 0)
        factor = tl.where(
            denominator > 0.0, weights[term] / tl.where(denominator > 0.0, denominator, 1.0), 0.0
        )
        tl.store(factors + term, factor)


@triton.jit(do_not_specialize=["B", "computed"])
def sum_kernel(values, terms, B, computed, BLOCK: tl.constexpr):
    """Add up each term over the rows, in an order that never changes; one program per term.

    Args:
        values: ``[T, B]`` fp32.
        terms: Result ``[T]`` fp32.
        B: Rows.
        computed: Bit t is set where row t of ``values`` was written; the other terms are 0.
        BLOCK: Rows read at a time.
    """
    term = tl.program_id(0)
    added = tl.zeros((BLOCK,), tl.float32)
    if (computed >> term) & 1 != 0:
        for start in range(0, B, BLOCK):
            rows = start + tl.arange(0, BLOCK)
            added += tl.load(values + term.to(tl.int64) * B + rows, mask=rows < B, other=0.0)
    tl.store(terms + term, tl.sum(added, 0))
