"""GVAlign: class means, one shared covariance, and virtual features drawn from them. Axes: N images, C classes, D.

Kalla and Biswas, Robust Feature Learning and Global Variance-Driven Classifier Alignment for LT-CIL; official code
JAYATEJAK/GVAlign. Features are unit vectors; the covariance of the class with most images of the first experience
stands for the spread of all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from incrlt.errors import UserError


def class_means(features_ND: Tensor, labels_N: Tensor, num_classes: int) -> Tensor:
    """Average the normalised features of each class; means are not normalised again.

    Args:
        features_ND: ``[N, D]``; normalised here.
        labels_N: Class positions ``[N]``.
        num_classes: C.

    Returns:
        ``[C, D]``; a class without images has NaN, as in the official code: give it one, or leave its row out.
    """
    sums = features_ND.new_zeros(num_classes, features_ND.shape[1])
    sums = sums.index_add(0, labels_N, F.normalize(features_ND, dim=-1))
    return sums / torch.bincount(labels_N, minlength=num_classes).to(sums).unsqueeze(-1)


def majority_class(labels_N: Tensor) -> int:
    """Return the class with most images, the first one where several have as many."""
    return int(torch.bincount(labels_N).argmax())


def covariance_of(features_ND: Tensor, shrinkage: float = 0.0) -> Tensor:
    """Return the unbiased covariance of the normalised features of one class ``[D, D]``.

    Args:
        features_ND: ``[N, D]``, N >= 2; normalised here.
        shrinkage: Adds ``shrinkage * trace / D`` to the diagonal; 0 is published. With at most D images the covariance
            is singular and cannot be drawn from without.

    Raises:
        UserError: Fewer than two images.
    """
    if len(features_ND) < 2:
        raise UserError(
            f"a covariance needs two images or more, the class has {len(features_ND)}; take it of a larger class."
        )
    covariance = F.normalize(features_ND, dim=-1).T.cov()
    mean_variance = covariance.diagonal().mean()
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return covariance + shrinkage * mean_variance * eye


def factor_of(covariance_DD: Tensor) -> Tensor:
    """Return the lower Cholesky factor of a covariance ``[D, D]``; factor once, draw often.

    Raises:
        UserError: It is not positive definite.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(covariance_DD)
    if int(info):
        raise UserError(
            f"the covariance of {len(covariance_DD)} features is singular: its class has at most as many images, or a "
            "feature never changes. Add shrinkage, such as 0.01."
        )
    return factor


def virtual_features(means_CD: Tensor, factor_DD: Tensor, noise_CD: Tensor) -> Tensor:
    r"""Draw one feature per class: ``mean + L e``.

    Args:
        means_CD: ``[C, D]``.
        factor_DD: L, lower, see :func:`factor_of`.
        noise_CD: e, standard normal ``[C, D]`` (or ``[S, C, D]``).

    Returns:
        Like ``noise_CD``; a cosine head normalises it again.
    """
    return means_CD + noise_CD @ factor_DD.T


def mixed_cross_entropy(logits_BC: Tensor, labels_B: Tensor, partners_B: Tensor, share: float) -> Tensor:
    """Return the mixup loss, ``share * CE(z, y) + (1 - share) * CE(z, y')``.

    Args:
        logits_BC: Answers to ``share * x + (1 - share) * x'`` ``[B, C]``.
        labels_B: Labels of x ``[B]``.
        partners_B: Labels of x' ``[B]``.
        share: In [0, 1], drawn uniformly per batch.

    Reference: Zhang et al., mixup, ICLR 2018; GVAlign's first stage adds it in every experience, weight 1.
    """
    return share * F.cross_entropy(logits_BC, labels_B) + (1 - share) * F.cross_entropy(logits_BC, partners_B)
