"""EEIL's distillation per head and its gradient noise against arrays of Long-Tailed-CIL's code."""

from __future__ import annotations

import pytest
import torch
from arrays import close_as_computed as close

from incrlt.losses import cross_entropy, knowledge_distillation
from incrlt.losses.per_head import gradient_noise_std, per_head_distillation

CASES = {  # temperature and weight of the distillation
    "eeil_t1": (2.0, 1.0), "eeil_t2": (2.0, 1.0), "eeil_t2_lamb": (3.0, 2.5), "eeil_t1_saturated": (2.0, 1.0),
}  # fmt: skip
RUNS = [(torch.float64, "", 1e-9), (torch.float32, "_f32", 2e-5)]


def inputs(arrays, dtype=torch.float64):
    logits, teacher = (torch.as_tensor(arrays[key]).to(dtype) for key in ("logits", "logits_old"))
    sizes = arrays["head_sizes"].tolist()
    return (
        logits.requires_grad_(),
        teacher[:, : sum(sizes[:-1])],
        torch.as_tensor(arrays["labels"]).long(),
        sizes,
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "suffix", "tolerance"), RUNS)
def test_losses_of_both_stages(golden, name, dtype, suffix, tolerance):
    arrays = golden(name)
    temperature, weight = CASES[name]
    logits, teacher, labels, sizes = inputs(arrays, dtype)
    for stage, heads in (("unbalanced", sizes[:-2]), ("balanced", sizes[:-1])):
        distance = per_head_distillation(logits, teacher, heads, temperature)
        loss = cross_entropy(logits, labels) + weight * distance
        close(loss.detach(), arrays[f"loss_{stage}{suffix}"], tolerance)
        (gradient,) = torch.autograd.grad(loss, logits)
        close(gradient, arrays[f"grad_logits_{stage}"], tolerance)


@pytest.mark.parametrize("name", CASES)
def test_one_head(golden, name):
    arrays = golden(name)
    logits, teacher, _, sizes = inputs(arrays)
    before = 0
    for head, size in enumerate(sizes[:-1]):
        both = per_head_distillation(logits, teacher, sizes[: head + 1], CASES[name][0])
        term = both - (per_head_distillation(logits, teacher, sizes[:head], CASES[name][0]) if head else 0)
        close(term.detach(), arrays[f"bce_head_{head}"], 1e-9)
        close(torch.autograd.grad(term, logits)[0], arrays[f"grad_bce_head_{head}"], 1e-9)
        before += size


def test_the_form_of_the_paper_is_kl_inside_each_head():
    logits, teacher = torch.randn(2, 5, 9, dtype=torch.float64), torch.randn(2, 5, 7, dtype=torch.float64)
    expected = knowledge_distillation(logits[..., :4], teacher[..., :4], 2.0) / 4
    expected += knowledge_distillation(logits[..., 4:7], teacher[..., 4:], 2.0) / 4
    torch.testing.assert_close(per_head_distillation(logits, teacher, (4, 3), form="softmax"), expected)


@pytest.mark.parametrize("form", ["binary", "softmax"])
def test_no_head_and_a_head_of_one_class_give_nothing(form):
    logits = torch.randn(2, 5, 3, requires_grad=True)
    for sizes in ((), (1,)):
        loss = per_head_distillation(logits, torch.randn(2, 5, 1), sizes, form=form)
        assert loss == 0
        assert torch.autograd.grad(loss, logits)[0].abs().max() == 0


def test_noise(golden):
    arrays = golden("eeil_noise")
    for i, epoch in enumerate((0, 1, 5, 39, 89)):
        std = gradient_noise_std(epoch)
        assert std == pytest.approx(float(arrays["std"][i]), rel=1e-12)
        close(torch.as_tensor(arrays["grad"] + std * arrays["noise"]), arrays[f"grad_after_it{epoch}"], 1e-9)


@pytest.mark.parametrize("form", ["binary", "softmax"])
def test_gradcheck(form):
    logits = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: per_head_distillation(z, teacher, (3, 2), form=form), (logits,))
