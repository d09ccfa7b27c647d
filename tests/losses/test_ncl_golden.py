"""NCL's losses and gradients against arrays computed by its official code."""

from __future__ import annotations

import pytest
import torch

from incrlt.losses import balanced_softmax, hard_category_cross_entropy, hard_columns, online_distillation

CASES = [  # name, variant, weights of distillation (full, hard), of hard categories and of the full cross entropy
    ("ncl_a_c100_if100", 0, 0.6, 0.6, 1.0, 1.0),
    ("ncl_a_c100_if100", 1, 0.6, 0.6, 1.0, 1.0),
    ("ncl_b_tiny_c7", 0, 0.6, 0.6, 1.0, 1.0),
    ("ncl_b_tiny_c7", 1, 0.6, 0.6, 1.0, 1.0),
    ("ncl_b_tiny_c7", 2, 0.3, 0.9, 0.5, 2.0),
    ("ncl_c_c300", 0, 0.6, 0.6, 1.0, 1.0),
    ("ncl_d_inc_50p10", 0, 0.6, 0.6, 1.0, 1.0),
    ("ncl_e_extreme", 0, 0.6, 0.6, 1.0, 1.0),
    ("ncl_e_large", 0, 0.6, 0.6, 1.0, 1.0),
    ("ncl_f_single", 0, 0.6, 0.6, 1.0, 1.0),
]
PRECISIONS = [(torch.float64, 1e-9), (torch.float32, 1e-4)]


def _leaf(arrays, dtype):
    logits = torch.as_tensor(arrays["logits"]).to(dtype).requires_grad_()
    return logits, torch.as_tensor(arrays["labels"]).long(), torch.as_tensor(arrays["class_counts"]).long()


@pytest.mark.parametrize(("name", "variant", "full", "hard", "hcm_ratio", "ce_ratio"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_terms_and_gradients(golden, name, variant, full, hard, hcm_ratio, ce_ratio, dtype, tolerance):
    arrays, prefix = golden(name), f"v{variant}_"
    logits, labels, counts = _leaf(arrays, dtype)
    experts = len(logits)
    columns = hard_columns(logits[0], labels, arrays[f"{prefix}idx"].shape[1])
    published = {"flavor": "published"}
    terms = {
        "ce": balanced_softmax(logits, labels, counts),
        "hcm": hard_category_cross_entropy(logits, labels, counts, columns, **published),
        "nbod_full": full * online_distillation(logits, counts, floor=1e-9),
        "nbod_hcm": hard * online_distillation(logits, counts, columns, floor=1e-9, **published),
    }
    terms = {term: experts * value for term, value in terms.items()}
    terms["total"] = (
        ce_ratio * terms["ce"] + hcm_ratio * terms["hcm"] + terms["nbod_full"] + terms["nbod_hcm"]
    )
    suffix = "" if dtype == torch.float64 else "_f32"
    stored = 0
    for term, value in terms.items():
        wanted = torch.as_tensor(arrays[f"{prefix}loss_{term}{suffix}"]).to(dtype)
        torch.testing.assert_close(value, wanted, rtol=tolerance, atol=tolerance / 100)
        key = f"{prefix}grad_{term}"
        if key not in arrays:
            continue
        stored += 1
        wanted = torch.as_tensor(arrays.get(key + suffix, arrays[key])).to(dtype)
        (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
        largest = float(wanted.abs().max())
        torch.testing.assert_close(gradient, wanted, rtol=tolerance, atol=tolerance * largest + 1e-15)
    assert stored == (5 if f"{prefix}grad_hcm" in arrays else 1)


@pytest.mark.parametrize(("name", "variant"), [case[:2] for case in CASES])
def test_hard_columns(golden, name, variant):
    arrays = golden(name)
    logits, labels, _ = _leaf(arrays, torch.float64)
    wanted = torch.as_tensor(arrays[f"v{variant}_idx"]).long()
    columns = hard_columns(logits[0], labels, wanted.shape[1])
    assert torch.equal(columns, wanted)
    mask = torch.zeros(logits.shape[1:], dtype=torch.uint8).scatter(-1, columns, 1)
    assert torch.equal(mask, torch.as_tensor(arrays[f"v{variant}_mask"]))


def test_the_floor_biases_extreme_answers(golden):
    """What the published 1e-9 costs, and where: hardly anything on ordinary logits, nats on extreme ones."""
    bias = {}
    for name in ("ncl_a_c100_if100", "ncl_e_large"):
        logits, _, counts = _leaf(golden(name), torch.float64)
        exact = online_distillation(logits, counts)
        bias[name] = float((online_distillation(logits, counts, floor=1e-9) - exact).abs().detach())
    assert bias["ncl_a_c100_if100"] < 1e-4
    assert bias["ncl_e_large"] > 0.05
