"""Logit adjustment, AdaPrior's running prior and tau-normalisation against stored arrays."""

from __future__ import annotations

import pytest
import torch
from arrays import close, tensor

from incrlt.losses import balanced_softmax
from incrlt.losses.norms import tau_factors, tau_normalised
from incrlt.losses.prior import (
    logit_adjustment,
    prior_adjusted,
    prior_cross_entropy,
    running_prior,
    static_prior,
)

pytestmark = pytest.mark.usefixtures("double")


def test_logit_adjustment(golden):
    arrays = golden("logit_adjust_a")
    logits, counts = tensor(arrays["logits"]), tensor(arrays["counts"])
    for i, tau in enumerate(arrays["taus"].tolist()):
        scores = logit_adjustment(logits, counts, tau)
        close(scores, arrays[f"tau{i}_posthoc"])
        assert scores.argmax(-1).tolist() == arrays[f"tau{i}_pred"].tolist()


def test_logit_adjustment_is_the_loss_turned_round(golden):
    arrays = golden("logit_adjust_a")
    logits, labels, counts = (tensor(arrays[key]) for key in ("logits", "y", "counts"))
    loss = prior_cross_entropy(logits, labels, static_prior(counts))
    close(loss, arrays["tau0_loss"])
    close(balanced_softmax(logits, labels, counts), arrays["tau0_loss"])
    torch.testing.assert_close(logit_adjustment(logits + static_prior(counts).log(), counts), logits)


@pytest.mark.parametrize(("name", "gamma"), [("adaprior_a", 0.05), ("adaprior_c_gamma1", 1.0)])
@pytest.mark.parametrize("variant", ["v0", "v1"])
def test_running_prior(golden, name, gamma, variant):
    """v0 sees the prior that its own batch has moved, v1 the one before."""
    arrays = golden(name)
    prior = static_prior(tensor(arrays["counts"]))
    close(prior, arrays["P_init"])
    for step, (logits, labels) in enumerate(zip(tensor(arrays["logits"]), tensor(arrays["y"]), strict=True)):
        logits.requires_grad_()
        moved = running_prior(prior, logits, gamma)
        assert not moved.requires_grad
        uniform = 1 / len(prior)
        loss = prior_cross_entropy(logits, labels, (moved if variant == "v0" else prior) / uniform)
        close(loss.detach(), arrays[f"{variant}_loss"][step])
        close(torch.autograd.grad(loss, logits)[0], arrays[f"{variant}_grad"][step])
        prior = moved
        close(prior, arrays["P"][step])


@pytest.mark.parametrize("name", ["adaprior_a", "adaprior_c_gamma1"])
def test_answers_without_the_prior(golden, name):
    arrays = golden(name)
    last, prior = tensor(arrays["logits"])[-1], tensor(arrays["P"])[-1]
    empirical = tensor(arrays["logits"]).softmax(-1).flatten(0, 1).mean(0)
    close(empirical, arrays["P_empirical"])
    for i, alpha in enumerate((0.6, 0.65, 0.7, 1.0)):
        close(prior_adjusted(last, prior, alpha), arrays[f"a{i}_ema"])
        scores = prior_adjusted(last, empirical, alpha)
        close(scores, arrays[f"a{i}_emp"])
        assert scores.argmax(-1).tolist() == arrays[f"a{i}_pred_emp"].tolist()


def test_priors_of_absent_classes_are_finite():
    assert static_prior(torch.tensor([0, 3])).tolist() == [0.25, 0.75]
    assert prior_adjusted(torch.zeros(1, 2), torch.tensor([0.0, 1.0])).isfinite().all()
    assert logit_adjustment(torch.zeros(1, 2), torch.tensor([0, 10**6]), 5.0).isfinite().all()


def test_experts_are_averaged_in_the_prior():
    logits, prior = torch.randn(3, 4, 5), torch.full((5,), 0.2)
    each = torch.stack([running_prior(prior, expert) for expert in logits])
    torch.testing.assert_close(running_prior(prior, logits), each.mean(0))


def test_tau_normalisation(golden):
    arrays = golden("tau_norm_a")
    for i, tau in enumerate(arrays["taus"].tolist()):
        rows = tau_normalised(tensor(arrays["W"]), tau)
        close(rows, arrays[f"tau{i}_W"])
        close(tensor(arrays["x"]) @ rows.T, arrays[f"tau{i}_logits"])


def test_a_row_of_zeros_stays():
    assert tau_factors(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), 1.0).tolist() == pytest.approx([1.0, 0.2])


def test_gradcheck():
    logits = torch.randn(2, 3, 4, requires_grad=True)
    prior, labels = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda z: prior_cross_entropy(z, labels, prior), (logits,))
    assert torch.autograd.gradcheck(lambda z: prior_adjusted(z, prior, 0.7), (logits,))
    assert torch.autograd.gradcheck(
        lambda w: tau_normalised(w, 0.7), (torch.randn(3, 4, requires_grad=True),)
    )
