"""Classes that are drawn less than once an epoch: counts are fractions, and a count of zero is safe."""

from __future__ import annotations

import pytest
import torch

from incrlt.experts.base import drawn, ldam_tensors, log_prior
from incrlt.experts.ncl import NCL
from incrlt.experts.ride import RIDE
from incrlt.experts.shike import SHIKE
from incrlt.experts.single import Single
from incrlt.losses import (
    balanced_softmax,
    class_balanced_weights,
    class_temperatures,
    hard_category_cross_entropy,
    hard_columns,
    ldam_margins,
    logit_adjusted,
    online_distillation,
)
from incrlt.losses.margins import never_zero
from incrlt.types import LossContext, ModelOutput

FRACTIONS = torch.tensor([8.0, 2.0, 0.5, 0.125], dtype=torch.float64)


def batch(classes=4, dtype=torch.float64):
    logits = torch.randn(2, 6, classes, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return logits.requires_grad_(), torch.arange(6) % classes


def test_only_zero_is_replaced():
    assert never_zero(torch.tensor([5, 0, 3])).tolist() == [5.0, 1.0, 3.0], (
        "whole images: at least one, as before"
    )
    assert never_zero(torch.tensor([5.0, 0.0, 0.25])).tolist() == [5.0, 0.25, 0.25], (
        "never more than the rarest"
    )
    assert never_zero(FRACTIONS) is not FRACTIONS and never_zero(FRACTIONS).tolist() == FRACTIONS.tolist()
    assert never_zero(torch.zeros(3)).tolist() == [1.0] * 3
    assert never_zero(torch.zeros(0)).tolist() == []


def test_margins_weights_and_temperatures_of_fractions_by_hand():
    assert ldam_margins(FRACTIONS, 0.5).tolist() == pytest.approx([0.5 / 64**0.25, 0.25, 0.5 / 4**0.25, 0.5])
    weights = class_balanced_weights(FRACTIONS, beta=1.0)
    assert (weights / weights[0]).tolist() == pytest.approx([1, 4, 16, 64]), "before: 1, 4, 8, 8"
    mean = FRACTIONS.mean()
    values = 0.5 * FRACTIONS / mean + 0.5
    torch.testing.assert_close(class_temperatures(FRACTIONS, 0.5), values / values.max())


@pytest.mark.parametrize("loss", [balanced_softmax, logit_adjusted])
def test_priors_of_fractions_do_not_depend_on_the_unit(loss):
    """Counts per epoch or per ten epochs: the same prior. Before: classes below one image were bent up to one."""
    logits, labels = batch()
    torch.testing.assert_close(loss(logits, labels, FRACTIONS), loss(logits, labels, FRACTIONS * 1000))


def test_nested_terms_do_not_depend_on_the_unit():
    logits, labels = batch()
    columns = hard_columns(logits.mean(0), labels, 3)
    few, many = (
        hard_category_cross_entropy(logits, labels, counts, columns)
        + online_distillation(logits, counts, columns)
        for counts in (FRACTIONS, FRACTIONS * 1000)
    )
    torch.testing.assert_close(few, many)


METHODS = [
    Single(objective="balanced_softmax"),
    Single(objective="logit_adjustment"),
    Single(objective="ldam"),
    RIDE(num_experts=2, reweight_after=0.0),
    RIDE(num_experts=2, reweight_after=0.0, flavor="published"),
    RIDE(num_experts=2, objective="balanced_softmax"),
    NCL(num_experts=2),
    NCL(num_experts=2, flavor="published"),
    SHIKE(num_experts=2, objective="balanced_softmax"),
    SHIKE(num_experts=2, objective="balanced_softmax", flavor="published"),
]


def loss_of(method, counts):
    logits, labels = batch(dtype=torch.float32)
    cosines = torch.tanh(logits)
    output = ModelOutput(logits.mean(0), logits, cosines=cosines, scales=torch.ones(2))
    context = LossContext(counts, num_old=0, epoch=1, epochs=1)
    terms = method.loss(context, output, labels)
    total = torch.stack(list(terms.values())).sum()
    return total, torch.autograd.grad(total, logits)[0]


@pytest.mark.parametrize(
    "method", METHODS, ids=lambda m: f"{m.name}-{getattr(m, 'objective', '')}-{getattr(m, 'flavor', '')}"
)
class TestEveryMethod:
    def test_whole_numbers_give_the_same_bits_in_every_type(self, method):
        whole = torch.tensor([300, 40, 7, 1])
        total, gradient = loss_of(method, whole)
        for dtype in (torch.float32, torch.float64):
            again, same = loss_of(method, whole.to(dtype))
            assert again.equal(total) and same.equal(gradient)

    def test_fractions_are_used(self, method):
        total, _ = loss_of(method, FRACTIONS)
        bent, _ = loss_of(method, FRACTIONS.clamp(min=1))
        assert total.isfinite()
        assert total.item() != pytest.approx(bent.item(), rel=1e-4)

    def test_a_class_without_images_is_safe(self, method):
        for counts in ([8.0, 0.25, 0.0, 2.0], [0.0, 0.0, 0.0, 0.1], [0, 0, 0, 0]):
            total, gradient = loss_of(method, torch.tensor(counts))
            assert total.isfinite() and gradient.isfinite().all()


def test_what_ops_read_is_of_the_default_type():
    context = LossContext(FRACTIONS, num_old=0, epoch=0, epochs=1)
    assert drawn(context).dtype == log_prior(context).dtype == torch.float32
    torch.testing.assert_close(log_prior(context), FRACTIONS.log().float())
    output = ModelOutput(torch.zeros(1, 4), torch.zeros(1, 1, 4))
    tensors = ldam_tensors(context, output, 0.5, None, 0.9999, late=True)
    assert tensors.margins.dtype == tensors.class_weights.dtype == torch.float32
