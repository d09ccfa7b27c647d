"""TCL as a method: the stored total, and the accuracy that the network keeps for it."""

from __future__ import annotations

import copy

import pytest
import torch
import toy

from incrlt.experts.tcl import ACCURACY, TCL
from incrlt.strategies import Finetune, Replay
from incrlt.types import LossContext, ModelOutput


class Accuracy:
    """In the place of a network."""

    def __init__(self, values):
        self.values = values

    def recall(self, name):
        return self.values


@pytest.mark.parametrize("name", ["tcl_a_c10", "tcl_c_negative_shift", "tcl_d_two_classes"])
def test_the_terms_sum_to_the_stored_total(golden, name):
    arrays = golden(name)
    logits = torch.as_tensor(arrays["logits"])
    network = Accuracy(torch.as_tensor(arrays["class_acc"]).clone())
    counts = torch.as_tensor(arrays["counts"]).double()
    context = LossContext(counts, 0, 0, 1, network=network)
    method = TCL(num_experts=len(logits))
    labels = torch.as_tensor(arrays["y"]).long()
    terms = method.loss(context, ModelOutput(logits.mean(0), logits), labels)
    assert list(terms) == ["balanced_softmax", "trust", "calibration"]
    total = len(logits) * sum(terms.values())
    assert float(total) == pytest.approx(float(arrays["total"]), rel=1e-9)
    right = logits.mean(0).argmax(-1) == labels
    for label in labels.unique():
        of_class = labels == label
        expected = 0.9 * arrays["class_acc"][label] + 0.1 * float(right[of_class].double().mean())
        assert float(network.values[label]) == pytest.approx(expected, rel=1e-9)


def test_parts_switch_off_and_one_expert_teaches_nobody():
    logits, labels = torch.randn(2, 4, 5), torch.tensor([0, 1, 2, 3])
    context = LossContext(torch.full((5,), 10), 0, 0, 1)
    output = ModelOutput(logits.mean(0), logits)
    assert set(TCL(num_experts=2, trust=0, calibration=0).loss(context, output, labels)) == {
        "balanced_softmax"
    }
    one = ModelOutput(logits[0], logits[:1])
    assert set(TCL(num_experts=1).loss(context, one, labels)) == {"balanced_softmax"}


def test_the_network_keeps_the_accuracy_as_classes_arrive():
    strategy = toy.make(Replay, experts=TCL(num_experts=2), train_epochs=4)
    stream = toy.stream().train_stream
    strategy.train(stream[0])
    first = strategy.model.recall(ACCURACY).clone()
    assert first.shape == (4,) and (first > 0).any()
    began = []
    strategy.begin_experience = lambda experience: began.append(strategy.model.recall(ACCURACY).clone())
    strategy.train(stream[1])
    assert torch.equal(began[0], torch.cat([first, torch.zeros(3)]))


def test_a_checkpoint_of_another_number_of_classes_brings_its_accuracy():
    strategy = toy.make(Finetune, experts=TCL(num_experts=2), memory=0)
    strategy.train(toy.stream().train_stream[0])
    state = copy.deepcopy(strategy.model.state())
    fresh = toy.network(layout=TCL(num_experts=2).layout)
    assert fresh.recall(ACCURACY) is None
    fresh.load_state(state)
    assert torch.equal(fresh.recall(ACCURACY), strategy.model.recall(ACCURACY))
    plain = toy.network(layout=TCL(num_experts=2).layout, seed=1)
    fresh.load_state(plain.state())
    assert fresh.recall(ACCURACY) is None, "what the state does not hold is not kept from before"
