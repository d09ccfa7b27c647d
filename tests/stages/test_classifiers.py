"""Stages that give frozen features another classifier: what moves, and that the answer is the formula's."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import toy
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch.nn.functional import normalize

from incrlt.errors import UserError
from incrlt.experts.shike import SHIKE
from incrlt.experts.single import Single
from incrlt.losses.norms import tau_normalised
from incrlt.plugins.features import features_of
from incrlt.stages.balanced_head import BalancedHead
from incrlt.stages.crt import CRT
from incrlt.stages.lda import LDA
from incrlt.stages.tau_norm import TauNorm
from incrlt.strategies import LUCIR, Replay


class Ends:
    """Weights at the end of each stage of the last experience."""

    def __init__(self, stage, cls=Replay, count=2, **options):
        self.ends, self.names = {}, []
        self.strategy = toy.make(cls, rebalance=stage, **options)
        self.strategy.on_epoch_end = self.note
        torch.manual_seed(1)
        toy.train(self.strategy, toy.stream().train_stream[:count])
        self.model = self.strategy.model.eval()

    def note(self, strategy):
        self.ends[strategy.stage.name] = toy.weights(strategy.model)
        self.names.append((strategy.experience_index, strategy.stage.name))

    @property
    def moved(self):
        (name,) = self.ends.keys() - {"train", "classifier"}
        before = "classifier" if "classifier" in self.ends else "train"
        return toy.changed(self.ends[before], self.ends[name])


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


# ---------------------------------------------------------------------------- tau-normalisation


@pytest.mark.parametrize("drop_bias", [True, False])
@pytest.mark.parametrize("optimizer", [None, adamw])
def test_tau_norm_answers_as_the_formula_and_keeps_rows(drop_bias, optimizer):
    run = Ends(TauNorm(tau=0.7, drop_bias=drop_bias), head="linear", optimizer=optimizer)
    assert run.moved == {"heads.0.class_scale"} | ({"heads.0.bias"} if drop_bias else set())
    assert run.names.count((1, "tau_norm")) == 1
    head, x = run.model.heads[0], torch.rand(6, 1, 8, 8)
    with torch.no_grad():
        features, answer = run.model.extract(x)[0], run.model.forward_all(x).logits
    rows, bias = head.weight[:7].detach(), run.ends["train"]["heads.0.bias"][:7]
    expected = features @ tau_normalised(rows, 0.7).T
    if not drop_bias:
        expected = expected + bias * rows.norm(dim=1) ** -0.7
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)


def test_tau_norm_means_nothing_to_cosine_heads():
    with pytest.raises(UserError, match=r"linear"):
        Ends(TauNorm())


# ---------------------------------------------------------------------------- cRT


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_crt_trains_all_rows_of_the_head_alone(head):
    run = Ends(CRT(epochs=2), head=head)
    assert run.moved == {"heads.0.weight"} | ({"heads.0.bias"} if head == "linear" else set())
    before, after = (run.ends[name]["heads.0.weight"] for name in ("train", "crt"))
    assert (before != after).any(1).tolist() == [True] * 7 + [False] * 9


def test_crt_forgets_the_rows_of_the_first_stage_unless_told_otherwise():
    """At a rate of almost nothing the stage leaves what it started from."""
    kept = Ends(CRT(epochs=1, lr=1e-12, restart=False))
    torch.testing.assert_close(kept.ends["train"]["heads.0.weight"], kept.ends["crt"]["heads.0.weight"])
    anew = Ends(CRT(epochs=1, lr=1e-12))
    before, after = (normalize(anew.ends[name]["heads.0.weight"][:7]) for name in ("train", "crt"))
    assert (before * after).sum(1).abs().max() < 0.95


def test_crt_learns_the_classes():
    strategy = toy.make(Replay, rebalance=CRT(epochs=30), train_epochs=16, head="linear")
    stream = toy.stream()
    torch.manual_seed(1)
    assert toy.train(strategy, stream.train_stream[:1], stream.test_stream[:1]) > 0.8


# ---------------------------------------------------------------------------- the analytic head


def solution(features, labels, classes, ridge, balanced):
    """Weighted ridge regression as least squares on an augmented system, by numpy."""
    counts = np.bincount(labels, minlength=classes)
    inverse = 1 / np.maximum(counts, 1)
    weights = inverse * classes / inverse.sum() if balanced else np.ones(classes)
    root = np.sqrt(weights[labels])[:, None]
    system = np.concatenate([root * features, np.sqrt(ridge) * np.eye(features.shape[1])])
    targets = np.concatenate([root * np.eye(classes)[labels], np.zeros((features.shape[1], classes))])
    return np.linalg.lstsq(system, targets, rcond=None)[0]


@pytest.mark.parametrize(
    ("head", "balanced", "cls"),
    [("linear", True, Replay), ("cosine", True, LUCIR), ("linear", False, Replay)],
)
@pytest.mark.parametrize("num_experts", [1, 2])
def test_the_computed_head_decides_as_least_squares(head, balanced, cls, num_experts):
    run = Ends(
        BalancedHead(ridge=0.3, balanced=balanced), cls, head=head, experts=Single(num_experts=num_experts)
    )
    assert {name.split(".")[2] for name in run.moved} <= {"weight", "bias", "class_scale"}
    features, ids = features_of(run.strategy, run.strategy.stream_dataset)
    labels = run.model.positions(ids).numpy()
    assert np.bincount(labels).tolist() == [5] * 4 + [24] * 3, "exemplars of old classes, all of the new ones"
    x = torch.rand(40, 1, 8, 8)
    with torch.no_grad():
        output, units = run.model.forward_all(x), normalize(run.model.extract(x).double(), dim=-1)
    for k, part in enumerate(features.double().unflatten(1, (num_experts, -1)).unbind(1)):
        rows = solution(part.numpy(), labels, 7, 0.3, balanced)
        scores = units[k] @ torch.as_tensor(rows)
        answer = output.expert_logits[k].double()
        ratio = answer / scores  # a positive factor per image, the same for all classes
        big = scores.abs() > 0.05
        assert (ratio[big] > 0).all()
        scale = (answer * scores).sum(1, keepdim=True) / scores.square().sum(1, keepdim=True)
        torch.testing.assert_close(answer, scale * scores, rtol=1e-3, atol=1e-3 * float(answer.abs().max()))


def test_the_computed_head_is_the_second_one_where_there_are_two():
    experts = SHIKE(num_experts=2, classifier_epochs=1, classifier_warmup=0)
    run = Ends(BalancedHead(), experts=experts)
    assert run.moved == {f"second_heads.{k}.{name}" for k in (0, 1) for name in ("weight", "class_scale")}


def test_the_epoch_that_follows_changes_nothing():
    """Weights right after the solution and at the end of the stage, with an optimizer that decays weights."""
    found = []

    class Noting(BalancedHead):
        def _solve(self, strategy, network, num_old):
            super()._solve(strategy, network, num_old)
            found.append(toy.weights(network))

    run = Ends(Noting(), head="linear", optimizer=adamw)
    assert not toy.changed(found[-1], run.ends["balanced_head"])


@pytest.mark.parametrize("num_experts", [1, 2])
def test_the_computed_head_may_answer_beside_the_heads(num_experts):
    """The heads keep every bit, and the read-out is least squares on unit features."""
    run = Ends(BalancedHead(beside=True), experts=Single(num_experts=num_experts))
    assert run.moved == {"kept_balanced_head"}
    features, ids = features_of(run.strategy, run.strategy.stream_dataset)
    labels = run.model.positions(ids)
    counts = torch.bincount(labels, minlength=7).double()
    targets = torch.nn.functional.one_hot(labels, 7).double()
    weight = (1 / counts) * 7 / (1 / counts).sum()
    wanted = 0
    for unit in features.double().unflatten(1, (num_experts, -1)).unbind(1):
        weighted = weight[labels][:, None] * unit
        eye = 0.1 * torch.eye(unit.shape[1], dtype=torch.float64)
        wanted = (
            wanted + unit @ torch.linalg.solve(weighted.T @ unit + eye, weighted.T @ targets) / num_experts
        )
    images = torch.stack([run.strategy.stream_dataset.eval()[i][0] for i in range(12)])
    with torch.no_grad():
        output = run.model.forward_all(images)
    scores = run.strategy.rebalance.readouts(run.model, output)["analytic"]
    torch.testing.assert_close(scores, wanted[:12].float(), rtol=1e-3, atol=1e-4)
    seen, forward = [], run.strategy.forward
    run.strategy.forward = lambda: (forward(), seen.append(list(run.strategy.mb_scores)))[0]
    run.strategy.eval(toy.stream().test_stream[:1])
    assert seen[0] == ["cnn", "analytic"]


def test_the_computed_head_has_one_row_per_class():
    with pytest.raises(UserError, match="one row per class"):
        Ends(BalancedHead(), head="proxies", count=1)
    run = Ends(BalancedHead(beside=True), head="proxies", count=1)
    with torch.no_grad():
        output = run.model.forward_all(torch.rand(2, 1, 8, 8))
    assert run.strategy.rebalance.readouts(run.model, output)["analytic"].shape == (2, 4)


# ---------------------------------------------------------------------------- the discriminant


@pytest.mark.parametrize(("cls", "experts"), [(Replay, Single()), (LUCIR, Single(num_experts=2))])
def test_the_discriminant_answers_beside_the_heads_as_that_of_scikit_learn(cls, experts):
    """The heads keep every bit; a read-out on the features of all experts side by side joins the others."""
    run = Ends(LDA(shrinkage=0.25), cls, experts=experts)
    assert run.moved == {"kept_lda_rows", "kept_lda_offsets"}
    features, ids = features_of(run.strategy, run.strategy.stream_dataset)
    signed_roots = features.double().sign() * features.double().abs().sqrt()
    labels = run.model.positions(ids).numpy()
    assert np.bincount(labels).tolist() == [5] * 4 + [24] * 3, "exemplars of old classes, all of the new ones"
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2).fit(signed_roots.numpy(), labels)
    wanted = theirs.decision_function(signed_roots[:12].numpy()) - np.log(np.bincount(labels) / len(labels))
    images = torch.stack([run.strategy.stream_dataset.eval()[i][0] for i in range(12)])
    with torch.no_grad():
        output = run.model.forward_all(images)
    scores = run.strategy.rebalance.readouts(run.model, output)["lda"]
    np.testing.assert_allclose(1.25 * scores.numpy(), wanted, rtol=1e-3, atol=1e-2 * np.abs(wanted).max())
    seen, forward = [], run.strategy.forward
    run.strategy.forward = lambda: (forward(), seen.append(list(run.strategy.mb_scores)))[0]
    run.strategy.eval(toy.stream().test_stream[:1])
    assert seen[0] == [*run.strategy.readouts(output), "lda"]


@pytest.mark.parametrize(
    "experts", [Single(num_experts=2), SHIKE(num_experts=2, classifier_epochs=1, classifier_warmup=0)]
)
def test_each_expert_may_have_its_discriminant_in_the_place_of_its_head(experts):
    """Evaluation, prediction of the first experts, and a network built anew from its state answer as scikit-learn's."""
    run = Ends(LDA(shrinkage=0.25, power=0.4, beside=False), LUCIR, experts=experts)
    assert run.moved == set() and "kept_discriminant" in run.ends["lda"]
    features, ids = features_of(run.strategy, run.strategy.stream_dataset)
    labels = run.model.positions(ids).numpy()
    images = torch.stack([run.strategy.stream_dataset.eval()[i][0] for i in range(12)])
    with torch.no_grad():
        output = run.model.forward_all(images)
        heads = run.model.forward_all(images, rebalanced=False)
    assert run.strategy.rebalance.readouts(run.model, output) == {}
    for k, unit in enumerate(features.double().unflatten(1, (2, -1)).unbind(1)):
        powers = (unit.sign() * unit.abs() ** 0.4).numpy()
        theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2).fit(powers, labels)
        wanted = theirs.decision_function(powers[:12]) - np.log(np.bincount(labels) / len(labels))
        atol = 1e-2 * np.abs(wanted).max()
        np.testing.assert_allclose(1.25 * output.expert_logits[k].numpy(), wanted, rtol=1e-3, atol=atol)
        assert not torch.allclose(heads.expert_logits[k], output.expert_logits[k], atol=0.1)
    torch.testing.assert_close(run.model.predict(images).logits, output.logits)

    again = copy.deepcopy(run.model)
    again.forget("discriminant")
    with torch.no_grad():
        assert not torch.allclose(again.forward_all(images).logits, output.logits, atol=0.1)
        again.load_state(run.model.state())
        torch.testing.assert_close(again.eval().forward_all(images).logits, output.logits)


def test_a_discriminant_does_not_answer_while_the_next_experience_trains():
    """SHIKE's second heads are trained on what evaluation reads: that must be the heads."""
    seen = {}

    class Noting(LUCIR):
        def loss_terms(self, output, labels):
            seen[self.experience_index, self.stage.name] = self.model.recall("discriminant")
            return super().loss_terms(output, labels)

    experts = SHIKE(num_experts=2, classifier_epochs=1, classifier_warmup=0)
    run = Ends(LDA(beside=False), Noting, experts=experts)
    assert seen == {(0, "train"): None, (1, "train"): None}
    assert run.model.recall("discriminant").shape == (2, 7, 1 + run.model.heads[0].num_features)


def test_the_discriminant_answers_only_when_it_knows_all_classes():
    run = Ends(LDA(), experts=SHIKE(num_experts=2, classifier_epochs=1, classifier_warmup=0))
    with torch.no_grad():
        output = run.model.forward_all(torch.rand(2, 1, 8, 8))
    assert run.strategy.rebalance.readouts(run.model, output)["lda"].shape == (2, 7)
    fewer = replace(output, logits=output.logits[:, :4])
    assert run.strategy.rebalance.readouts(run.model, fewer) == {}
