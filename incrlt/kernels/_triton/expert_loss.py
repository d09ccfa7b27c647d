# ruff: noqa: RUF005 (kernels know no unpacking)
# mypy: ignore-errors
"""The main kernel: all terms over the logits of K experts, values and gradient, one program per row.

Every term is a softmax or a divergence between softmaxes of a row, so that a row is read once for statistics
(:mod:`.statistics`, :mod:`.values`) and once for the gradient (:mod:`.gradients`). Where it fits into registers
(``BLOCK == WHOLE``) both are the same read; otherwise the second comes from the L2 cache, which the first has just
drawn the row into.

Experts are tuples of tensors, unrolled: as an axis of a tensor their number would have to be a power of two.

Axes: K experts, B batch, C classes, T terms. A tile is ``[BLOCK]`` columns of each expert, ``z`` its
logits, ``total`` their sum over experts. The mathematics of each term stands in :mod:`incrlt.kernels.closed_form`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from incrlt.kernels._triton.gradients import store_gradients
from incrlt.kernels._triton.hardset import hard_bounds
from incrlt.kernels._triton.softmax import nothing_seen
from incrlt.kernels._triton.statistics import observe
from incrlt.kernels._triton.tiles import columns_from, load_experts, sum_experts
from incrlt.kernels._triton.values import (
    classification_of,
    distillation_of,
    diversity_of,
    mutual_of,
    transfer_of,
)


@triton.jit
def slope_of(factors, upstream, TERM: tl.constexpr):
    """Return what a term's gradient is multiplied by."""
    slope = tl.load(factors + TERM)
    if upstream is not None:
        slope *= tl.load(upstream + TERM).to(tl.float32)
    return slope


@triton.jit
def widen(lowest, highest, upstream, TERM: tl.constexpr):
    """Let a range include the upstream gradient of a term, if there is such a term; NaN stays and equals nothing."""
    if TERM >= 0:
        value = tl.load(upstream + TERM).to(tl.float32)
        lowest = tl.minimum(lowest, value, propagate_nan=tl.PropagateNan.ALL)
        highest = tl.maximum(highest, value, propagate_nan=tl.PropagateNan.ALL)
    return lowest, highest


@triton.jit
def store_value(values, row, B, label, C, factors, value, TERM: tl.constexpr):
    """Write the row's part in a term. A label that is no class makes it NaN, for all to see."""
    if values is not None:
        value = tl.where(label >= 0, value * tl.load(factors + TERM), 0.0)
        value = tl.where(label < C, value, float("nan"))
        tl.store(values + row + TERM * B.to(tl.int64), value)


@triton.jit
def multiply_experts(pointers, stride, columns, inside, factor, K: tl.constexpr):
    """Multiply a tile of each expert in place."""
    for _ in tl.static_range(K):
        old = tl.load(pointers + columns, mask=inside, other=0.0)
        tl.store(pointers + columns, old * factor, mask=inside)
        pointers += stride


