# mypy: ignore-errors
"""The second read of a row: the gradient of all terms, rounded once and written once."""

from __future__ import annotations

import triton
import triton.language as tl

from incrlt.kernels._triton.hardset import is_hard
from incrlt.kernels._triton.tiles import read_cold, read_shift, sum_experts, teacher_of


@triton.jit
def probability(x, softmax, k: tl.constexpr, slope):
    """Return ``slope * softmax(x)`` of expert k; the slope goes into the factor that is one number."""
    return tl.exp(x - softmax[3 * k]) * (softmax[3 * k + 1] * slope)


@triton.jit
def store_gradients(
    z, teacher, columns, inside, label, hardest, threshold, bound, keep,
    prior, temperatures, num_old, first_class, cold, pointers, stride,
    own, mutual, hard, diverse, average, students, taught, student, taught_old, of_label,
    of_classification, of_mutual, of_hard, of_hard_mutual, of_diversity, of_transfer, of_distillation,
    K: tl.constexpr, CLASSIFICATION: tl.constexpr, MUTUAL: tl.constexpr, MUTUAL_PLAIN: tl.constexpr,
    HARD_CLASSIFICATION: tl.constexpr, HARD_MUTUAL: tl.constexpr, DIVERSITY: tl.constexpr,
    TRANSFER: tl.constexpr, DISTILLATION: tl.constexpr,
):  # fmt: skip
    """Write a tile of the gradient to ``pointers``, the row of the first expert; 0 of a row that is not to ``keep``.

    Softmaxes are as in :mod:`.values`. ``of_label`` is what the two classifications add at the label, for each expert;
    the other ``of_`` are the terms' slopes in this row.
    """
    total = sum_experts(z, K)
    is_label = columns == label
    shift = read_shift(prior, columns, inside)
    mutual_shift = shift
    if MUTUAL_PLAIN:
        mutual_shift = tl.where(inside, 0.0, float("-inf"))
    alike = tl.zeros_like(total)  # what the gradient of every expert is lowered by
    if MUTUAL:
        for k in tl.static_range(K):
            alike += probability(z[k] + mutual_shift, mutual, k, of_mutual)
    if HARD_CLASSIFICATION or HARD_MUTUAL:
        kept = is_hard(total, columns, label, threshold, bound)
        hard_shift = tl.where(kept, shift, float("-inf"))
    if HARD_MUTUAL:
        for k in tl.static_range(K):
            alike += probability(z[k] + hard_shift, hard, k, of_hard_mutual)
    if DIVERSITY:
        scale = read_cold(temperatures, columns, inside)
        takes_part = inside & (columns >= first_class)
        x = tl.where(takes_part, total * (1.0 / K) * scale, float("-inf"))
        alike += probability(x, average, 0, of_diversity) * scale
    if TRANSFER:
        u, distance = teacher_of(z, total, columns, hardest, K)
        others = inside & (columns != label)
        is_hardest = columns == hardest
        t = probability(tl.where(others, u, float("-inf")), taught, 0, of_transfer)
        alike += t
        winners = tl.zeros_like(total)
        for k in tl.static_range(K):
            winners += tl.where(is_hardest | (z[k] == u), 1.0, 0.0)
        through_teacher = t * (distance - taught[2]) / winners
    for k in tl.static_range(K):
        gradient = -alike
        wrong = tl.zeros_like(total)  # of the two classifications, other than at the label
        if CLASSIFICATION:
            wrong += probability(z[k] + shift, own, k, of_classification)
        if HARD_CLASSIFICATION:
            wrong += probability(z[k] + hard_shift, hard, k, of_hard)
        if CLASSIFICATION or HARD_CLASSIFICATION:
            gradient += tl.where(is_label, of_label[k], wrong)
        if MUTUAL:
            apart = z[k] * K - total + mutual[3 * k + 2]
            gradient += probability(z[k] + mutual_shift, mutual, k, of_mutual) * apart
        if HARD_MUTUAL:
            apart = z[k] * K - total + hard[3 * k + 2]
            gradient += probability(z[k] + hard_shift, hard, k, of_hard_mutual) * apart
        if DIVERSITY:
            x = tl.where(takes_part, z[k] * scale, float("-inf"))
            gradient += probability(x, diverse, k, of_diversity) * scale
        if TRANSFER:
            gradient += probability(tl.where(others, z[k], float("-inf")), students, k, of_transfer)
            gradient += tl.where(is_hardest | (z[k] == u), through_teacher, 0.0)
        if DISTILLATION:
            old = columns < num_old
            x = tl.where(old, z[k] * cold, float("-inf"))
            gradient += probability(x, student, k, of_distillation)
            x = tl.where(old, teacher[k] * cold, float("-inf"))
            gradient -= probability(x, taught_old, k, of_distillation)
        gradient = tl.where(keep, gradient, 0.0)
        tl.store(pointers + columns, gradient.to(pointers.dtype.element_ty), mask=inside)
        pointers += stride
