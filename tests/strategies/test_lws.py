"""The second stage of Long-Tailed-CIL: what it moves, what it draws, and when it skips the first."""

from __future__ import annotations

import pytest
import torch
import toy

from incrlt.stages.lws import LWS
from incrlt.strategies import LUCIR, Finetune, Replay


class Halves:
    """Weights at the end of each stage of the last experience, and what the stage reported."""

    def __init__(self, cls, count=2, **options):
        self.ends, self.stages, self.rates, self.terms = {}, [], [], {}
        self.strategy = toy.make(cls, rebalance=LWS(epochs=4), **options)
        self.strategy.on_epoch_end = self.note
        toy.train(self.strategy, toy.stream().train_stream[:count])

    def note(self, strategy):
        self.ends[strategy.stage.name] = toy.weights(strategy.model)
        self.terms[strategy.stage.name] = set(strategy.epoch_terms)
        self.stages.append((strategy.experience_index, strategy.stage.name))
        if strategy.stage.name == "lws":
            self.rates.append(tuple(group["lr"] for group in strategy.optimizer.param_groups))


@pytest.mark.parametrize("cls", [Finetune, Replay, LUCIR])
def test_it_moves_new_rows_and_class_scales_alone(cls):
    run = Halves(cls)
    before, after = run.ends["train"], run.ends["lws"]
    assert toy.changed(before, after) == {"heads.0.weight", "heads.0.class_scale"}
    moved = (before["heads.0.weight"] != after["heads.0.weight"]).any(1).tolist()
    assert moved == [False] * 4 + [True] * 3 + [False] * 9
    assert torch.equal(after["heads.0.class_scale"][7:], torch.ones(9))
    assert (after["heads.0.class_scale"][4:7] != 1).all()
    assert run.terms["lws"] == {"cross_entropy"}


def test_it_runs_in_every_experience_with_its_own_rates():
    run = Halves(Finetune, train_epochs=2)
    assert run.stages == [(t, name) for t in (0, 1) for name in ["train"] * 2 + ["lws"] * 4]
    assert run.rates[0] == pytest.approx(
        (0.1 * 0.5 * (1 + 2**-0.5),) * 1 + (0.01 * 0.5 * (1 + 2**-0.5),), rel=1e-5
    )
    assert run.rates[3] == pytest.approx((0, 0), abs=1e-8)
    main = run.strategy.optimizer.param_groups[0]
    assert main["lr"] == 0.1
    assert {id(p) for p in main["params"]} == {id(p) for p in run.strategy.model.parameters()}


def test_scales_apply_in_evaluation_and_not_to_the_next_experience():
    run = Halves(Finetune)
    model, x = run.strategy.model, torch.rand(4, 1, 8, 8)
    model.eval()
    with torch.no_grad():
        plain, scaled = model.forward_all(x, rebalanced=False).logits, model.forward_all(x).logits
    assert torch.allclose(scaled, plain * model.heads[0].class_scale[:7], atol=1e-6)
    kept = model.heads[0].class_scale.detach().clone()
    scales = []
    run.strategy.on_epoch_end = lambda s: scales.append(
        (s.stage.name, s.model.heads[0].class_scale.detach()[:7].clone())
    )
    run.strategy.train(toy.stream().train_stream[2])
    assert all(torch.equal(scale, kept[:7]) for name, scale in scales if name == "train")


def test_classes_are_drawn_alike():
    labels = []
    strategy = toy.make(Replay, rebalance=LWS(epochs=20), memory=2, train_epochs=1)
    forward = strategy.forward

    def spy():
        if strategy.is_training and strategy.stage.name == "lws":
            labels.append(strategy.mb_y.clone())
        return forward()

    strategy.forward = spy
    strategy.train(toy.stream().train_stream[0])
    labels.clear()
    strategy.train(toy.stream().train_stream[1])
    drawn = torch.cat(labels)
    share = drawn.bincount(minlength=7) / len(drawn)
    assert strategy.class_counts.tolist() == [2] * 4 + [24] * 3
    assert (share - 1 / 7).abs().max() < 0.04, "2 images or 24, every class is drawn as often"


def test_the_first_stage_is_skipped_where_images_are_few():
    stages = []
    strategy = toy.make(Finetune, train_epochs=1, rebalance=LWS(epochs=1, skip_below=24))
    strategy.on_epoch_end = lambda s: stages.append((s.experience_index, s.stage.name))
    toy.train(strategy, toy.stream().train_stream[:2])
    assert stages == [(0, "train"), (0, "lws"), (1, "lws")], "never in the first experience"
