"""LUCIR's parts, each against a computation by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import toy
from avalanche.training.plugins import SupervisedPlugin

from incrlt.errors import UserError
from incrlt.strategies import LUCIR

FULL = {"cross_entropy", "less_forget", "margin_ranking"}


class FirstEpoch(SupervisedPlugin):
    """Keeps head rows and less-forget weight as they are when training starts."""

    def __init__(self):
        super().__init__()
        self.rows, self.weights = [], []

    def before_training_epoch(self, strategy, **kwargs):
        if strategy.stage_epoch == 0 and strategy.stage_index == 0:
            self.rows.append(strategy.model.heads[0].rows().detach().clone())
            self.weights.append(strategy.less_forget_weight)


def test_the_less_forget_weight_grows_with_old_over_new():
    spy = FirstEpoch()
    toy.train(toy.make(LUCIR, plugins=[spy], train_epochs=1), toy.stream().train_stream)
    assert spy.weights == pytest.approx([0, 5 * math.sqrt(4 / 3), 5 * math.sqrt(7 / 3)])
    fixed = FirstEpoch()
    toy.train(toy.make(LUCIR, plugins=[fixed], train_epochs=1, adaptive=False), toy.stream().train_stream)
    assert fixed.weights == [5.0] * 3


def hand_made_rows(model, experience):
    """Mean direction per class of the experience's images, under the model as it is."""
    dataset = experience.dataset.eval()
    x = torch.stack([dataset[i][0] for i in range(len(dataset))])
    y = torch.tensor([int(dataset[i][1]) for i in range(len(dataset))])
    model.eval()
    with torch.no_grad():
        unit = F.normalize(model.extract(x)[0], dim=1)
    return torch.stack([F.normalize(unit[y == label].mean(0), dim=0) for label in sorted(set(y.tolist()))])


def test_new_rows_are_imprinted_with_the_model_before_the_experience():
    spy = FirstEpoch()
    strategy = toy.make(LUCIR, plugins=[spy])
    first, second = toy.stream().train_stream[:2]
    strategy.train(first)
    expected = hand_made_rows(strategy.model, second)
    lengths = strategy.model.heads[0].rows().detach().norm(dim=1)
    strategy.train(second)
    rows = spy.rows[1][4:]
    assert torch.allclose(F.normalize(rows, dim=1), expected, atol=1e-5)
    assert torch.allclose(rows.norm(dim=1), lengths.mean().expand(3), rtol=1e-4)


def test_without_imprinting_new_rows_are_drawn():
    spy = FirstEpoch()
    strategy = toy.make(LUCIR, plugins=[spy], imprint=False)
    first, second = toy.stream().train_stream[:2]
    strategy.train(first)
    expected = hand_made_rows(strategy.model, second)
    strategy.train(second)
    assert (F.normalize(spy.rows[1][4:], dim=1) * expected).sum(1).max() < 0.9


@pytest.mark.parametrize(
    ("switch", "terms"),
    [
        ({}, FULL),
        ({"less_forget": 0.0}, FULL - {"less_forget"}),
        ({"margin_ranking": 0.0}, FULL - {"margin_ranking"}),
        ({"less_forget": 0.0, "mimic_scores": 1.0}, FULL - {"less_forget"} | {"mimic_scores"}),
        ({"less_forget": 0.0, "margin_ranking": 0.0}, {"cross_entropy"}),
        ({"margin_ranking": 0.0, "head": "linear"}, FULL - {"margin_ranking"}),
        ({"imprint": False}, FULL),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "-".join(sorted(value)),
)
def test_each_switch_removes_its_term_and_no_other(switch, terms):
    strategy = toy.make(LUCIR, train_epochs=1, **switch)
    strategy.train(toy.stream().train_stream[0])
    assert set(strategy.epoch_terms) == {"cross_entropy"}, "there is nothing old yet"
    strategy.train(toy.stream().train_stream[1])
    assert set(strategy.epoch_terms) == terms
    assert all(value > 0 for value in strategy.epoch_terms.values())


def rows_after(**options):
    """Rows of the four old classes before and after the second experience."""
    strategy = toy.make(LUCIR, train_epochs=2, **options)
    strategy.train(toy.stream().train_stream[0])
    before = strategy.model.heads[0].weight.detach()[:4].clone()
    strategy.train(toy.stream().train_stream[1])
    return before, strategy.model.heads[0].weight.detach()[:4], strategy


@pytest.mark.parametrize("optimizer", [None, lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1)])
def test_old_rows_stay_whatever_momentum_and_weight_decay_do(optimizer):
    before, after, _ = rows_after(optimizer=optimizer, reset_optimizer=False)
    assert torch.equal(before, after)


def test_old_rows_move_when_they_may():
    before, after, _ = rows_after(freeze_old_rows=False)
    assert not torch.equal(before, after)


def test_the_class_balanced_finetune_moves_head_rows_alone():
    kept, images, rates = {}, [], []

    def note(strategy):
        if strategy.stage.name == "train":
            kept.clear()
            kept.update(toy.weights(strategy.model))
        else:
            images.append(strategy.epoch_images)
            rates.append(strategy.epoch_lr)

    strategy = toy.make(LUCIR, class_balanced_finetune=4)
    strategy.on_epoch_end = note
    strategy.train(toy.stream().train_stream[0])
    assert not images, "there is nothing to balance in the first experience"
    strategy.train(toy.stream().train_stream[1])
    after = toy.weights(strategy.model)
    assert toy.changed(kept, after) == {"heads.0.weight"}
    moved = (kept["heads.0.weight"] != after["heads.0.weight"]).any(1)
    assert moved.tolist() == [True] * 7 + [False] * 9, "old and new classes move, padding does not"
    assert images == [7 * 5] * 4, "exemplars alone, those of new classes included"
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001])
    assert all(module.training for module in strategy.model.modules()), "modes are given back"


def test_both_read_outs_are_there():
    strategy = toy.make(LUCIR)
    strategy.train(toy.stream().train_stream[0])
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        output = strategy.model.eval().forward_all(x)
    assert list(strategy.readouts(output)) == ["cnn", "nme"]
    strategy.class_means.first = True
    assert list(strategy.readouts(output)) == ["nme", "cnn"]


def test_without_memory_it_runs_and_reads_out_by_the_head():
    strategy = toy.make(LUCIR, memory=0)
    toy.train(strategy, toy.stream().train_stream[:2])
    with torch.no_grad():
        assert list(strategy.readouts(strategy.model.eval().forward_all(torch.rand(1, 1, 8, 8)))) == ["cnn"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": "linear"}, "model.head: cosine"),
        ({"head": "linear", "margin_ranking": 0.0, "mimic_scores": 1.0}, "model.head: cosine"),
        ({"memory": 0, "readout": "nme"}, "need exemplars"),
        ({"memory": 0, "class_balanced_finetune": 1}, "need exemplars"),
    ],
)
def test_what_cannot_work_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        toy.make(LUCIR, **options)
