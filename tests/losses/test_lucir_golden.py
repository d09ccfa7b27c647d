"""LUCIR's losses and gradients against arrays computed by its official code."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from incrlt.losses import (
    adaptive_weight,
    cross_entropy,
    knowledge_distillation,
    less_forget,
    margin_ranking,
    mimic_scores,
    sigmoid_distillation,
)

CASES = {  # name: (old classes, lambda, scale of the head)
    "lucir_a_c100_90p10": (90, 15.0),
    "lucir_b_tiny_c7": (5, 7.905694150420949),
    "lucir_d1_mixed_50p10": (50, 11.180339887498949),
    "lucir_d2_no_old_50p10": (50, 11.180339887498949),
    "lucir_d3_all_old_50p10": (50, 11.180339887498949),
    "lucir_e_amr_50p10": (50, 11.180339887498949),
}


def _leaves(case, dtype):
    tensors = {key: torch.as_tensor(case[key]) for key in ("features", "W_old", "W_new", "ref_features")}
    return {key: value.to(dtype).requires_grad_(key != "ref_features") for key, value in tensors.items()}


def _terms(leaf, labels, eta, num_old, weight, negatives):
    rows = torch.cat([leaf["W_old"], leaf["W_new"]])
    cosines = F.linear(F.normalize(leaf["features"]), F.normalize(rows))
    return {
        "ce": cross_entropy(eta * cosines, labels),
        "lf": weight * less_forget(leaf["features"], leaf["ref_features"]),
        "mr": margin_ranking(cosines, labels, num_old, negatives=negatives),
    }


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_terms_and_gradients(golden, name, dtype, tolerance):
    case = golden(name)
    num_old, weight = CASES[name]
    leaf = _leaves(case, dtype)
    labels = torch.as_tensor(case["labels"]).long()
    eta = _scale(case, dtype)
    terms = _terms(leaf, labels, eta, num_old, weight, "all" if "amr" in name else "new")
    suffix = "" if dtype == torch.float64 else "_f32"
    for term, value in terms.items():
        expected = torch.as_tensor(case[f"loss_{term}{suffix}"])
        torch.testing.assert_close(value, expected.to(dtype).reshape(()), rtol=tolerance, atol=tolerance)
    total = sum(terms.values())
    total.backward()
    for key, array in (
        ("features", "grad_features_total"),
        ("W_old", "grad_W_old_total"),
        ("W_new", "grad_W_new_total"),
    ):
        torch.testing.assert_close(
            leaf[key].grad, torch.as_tensor(case[array]).to(dtype), rtol=tolerance * 10, atol=tolerance
        )
    torch.testing.assert_close(
        eta.grad, torch.as_tensor(case["grad_eta_total"]).to(dtype), rtol=tolerance * 10, atol=tolerance
    )


def _scale(case, dtype):
    """Recover eta: logits are eta times the stored cosines."""
    ratio = torch.as_tensor(case["logits"] / case["cosines"]).median()
    return torch.full((1,), round(float(ratio), 6), dtype=dtype, requires_grad=True)


def test_mimic_scores(golden):
    case = {key: torch.as_tensor(value) for key, value in golden("lucir_e_ms_50p10").items()}
    rows = torch.cat([case["W_old"], case["W_new"]])
    cosines = F.linear(F.normalize(case["features"]), F.normalize(rows))
    teacher = F.linear(F.normalize(case["ref_features"]), F.normalize(case["W_old_ref"]))
    torch.testing.assert_close(
        mimic_scores(cosines, teacher), case["loss_ms"].reshape(()), rtol=1e-9, atol=1e-12
    )


def test_long_tailed_cil_stage_one_and_two(golden):
    case = {key: torch.as_tensor(value) for key, value in golden("ltcil_crit_50p10").items()}
    labels = case["labels"].long()
    features, rows = case["features"].requires_grad_(), case["W"].requires_grad_()
    cosines = F.linear(F.normalize(features), F.normalize(rows))
    stage_one = (
        cross_entropy(4.0 * cosines, labels)
        + adaptive_weight(5, 50, 10) * less_forget(features, case["ref_features"])
        + margin_ranking(cosines, labels, 50)
    )
    torch.testing.assert_close(stage_one, case["stage1_total"].reshape(()), rtol=1e-9, atol=1e-12)
    gradient = torch.autograd.grad(stage_one, [features, rows], retain_graph=True)
    torch.testing.assert_close(gradient[0], case["stage1_grad_features"], rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(gradient[1], case["stage1_grad_W"], rtol=1e-8, atol=1e-11)
    scales = case["lws"].requires_grad_()
    logits = scales * 4.0 * F.linear(F.normalize(features.detach()), F.normalize(rows))
    stage_two = cross_entropy(logits, labels)
    torch.testing.assert_close(stage_two, case["stage2_loss"].reshape(()), rtol=1e-9, atol=1e-12)
    gradient = torch.autograd.grad(stage_two, [scales, rows])
    torch.testing.assert_close(gradient[0], case["stage2_grad_lws"], rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(gradient[1][50:], case["stage2_grad_W_last"], rtol=1e-8, atol=1e-11)


def test_adaptive_weight_is_the_official_table(golden):
    for base, old, new, expected in golden("lucir_lambda_table")["table"]:
        assert adaptive_weight(base, int(old), int(new)) == pytest.approx(expected, rel=1e-12)


def test_experts_are_averaged_and_order_does_not_matter():
    torch.manual_seed(0)
    cosines = torch.rand(3, 7, 6, dtype=torch.float64) * 2 - 1
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 0])
    one_by_one = torch.stack([margin_ranking(c, labels, 4) for c in cosines]).mean()
    torch.testing.assert_close(margin_ranking(cosines, labels, 4), one_by_one)
    torch.testing.assert_close(margin_ranking(cosines.flip(0), labels, 4), one_by_one)


@pytest.mark.parametrize(("old", "classes"), [(0, 4), (4, 4)])
def test_margin_ranking_without_old_or_without_new_classes_is_zero(old, classes):
    cosines = torch.rand(5, classes, requires_grad=True)
    loss = margin_ranking(cosines, torch.zeros(5, dtype=torch.long), old)
    loss.backward()
    assert loss.item() == 0
    assert cosines.grad.abs().sum() == 0


def test_margin_ranking_takes_fewer_negatives_than_asked():
    cosines = torch.tensor([[0.2, 0.1]])
    assert margin_ranking(cosines, torch.tensor([0]), 1, num_negatives=2).item() == pytest.approx(0.4)


@pytest.mark.parametrize("loss", [less_forget, mimic_scores, knowledge_distillation])
def test_gradients_numerically(loss):
    torch.manual_seed(0)
    student = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student,))


def test_distillation_is_zero_on_the_teacher_and_ignores_new_columns():
    logits = torch.randn(3, 5, 4)
    assert knowledge_distillation(logits, logits).item() == pytest.approx(0, abs=1e-6)
    wider = torch.cat([logits, torch.randn(3, 5, 2)], -1)
    assert knowledge_distillation(wider, logits).item() == pytest.approx(0, abs=1e-6)


def test_sigmoid_distillation_by_hand():
    logits = torch.zeros(1, 3)
    without = sigmoid_distillation(logits, torch.tensor([2]), None)
    assert without.item() == pytest.approx(3 * 0.693147, rel=1e-5)
    sure = sigmoid_distillation(torch.tensor([[20.0, -20.0]]), torch.tensor([1]), torch.tensor([[20.0]]))
    assert sure.item() == pytest.approx(
        20.0, rel=1e-5
    )  # the old class agrees with its teacher, the new one is missed
