"""The linear discriminant against scikit-learn's, and what it must do where scikit-learn has no answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from incrlt.losses.discriminant import NEVER, linear_discriminant, tukey

COUNTS = (60, 25, 7, 2)


def long_tailed(seed=0, width=6):
    """Gaussian classes under one covariance, rare ones with two images."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(COUNTS)), COUNTS)
    mixing = random.normal(size=(width, width))
    return random.normal(size=(len(labels), width)) @ mixing + 3 * random.normal(size=(len(COUNTS), width))[
        labels
    ], labels


@pytest.mark.parametrize("shrinkage", [0.01, 0.3, 1.0, 5.0])
def test_scores_are_those_of_scikit_learn_with_classes_equally_likely(shrinkage):
    """scikit-learn's shrinkage ``a`` mixes, ours adds: s = a / (1 - a), and its scores are (1 + s) times ours."""
    features, labels = long_tailed()
    found = linear_discriminant(torch.as_tensor(features), torch.as_tensor(labels), len(COUNTS), shrinkage)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage / (1 + shrinkage)).fit(
        features, labels
    )
    prior = np.log(np.asarray(COUNTS) / sum(COUNTS))
    np.testing.assert_allclose(found.rows.numpy() * (1 + shrinkage), theirs.coef_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(
        found.offsets.numpy() * (1 + shrinkage), theirs.intercept_ - prior, rtol=1e-8, atol=1e-9
    )


def test_much_shrinkage_is_the_nearest_mean_and_little_the_mahalanobis_distance():
    features, labels = (torch.as_tensor(part) for part in long_tailed(3))
    means = torch.stack([features[labels == label].mean(0) for label in range(len(COUNTS))])
    nearest = torch.cdist(features, means).argmin(1)
    assert (linear_discriminant(features, labels, 4, 1e9).scores(features).argmax(1) == nearest).all()

    inner = torch.cat([features[labels == label] - means[label] for label in range(len(COUNTS))])
    inverse = torch.linalg.inv(inner.T @ inner / len(inner))
    apart = features[:, None] - means
    distance = torch.einsum("ncd,de,nce->nc", apart, inverse, apart)
    scores = linear_discriminant(features, labels, 4, 1e-12).scores(features)
    torch.testing.assert_close(scores[:, :1] - scores, (distance - distance[:, :1]) / 2, rtol=1e-6, atol=1e-6)


def test_a_unit_of_shrinkage_does_not_depend_on_the_scale_of_the_features():
    features, labels = (torch.as_tensor(part) for part in long_tailed(1))
    small = linear_discriminant(features / 1000, labels, 4).scores(features / 1000)
    torch.testing.assert_close(small, linear_discriminant(features, labels, 4).scores(features))


def test_a_class_without_images_is_never_the_answer_and_lone_images_are_nearest_means():
    features, labels = (torch.as_tensor(part) for part in long_tailed(2))
    scores = linear_discriminant(features, labels, 6).scores(features)
    assert (scores[:, 4:] == NEVER).all() and scores[:, :4].min() > NEVER / 1e20

    lone = torch.eye(3, dtype=torch.float64)  # one image per class: no covariance, the nearest mean
    found = linear_discriminant(lone, torch.tensor([0, 1, 2]), 3)
    torch.testing.assert_close(found.scores(lone), 1.0 * lone - 0.5)


def test_tukey_keeps_the_sign():
    found = tukey(torch.tensor([-4.0, 0.0, 9.0]), 0.5)
    assert found.tolist() == [-2.0, 0.0, 3.0]
    assert tukey(found, 1) is found
