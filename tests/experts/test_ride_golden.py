"""RIDE's terms, tables and gradients against arrays of the official code."""

from __future__ import annotations

import pytest
import torch

from incrlt.experts.ride import RIDE
from incrlt.losses import class_balanced_weights, class_temperatures, ensemble_distillation, ldam_margins
from incrlt.types import LossContext, ModelOutput

PRECISIONS = [torch.float64, torch.float32]
CASES = [  # name, prefix, diversity weight, epoch from 1, share of the temperatures
    ("ride_a_c100_if100", "v0_", -0.45, 161, 0.05),
    ("ride_a_c100_if100", "v1_", -0.45, 160, 0.05),
    ("ride_a_c100_if100", "v2_", -0.2, 1, 0.05),
    ("ride_a_c100_if100", "v3_", -0.2, 161, 0.02),
    ("ride_b_tiny_c7", "v0_", -0.45, 161, 0.05),
    ("ride_b_tiny_c7", "v1_", -0.45, 5, 0.05),
    ("ride_b_tiny_c7", "v4_", 0.3, 161, 0.05),
    ("ride_c_c300", "v0_", -0.2, 161, 0.02),
    ("ride_d_inc_50p10", "v0_", -0.45, 161, 0.05),
    ("ride_d_inc_50p10", "v1_", -0.45, 100, 0.05),
    ("ride_d_inc_50p10", "v2_", -0.2, 161, 0.05),
    ("ride_e_extreme", "v0_", -0.45, 161, 0.05),
    ("ride_e_extreme", "v1_", -0.45, 10, 0.05),
]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("name", "prefix", "diversity", "epoch", "share"), CASES)
def test_terms_total_and_gradients(case, name, prefix, diversity, epoch, share, dtype):
    data = case(name, dtype, prefix)
    method = RIDE(
        num_experts=len(data.logits), diversity=diversity, temperature_share=share, flavor="published"
    )
    terms = method.loss(data.context(epoch), data.output(), data.labels)
    assert set(terms) == {"ldam", "diversity"}
    data.check("base", terms["ldam"])
    data.check("diversity", terms["diversity"])
    data.check("total", sum(terms.values()), retain=False)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("prefix", "epoch"), [("v2_", 161), ("v3_", 3)])
def test_without_diversity_the_official_code_trains_the_mean_answer(case, prefix, epoch, dtype):
    data = case("ride_b_tiny_c7", dtype, prefix)
    method = RIDE(num_experts=len(data.logits), diversity=0.0, flavor="published")
    terms = method.loss(data.context(epoch), data.output(), data.labels)
    assert set(terms) == {"ldam"}
    data.check("total", terms["ldam"], retain=False)


@pytest.mark.parametrize("objective", ["cross_entropy", "balanced_softmax"])
def test_without_diversity_every_objective_is_of_the_mean_answer(objective):
    torch.manual_seed(0)
    logits, labels, counts = (
        torch.randn(2, 6, 5),
        torch.randint(0, 5, (6,)),
        torch.tensor([100, 50, 20, 5, 1]),
    )
    method = RIDE(num_experts=2, flavor="published", diversity=0.0, objective=objective)
    terms = method.loss(LossContext(counts, 0, 0, 10), ModelOutput(logits.mean(0), logits), labels)
    prior = counts.log() if objective == "balanced_softmax" else torch.zeros(5)
    expected = 2 * torch.nn.functional.cross_entropy(logits.mean(0) + prior, labels)
    torch.testing.assert_close(terms[objective], expected)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("prefix", "epoch"), [("v0_", 161), ("v1_", 20)])
def test_self_distillation(case, prefix, epoch, dtype):
    """The official loss adds the same distillation once per expert and multiplies everything by K."""
    data = case("ride_f_distill", dtype, prefix)
    teacher = torch.as_tensor(data.arrays["teacher_logits"]).to(dtype)
    guide = ModelOutput(teacher, teacher[None])
    method = RIDE(num_experts=2, teacher="run", flavor="published")
    terms = method.loss(data.context(epoch, guide=lambda: guide), data.output(), data.labels)
    once = ensemble_distillation(data.logits, teacher, 1.5)
    torch.testing.assert_close(once.double(), data.expected("loss_distill")[0], rtol=1e-4, atol=1e-9)
    data.check("base", terms["ldam"] / 2)
    data.check("total", sum(terms.values()), retain=False)


@pytest.mark.parametrize("ratio", [100, 50, 10])
def test_tables(golden, ratio):
    tables = {key: torch.as_tensor(value) for key, value in golden("ride_tables").items()}
    start = f"C100_IF{ratio}_"
    counts = tables[start + "counts"].double()
    exact = {"rtol": 1e-9, "atol": 0}
    torch.testing.assert_close(ldam_margins(counts), tables[start + "margins"].double(), **exact)
    torch.testing.assert_close(
        class_balanced_weights(counts), tables[start + "drw_weights"].double(), **exact
    )
    for share in (0.05, 0.02):
        expected = tables[f"{start}tau_rho{share}"].double()
        torch.testing.assert_close(class_temperatures(counts, share), expected, **exact)


def test_the_default_averages_where_the_official_code_sums(case):
    data = case("ride_a_c100_if100", torch.float64, "v0_")
    sane, published = (RIDE(flavor=flavor) for flavor in ("sane", "published"))
    context = data.context(161)
    ours = sane.loss(context, data.output(), data.labels)
    theirs = published.loss(context, data.output(), data.labels)
    for name, term in ours.items():  # the rarest class has 5 images: margins agree
        torch.testing.assert_close(3 * term, theirs[name])


def test_diversity_leaves_old_classes_alone(case):
    data = case("ride_d_inc_50p10", torch.float64, "v0_")
    context = data.context(161)
    context = type(context)(data.counts, 50, 160, 200)
    terms = RIDE().loss(context, data.output(), data.labels)
    (gradient,) = torch.autograd.grad(terms["diversity"], data.logits)
    assert (gradient[..., :50] == 0).all()
    assert (gradient[:, data.labels < 50] == 0).all(), "nothing ties answers about images of old classes"
    assert (gradient[:, data.labels >= 50, 50:] != 0).any()
    assert terms["diversity"] < 0
