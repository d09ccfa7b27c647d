"""Experts that answer as one in another way than by their mean: one function, wherever one answer is made."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import toy

import incrlt.models
from incrlt.checkpoint import CheckpointFolder
from incrlt.errors import UserError
from incrlt.experts.base import ExpertMethod
from incrlt.experts.ride import RIDE
from incrlt.losses import cross_entropy, routing_targets, running_means
from incrlt.models import Layout, build
from incrlt.models.inference import calibrate, early_exit
from incrlt.models.layout import Combination, layout_of
from incrlt.models.named import class_named, combine_of
from incrlt.models.router import Router
from incrlt.plugins.evaluation import EvaluationRecorder
from incrlt.plugins.routing import RoutingRecorder
from incrlt.stages.expert_assignment import ExpertAssignment
from incrlt.strategies import LUCIR


@dataclass(frozen=True)
class Weighted(ExpertMethod):
    """Experts for many, medium and few images, weighted: what a user writes in one file (Zhang et al. 2022, SADE)."""

    name = "weighted"

    decay: float = 4.0

    @property
    def layout(self):
        return Layout(num_experts=3)

    def loss(self, context, output, labels):
        return {"cross_entropy": cross_entropy(output.expert_logits, labels)}

    def combine(self, expert_logits):
        shares = self.decay ** -torch.arange(len(expert_logits), dtype=expert_logits.dtype)
        return torch.einsum("k,kbc->bc", shares / shares.sum(), expert_logits)


def _by_hand(logits, k):
    """With decay 4: experts weigh 16 : 4 : 1."""
    if k == 1:
        return logits[0]
    return (
        (16 * logits[0] + 4 * logits[1]) / 20 if k == 2 else (16 * logits[0] + 4 * logits[1] + logits[2]) / 21
    )


def _network(classes=6):
    torch.manual_seed(0)
    network = build("resnet8", layout=Weighted().layout, in_channels=1, width=4)
    network.grow(range(classes))
    network.router = Router(3, 16, top=3)
    for head in network.heads:
        head.scale.data.fill_(10)
    return network.eval()


def _images(count=24):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_first_k_experts_are_combined_by_the_same_function():
    logits = torch.randn(3, 5, 4)
    answers = running_means(logits, Weighted().combine)
    for k in (1, 2, 3):
        torch.testing.assert_close(answers[k - 1], _by_hand(logits, k))
    scores = torch.tensor([[1.0, 1, -1, 1, -1], [1, -1, 1, 1, -1]])
    answer, used = early_exit(logits, scores, 0.0, Weighted().combine)
    assert used.tolist() == [3, 2, 1, 3, 1]
    rows = [_by_hand(logits, k)[row] for row, k in enumerate(used.tolist())]
    torch.testing.assert_close(answer, torch.stack(rows))


def test_a_router_learns_where_the_combined_answer_is_wrong():
    logits = torch.tensor(
        [[[3.0, 0.0]], [[0.0, 5.0]], [[0.0, 9.0]]]
    )  # the mean of two is right, 12 : 5 is not yet
    labels = torch.tensor([1])
    assert routing_targets(logits, labels).tolist() == [[True], [False]]
    assert routing_targets(logits, labels, Weighted().combine).tolist() == [[False], [False]]
    logits[2, 0, 1] = 100
    assert routing_targets(logits, labels, Weighted().combine).tolist() == [[True], [True]]


def test_the_network_answers_by_it_and_the_output_tells_it():
    network = _network()
    output = network.forward_all(_images())
    torch.testing.assert_close(output.logits, _by_hand(output.expert_logits, 3))
    torch.testing.assert_close(network(_images()), output.logits)
    assert not torch.allclose(output.logits, output.expert_logits.mean(0), atol=1e-3)
    torch.testing.assert_close(output.combine(output.expert_logits[:2]), _by_hand(output.expert_logits, 2))


@pytest.mark.parametrize("smallest_gather", [0, 8, 1000])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.8, 1.0])
def test_routed_inference_is_everything_run_and_exited_early(share, smallest_gather):
    network, x = _network(), _images()
    output = network.forward_all(x)
    with torch.no_grad():
        scores = network.router(output.expert_logits, output.known_features, output.combine)
    threshold = scores.flatten().quantile(share).item()
    expected, used = early_exit(output.expert_logits, scores, threshold, output.combine)
    found = network.predict(x, threshold=threshold, smallest_gather=smallest_gather)
    assert torch.equal(found.experts_used, used)
    torch.testing.assert_close(found.logits, expected)


def test_calibration_sees_the_scores_that_prediction_will_see():
    network, x = _network(), _images(60)
    calibrate(network, [x[:30], x[30:]])
    used = network.predict(x, budget=1.5).experts_used.double().mean().item()
    assert 1.5 - 0.05 <= used <= 1.5 + 1e-9


def test_the_default_has_no_part_in_it():
    """Bytes of every method that averages stay, those of its layout too."""
    assert RIDE().layout.combination is None
    network = build("resnet8", layout=RIDE().layout)
    assert network.combination is None


def test_recorders_exits_and_a_saved_run_agree(tmp_path):
    """A whole run under LUCIR with a router; then the network as ``incrlt.models.load`` finds it."""
    recorder, routing = EvaluationRecorder(), RoutingRecorder()
    experts = Weighted(decay=3.0)
    strategy = toy.make(
        LUCIR, experts=experts, plugins=[recorder, routing], router=ExpertAssignment(epochs=1, batch_size=32)
    )
    stream = toy.stream()
    strategy.train(stream.train_stream[0])
    strategy.eval(stream.test_stream[:1])
    right_together = recorder.evaluations[0]["right"][:, 1, -1].sum().item()
    answers = recorder.answers
    assert right_together == (answers["labels"] == answers["predicted_cnn"]).sum().item()
    assert (routing.table.predictions[-1] == answers["predicted_cnn"].numpy()).all()
    CheckpointFolder(tmp_path / "checkpoints").save({"strategy": strategy.state_dict(trained=True)})
    loaded = incrlt.models.load(tmp_path)
    strategy.model.eval()
    assert torch.equal(loaded(_images()), strategy.model(_images()))
    logits = torch.randn(3, 2, 4)
    assert torch.equal(loaded.combine(logits), experts.combine(logits))
    assert not torch.equal(loaded.combine(logits), Weighted().combine(logits))  # its own decay


def test_a_model_of_another_combination_is_refused():
    model = toy.network(layout=Layout(num_experts=3))
    with pytest.raises(UserError, match="combination None for"):
        LUCIR(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), experts=Weighted())
    with pytest.raises(UserError, match=r"layout.combination .*Weighted.* this one None"):
        model.load_state(_network().state())


def test_a_layout_is_plain_data_there_and_back():
    for layout in (Weighted(decay=2.0).layout, RIDE().layout, Layout(2, shared="nothing")):
        assert layout_of(layout.plain()) == layout
    older = {name: value for name, value in RIDE().layout.plain().items() if name != "combination"}
    assert layout_of(older) == RIDE().layout


class _Inherits(Weighted):
    def combine(self, expert_logits):
        return expert_logits.amax(0)


def test_a_subclass_that_only_combines_otherwise_names_itself():
    assert _Inherits().layout.combination.method.endswith(":_Inherits")
    assert torch.equal(build("resnet8", layout=_Inherits().layout).combine(torch.eye(2)[None]), torch.eye(2))


def test_what_cannot_be_found_again_is_one_sentence():
    class Local(Weighted):
        def combine(self, expert_logits):
            return expert_logits[0]

    with pytest.raises(UserError, match="made inside a function"):
        _ = Local().layout
    with pytest.raises(UserError, match="was not found: No module named 'nowhere'"):
        combine_of(Combination("nowhere.mod:Method"))
    with pytest.raises(UserError, match=r"was not found: .*has no attribute"):
        combine_of(Combination("incrlt.experts.ride:Rude"))
    for name in ("os:system", "builtins:print"):
        with pytest.raises(UserError, match="not a class"):
            combine_of(Combination(name, {"command": "true"}))
    with pytest.raises(UserError, match="no expert method"):
        combine_of(Combination("subprocess:Popen", {"args": "true"}))
    with pytest.raises(UserError, match="does not take the settings"):
        combine_of(Combination("incrlt.experts.ride:RIDE", {"legs": 4}))
    for name in ("os", "a b:C", "x:y:z", "../a:B", 3):
        with pytest.raises(UserError, match="not of the form"):
            class_named(name, "the method")
