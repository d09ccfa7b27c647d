r"""Linear discriminant analysis: class means and one covariance that all classes share. Axes: N, C, D.

Hayes and Kanan, Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis, CVPR workshops 2020;
Goswami et al., FeCAM, NeurIPS 2023 (shrinkage, Tukey's transform). A class is as likely as any other, whatever its
images: rare classes borrow the covariance of the frequent ones and need no more than a mean of their own. Compute in
float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NEVER = -1e30
"""Offset of a class that no image was seen of: below every score, and finite, as checkpoints want it."""


class Discriminant(NamedTuple):
    """Scores of classes, linear in the features.

    Attributes:
        rows: ``[C, D]``.
        offsets: ``[C]``.
    """

    rows: Tensor
    offsets: Tensor

    def scores(self, features_ND: Tensor) -> Tensor:
        """Return the log likelihood of each class up to a constant per image ``[N, C]``."""
        return features_ND @ self.rows.T + self.offsets


def tukey(features: Tensor, power: float | Tensor) -> Tensor:
    r"""Return :math:`\mathrm{sign}(x) |x|^{power}`: Tukey's ladder, which makes skewed features more Gaussian.

    Args:
        features: Of any shape.
        power: 1 leaves them; the literature has 0.5, for features after a ReLU. The sign is ours: LUCIR's have one.
            Given as a tensor ``[]`` on their device, no host waits for it.
    """
    if not isinstance(power, Tensor) and power == 1:
        return features
    return features.sign() * features.abs().pow(power)


def linear_discriminant(
    features_ND: Tensor, labels_N: Tensor, num_classes: int, shrinkage: float = 1.0
) -> Discriminant:
    r"""Return the discriminant of Gaussian classes with means :math:`\mu_c` and one covariance.

    .. math:: \Sigma = \frac1N \sum_i (x_i - \mu_{y_i}) (x_i - \mu_{y_i})^\top, \quad
        \Sigma_s = \Sigma + s \, \frac{\mathrm{tr} \Sigma}{D} I, \quad
        z_c = x^\top \Sigma_s^{-1} \mu_c - \tfrac12 \mu_c^\top \Sigma_s^{-1} \mu_c

    Args:
        features_ND: ``[N, D]``.
        labels_N: Class positions ``[N]``.
        num_classes: C. A class without an image is never the answer.
        shrinkage: s > 0, in units of the mean variance.

    Reference: Goswami et al., FeCAM, NeurIPS 2023, the shared covariance of its few-shot setting, which shrinks by the
    mean variance and by the mean covariance; here the first alone.
    """
    counts_C = torch.bincount(labels_N, minlength=num_classes)
    means_CD = features_ND.new_zeros(num_classes, features_ND.shape[1]).index_add(0, labels_N, features_ND)
    means_CD = means_CD / counts_C.clamp(min=1).unsqueeze(-1)
    centred_ND = features_ND - means_CD[labels_N]
    covariance_DD = centred_ND.T @ centred_ND / max(len(centred_ND), 1)
    variance = covariance_DD.diagonal().mean()
    variance = torch.where(variance > 0, variance, 1.0)  # one image per class: the nearest mean
    eye = torch.eye(len(covariance_DD), dtype=features_ND.dtype, device=features_ND.device)
    rows_CD = torch.linalg.solve(covariance_DD / variance + shrinkage * eye, means_CD.T).T / variance
    offsets_C = -(rows_CD * means_CD).sum(1) / 2
    return Discriminant(rows_CD, offsets_C.masked_fill(counts_C == 0, NEVER))
