"""Mistakes that newcomers make in parts of their own: each is one sentence that names the part and what to do."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
import toy
from torch import nn

from incrlt.errors import UserError
from incrlt.experts import SHIKE, ExpertMethod, Single
from incrlt.models import build
from incrlt.models.layout import Layout
from incrlt.strategies import LUCIR, Finetune
from incrlt.types import ModelOutput, Stage


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


@dataclass(frozen=True)
class Asking(Single):
    """Asks for a layout of one's own, and reads parts of the output without a need."""

    name = "asking"
    wish: object = None
    reads: str = "known_features"

    @property
    def layout(self):
        return self.wish() if callable(self.wish) else super().layout

    def loss(self, context, output, labels):
        getattr(output, self.reads)
        return super().loss(context, output, labels)


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        (
            lambda: Layout(num_expert=2),
            r"a layout has no 'num_expert'; it has: .* Did you mean 'num_experts'\?",
        ),
        (
            lambda: Layout(shared="stems"),
            "shared of a layout is 'stems'; allowed: stem, .* Did you mean 'stem'",
        ),
        (lambda: Layout(shortcut="pading"), "shortcut of a layout is 'pading'; .* Did you mean 'padding'"),
        (lambda: {"num_experts": 2}, "layout of experts Asking is {'num_experts': 2}; return a Layout"),
    ],
)
def test_a_layout_is_told_what_is_wrong_with_it(wish, sentence):
    """They were a TypeError of dataclasses, a wish that no backbone has, one that was ignored, an AttributeError."""
    with pytest.raises(UserError, match=sentence):
        trained(experts=Asking(wish=wish))


@pytest.mark.parametrize(
    ("reads", "head", "need"),
    [("known_maps", "cosine", "needs_maps"), ("known_cosines", "linear", "needs_cosine"),
     ("known_scales", "linear", "needs_cosine")],
)  # fmt: skip
def test_a_loss_that_reads_what_nobody_asked_for_is_told_the_need(reads, head, need):
    """They were assertions."""
    with pytest.raises(
        UserError, match=f"a loss reads .* Write {need} = True in the class of the strategy or"
    ):
        trained(experts=Asking(reads=reads), head=head, margin_ranking=0.0)


def test_a_strategy_that_reads_features_of_a_foreign_model_is_told_the_need():
    with pytest.raises(UserError, match=r"a loss reads features, .* Write needs_network = True"):
        _ = ModelOutput(torch.zeros(2, 3), torch.zeros(1, 2, 3)).known_features


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"sampler": "class_awre"}, "stage 'own' has sampler 'class_awre'; .* Did you mean 'class_aware'"),
        ({"data": "exemplar"}, "stage 'own' has data 'exemplar'; .* Did you mean 'exemplars'"),
        ({"epochs": 2.5}, "stage 'own' has 2.5 epochs; give a whole number"),
        (
            {"cache_features": True},
            "stage 'own' is to store features, and only one with frozen_backbone=True",
        ),
    ],
)
def test_a_stage_is_told_what_is_wrong_with_it(wrong, sentence):
    """A misspelt sampler drew uniformly, misspelt data drew from the stream."""
    with pytest.raises(UserError, match=sentence):
        Stage("own", **{"epochs": 1, **wrong})


class Forgetful(Finetune):
    """Passes model and optimizer on, and nothing else."""

    def __init__(self, *, own=1.0, model, optimizer, **rest):
        super().__init__(model=model, optimizer=optimizer)


class Keeper(Finetune):
    """Passes nothing on."""

    def __init__(self, *, own=1.0, **rest):
        super().__init__()


class Whole(LUCIR):
    """Sets one argument of its base, and passes the others on."""

    def __init__(self, *, own=1.0, margin_ranking=0.0, **rest):
        super().__init__(margin_ranking=margin_ranking, **rest)


class Placed(Finetune):
    """Takes its own argument by position."""

    def __init__(self, model, optimizer, own=1.0, **rest):
        super().__init__(model=model, optimizer=optimizer, **rest)
        self.own = own


class Above(Placed):
    """Keeps one argument back, and passes on to a base that takes them by position."""

    def __init__(self, *, model, optimizer, **rest):
        rest.pop("eval_mb_size", None)
        super().__init__(model, optimizer, **rest)


def test_arguments_that_a_class_does_not_pass_on_are_named():
    """Memory, epochs and batch size were dropped without a word; without a model it was a TypeError of the template."""
    with pytest.raises(
        UserError,
        match=r"Forgetful.__init__ took .*train_epochs.* did not pass it on. Write super\(\).__init__\(\*\*rest",
    ):
        toy.make(Forgetful, memory=5)
    with pytest.raises(
        UserError, match=r"Keeper was made without model and optimizer. .*super\(\).__init__\(\*\*rest"
    ):
        toy.make(Keeper, memory=0)
    assert toy.make(Whole, memory=5, own=2.0).memory is not None
    network = toy.network()
    assert Above(model=network, optimizer=torch.optim.SGD(network.parameters(), lr=0.1), own=3.0).own == 3.0
    assert toy.make(Above, memory=5).memory is not None


class Slow(Finetune):
    """Says when its constructor has begun, or its base is made, and waits before it goes on."""

    def __init__(self, *, begun=None, made=None, go_on=None, **rest):
        if begun is not None:
            begun.set()
            assert go_on.wait(60)
        super().__init__(**rest)
        if made is not None:
            made.set()
            assert go_on.wait(60)


def test_strategies_made_in_two_threads_do_not_see_each_other():
    """The one that ended first looked at what had arrived at the other's base, which was nothing yet."""
    made, begun, done = threading.Event(), threading.Event(), threading.Event()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(toy.make, Slow, memory=5, made=made, go_on=begun)
        assert made.wait(60)
        second = threads.submit(toy.make, Slow, memory=5, begun=begun, go_on=done)
        try:
            assert isinstance(first.result(), Slow)
        finally:
            done.set()
        assert isinstance(second.result(), Slow)


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


class Text(Flat):
    """One share, without its comma: ``"stem" in "two_stages, stem"`` and ``"no" in "nothing"`` are both true."""

    shares = "two_stages, stem"


class Misspelt(Flat):
    """Says it reads what there is not."""

    wishes = ("width_facter",)


def test_shares_and_wishes_are_words_that_are_known():
    with pytest.raises(
        UserError, match=r"Text tells shares 'two_stages, stem'; write several, .*shares = \('stem',\)"
    ):
        build(Text, in_channels=1)
    with pytest.raises(
        UserError, match=r"tells 'width_facter' among its wishes; .* Did you mean 'width_factor'"
    ):
        build(Misspelt, in_channels=1)


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
