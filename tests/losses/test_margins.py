"""Margins, weights and priors by class counts: by hand, by gradient, by what must not change."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from incrlt.losses import (
    balanced_softmax,
    class_balanced_weights,
    class_temperatures,
    cross_entropy,
    ldam,
    ldam_margins,
    logit_adjusted,
)


def _batch(experts=2, batch=5, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(experts, batch, classes, dtype=torch.float64, generator=generator)
    return logits.requires_grad_(), torch.arange(batch) % classes


def test_margins_by_hand():
    margins = ldam_margins(torch.tensor([80.0, 16.0 * 5, 5.0]), 0.5)
    assert margins.tolist() == pytest.approx([0.25, 0.25, 0.5])
    assert ldam_margins(torch.tensor([500, 5]))[0].item() == pytest.approx(0.158, abs=5e-4)


def test_a_fixed_normaliser_keeps_margins_while_rarer_classes_arrive():
    first = torch.tensor([100, 20])
    later = torch.tensor([100, 20, 5, 2])
    torch.testing.assert_close(ldam_margins(later, smallest=5)[:2], ldam_margins(first, smallest=5))
    assert (ldam_margins(later)[:2] < ldam_margins(first)).all(), "the published normaliser moves them"
    assert ldam_margins(later, smallest=5)[2:].tolist() == [0.5, 0.5], "none is above the largest margin"


def test_ldam_by_hand():
    loss = ldam(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([0.1, 0.5]), 2.0)
    assert loss.item() == pytest.approx(torch.tensor(1.0).exp().log1p().item())  # log(1 + e^(2 * 0.5))


def test_ldam_is_the_weighted_cross_entropy_expert_by_expert():
    logits, labels = _batch()
    margins = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    scales = torch.tensor([10.0, 20.0])
    expected = 0.0
    for k in range(2):
        shifted = logits[k].detach().clone()
        for b, label in enumerate(labels.tolist()):
            shifted[b, label] -= scales[k] * margins[label]
        losses = -shifted.log_softmax(-1)[range(5), labels]
        expected += (weights[labels] * losses).sum() / weights[labels].sum() / 2
    torch.testing.assert_close(ldam(logits, labels, margins, scales, weights).detach(), expected)


def test_ldam_without_margins_or_weights_is_the_cross_entropy():
    logits, labels = _batch()
    torch.testing.assert_close(ldam(logits, labels, torch.zeros(4), 30.0), cross_entropy(logits, labels))
    doubled = torch.full((4,), 2.0)
    torch.testing.assert_close(
        ldam(logits, labels, torch.zeros(4), None, doubled), cross_entropy(logits, labels)
    )


def test_a_scale_that_trains_cannot_escape_the_margin():
    logits, labels = _batch()
    scale = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    loss = ldam(logits * scale[:, None, None], labels, torch.full((4,), 0.5), scale)
    (through_logits,) = torch.autograd.grad(loss, scale)
    fixed = scale.detach()
    (alone,) = torch.autograd.grad(
        ldam(logits * scale[:, None, None], labels, torch.full((4,), 0.5), fixed), scale
    )
    assert torch.equal(through_logits, alone)


def test_weights_have_mean_one_and_their_limits():
    counts = torch.tensor([500, 50, 5], dtype=torch.float64)
    for beta in (0.0, 0.9, 0.9999, 1.0):
        assert class_balanced_weights(counts, beta).mean().item() == pytest.approx(1.0)
    assert class_balanced_weights(counts, 0.0).tolist() == [1, 1, 1]
    inverse = counts.reciprocal()
    torch.testing.assert_close(class_balanced_weights(counts, 1.0), inverse / inverse.mean())
    torch.testing.assert_close(
        class_balanced_weights(counts, 1 - 1e-9), class_balanced_weights(counts, 1.0), rtol=1e-6, atol=0
    )


def test_weights_are_exact_in_float32():
    """The textbook form loses digits where 1 - beta^n is close to 0."""
    counts = torch.arange(1, 600)
    exact = class_balanced_weights(counts.double())
    torch.testing.assert_close(class_balanced_weights(counts).double(), exact, rtol=2e-6, atol=0)


def test_temperatures_by_hand():
    temperatures = class_temperatures(torch.tensor([30.0, 10.0]), 0.5)  # v = 0.5 * (1.5, 0.5) + 0.5
    assert temperatures.tolist() == pytest.approx([1.0, 0.75 / 1.25])
    assert class_temperatures(torch.tensor([30, 10]), 0.0).tolist() == [1, 1]


def test_logit_adjustment_joins_cross_entropy_and_balanced_softmax():
    logits, labels = _batch()
    counts = torch.tensor([100, 10, 5, 1])
    torch.testing.assert_close(logit_adjusted(logits, labels, counts, 0.0), cross_entropy(logits, labels))
    torch.testing.assert_close(
        logit_adjusted(logits, labels, counts, 1.0), balanced_softmax(logits, labels, counts)
    )
    prior = counts.double() / counts.sum()
    by_hand = F.cross_entropy((logits + 2 * prior.log()).flatten(0, 1), labels.repeat(2))
    torch.testing.assert_close(logit_adjusted(logits, labels, counts, 2.0), by_hand)


@pytest.mark.parametrize("loss", [balanced_softmax, logit_adjusted])
def test_only_the_ratio_of_counts_matters(loss):
    logits, labels = _batch()
    counts = torch.tensor([100, 10, 5, 1])
    torch.testing.assert_close(loss(logits, labels, counts), loss(logits, labels, 7 * counts))


def test_gradients_numerically():
    logits, labels = _batch()
    counts = torch.tensor([100, 10, 5, 1])
    weights, margins = class_balanced_weights(counts), ldam_margins(counts)
    assert torch.autograd.gradcheck(lambda z: ldam(z, labels, margins, 3.0, weights), (logits,))
    assert torch.autograd.gradcheck(lambda z: logit_adjusted(z, labels, counts, 1.5), (logits,))
