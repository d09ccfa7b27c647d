"""GVAlign's class means, shared covariance and virtual features against arrays of its official code."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from arrays import tensor

from incrlt.errors import UserError
from incrlt.losses.virtual import (
    class_means,
    covariance_of,
    factor_of,
    majority_class,
    mixed_cross_entropy,
    virtual_features,
)


def close(value, wanted, rtol=1e-9):
    torch.testing.assert_close(value, tensor(wanted).to(value), rtol=rtol, atol=1e-12)


def shared(arrays):
    features, labels = tensor(arrays["features_t0"]), tensor(arrays["labels_t0"])
    chosen = majority_class(labels)
    return features, labels, chosen, covariance_of(features[labels == chosen])


def test_statistics(golden):
    arrays = golden("gvalign_stage2_lucir")
    features, labels, chosen, covariance = shared(arrays)
    assert chosen == int(arrays["majority_class"])
    close(class_means(features, labels, 4), arrays["prototypes_t0"])
    close(covariance, arrays["cov_global"])
    for label in range(4):
        close(covariance_of(features[labels == label]), arrays["cov_t0"][label])
    close(factor_of(covariance), arrays["chol_global"])
    later = class_means(tensor(arrays["features_t1"]), tensor(arrays["labels_t1"]), 6)
    close(later, arrays["prototypes_t1"])


def test_virtual_features_and_the_steps_on_them(golden):
    """Four steps of SGD on one virtual feature per class, with cosine rows and a learned scale."""
    arrays = golden("gvalign_stage2_lucir")
    factor, means, noise = (tensor(arrays[key]) for key in ("chol_global", "prototypes_t1", "noise"))
    close(virtual_features(means, factor, noise[0]), arrays["samples_0"])
    close(virtual_features(means, factor, noise)[0], arrays["samples_0"])
    rows = tensor(arrays["weights"]).requires_grad_()
    sigma = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    sgd = torch.optim.SGD([rows, sigma], lr=0.1, momentum=0.9, weight_decay=5e-4)
    for step in range(4):
        x = virtual_features(means, factor, noise[step])
        cosines = F.normalize(x, dim=-1) @ F.normalize(rows, dim=-1).T
        loss = F.cross_entropy(sigma * cosines, torch.arange(6))
        close(loss.detach(), arrays["loss_steps"][step])
        sgd.zero_grad()
        loss.backward()
        if step == 0:
            close(rows.grad, arrays["grad_weights_step0"])
        sgd.step()
    close(rows.detach(), arrays["weights_after_step3"])
    close(sigma.detach(), arrays["sigma_after_step3"])


def test_mixup(golden):
    arrays = golden("gvalign_mixup")
    logits = tensor(arrays["logits"]).requires_grad_()
    partners = tensor(arrays["labels"])[tensor(arrays["perm"])]
    assert partners.tolist() == arrays["labels_b"].tolist()
    loss = mixed_cross_entropy(logits[5:], tensor(arrays["labels"]), partners, 0.3700000047683716)
    close(loss.detach(), arrays["loss_mix"])
    close(torch.autograd.grad(loss, logits)[0], arrays["grad_logits"])


def test_a_singular_covariance_is_refused_and_shrinkage_mends_it():
    few = torch.randn(5, 8, dtype=torch.float64)
    with pytest.raises(UserError, match="shrinkage"):
        factor_of(covariance_of(few))
    assert factor_of(covariance_of(few, shrinkage=0.01)).isfinite().all()
    with pytest.raises(UserError, match="two images"):
        covariance_of(few[:1])


def test_shrinkage_adds_a_share_of_the_mean_variance():
    features = torch.randn(20, 4, dtype=torch.float64)
    plain, shrunk = covariance_of(features), covariance_of(features, shrinkage=0.5)
    wanted = 0.5 * plain.trace() / 4 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(shrunk - plain, wanted)


def test_gradcheck():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    labels, partners = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 1, 0, 0])
    assert torch.autograd.gradcheck(lambda z: mixed_cross_entropy(z, labels, partners, 0.3), (logits,))
