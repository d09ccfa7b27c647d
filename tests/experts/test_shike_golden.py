"""SHIKE's terms and gradients against arrays of the official code."""

from __future__ import annotations

import pytest
import torch

from incrlt.experts.shike import SHIKE
from incrlt.losses import dynamic_knowledge_transfer, mutual_distillation
from incrlt.losses.transfer import non_target_teacher

PRECISIONS = [torch.float64, torch.float32]
CASES = [
    "shike_a_c100_if100", "shike_b2_two_classes", "shike_b_tiny_c7", "shike_c_c300", "shike_d_inc_50p10",
    "shike_e_negative_shift",
]  # fmt: skip


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", CASES)
def test_first_stage(case, name, dtype):
    data = case(name, dtype, "s1_")
    method = SHIKE(num_experts=len(data.logits), flavor="published")
    terms = method.loss(data.context(), data.output(), data.labels)
    data.check("ce", terms["cross_entropy"])
    data.check("dkt", terms["transfer"])
    data.check("mut", terms["mutual"])
    data.check("total", sum(terms.values()), retain=False)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", CASES)
def test_second_stage(case, name, dtype):
    """The stage itself, as a strategy runs it: its loss once had a K-th of the official gradient."""
    data = case(name, dtype, "s2_")
    method = SHIKE(num_experts=len(data.logits), flavor="published")
    (stage,) = method.stages()
    terms = stage.loss(data.context(expert_scale=method.expert_scale), data.output(), data.labels)
    data.check("bsce", terms["balanced_softmax"])
    data.check("total", sum(terms.values()), retain=False)


@pytest.mark.parametrize("name", [name for name in CASES if name != "shike_c_c300"])  # it stores none
def test_the_teacher_is_that_of_the_official_code(case, name):
    data = case(name, torch.float64, "s1_")
    masked = data.logits.scatter(-1, data.labels[:, None].expand(len(data.logits), -1, -1), -30.0)
    teacher = non_target_teacher(masked).scatter(-1, data.labels[:, None], 0.0)
    torch.testing.assert_close(teacher.detach(), data.expected("teacher"), rtol=1e-12, atol=0)


def test_masking_the_target_mends_what_two_classes_break(case):
    data = case("shike_b2_two_classes", torch.float64, "s1_")
    assert dynamic_knowledge_transfer(data.logits, data.labels) == 0
    assert dynamic_knowledge_transfer(data.logits, data.labels, flavor="published") > 15


def test_the_masked_transfer_by_hand(case):
    data = case("shike_b_tiny_c7", torch.float64, "s1_")
    data.logits = data.logits.detach()
    expected = 0.0
    for b, label in enumerate(data.labels.tolist()):
        others = [c for c in range(data.logits.shape[-1]) if c != label]
        p = non_target_teacher(data.logits[:, b : b + 1, others])[0].softmax(-1)
        for z in data.logits[:, b, others]:
            expected += float((p * (p.log() - z.log_softmax(-1))).sum())
    experts, images, _ = data.logits.shape
    found = dynamic_knowledge_transfer(data.logits, data.labels)
    assert float(found.detach()) == pytest.approx(expected / experts / images, rel=1e-9)
    assert torch.autograd.gradcheck(
        lambda z: dynamic_knowledge_transfer(z, data.labels), data.logits.requires_grad_()
    )


def test_mutual_distillation_by_hand_and_for_equal_experts(case):
    data = case("shike_e_negative_shift", torch.float64, "s1_")
    data.logits = data.logits.detach()
    logs = data.logits.log_softmax(-1)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    expected = sum(float((logs[j].exp() * (logs[j] - logs[i])).sum(-1).mean()) for i, j in pairs) / 3
    assert float(mutual_distillation(data.logits)) == pytest.approx(expected, rel=1e-9)
    assert float(mutual_distillation(data.logits[:1].expand(3, -1, -1))) == pytest.approx(0, abs=1e-12)
    assert mutual_distillation(data.logits[:1]) == 0
