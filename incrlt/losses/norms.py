"""Classifiers whose rows are brought to another length. Axes: C classes, D features.

Kang et al., Decoupling Representation and Classifier, ICLR 2020; official code facebookresearch/classifier-balancing.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tau_factors(weights_CD: Tensor, tau: float = 1.0) -> Tensor:
    r"""Return the factor of each row, :math:`\|w_c\|^{-\tau}` ``[C]``.

    Args:
        weights_CD: ``[C, D]``.
        tau: 0 keeps the classifier, 1 makes every row a unit vector; Kang et al. scan 0 to 2 on validation images.

    A row of zeros gets 1 (published: division by zero).
    """
    length = torch.linalg.vector_norm(weights_CD, dim=-1)
    return torch.where(length > 0, length.clamp(min=torch.finfo(length.dtype).tiny).pow(-tau), 1.0)


def tau_normalised(weights_CD: Tensor, tau: float = 1.0) -> Tensor:
    r"""Return the rows :math:`w_c / \|w_c\|^\tau` ``[C, D]``; the official classifier drops its bias with it.

    Rows of frequent classes grow long in training, which is what makes their scores large. Cosine heads look at no
    length: there it does nothing.
    """
    return weights_CD * tau_factors(weights_CD, tau).unsqueeze(-1)
