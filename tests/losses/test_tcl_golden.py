"""TCL's terms against arrays derived from the summaries of its paper (no code is public): both readings of each gap."""

from __future__ import annotations

import pytest
import torch
from arrays import close, tensor

from incrlt.losses import trust

CASES = ["tcl_a_c10", "tcl_c_negative_shift", "tcl_d_two_classes"]


def inputs(arrays):
    return tensor(arrays["logits"]).requires_grad_(), tensor(arrays["y"])


@pytest.mark.parametrize("name", CASES)
def test_classification(golden, name):
    arrays = golden(name)
    logits, labels = inputs(arrays)
    strengths = torch.tensor(trust.prior_strengths(len(logits)), dtype=torch.float64)
    log_prior = strengths[:, None] * tensor(arrays["counts"]).double().log()
    loss = len(logits) * trust.diverse_balanced_softmax(logits, labels, log_prior)
    close(loss.detach(), arrays["cls"])
    close(torch.autograd.grad(loss, logits)[0], arrays["cls_grad"])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("detach", [True, False])
def test_trusted_distillation(golden, name, detach):
    arrays = golden(name)
    logits, labels = inputs(arrays)
    weights = trust.compensation(tensor(arrays["class_acc"]))
    close(weights, arrays["w"])
    loss = len(logits) * trust.trusted_distillation(logits, labels, weights, detach=detach)
    close(loss.detach(), arrays["tko"])
    close(torch.autograd.grad(loss, logits)[0], arrays["tko_grad_det" if detach else "tko_grad_full"])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("suppress", "word"), [("mean", "all"), ("minimum", "min")])
def test_consensus_calibration(golden, name, suppress, word):
    arrays = golden(name)
    logits, labels = inputs(arrays)
    loss = len(logits) * trust.consensus_calibration(logits, labels, suppress=suppress)
    close(loss.detach(), arrays[f"cec_{word}_allwrong"])
    close(torch.autograd.grad(loss, logits)[0], arrays[f"cec_grad_{word}_allwrong"])
    loss = len(logits) * trust.consensus_calibration(logits, labels, suppress=suppress, where="any_negative")
    close(loss.detach(), arrays[f"cec_{word}_Nnonempty"])


def test_two_classes_leave_nothing_to_calibrate(golden):
    logits, labels = inputs(golden("tcl_d_two_classes"))
    assert trust.consensus_calibration(logits, labels, where="any_negative").abs() < 1e-13


def test_total(golden):
    arrays = golden("tcl_a_c10")
    logits, labels = inputs(arrays)
    strengths = torch.tensor([0.9, 1.0, 1.1], dtype=torch.float64)
    total = trust.diverse_balanced_softmax(
        logits, labels, strengths[:, None] * tensor(arrays["counts"]).double().log()
    )
    total = total + trust.trusted_distillation(logits, labels, tensor(arrays["w"]))
    total = total + 0.02 * trust.consensus_calibration(logits, labels)
    close(3 * total.detach(), arrays["total"])


def test_running_accuracy(golden):
    arrays = golden("tcl_acc_ema")
    accuracy = torch.zeros(6, dtype=torch.float64)
    for step, (labels, guesses) in enumerate(zip(tensor(arrays["y"]), tensor(arrays["pred"]), strict=True)):
        accuracy = trust.running_accuracy(accuracy, guesses, labels, 0.1)
        close(accuracy, arrays["acc"][step])


def test_one_expert_and_perfect_classes():
    logits, labels = torch.randn(1, 4, 5, requires_grad=True), torch.tensor([0, 1, 2, 3])
    assert trust.trusted_distillation(logits, labels, torch.ones(5)) == 0
    assert trust.prior_strengths(1) == (1.0,)
    assert trust.prior_strengths(3) == pytest.approx((0.9, 1.0, 1.1))
    assert trust.compensation(torch.ones(5)).tolist() == [1] * 5


@pytest.mark.parametrize("name", ["trusted", "calibration"])
def test_no_value_is_read_on_the_host(name):
    logits = torch.empty(3, 6, 7, device="meta", requires_grad=True)
    labels = torch.empty(6, dtype=torch.long, device="meta")
    if name == "trusted":
        loss = trust.trusted_distillation(logits, labels, torch.empty(7, device="meta"))
        trust.running_accuracy(torch.empty(7, device="meta"), labels, labels)
    else:
        loss = trust.consensus_calibration(logits, labels)
    loss.backward()
    assert logits.grad.shape == logits.shape


def test_gradcheck():
    """Of the readings in which both sides of a comparison take gradient, and with fixed teachers."""
    logits = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    labels, weights = torch.tensor([0, 1, 2, 0]), torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: trust.trusted_distillation(z, labels, weights, detach=False), (logits,)
    )
    prior = torch.randn(2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: trust.diverse_balanced_softmax(z, labels, prior), (logits,))