@triton.jit(do_not_specialize=["B", "num_old", "first_class", "num_hard"])
def expert_loss_kernel(
    logits, labels, prior, margins, scales, class_weights, temperatures, teacher, factors, upstream, values, gradient,
    B, C, num_old, first_class, num_hard, temperature,
    logits_K, logits_B, teacher_K, teacher_B, gradient_K, gradient_B,
    K: tl.constexpr, CLASSIFICATION: tl.constexpr, MUTUAL: tl.constexpr, MUTUAL_PLAIN: tl.constexpr,
    HARD_CLASSIFICATION: tl.constexpr, HARD_MUTUAL: tl.constexpr, DIVERSITY: tl.constexpr, TRANSFER: tl.constexpr,
    DISTILLATION: tl.constexpr, RESCALE: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Write the row's part in each term, and its gradient.

    Args:
        logits: ``[K, B, C]``, columns side by side; the only large input beside the teacher.
        labels: ``[B]`` int64; negative: the row contributes nothing.
        prior: ``[C]`` or None.
        margins: ``[C]`` or None.
        scales: ``[K]`` or None.
        class_weights: ``[C]`` or None.
        temperatures: ``[C]`` or None.
        teacher: ``[K, B, num_old]``, columns side by side, or None.
        factors: Weight of each term over the number of rows ``[T]``, see :func:`.sums.factors_kernel`.
        upstream: What each term's gradient is multiplied by ``[T]``, or None: 1.
        values: Result ``[T, B]`` fp32, or None; rows of terms that are off stay unwritten.
        gradient: Result ``[K, B, C]``, columns side by side, or None.
        B: Rows.
        C: Classes.
        num_old: Old classes, the teacher's.
        first_class: Of the diversity.
        num_hard: Hard classes of a row.
        temperature: Of the distillation.
        logits_K: Stride from expert to expert.
        logits_B: Stride from row to row.
        teacher_K: As of the logits.
        teacher_B: As of the logits.
        gradient_K: As of the logits.
        gradient_B: As of the logits.
        K: Experts.
        CLASSIFICATION: Place of the term among the T, -1 without it; likewise the terms that follow.
        MUTUAL: Place.
        MUTUAL_PLAIN: The mutual term reads logits without the prior that there is.
        HARD_CLASSIFICATION: Place.
        HARD_MUTUAL: Place.
        DIVERSITY: Place.
        TRANSFER: Place.
        DISTILLATION: Place.
        RESCALE: The gradient is there, for an upstream of ones; make it that for ``upstream``.
        BLOCK: Columns per tile.
        WHOLE: Power of two of at least C columns.
    """
    ONE_TILE: tl.constexpr = BLOCK == WHOLE
    HARD: tl.constexpr = (HARD_CLASSIFICATION >= 0) or (HARD_MUTUAL >= 0)
    # Without a prior plain logits are the adjusted ones.
    PLAIN: tl.constexpr = (prior is not None) and ((TRANSFER >= 0) or MUTUAL_PLAIN)
    MUTUAL_ADJUSTED: tl.constexpr = (MUTUAL >= 0) and not MUTUAL_PLAIN
    ADJUSTED: tl.constexpr = (CLASSIFICATION >= 0) or MUTUAL_ADJUSTED or ((TRANSFER >= 0) and not PLAIN)

    row = tl.program_id(0).to(tl.int64)
    gradient_row = gradient
    if gradient is not None:
        gradient_row = gradient + row * gradient_B

    if RESCALE:
        low, high = widen(float("inf"), float("-inf"), upstream, CLASSIFICATION)
        low, high = widen(low, high, upstream, MUTUAL)
        low, high = widen(low, high, upstream, HARD_CLASSIFICATION)
        low, high = widen(low, high, upstream, HARD_MUTUAL)
        low, high = widen(low, high, upstream, DIVERSITY)
        low, high = widen(low, high, upstream, TRANSFER)
        low, high = widen(low, high, upstream, DISTILLATION)
        if (low == 1.0) & (high == 1.0):
            return
        # A half gradient is computed anew: what it lost to rounding or underflow does not come back by scaling.
        MULTIPLY: tl.constexpr = gradient.dtype.element_ty == tl.float32
        if MULTIPLY and low == high:
            for start in range(0, C, BLOCK):
                now = columns_from(start, BLOCK)
                multiply_experts(gradient_row, gradient_K, now, now < C, low, K)
            return

    label = tl.load(labels + row)
    at = tl.minimum(tl.maximum(label, 0), C - 1).to(tl.int32)
    logits_row = logits + row * logits_B
    z_label = load_experts(logits_row, logits_K, at, at >= 0, K)
    total_label = sum_experts(z_label, K)
    shift_label = 0.0
    if prior is not None:
        shift_label = tl.load(prior + at).to(tl.float32)
    cold = 1.0 / temperature

    columns = tl.arange(0, BLOCK)
    inside = columns < C
    z = ()
    z_old = ()
    teacher_row = teacher
    if DISTILLATION >= 0:
        teacher_row = teacher + row * teacher_B
    if ONE_TILE:
        z = load_experts(logits_row, logits_K, columns, inside, K)
        if DISTILLATION >= 0:
            z_old = load_experts(teacher_row, teacher_K, columns, columns < num_old, K)

    # ------------------------------------------------------------- what must be known of the whole row beforehand
    hardest, threshold, bound = 0, 0, 0
    if HARD or TRANSFER >= 0:
        all_columns = tl.arange(0, WHOLE)
        exists = all_columns < C
        if ONE_TILE:
            whole = sum_experts(z, K)
        else:
            whole = sum_experts(load_experts(logits_row, logits_K, all_columns, exists, K), K)
        if TRANSFER >= 0:
            hardest = tl.argmax(tl.where(exists & (all_columns != at), whole, float("-inf")), 0)
        if HARD:
            threshold, bound = hard_bounds(whole, all_columns, exists, at, num_hard, C)

    # -------------------------------------------------------------------------------------------------- statistics
    adjusted = nothing_seen(K * ADJUSTED)
    plain = nothing_seen(K * PLAIN)
    hard = nothing_seen(K * HARD)
    diverse = nothing_seen(K * (DIVERSITY >= 0))
    average = nothing_seen(1 * (DIVERSITY >= 0))
    taught = nothing_seen(1 * (TRANSFER >= 0))
    student = nothing_seen(K * (DISTILLATION >= 0))
    old = nothing_seen(K * (DISTILLATION >= 0))
    if ONE_TILE:
        adjusted, plain, hard, diverse, average, taught, student, old = observe(
            z, z_old, columns, inside, at, hardest, threshold, bound,
            prior, temperatures, num_old, first_class, cold,
            adjusted, plain, hard, diverse, average, taught, student, old,
            K, ADJUSTED, MUTUAL_ADJUSTED, PLAIN, MUTUAL_PLAIN, HARD, HARD_MUTUAL >= 0, DIVERSITY >= 0, TRANSFER >= 0,
            DISTILLATION >= 0,
        )  # fmt: skip
    else:
        for start in range(0, C, BLOCK):
            now = columns_from(start, BLOCK)
            tile = load_experts(logits_row, logits_K, now, now < C, K)
            tile_old = ()
            if DISTILLATION >= 0:
                tile_old = load_experts(teacher_row, teacher_K, now, now < num_old, K)
            adjusted, plain, hard, diverse, average, taught, student, old = observe(
                tile, tile_old, now, now < C, at, hardest, threshold, bound,
                prior, temperatures, num_old, first_class, cold,
                adjusted, plain, hard, diverse, average, taught, student, old,
                K, ADJUSTED, MUTUAL_ADJUSTED, PLAIN, MUTUAL_PLAIN, HARD, HARD_MUTUAL >= 0, DIVERSITY >= 0,
                TRANSFER >= 0, DISTILLATION >= 0,
            )  # fmt: skip

    # ------------------------------------------------------------------------------------------------------ values
    own, mutual, kept, softened, mean = (), (), (), (), ()
    students, lesson, student_old, lesson_old = (), (), (), ()
    of_classification, of_mutual, of_hard, of_hard_mutual = 0.0, 0.0, 0.0, 0.0
    of_diversity, of_transfer, of_distillation = 0.0, 0.0, 0.0
    missing, missing_hard = (), ()
    if CLASSIFICATION >= 0:
        weight = 1.0
        if class_weights is not None:
            weight = tl.load(class_weights + at).to(tl.float32)
        margin = 0.0
        if margins is not None:
            margin = tl.load(margins + at).to(tl.float32)
        value, own, missing = classification_of(adjusted, z_label, shift_label, margin, scales, K)
        store_value(values, row, B, label, C, factors, value * weight, CLASSIFICATION)
        of_classification = slope_of(factors, upstream, CLASSIFICATION) * weight
    if MUTUAL >= 0:
        if MUTUAL_PLAIN:
            value, mutual = mutual_of(plain, z_label, total_label, 0.0, K)
        else:
            value, mutual = mutual_of(adjusted, z_label, total_label, shift_label, K)
        store_value(values, row, B, label, C, factors, value, MUTUAL)
        of_mutual = slope_of(factors, upstream, MUTUAL)
    if HARD:
        value, kept = mutual_of(hard, z_label, total_label, shift_label, K)
        if HARD_MUTUAL >= 0:
            store_value(values, row, B, label, C, factors, value, HARD_MUTUAL)
            of_hard_mutual = slope_of(factors, upstream, HARD_MUTUAL)
        if HARD_CLASSIFICATION >= 0:
            value, _, missing_hard = classification_of(hard, z_label, shift_label, 0.0, None, K)
            store_value(values, row, B, label, C, factors, value, HARD_CLASSIFICATION)
            of_hard = slope_of(factors, upstream, HARD_CLASSIFICATION)
    if DIVERSITY >= 0:
        value, softened, mean = diversity_of(diverse, average, K)
        value = tl.where(label >= first_class, value, 0.0)
        store_value(values, row, B, label, C, factors, value, DIVERSITY)
        of_diversity = tl.where(label >= first_class, slope_of(factors, upstream, DIVERSITY), 0.0)
    if TRANSFER >= 0:
        if PLAIN:
            value, students, lesson = transfer_of(plain, taught, K)
        else:
            value, students, lesson = transfer_of(adjusted, taught, K)
        store_value(values, row, B, label, C, factors, value, TRANSFER)
        of_transfer = slope_of(factors, upstream, TRANSFER)
    if DISTILLATION >= 0:
        value, student_old, lesson_old = distillation_of(student, old, K)
        store_value(values, row, B, label, C, factors, value, DISTILLATION)
        of_distillation = slope_of(factors, upstream, DISTILLATION) * cold

    # ---------------------------------------------------------------------------------------------------- gradient
    if gradient is not None:
        of_label = ()
        for k in tl.static_range(K):
            at_label = 0.0
            if CLASSIFICATION >= 0:
                at_label -= of_classification * missing[k]
            if HARD_CLASSIFICATION >= 0:
                at_label -= of_hard * missing_hard[k]
            of_label = of_label + (at_label,)
        if ONE_TILE:
            store_gradients(
                z, z_old, columns, inside, at, hardest, threshold, bound, label >= 0,
                prior, temperatures, num_old, first_class, cold, gradient_row, gradient_K,
                own, mutual, kept, softened, mean, students, lesson, student_old, lesson_old, of_label,
                of_classification, of_mutual, of_hard, of_hard_mutual, of_diversity, of_transfer, of_distillation,
                K, CLASSIFICATION >= 0, MUTUAL >= 0, MUTUAL_PLAIN, HARD_CLASSIFICATION >= 0, HARD_MUTUAL >= 0,
                DIVERSITY >= 0, TRANSFER >= 0, DISTILLATION >= 0,
            )  # fmt: skip
        else:
            for start in range(0, C, BLOCK):
                now = columns_from(start, BLOCK)
                tile = load_experts(logits_row, logits_K, now, now < C, K)
                tile_old = ()
                if DISTILLATION >= 0:
                    tile_old = load_experts(teacher_row, teacher_K, now, now < num_old, K)
                store_gradients(
                    tile, tile_old, now, now < C, at, hardest, threshold, bound, label >= 0,
                    prior, temperatures, num_old, first_class, cold, gradient_row, gradient_K,
                    own, mutual, kept, softened, mean, students, lesson, student_old, lesson_old, of_label,
                    of_classification, of_mutual, of_hard, of_hard_mutual, of_diversity, of_transfer, of_distillation,
                    K, CLASSIFICATION >= 0, MUTUAL >= 0, MUTUAL_PLAIN, HARD_CLASSIFICATION >= 0, HARD_MUTUAL >= 0,
                    DIVERSITY >= 0, TRANSFER >= 0, DISTILLATION >= 0,
                )  # fmt: skip
