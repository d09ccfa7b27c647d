r"""Analytic heads: ridge regression to one-hot targets, exact while images and classes arrive. Axes: N, C, D.

Zhuang et al., ACIL, NeurIPS 2022 (recursive), and Fang et al., AIR (class-weighted); official code
ZHUANGHP/Analytic-continual-learning. Of everything seen, in any order and any batches,

.. math:: W = \Big( \sum_i \pi_{y_i} x_i x_i^\top + \gamma I \Big)^{-1} \sum_i \pi_{y_i} x_i e_{y_i}^\top,

with :math:`\pi = 1` for ACIL. Compute in float64. Features must come from one frozen network, and each image counts
once: replayed images would count double.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 0.1
r""":math:`\gamma` in the official code."""


def balancing_weights(class_counts_C: Tensor) -> Tensor:
    r"""Return :math:`\pi_c = (1 / n_c) C / \sum_j (1 / n_j)` ``[C]``, mean 1: every class weighs the same.

    Args:
        class_counts_C: Images per class ``[C]``; at least one is assumed.

    Reference: Fang et al., AIR.
    """
    inverse = 1 / class_counts_C.clamp(min=1).double()
    return inverse * len(inverse) / inverse.sum()


def with_bias(features_ND: Tensor) -> Tensor:
    """Append a constant 1 ``[N, D + 1]``; its weight is regularised too, as in the official code."""
    return torch.cat([features_ND, features_ND.new_ones(*features_ND.shape[:-1], 1)], dim=-1)


def expanded(features_ND: Tensor, projection_ED: Tensor) -> Tensor:
    """Return ``relu(x R^T)`` ``[N, E]`` for a fixed random projection ``[E, D]`` (ACIL: E = 8192)."""
    return F.relu(F.linear(features_ND, projection_ED))


# ------------------------------------------------------------------------------------------- all at once


def ridge_solution(
    features_ND: Tensor,
    labels_N: Tensor,
    num_classes: int,
    ridge: float = RIDGE,
    class_weights_C: Tensor | None = None,
) -> Tensor:
    r"""Return W ``[D, C]`` of all images at once.

    Args:
        features_ND: ``[N, D]``.
        labels_N: Class positions ``[N]``.
        num_classes: C.
        ridge: :math:`\gamma` > 0.
        class_weights_C: :math:`\pi` ``[C]``; None: 1.
    """
    targets = F.one_hot(labels_N, num_classes).to(features_ND)
    weighted = features_ND
    if class_weights_C is not None:
        weighted = features_ND * class_weights_C.to(features_ND)[labels_N].unsqueeze(-1)
    return _solved(weighted.T @ features_ND, weighted.T @ targets, ridge)


# ------------------------------------------------------------------------------------------- batch after batch


class RidgeState(NamedTuple):
    """A ridge regression that goes on.

    Attributes:
        inverse: Inverse of the regularised autocorrelation ``[D, D]``.
        weights: The solution of all images so far ``[D, C]``.
    """

    inverse: Tensor
    weights: Tensor


def ridge_start(num_features: int, ridge: float = RIDGE, like: Tensor | None = None) -> RidgeState:
    r"""Return the state before the first image.

    Args:
        num_features: D.
        ridge: :math:`\gamma` > 0.
        like: Gives device and type; None: float64 on the CPU.
    """
    like = torch.empty(0, dtype=torch.float64) if like is None else like
    eye = torch.eye(num_features, dtype=like.dtype, device=like.device)
    return RidgeState(eye / ridge, like.new_zeros(num_features, 0))


def ridge_update(
    state: RidgeState,
    features_BD: Tensor,
    labels_B: Tensor,
    num_classes: int,
    class_weights_C: Tensor | None = None,
) -> RidgeState:
    r"""Take in a batch: exactly what all images at once would give, whatever the batches and their order.

    .. math:: S \leftarrow S - S X^\top (\Pi^{-1} + X S X^\top)^{-1} X S, \qquad
        W \leftarrow W + S X^\top \Pi (Y - X W)

    Args:
        state: Of the images before.
        features_BD: ``[B, D]``.
        labels_B: Class positions ``[B]``; old classes may come again, new ones get a column.
        num_classes: C now, at least that of the state.
        class_weights_C: :math:`\pi` of each class ``[C]``, the same in every batch; None: 1. Weights that change with
            the counts need :class:`ClassSums`.
    """
    old = state.weights
    weights = torch.cat([old, old.new_zeros(len(old), num_classes - old.shape[1])], dim=1)
    x, inverse = features_BD.to(old), state.inverse
    pi = x.new_ones(len(x)) if class_weights_C is None else class_weights_C.to(x)[labels_B]
    projected = x @ inverse
    if len(x) <= x.shape[1]:
        small = (1 / pi).diag() + projected @ x.T
        inverse = inverse - projected.T @ torch.linalg.solve(small, projected)
    else:  # the D x D inverse is smaller
        scaled = x.T @ (pi.unsqueeze(-1) * projected)
        eye = torch.eye(len(inverse), dtype=x.dtype, device=x.device)
        inverse = torch.linalg.solve(eye + scaled.T, inverse.T).T
    inverse = (inverse + inverse.T) / 2
    residual = F.one_hot(labels_B, num_classes).to(x) - x @ weights
    return RidgeState(inverse, weights + inverse @ x.T @ (pi.unsqueeze(-1) * residual))


class ClassSums(NamedTuple):
    """What each class leaves behind, so that its weight may be chosen later.

    Attributes:
        autocorrelation: Sum of ``x x^T`` ``[C, D, D]``.
        sums: Sum of x ``[C, D]``.
        counts: Images ``[C]``.
    """

    autocorrelation: Tensor
    sums: Tensor
    counts: Tensor


def class_sums(
    features_BD: Tensor, labels_B: Tensor, num_classes: int, before: ClassSums | None = None
) -> ClassSums:
    """Add a batch to the sums of before; classes that are new get a row.

    Args:
        features_BD: ``[B, D]``.
        labels_B: Class positions ``[B]``.
        num_classes: C now.
        before: Sums so far, of as many classes or fewer.

    Memory: C D^2 numbers, so keep D to some hundreds.
    """
    width = features_BD.shape[1]
    products = torch.einsum("bd,be->bde", features_BD, features_BD)
    squares = features_BD.new_zeros(num_classes, width, width).index_add(0, labels_B, products)
    sums = features_BD.new_zeros(num_classes, width).index_add(0, labels_B, features_BD)
    counts = torch.bincount(labels_B, minlength=num_classes)
    if before is not None:
        known = len(before.counts)
        squares[:known] += before.autocorrelation
        sums[:known] += before.sums
        counts[:known] += before.counts
    return ClassSums(squares, sums, counts)


def ridge_of_sums(sums: ClassSums, ridge: float = RIDGE, class_weights_C: Tensor | None = None) -> Tensor:
    r"""Return W ``[D, C]`` for weights that are chosen now.

    Args:
        sums: See :func:`class_sums`.
        ridge: :math:`\gamma` > 0.
        class_weights_C: ``[C]``; None takes :func:`balancing_weights` of the counts (AIR).
    """
    chosen = balancing_weights(sums.counts) if class_weights_C is None else class_weights_C
    weights = chosen.to(sums.sums)
    square = torch.einsum("c,cde->de", weights, sums.autocorrelation)
    return _solved(square, (weights.unsqueeze(-1) * sums.sums).T, ridge)


def _solved(square_DD: Tensor, right_DC: Tensor, ridge: float) -> Tensor:
    eye = torch.eye(len(square_DD), dtype=square_DD.dtype, device=square_DD.device)
    weights: Tensor = torch.linalg.solve(square_DD + ridge * eye, right_DC)
    return weights
