"""SHIKE's losses and gradients against arrays computed by its official code."""

from __future__ import annotations

import pytest
import torch

from incrlt.losses import balanced_softmax, cross_entropy, dynamic_knowledge_transfer, mutual_distillation
from incrlt.losses.transfer import non_target_teacher

CASES = [
    "shike_a_c100_if100",
    "shike_b2_two_classes",
    "shike_b_tiny_c7",
    "shike_c_c300",
    "shike_d_inc_50p10",
    "shike_e_negative_shift",
]
# "_f32lab64" is float32 logits with the float64 labels of the official loader, hence in part a float64 loss.
RUNS = [(torch.float64, "", 1e-9), (torch.float32, "_f32", 1e-4), (torch.float32, "_f32lab64", 1e-4)]


def _leaf(arrays, dtype):
    logits = torch.as_tensor(arrays["logits"]).to(dtype).requires_grad_()
    return logits, torch.as_tensor(arrays["labels"]).long(), torch.as_tensor(arrays["class_counts"]).long()


def _check(arrays, prefix, suffix, terms, logits, tolerance):
    for term, value in terms.items():
        wanted = torch.as_tensor(arrays[f"{prefix}loss_{term}{suffix}"]).sum().to(value)
        torch.testing.assert_close(value, wanted, rtol=tolerance, atol=tolerance / 100)
        key = f"{prefix}grad_{term}"
        if key not in arrays:
            assert term != "total", "every case stores the gradient of its total"
            continue
        wanted = torch.as_tensor(arrays.get(key + suffix, arrays[key])).to(logits)
        (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
        largest = float(wanted.abs().max())
        torch.testing.assert_close(gradient, wanted, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "suffix", "tolerance"), RUNS)
def test_first_stage(golden, name, dtype, suffix, tolerance):
    arrays = golden(name)
    logits, labels, _ = _leaf(arrays, dtype)
    experts, _, classes = logits.shape
    transfer = dynamic_knowledge_transfer(logits, labels, flavor="published")
    terms = {
        "ce": experts * cross_entropy(logits, labels),
        "dkt": 10 * experts / classes * transfer,
        "mut": experts / classes * mutual_distillation(logits),
    }
    terms["total"] = terms["ce"] + terms["dkt"] + terms["mut"]
    _check(arrays, "s1_", suffix, terms, logits, tolerance)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "suffix", "tolerance"), RUNS)
def test_second_stage(golden, name, dtype, suffix, tolerance):
    arrays = golden(name)
    logits, labels, counts = _leaf(arrays, dtype)
    loss = len(logits) * balanced_softmax(logits, labels, counts)
    _check(arrays, "s2_", suffix, {"bsce": loss, "total": loss}, logits, tolerance)


@pytest.mark.parametrize("name", [name for name in CASES if name != "shike_c_c300"])  # it stores no teacher
def test_teacher(golden, name):
    arrays = golden(name)
    logits, labels, _ = _leaf(arrays, torch.float64)
    wrong = logits.detach().scatter(-1, labels.expand(len(logits), -1).unsqueeze(-1), -30.0)
    hardest = torch.as_tensor(arrays["s1_hn"]).long()
    assert torch.equal(wrong.mean(0).argmax(-1), hardest)
    teacher = non_target_teacher(wrong).scatter(-1, labels.unsqueeze(-1), 0.0)
    torch.testing.assert_close(teacher, torch.as_tensor(arrays["s1_teacher"]), rtol=1e-14, atol=0)


def test_published_mismatch_at_the_label_and_the_sane_flavor_without_it(golden):
    """Two classes: one negative, nothing to transfer; the official code yields 10 / C * 30 nats and more."""
    logits, labels, _ = _leaf(golden("shike_b2_two_classes"), torch.float64)
    assert dynamic_knowledge_transfer(logits, labels, flavor="published") > 12
    assert dynamic_knowledge_transfer(logits, labels) == 0
    logits, labels, _ = _leaf(golden("shike_e_negative_shift"), torch.float64)
    published = dynamic_knowledge_transfer(logits, labels, flavor="published")
    assert published > 5 * dynamic_knowledge_transfer(logits, labels)
