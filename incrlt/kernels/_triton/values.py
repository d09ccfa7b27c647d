# ruff: noqa: RUF005 (kernels know no unpacking)
# mypy: ignore-errors
"""From the statistics of a row to its part in each term, and to the softmaxes that the gradient needs.

Those softmaxes are three numbers each: reference, one over the sum, and what the term's gradient needs beside them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from incrlt.kernels._triton.softmax import finite, inverse, with_label


@triton.jit
def classification_of(others, z_label, shift_label, margin, scales, K: tl.constexpr):
    """Return the sum of the experts' cross entropies, their softmaxes, and what each does not give the label.

    Args:
        others: Statistics without the label.
        z_label: The label's logit of each expert.
        shift_label: The label's prior.
        margin: What the label is lowered by, in cosine.
        scales: What each expert multiplies the margin by, or None.
        K: Experts.
    """
    value = 0.0
    softmaxes = ()
    missing = ()
    for k in tl.static_range(K):
        label = z_label[k] + shift_label
        if scales is None:
            label -= margin
        else:
            label -= margin * tl.load(scales + k).to(tl.float32)
        top, summed, rest, _ = with_label(others[3 * k], others[3 * k + 1], label)
        value += (top - label) + tl.log(summed)
        softmaxes = softmaxes + (top, inverse(summed), 0.0)
        missing = missing + (rest * inverse(summed),)
    return value, softmaxes, missing


@triton.jit
def mutual_of(others, z_label, total_label, shift_label, K: tl.constexpr):
    """Return the sum of the divergences over pairs, and the softmaxes with K less the mean of ``K z_k - total``."""
    value = 0.0
    softmaxes = ()
    for k in tl.static_range(K):
        top, summed, _, own = with_label(others[3 * k], others[3 * k + 1], z_label[k] + shift_label)
        weighted = others[3 * k + 2] * tl.exp(others[3 * k] - top)
        mean = (weighted + own * (z_label[k] * K - total_label)) * inverse(summed)
        value += mean
        softmaxes = softmaxes + (top, inverse(summed), K - mean)
    return value, softmaxes


@triton.jit
def diversity_of(experts, average, K: tl.constexpr):
    """Return the sum of the experts' divergences from their mean, their softmaxes, and that of the mean."""
    value = 0.0
    softmaxes = ()
    for k in tl.static_range(K):
        value += (experts[3 * k] - average[0]) + (tl.log(experts[3 * k + 1]) - tl.log(average[1]))
        softmaxes = softmaxes + (finite(experts[3 * k]), inverse(experts[3 * k + 1]), 0.0)
    return value, softmaxes, (finite(average[0]), inverse(average[1]), 0.0)


@triton.jit
def transfer_of(students, teacher, K: tl.constexpr):
    """Return the sum of the students' divergences from the teacher, their softmaxes, and that of the teacher.

    The teacher's third number is its mean of ``K u - total``.
    """
    mean = teacher[2] * inverse(teacher[1])
    value = mean
    softmaxes = ()
    for k in tl.static_range(K):
        value += (students[3 * k] - teacher[0]) + (tl.log(students[3 * k + 1]) - tl.log(teacher[1]))
        softmaxes = softmaxes + (finite(students[3 * k]), inverse(students[3 * k + 1]), 0.0)
    return value, softmaxes, (finite(teacher[0]), inverse(teacher[1]), mean)


@triton.jit
def distillation_of(students, teachers, K: tl.constexpr):
    """Return the sum of the experts' divergences from the old model, and the softmaxes of both."""
    value = 0.0
    softmaxes = ()
    softmaxes_old = ()
    for k in tl.static_range(K):
        value += teachers[3 * k + 2] * inverse(teachers[3 * k + 1]) + (students[3 * k] - teachers[3 * k])
        value += tl.log(students[3 * k + 1]) - tl.log(teachers[3 * k + 1])
        softmaxes = softmaxes + (finite(students[3 * k]), inverse(students[3 * k + 1]), 0.0)
        softmaxes_old = softmaxes_old + (finite(teachers[3 * k]), inverse(teachers[3 * k + 1]), 0.0)
    return value, softmaxes, softmaxes_old
