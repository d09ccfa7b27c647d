"""DGR in training: the body gets the plain gradient, the heads the rewritten one, and images are counted rightly."""

from __future__ import annotations

import pytest
import torch
import toy

from incrlt.experts.single import Single
from incrlt.losses.gradients import distillation_ratio, gradient_weights, rewritten
from incrlt.strategies.dgr import DGR


class Watched:
    """Trains two experiences; before each backward pass computes the gradients of the plain terms."""

    def __init__(self, **options):
        self.strategy = toy.make(DGR, memory=5, train_epochs=2, **options)
        self._backward, self.strategy.backward = self.strategy.backward, self.backward
        self.steps = []
        torch.manual_seed(1)
        toy.train(self.strategy, toy.stream().train_stream[:2])

    def backward(self):
        strategy = self.strategy
        labels, named = strategy.positions(strategy.mb_y), dict(strategy.model.named_parameters())
        names = [name for name in named if "class_scale" not in name]
        strategy.reweight = False
        terms = strategy.loss_terms(strategy.mb_out, labels)
        strategy.reweight = True
        distance = terms.pop("distillation", None)
        self.plain = [self.gradients(term, names, named) for term in (sum(terms.values()), distance)]
        self._backward()
        self.steps.append((strategy.num_old, strategy._images(), *self.plain, self.found(names, named)))

    @staticmethod
    def gradients(term, names, named):
        if term is None:
            return {name: torch.zeros_like(named[name]) for name in names}
        found = torch.autograd.grad(
            term, [named[name] for name in names], retain_graph=True, allow_unused=True
        )
        return {n: torch.zeros_like(named[n]) if g is None else g for n, g in zip(names, found, strict=True)}

    @staticmethod
    def found(names, named):
        return {name: named[name].grad.clone() for name in names if named[name].grad is not None}


@pytest.mark.parametrize(
    ("head", "experts"),
    [
        ("linear", Single()),
        ("cosine", Single(objective="ldam")),
        ("linear", Single(num_experts=2)),
    ],
)
def test_every_step_by_hand(head, experts):
    watched, gathered, before = Watched(head=head, experts=experts), {}, None
    assert {step[0] for step in watched.steps} == {0, 4}
    for num_old, images, plain, distilled, found in watched.steps:
        gathered, before = (gathered if num_old == before else {}), num_old
        classes = 7 if num_old else 4
        for name, gradient in found.items():
            k = int(name.split(".")[1]) if name.startswith("heads") else None
            pace = 1 if name.startswith("stem") else experts.num_experts
            if k is None or name.endswith("scale"):
                wanted = plain[name] + distilled[name]
            else:
                row = f"heads.{k}.weight"
                if name == row:
                    norms = plain[row][:classes].double().norm(dim=1)
                    gathered[k] = gathered.get(k, 0) + norms
                weights = gradient_weights(gathered[k], num_old, images.attenuation)
                norms = plain[row][:classes].norm(dim=1)
                ratio = distillation_ratio(norms, weights, distilled[row][:num_old].norm(dim=1))
                wanted = torch.zeros_like(gradient)
                wanted[:classes] = rewritten(plain[name][:classes], distilled[name][:classes], weights, ratio)
            torch.testing.assert_close(gradient, pace * wanted, rtol=1e-4, atol=1e-6, msg=name)


def test_images_are_counted_as_they_arrive_and_as_they_are():
    strategy = toy.make(DGR, memory=5, head="linear")
    stream = toy.stream().train_stream
    strategy.train(stream[0])
    assert strategy.arrived.tolist() == [24] * 4
    strategy.train(stream[1])
    images = strategy._images()
    assert images.removed.tolist() == [19] * 4
    assert images.factor == pytest.approx(0.7 * (96 / 72) ** 0.5)
    assert images.attenuation == pytest.approx(2.718281828 ** -(96 / 168))
    strategy.train(stream[2])
    assert strategy._images().removed.tolist() == [19] * 7


def test_reweighting_changes_no_value():
    def first_terms(**options):
        strategy, terms = toy.make(DGR, head="linear", train_epochs=1, lr=1e-9, **options), []
        strategy.on_epoch_end = lambda s: terms.append(dict(s.epoch_terms))
        torch.manual_seed(1)
        toy.train(strategy, toy.stream().train_stream[:2])
        return terms

    plain, weighted = first_terms(reweight=False), first_terms()
    assert [list(one) for one in weighted] == [["balanced_softmax"], ["balanced_softmax", "distillation"]]
    for one, other in zip(plain, weighted, strict=True):
        assert other == pytest.approx(one, rel=1e-5)


def test_a_class_that_comes_again_and_a_stream_without_memory_are_finite():
    strategy = toy.make(DGR, memory=0, head="linear")
    stream = toy.stream().train_stream
    for experience in (stream[0], stream[1], stream[0]):
        strategy.train(experience)
        assert all(value == value and abs(value) < 1e6 for value in strategy.epoch_terms.values())
    assert strategy._images().removed.min() >= 0


def test_plain_cross_entropy_gives_way_to_balanced_softmax_and_other_losses_stay():
    for options, term in (
        ({}, "balanced_softmax"),
        ({"prior": False}, "cross_entropy"),
        ({"experts": Single(objective="ldam")}, "ldam"),
    ):
        strategy = toy.make(DGR, train_epochs=1, memory=0, **options)
        strategy.train(toy.stream().train_stream[0])
        assert set(strategy.epoch_terms) == {term}
