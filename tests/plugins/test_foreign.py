"""Our network, benchmark, memory and recorders in strategies of Avalanche's own, and its feature plugins in ours."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import toy
from avalanche.training.plugins import FeatureDistillationPlugin, LFLPlugin, SupervisedPlugin
from avalanche.training.supervised import DER, EWC, ICaRL, LwF, Naive, Replay

from incrlt.errors import UserError
from incrlt.plugins import EvaluationRecorder, ExemplarMemory, RoutingRecorder
from incrlt.strategies import Finetune

OWN = {
    "Naive": (Naive, {}),
    "Replay": (Replay, {"mem_size": 20}),
    "EWC": (EWC, {"ewc_lambda": 0.1}),
    "LwF": (LwF, {"alpha": 1.0, "temperature": 2.0}),
    "DER": (DER, {"mem_size": 20}),
    "ICaRL": (ICaRL, {"memory_size": 20, "buffer_transform": None, "fixed_memory": True}),
}


def built(name, plugins):
    kind, settings = OWN[name]
    model = toy.network("linear")
    model.grow(range(10))
    settings = dict(
        settings, train_mb_size=32, train_epochs=1, eval_mb_size=64, plugins=plugins, evaluator=toy.quiet()
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if kind is ICaRL:
        extractor = torch.nn.Sequential(model.stem, model.branches[0])
        classifier = torch.nn.Linear(model.branches[0].num_features, 10)
        return ICaRL(feature_extractor=extractor, classifier=classifier, optimizer=optimizer, **settings)
    return kind(model=model, optimizer=optimizer, criterion=torch.nn.CrossEntropyLoss(), **settings)


@pytest.mark.parametrize("name", OWN)
def test_a_strategy_of_avalanche_trains_our_network_and_is_recorded(name):
    recorder, memory = EvaluationRecorder(), ExemplarMemory(per_class=3)
    strategy = built(name, [memory, recorder, RoutingRecorder()])
    stream = toy.stream()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Call to deprecated function")
        toy.train(strategy, stream.train_stream[:1])
        strategy.eval(stream.test_stream[:1])
        toy.train(strategy, stream.train_stream[1:2])
        strategy.eval(stream.test_stream[:1])
        found = toy.accuracy(strategy, stream.test_stream[:2])
    matrix = recorder.records()["cnn"].confusions[-1]
    assert matrix.sum() == 70 and memory.counts() == dict.fromkeys(range(7), 3)
    if name in ("Naive", "ICaRL"):  # others may answer with a class that has not arrived
        assert matrix.trace() / 70 >= found > 0


def test_a_network_without_classes_says_what_to_do():
    """Before: IndexError, target 2 is out of bounds."""
    model = toy.network("linear")
    strategy = Naive(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), evaluator=toy.quiet()
    )
    with pytest.raises(UserError, match=r"knows no classes yet.*network\.grow\(range"):
        strategy.train(toy.stream().train_stream[0])


class LFLPenalty(LFLPlugin):
    """Learning without freezing the head, which is to learn new classes."""

    def before_training(self, strategy, **kwargs):
        """Any model with get_features will do."""

    def after_training_exp(self, strategy, **kwargs):
        """Keep the model alone."""
        self.prev_model = copy.deepcopy(strategy.model).requires_grad_(False)


class Added(SupervisedPlugin):
    """What a plugin before it has added to the loss, and what that should be."""

    def __init__(self, plugin, wanted):
        super().__init__()
        self.plugin, self.wanted, self.found = plugin, wanted, []

    def before_backward(self, strategy, **kwargs):
        old = self.plugin.prev_model
        if old is not None:
            logits = strategy.mb_out.expert_logits[0]
            plain = torch.nn.functional.cross_entropy(logits, strategy.positions(strategy.mb_y))
            features = [model.get_features(strategy.mb_x) for model in (strategy.model, old)]
            self.found.append(
                (float((strategy.loss - plain).detach()), float(self.wanted(*features).detach()))
            )


def cosine_distance(new, old):
    return 1 - torch.nn.functional.cosine_similarity(new, old).mean()


@pytest.mark.parametrize(
    ("plugin", "wanted"),
    [
        (FeatureDistillationPlugin(alpha=1.0), cosine_distance),
        (LFLPenalty(1.0), torch.nn.functional.mse_loss),
    ],
)
def test_feature_plugins_train_an_expert_network(plugin, wanted):
    added = Added(plugin, wanted)
    strategy = toy.make(Finetune, memory=0, plugins=[plugin, added], train_epochs=1)
    toy.train(strategy, toy.stream().train_stream[:2])
    assert len(added.found) == 3
    assert all(value == pytest.approx(right, abs=1e-4) for value, right in added.found)
    assert added.found[-1][1] > 1e-5


def test_lfl_itself_is_refused_before_training():
    strategy = toy.make(Finetune, memory=0, plugins=[LFLPlugin(0.1)], train_epochs=1)
    with pytest.raises(NotImplementedError, match="get_features"):
        strategy.train(toy.stream().train_stream[0])
