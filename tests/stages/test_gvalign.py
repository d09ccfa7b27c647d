"""GVAlign: its steps are the official code's, old classes are aligned, and the covariance stays the first one."""

from __future__ import annotations

import pytest
import torch
import toy
from arrays import tensor
from torch.nn.functional import normalize

from incrlt.errors import UserError
from incrlt.experts.single import Single
from incrlt.losses.virtual import class_means, covariance_of, factor_of
from incrlt.models.heads import CosineHead, ProxyHead
from incrlt.plugins.features import features_of
from incrlt.stages.gvalign import FACTORS, GVAlign
from incrlt.strategies import LUCIR, Finetune, Replay

CASES = {"gvalign_stage2_lucir": (1, 3.0), "gvalign_stage2_podnet": (10, 2.0)}


@pytest.mark.parametrize("case", CASES)
def test_the_steps_are_those_of_the_official_code(golden, case):
    arrays, (proxies, scale) = golden(case), CASES[case]
    rows, noise = tensor(arrays["weights"]), tensor(arrays["noise"])
    width, classes = rows.shape[1], len(rows) // proxies
    head = (CosineHead(width) if proxies == 1 else ProxyHead(width, num_proxies=proxies)).double()
    head.resize(classes)
    head.weight.data[:classes] = rows.reshape(classes, -1)
    head.scale.data.fill_(scale)
    features, labels = tensor(arrays["features_t0"]), tensor(arrays["labels_t0"])
    stage = GVAlign(shrinkage=0.0)
    factors = stage.factors(features[None], labels)
    torch.testing.assert_close(factors[0], tensor(arrays["chol_global"]), rtol=1e-9, atol=1e-12)
    means = class_means(tensor(arrays["features_t1"]), tensor(arrays["labels_t1"]), classes)
    losses = stage.train([head], means[None], factors, noise[:, None], torch.arange(classes))
    torch.testing.assert_close(
        torch.tensor(losses, dtype=torch.float64), tensor(arrays["loss_steps"]), rtol=1e-9, atol=0
    )
    moved = head.weight[:classes].detach().reshape(len(rows), -1)
    torch.testing.assert_close(moved, tensor(arrays["weights_after_step3"]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(head.scale.detach(), tensor(arrays["sigma_after_step3"]), rtol=1e-9, atol=0)
    assert head.weight.grad is None


class Ends:
    """Weights at the end of each stage, and the factors after each experience."""

    def __init__(self, cls=Replay, count=2, stage=None, **options):
        self.ends, self.factors = {}, []
        stage = GVAlign(steps=20) if stage is None else stage
        self.strategy = toy.make(cls, rebalance=stage, **{"train_epochs": 1, **options})
        self.strategy.on_epoch_end = self.note
        torch.manual_seed(1)
        for experience in toy.stream().train_stream[:count]:
            self.strategy.train(experience)
            self.factors.append(self.strategy.model.recall(FACTORS).clone())
        self.model = self.strategy.model.eval()

    def note(self, strategy):
        self.ends[strategy.experience_index, strategy.stage.name] = toy.weights(strategy.model)


@pytest.mark.parametrize("experts", [Single(), Single(num_experts=2)], ids=["one", "two"])
def test_all_rows_and_scales_move_and_nothing_else(experts):
    run = Ends(LUCIR, experts=experts)
    before, after = run.ends[1, "train"], run.ends[1, "gvalign"]
    heads = {f"heads.{k}.{part}" for k in range(experts.num_experts) for part in ("weight", "scale")}
    assert toy.changed(before, after) == heads
    for k in range(experts.num_experts):
        old = [weights[f"heads.{k}.weight"][:4] for weights in (before, after)]
        assert not torch.equal(*old), "old rows take part"
    assert run.factors[0].shape[0] == experts.num_experts


def test_the_covariance_is_the_first_largest_classs_and_stays():
    run = Ends(count=1, memory=5, stage=GVAlign(steps=1, shrinkage=0.1))
    features, labels = features_of(run.strategy, toy.stream().train_stream[0].dataset)
    positions = run.model.positions(labels)
    largest = int(torch.bincount(positions).argmax())
    wanted = factor_of(covariance_of(features[positions == largest].double(), 0.1))
    torch.testing.assert_close(run.factors[0][0], wanted.float(), rtol=1e-4, atol=1e-6)
    later = Ends(count=3)
    assert torch.equal(later.factors[0], later.factors[2])


def test_virtual_features_are_answered_better_afterwards():
    """On features drawn anew around the means, with the same spread: what the stage is for."""
    run = Ends(count=2, stage=GVAlign(steps=100))
    features, labels = features_of(run.strategy, run.strategy.stream_dataset)
    means = class_means(features, run.model.positions(labels), 7)
    drawn = means + torch.randn(50, 7, means.shape[1]) @ run.factors[0][0].T
    right = {}
    for name in ("train", "gvalign"):
        rows = run.ends[1, name]["heads.0.weight"][:7]
        answers = (normalize(drawn, dim=-1) @ normalize(rows, dim=-1).T).argmax(-1)
        right[name] = float((answers == torch.arange(7)).float().mean())
    assert right["gvalign"] > right["train"] + 0.02


def test_a_class_without_images_is_left_out():
    run = Ends(Finetune, memory=0)
    before, after = run.ends[1, "train"], run.ends[1, "gvalign"]
    rows = [normalize(weights["heads.0.weight"][:7], dim=1) for weights in (before, after)]
    torch.testing.assert_close(rows[0][:4], rows[1][:4], rtol=0, atol=1e-6)
    assert (rows[0][4:] - rows[1][4:]).abs().max() > 1e-3
    assert after["heads.0.weight"].isfinite().all()


def test_it_refuses_linear_heads_and_tells_the_way_out_of_few_images():
    with pytest.raises(UserError, match="unit sphere"):
        toy.train(toy.make(Replay, head="linear", rebalance=GVAlign()), toy.stream().train_stream[:1])
    with pytest.raises(UserError, match="shrinkage"):
        Ends(count=1, stage=GVAlign(shrinkage=0.0))
