"""Mistakes that newcomers make in parts of their own: each is one sentence that names the part and what to do."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import toy
from torch import nn

from incrlt.errors import UserError
from incrlt.experts import SHIKE, ExpertMethod, Single
from incrlt.models import build
from incrlt.strategies import LUCIR
from incrlt.types import Stage


def trained(**settings):
    strategy = toy.make(LUCIR, **settings)
    strategy.train(toy.stream().train_stream[0])
    return strategy


class Biases:
    """Trains what heads call ``bias``, with the first stage or without it."""

    def __init__(self, alone=False):
        self.alone = alone

    def stages(self, strategy, first):
        own = Stage("biases", 1, lr=0.1, frozen_backbone=True, parameters=self._parameters)
        return own if self.alone else (first, own)

    def _parameters(self, model):
        named = [pair for head in model.heads for pair in head.named_parameters()]
        return [{"params": (parameter for name, parameter in named if name == "bias")}]


def test_a_stage_that_would_train_nothing_is_refused():
    with pytest.raises(
        UserError, match=r"stage 'biases' would train nothing.*heads of this network have weight, .*scale"
    ):
        trained(rebalance=Biases())
    head = trained(rebalance=Biases(), head="linear", margin_ranking=0.0).model.heads[0]
    assert head.bias[: head.num_classes].abs().max() > 0  # by groups that are generators, too


def test_a_stage_alone_is_told_from_a_pair():
    with pytest.raises(UserError, match=r"stages of Biases returned one stage alone; .*\(first, Stage"):
        trained(rebalance=Biases(alone=True))


@dataclass(frozen=True)
class Wrong(ExpertMethod):
    """Gives one term that is none, or one answer that is none."""

    name = "wrong"
    term: str = "nothing"

    def loss(self, context, output, labels):
        given = {"number": 0.5, "batch": output.logits.sum(1), "nan": output.logits.mean() * torch.nan}
        return {"mine": given.get(self.term, output.logits.mean())}


@dataclass(frozen=True)
class Stacked(Wrong):
    """Leaves the experts' axis."""

    def combine(self, expert_logits):
        return expert_logits * 1


@dataclass(frozen=True)
class Silent(ExpertMethod):
    """Has no loss."""

    name = "silent"


class Bare(Single):
    """Lacks the decorator."""

    weights: float = 1.0


@pytest.mark.parametrize(
    ("experts", "sentence"),
    [
        (Wrong("number"), "loss term 'mine' is a float; a term is a scalar tensor"),
        (Wrong("batch"), r"loss term 'mine' is a tensor \[\d+\]"),
        (
            Wrong("nan"),
            "'mine' became nan in .* step 1. It was so before any step was made: look for a division by 0",
        ),
        (
            Stacked(),
            r"combine of the experts gave \[1, \d+, 4\] of logits \[1, \d+, 4\]; it must give one answer",
        ),
        (Silent(), "experts Silent has no loss"),
        (Bare(), r"experts Bare cannot be given weights: write @dataclass\(frozen=True\) above the class"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ExpertMethod) else "",
)
def test_an_expert_method_is_told_what_is_wrong_with_it(experts, sentence):
    with pytest.raises(UserError, match=sentence):
        trained(experts=experts)


class Flat:
    """A backbone that reads nothing of a layout, and whose branches may tell another width than they have."""

    shares = ("stem", "two_stages")
    told = 64

    def __init__(self, **settings):
        self.pixels = settings["in_channels"] * 64

    def stem(self, layout):
        return nn.Flatten()

    def branch(self, layout, expert):
        branch = nn.Linear(self.pixels, 64)
        branch.num_features = self.told
        return branch


class Untrue(Flat):
    """Tells 32 of 64."""

    told = 32


def test_a_backbone_does_not_ignore_what_makes_a_method():
    with pytest.raises(
        UserError, match=r"ask for fusion True of the backbone, and .*Flat does not say that it reads it"
    ):
        build(Flat, layout=SHIKE().layout, in_channels=1)
    assert build(Flat, num_experts=2, in_channels=1).num_experts == 2


def test_features_are_as_wide_as_told():
    network = build(Untrue, in_channels=1)
    network.grow([0, 1])
    with pytest.raises(UserError, match=r"must give features \[B, 32\].*got \[2, 64\]"):
        network(torch.zeros(2, 1, 8, 8))
