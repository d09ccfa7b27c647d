# mypy: ignore-errors
"""One minus the cosine between features and the teacher's: a dot product and two norms per row, then the gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from incrlt.kernels._triton.tiles import columns_from


@triton.jit(do_not_specialize=["B"])
def less_forget_kernel(
    features, teacher, values, gradient, B, D, share,
    features_K, features_B, teacher_K, teacher_B, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write each row's distance times its share, and the gradient; one program per row of an expert.

    Args:
        features: ``[K, B, D]``, features side by side.
        teacher: ``[K, B, D]``, features side by side.
        values: Result ``[K B]`` fp32.
        gradient: Result ``[K, B, D]``, contiguous, or None.
        B: Rows.
        D: Features.
        share: Of a row in the mean.
        features_K: Stride from expert to expert.
        features_B: Stride from row to row.
        teacher_K: As of the features.
        teacher_B: As of the features.
        EPS: Added to squared norms.
        BLOCK: Columns per tile; one tile where it reaches D.
    """
    row = tl.program_id(0).to(tl.int64)
    expert, image = row // B, row % B
    x_row = features + expert * features_K + image * features_B
    t_row = teacher + expert * teacher_K + image * teacher_B
    dot = tl.zeros((BLOCK,), tl.float32)
    x_square = tl.zeros((BLOCK,), tl.float32)
    t_square = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, D, BLOCK):
        columns = columns_from(start, BLOCK)
        x = tl.load(x_row + columns, mask=columns < D, other=0.0).to(tl.float32)
        t = tl.load(t_row + columns, mask=columns < D, other=0.0).to(tl.float32)
        dot += x * t
        x_square += x * x
        t_square += t * t
    x_norm = tl.sum(x_square, 0) + EPS
    both = tl.sqrt(x_norm) * tl.sqrt(tl.sum(t_square, 0) + EPS)  # apart: their product may leave fp32
    cosine = tl.sum(dot, 0) / both
    tl.store(values + row, (1.0 - cosine) * share)
    if gradient is not None:
        for start in range(0, D, BLOCK):
            columns = columns_from(start, BLOCK)
            x = tl.load(x_row + columns, mask=columns < D, other=0.0).to(tl.float32)
            t = tl.load(t_row + columns, mask=columns < D, other=0.0).to(tl.float32)
            slope = (cosine / x_norm * x - t / both) * share
            tl.store(gradient + row * D + columns, slope.to(gradient.dtype.element_ty), mask=columns < D)
