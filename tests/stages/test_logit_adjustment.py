"""Priors taken out of answers, and the running prior that a single network learns with."""

from __future__ import annotations

import pytest
import torch
import toy

from incrlt.experts.ride import RIDE
from incrlt.experts.single import RUNNING_PRIOR, Single
from incrlt.losses.prior import logit_adjustment, prior_cross_entropy, running_prior
from incrlt.models.inference import predict
from incrlt.models.network import OFFSETS
from incrlt.plugins.features import answers_of
from incrlt.stages.logit_adjustment import LogitAdjustment
from incrlt.strategies import Finetune, Replay


def trained(stage=None, experiences=2, watch=None, cls=Replay, **options):
    strategy = toy.make(cls, rebalance=stage, **options)
    strategy.on_epoch_end = watch
    torch.manual_seed(1)
    toy.train(strategy, toy.stream().train_stream[:experiences])
    strategy.model.eval()
    return strategy


@pytest.mark.parametrize("experts", [Single(), RIDE(num_experts=2)])
def test_answers_are_those_of_the_formula(experts):
    strategy = trained(LogitAdjustment(strength=0.8), experts=experts)
    model, x = strategy.model, torch.rand(9, 1, 8, 8)
    with torch.no_grad():
        plain, answer = model.forward_all(x, rebalanced=False).logits, model.forward_all(x).logits
    assert strategy.class_counts.tolist() == [5] * 4 + [24] * 3
    expected = plain - 0.8 * (strategy.class_counts / strategy.class_counts.sum()).log()
    torch.testing.assert_close(answer.softmax(-1), expected.softmax(-1))
    if isinstance(experts, Single):
        full = trained(LogitAdjustment()).model
        with torch.no_grad():
            z = full.forward_all(x, rebalanced=False).logits
            expected = logit_adjustment(z, strategy.class_counts)
            torch.testing.assert_close(full.forward_all(x).logits.softmax(-1), expected.softmax(-1))
    ids, used = predict(model, x).class_ids, torch.tensor(model.class_ids)
    assert ids.tolist() == used[answer.argmax(-1)].tolist(), "prediction from a loaded network sees it too"


def test_training_goes_on_as_without_it():
    """Weights after the first stage of the second experience are those of a run without the stage."""
    ends = {}

    def watch(name):
        def note(strategy):
            if strategy.stage.name == "train":
                ends[name] = toy.weights(strategy.model)

        return note

    trained(watch=watch("without"), experiences=1)
    trained(LogitAdjustment(), watch=watch("with"), experiences=1)
    changed = toy.changed(ends["without"], ends["with"])
    assert not changed
    assert ends["with"]["kept_" + OFFSETS].tolist() == [0] * 4


def test_offsets_are_gone_while_the_next_experience_trains():
    seen = []

    def watch(strategy):
        seen.append((strategy.stage.name, bool(strategy.model.recall(OFFSETS).any())))

    trained(LogitAdjustment(), watch=watch, train_epochs=1, experiences=3)
    assert (
        seen
        == [("train", False), ("logit_adjustment", False)]
        + [
            ("train", False),
            ("logit_adjustment", True),
        ]
        * 2
    ), "the first experience has as many images of each class"


def test_the_prior_of_answers_is_the_mean_answer():
    kept = []

    class Noting(LogitAdjustment):
        def _adjust(self, strategy, network, num_old):
            kept.append(answers_of(strategy, strategy.stream_dataset))
            super()._adjust(strategy, network, num_old)

    strategy = trained(Noting(strength=0.65, prior="answers"))
    (_, prior), offsets = kept, strategy.model.recall(OFFSETS)
    assert float(prior.sum()) == pytest.approx(1)
    images = strategy.stream_dataset.eval()
    x = torch.stack([images[i][0] for i in range(len(images))])
    with torch.no_grad():
        expected = strategy.model.forward_all(x, rebalanced=False).logits.double().softmax(-1).mean(0)
    torch.testing.assert_close(prior, expected, rtol=1e-4, atol=1e-6)
    wanted = -0.65 * prior.log()
    torch.testing.assert_close(offsets, (wanted - wanted.mean()).float())


def test_new_classes_begin_in_the_middle():
    strategy = trained(LogitAdjustment())
    strategy.model.grow([77])
    with torch.no_grad():
        x = torch.rand(2, 1, 8, 8)
        plain, answer = (
            strategy.model.forward_all(x, rebalanced=False).logits,
            strategy.model.forward_all(x).logits,
        )
    assert torch.equal(plain[:, 7], answer[:, 7])
    assert (plain[:, :7] != answer[:, :7]).all()


# ---------------------------------------------------------------------------- the running prior


def test_the_running_prior_by_hand():
    """From the counts, moved by each batch, before its loss; begun anew in the next experience."""
    steps = []
    strategy = toy.make(Replay, experts=Single(objective="running_prior", prior_rate=0.2), train_epochs=1)
    backward = strategy.backward

    def spy():
        names, values = strategy.terms._steps[-1]
        assert names == ["running_prior"]
        steps.append(
            (
                strategy.num_old,
                strategy.mb_out.expert_logits.detach(),
                strategy.positions(strategy.mb_y),
                strategy.class_counts,
                float(values[0]),
                strategy.model.recall(RUNNING_PRIOR).clone(),
            )
        )
        backward()

    strategy.backward = spy
    torch.manual_seed(1)
    toy.train(strategy, toy.stream().train_stream[:2])
    before = None
    for num_old, logits, labels, counts, value, kept in steps:
        if num_old != before:
            prior, before = counts / counts.sum(), num_old
        prior = running_prior(prior, logits, 0.2)
        torch.testing.assert_close(kept, prior)
        assert value == pytest.approx(float(prior_cross_entropy(logits, labels, prior)), rel=1e-5)
    assert {step[0] for step in steps} == {0, 4}


def test_without_moving_it_is_balanced_softmax():
    def weights(**options):
        strategy = trained(cls=Finetune, experiences=1, memory=0, lr=1e-3, experts=Single(**options))
        return toy.weights(strategy.model)

    balanced = weights(objective="balanced_softmax")
    fixed = weights(objective="running_prior", prior_rate=0.0)
    for name, value in balanced.items():
        torch.testing.assert_close(fixed[name], value, rtol=1e-3, atol=1e-5)
