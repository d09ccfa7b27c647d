"""NCL's terms and gradients against arrays of the official code."""

from __future__ import annotations

import pytest
import torch

from incrlt.experts.ncl import NCL
from incrlt.losses import hard_category_cross_entropy, hard_columns, online_distillation

PRECISIONS = [torch.float64, torch.float32]
CASES = [
    ("ncl_a_c100_if100", "v0_", 30),
    ("ncl_a_c100_if100", "v1_", 100),
    ("ncl_b_tiny_c7", "v0_", None),
    ("ncl_c_c300", "v0_", None),
    ("ncl_d_inc_50p10", "v0_", None),
    ("ncl_e_large", "v0_", 6),
    ("ncl_e_extreme", "v0_", 6),
    ("ncl_f_single", "v0_", 3),
]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("name", "prefix", "num_hard"), CASES)
def test_terms_total_and_gradients(case, name, prefix, num_hard, dtype):
    data = case(name, dtype, prefix)
    classes = data.logits.shape[-1]
    num_hard = data.arrays[f"{prefix}idx"].shape[1] if num_hard is None else num_hard
    method = NCL(num_experts=len(data.logits), hard_share=num_hard / classes, flavor="published")
    assert method.num_hard(classes) == num_hard
    terms = method.loss(data.context(), data.output(), data.labels)
    data.check("ce", terms["balanced_softmax"])
    data.check("hcm", terms["hard_categories"])
    if len(data.logits) > 1:
        data.check("nbod_full", terms["distillation"])
        data.check("nbod_hcm", terms["hard_distillation"])
    data.check("total", sum(terms.values()), retain=False)


@pytest.mark.parametrize(("prefix", "num_hard", "factor"), [("v1_", 1, 0.6), ("v2_", 7, 0.9)])
def test_one_category_and_all_of_them_are_hard(case, prefix, num_hard, factor):
    """One category is never taken by the method; the official code leaves the others in at logit 0."""
    data = case("ncl_b_tiny_c7", torch.float64, prefix)
    z, experts = data.logits, len(data.logits)
    columns = hard_columns(z[0], data.labels, num_hard)
    published = {"flavor": "published"}
    loss = hard_category_cross_entropy(z, data.labels, data.counts, columns, **published)
    data.check("hcm", experts * loss)
    loss = online_distillation(z, data.counts, columns, floor=1e-9, **published)
    data.check("nbod_hcm", factor * experts * loss)


@pytest.mark.parametrize(("name", "prefix", "num_hard"), CASES)
def test_hard_categories_are_those_of_the_official_code(case, name, prefix, num_hard):
    data = case(name, torch.float64, prefix)
    expected = torch.as_tensor(data.arrays[f"{prefix}idx"]).long()
    assert torch.equal(hard_columns(data.logits[0], data.labels, expected.shape[1]), expected)


def test_the_default_leaves_other_categories_out(case):
    """With all categories hard both flavors agree, up to the mean over networks and the floor of the logarithm."""
    data = case("ncl_a_c100_if100", torch.float64, "v1_")
    ours = NCL(hard_share=1.0).loss(data.context(), data.output(), data.labels)
    theirs = NCL(hard_share=1.0, flavor="published").loss(data.context(), data.output(), data.labels)
    for name, term in ours.items():
        torch.testing.assert_close(3 * term, theirs[name], rtol=1e-4, atol=1e-6)
    columns = hard_columns(data.logits[0], data.labels, 10)
    few, leaky = (
        hard_category_cross_entropy(data.logits, data.labels, data.counts, columns, flavor=flavor)
        for flavor in ("sane", "published")
    )
    assert few < leaky, "e^0 of 90 categories is gone"


def test_classes_without_images_do_no_harm(case):
    data = case("ncl_b_tiny_c7", torch.float64, "v0_")
    data.counts[0] = 0
    data.labels[data.labels == 0] = 1
    for flavor in ("sane", "published"):
        total = sum(NCL(flavor=flavor).loss(data.context(), data.output(), data.labels).values())
        (gradient,) = torch.autograd.grad(total, data.logits)
        assert total.isfinite() and gradient.isfinite().all()
