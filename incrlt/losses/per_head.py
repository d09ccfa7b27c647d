"""EEIL: distillation inside each experience's own classes, and noise on gradients. Axes: K, B, C, O old classes.

Castro et al., ECCV 2018; code fmcp/EndToEndIncrementalLearning (Matlab) and approach/eeil.py of
xialeiliu/Long-Tailed-CIL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def per_head_distillation(
    logits_KBC: Tensor,
    teacher_logits_KBO: Tensor,
    sizes: Sequence[int],
    temperature: float = 2.0,
    form: Literal["binary", "softmax"] = "binary",
) -> Tensor:
    r"""Distil the classes of each earlier experience among themselves, and add up over experiences.

    .. math:: \sum_i \mathrm{BCE}\big( \mathrm{softmax}(z_i / T), \mathrm{softmax}(z_i^* / T) \big)

    Args:
        logits_KBC: ``[K, B, C]`` (or ``[B, C]``).
        teacher_logits_KBO: ``[K, B, O]``; detached here.
        sizes: Classes of each experience to distil, in order; their sum is at most O. None of them: 0.
        temperature: T > 0.
        form: ``binary``: binary cross entropy of the probabilities, averaged over an experience's classes, logarithms
            cut at -100 (Long-Tailed-CIL). ``softmax``: KL of the softened distributions (the paper and its own code, up
            to a constant).

    Returns:
        Scalar, in nats, summed over experiences, averaged over batch and experts; without the factor ``T^2``, as in
        both codes. The ``binary`` form is not 0 on the teacher's own answer.

    Reference: Castro et al., eq. 2 and 4.
    Deviation: experts are averaged; with K = 1 none.
    """
    teacher = teacher_logits_KBO.detach()
    total = logits_KBC.sum() * 0.0
    start = 0
    for size in sizes:
        columns = slice(start, start + size)
        log_p = F.log_softmax(logits_KBC[..., columns] / temperature, dim=-1)
        log_q = F.log_softmax(teacher[..., columns] / temperature, dim=-1)
        if form == "binary":
            total = total + _binary(log_p, log_q.exp())
        else:
            total = total + (log_q.exp() * (log_q - log_p)).sum(-1).mean()
        start += size
    return total


def gradient_noise_std(epoch: int, eta: float = 0.3, gamma: float = 0.55) -> float:
    r"""Return the standard deviation of the noise that is added to every gradient.

    .. math:: \sigma = \eta / (1 + e)^\gamma

    Args:
        epoch: e, the epoch inside the stage, from 0.
        eta: 0.3 in the official codes.
        gamma: 0.55 in the official codes.

    Reference: Neelakantan et al. 2015, where this is the variance; both codes take it as the standard deviation.
    """
    return float(eta / (1 + epoch) ** gamma)


def _binary(log_p: Tensor, q: Tensor) -> Tensor:
    """Binary cross entropy of probabilities; of one class 0. Torch refuses it under CUDA's autocast."""
    with torch.autocast(log_p.device.type, enabled=False):
        return F.binary_cross_entropy(log_p.exp(), q)
