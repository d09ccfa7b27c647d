"""The scale of every term: beside the terms of an expert method, whatever its flavor, a strategy weighs the same."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import toy

from incrlt.experts.ncl import NCL
from incrlt.experts.ride import RIDE
from incrlt.experts.shike import SHIKE
from incrlt.stages.lws import LWS
from incrlt.strategies import LUCIR, ICaRL
from incrlt.strategies.dgr import DGR
from incrlt.strategies.eeil import EEIL
from incrlt.strategies.podnet import PODNet


def silent(method):
    """The method without a loss of its own, so that what is left in a gradient is the strategy's."""

    @dataclass(frozen=True)
    class Silent(method):
        def loss(self, context, output, labels):
            return {"nothing": 0 * output.expert_logits.sum()}

    return Silent


class FirstGradient:
    """Moves the weights off the teacher's in the second experience, and keeps the gradients of a stage's first step."""

    def __init__(self, stage):
        self.stage, self.found = stage, None

    def before_training_epoch(self, strategy, **kwargs):
        if strategy.experience_index == 1 and self.found is None:
            torch.manual_seed(5)
            with torch.no_grad():
                for parameter in strategy.model.parameters():
                    parameter += 0.02 * torch.randn_like(parameter)

    def before_update(self, strategy, **kwargs):
        if strategy.experience_index == 1 and strategy.stage.name == self.stage and self.found is None:
            named = strategy.model.named_parameters()
            self.found = {name: p.grad.clone() for name, p in named if p.grad is not None}


def gradients(kind, experts, stage="train", **options):
    plugin = FirstGradient(stage)
    strategy = toy.make(
        kind,
        experts=experts,
        plugins=[plugin],
        train_epochs=1,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),  # only the first gradient counts
        **options,
    )
    torch.manual_seed(1)
    toy.train(strategy, toy.stream(per_class=12).train_stream[:2])
    assert plugin.found
    return strategy.model, plugin.found


TERMS = {
    "less_forget": (LUCIR, {"margin_ranking": 0.0}),
    "margin_ranking": (LUCIR, {"less_forget": 0.0}),
    "mimic_scores": (LUCIR, {"less_forget": 0.0, "margin_ranking": 0.0, "mimic_scores": 1.0}),
    "distillation": (ICaRL, {}),
    "sigmoid": (ICaRL, {"objective": "sigmoid"}),
    "pod_flat": (PODNet, {"spatial": 0.0}),
    "pod_spatial": (PODNet, {"flat": 0.0}),
    "eeil": (EEIL, {"balanced_epochs": 0}),
    "dgr": (DGR, {"reweight": False}),
}
METHODS = {"ride": RIDE, "ncl": NCL, "shike": SHIKE}


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("name", ["ride", "shike"])
def test_terms_of_strategies_beside_sums_and_means(name, term):
    """Each expert's own parameters get the gradient of its own term; what is shared the mean, or the sum."""
    kind, settings = TERMS[term]
    method = silent(METHODS[name])
    options = {"num_experts": 3, **({"classifier_epochs": 0} if name == "shike" else {})}
    model, means = gradients(kind, method(**options), **settings)
    _, sums = gradients(kind, method(**options, flavor="published"), **settings)
    own = {name for name, p in model.named_parameters() if any(p is one for one in model.own_parameters)}
    assert any(gradient.abs().max() > 1e-6 for key, gradient in means.items() if key in own)
    for key, gradient in means.items():
        factor = 1 if key in own else 3
        rounding = 1e-6 + 2e-5 * float(gradient.abs().max())
        torch.testing.assert_close(sums[key], factor * gradient, rtol=1e-3, atol=rounding, msg=key)


@pytest.mark.parametrize("name", METHODS)
def test_a_rebalancing_stage_beside_sums_and_means(name):
    options = {"num_experts": 2, **({"classifier_epochs": 0} if name == "shike" else {})}
    found = [
        gradients(
            LUCIR, silent(METHODS[name])(**options, flavor=flavor), "lws", rebalance=LWS(epochs=1),
            less_forget=0.0, margin_ranking=0.0,
        )[1]
        for flavor in ("sane", "published")
    ]  # fmt: skip
    assert found[0] and any(gradient.abs().max() > 1e-4 for gradient in found[0].values())
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-3, atol=1e-6, msg=key)


def test_the_scale_follows_the_sums_of_the_official_codes():
    assert [RIDE(num_experts=3, flavor=flavor).expert_scale for flavor in ("sane", "published")] == [1, 3]
    assert RIDE(num_experts=3, flavor="published", teacher="runs/a").expert_scale == 9
    assert SHIKE(num_experts=1, flavor="published").expert_scale == 1
