"""What a user gives to a strategy is used or refused: arguments, and what plugins write during a step."""

from __future__ import annotations

import dataclasses

import incrlt._compat

import pytest
import torch
import toy
from avalanche.models import IncrementalClassifier, SimpleMLP
from torch import nn
from torch.nn import BCEWithLogitsLoss, CrossEntropyLoss

import incrlt.models
from incrlt.errors import UserError
from incrlt.experts.single import Single
from incrlt.models.layout import Layout
from incrlt.strategies import LUCIR, Finetune, Replay
from incrlt.training.compute import overwriting


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


@pytest.mark.parametrize(
    "criterion",
    [
        CrossEntropyLoss(weight=torch.ones(10)),
        CrossEntropyLoss(label_smoothing=0.1),
        CrossEntropyLoss(reduction="sum"),
        CrossEntropyLoss(ignore_index=3),
        BCEWithLogitsLoss(),
        lambda logits, labels: logits.sum(),
    ],
)
def test_a_criterion_that_an_expert_network_would_not_train_on_is_refused(criterion):
    with pytest.raises(UserError, match="trains on the loss of its expert method"):
        toy.make(Finetune, memory=0, criterion=criterion)
    toy.make(Finetune, memory=0, criterion=CrossEntropyLoss())  # what Avalanche's examples give


def test_a_foreign_model_trains_on_its_criterion():
    found = []

    def criterion(logits, labels):
        found.append(logits.shape)
        return torch.nn.functional.cross_entropy(logits, labels)

    model = SimpleMLP(num_classes=10, input_size=64)
    strategy = Finetune(model=model, optimizer=sgd(model), criterion=criterion, train_mb_size=32)
    strategy.train(toy.stream().train_stream[0])
    assert len(found) == 3


def test_experts_that_a_foreign_model_would_not_train_on_are_refused():
    model = SimpleMLP(num_classes=10, input_size=64)
    with pytest.raises(UserError, match="the loss of experts 'single' would do nothing"):
        Finetune(model=model, optimizer=sgd(model), experts=Single(objective="balanced_softmax"))


class Changing:
    """Writes to the strategy after the forward pass of training."""

    def __init__(self, change):
        self.change = change

    def after_forward(self, strategy, **kwargs):
        self.change(strategy)


def halve(strategy):
    strategy.mb_output = strategy.mb_output / 2


def halve_in_place(strategy):
    with torch.no_grad():
        strategy.mb_output /= 2


def halve_the_answer(strategy):
    strategy.mb_out = dataclasses.replace(strategy.mb_out, expert_logits=strategy.mb_out.expert_logits / 2)


@pytest.mark.parametrize("change", [halve, halve_in_place])
def test_logits_that_the_loss_would_not_see_are_refused(change):
    strategy = toy.make(Replay, plugins=[Changing(change)])
    with pytest.raises(UserError, match="a plugin changed mb_output"):
        strategy.train(toy.stream().train_stream[0])


def test_a_changed_answer_is_trained_on():
    """With half the logits, another first loss: cross entropy of them, by hand."""
    losses = []

    class Watch(Changing):
        def before_backward(self, strategy, **kwargs):
            logits = strategy.mb_out.expert_logits[0]
            wanted = torch.nn.functional.cross_entropy(logits, strategy.positions(strategy.mb_y))
            losses.append((float(strategy.loss.detach()), float(wanted.detach())))

    strategy = toy.make(Replay, plugins=[Watch(halve_the_answer)], train_epochs=1)
    strategy.train(toy.stream().train_stream[0])
    assert losses and all(found == pytest.approx(wanted, rel=1e-6) for found, wanted in losses)


def test_model_optimizer_and_criterion_by_position():
    """As most of Avalanche's examples write it."""
    model = toy.network()
    optimizer, criterion = sgd(model), CrossEntropyLoss()
    strategy = LUCIR(model, optimizer, criterion, less_forget=3.0, train_mb_size=32, evaluator=toy.quiet())
    assert (strategy.model, strategy.optimizer, strategy.less_forget) == (model, optimizer, 3.0)
    assert strategy._criterion is criterion
    strategy.train(toy.stream().train_stream[0])


def test_positions_that_say_too_much_are_refused():
    model = toy.network()
    with pytest.raises(UserError, match="takes model, optimizer, criterion by position"):
        LUCIR(model, sgd(model), CrossEntropyLoss(), 32)
    with pytest.raises(UserError, match="was given model by position and by name"):
        LUCIR(model, model=model, optimizer=sgd(model))


def test_the_last_step_of_a_stage_may_diverge_too():
    """The loss of each step was finite; what the last step made of the weights is evaluated by nobody."""
    evaluated = []

    class Poison(Changing):
        def after_update(self, strategy, **kwargs):
            if strategy.clock.train_exp_iterations == 2:  # the last of three steps
                with torch.no_grad():
                    strategy.model.stem.bn.running_var[1] = torch.inf

        def before_eval(self, strategy, **kwargs):
            evaluated.extend(["too late"] if strategy.clock.train_iterations else [])

        def after_training_epoch(self, strategy, **kwargs):
            evaluated.append("too late")

    strategy = toy.make(Replay, plugins=[Poison(lambda strategy: None)], train_epochs=1, eval_every=1)
    place = r"stem\.bn\.running_var of the model is not finite after experience 0, stage 'train', epoch 1"
    with pytest.raises(UserError, match=place):
        strategy.train(toy.stream().train_stream[0], eval_streams=[toy.stream().test_stream[:1]])
    assert not evaluated


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (lambda: incrlt.models.build("resnet8", in_channels=1, width=4),
         r"branches\.0.* of the ExpertNetwork has 4, with which PyTorch writes beyond its memory"),
        (lambda: nn.Sequential(nn.Conv2d(1, 16, 1, stride=2), nn.Flatten(), nn.Linear(256, 10)),
         "0 of the Sequential has 1"),
    ],
    ids=["network", "foreign"],
)  # fmt: skip
def test_channels_last_that_would_overwrite_memory_is_refused(model, sentence):
    """Aborted the process within sixteen steps: strided 1x1 convolutions of fewer than eight channels, on a CPU."""
    network = model()
    with pytest.raises(UserError, match=sentence):
        Finetune(model=network, optimizer=sgd(network), channels_last=True)
    Finetune(model=network, optimizer=sgd(network))


def test_channels_last_where_nothing_is_overwritten_trains():
    narrow = Layout(shared="nothing", shortcut="padding")  # without weights in its shortcuts
    assert overwriting(incrlt.models.build("resnet8", in_channels=1, width=4, layout=narrow)) is None
    network = incrlt.models.build("resnet8", in_channels=1, width=8)
    strategy = Finetune(model=network, optimizer=sgd(network), channels_last=True, train_mb_size=32)
    strategy.train(toy.stream().train_stream[0])
    assert network.stem.conv.weight.is_contiguous(memory_format=torch.channels_last)


class Inside(nn.Module):
    """A network in a module of one's own."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


@pytest.mark.parametrize(
    "wrap", [torch.compile, nn.DataParallel, nn.Sequential, Inside], ids=lambda wrap: wrap.__name__
)
def test_a_network_in_a_wrapper_is_refused(wrap):
    """Its heads never grew: the first loss had no class, or Avalanche trained a network that answered [B, 0]."""
    wrapped = wrap(toy.network())
    with pytest.raises(
        UserError, match=r"inside a \w+, and its heads could not grow there; give the bare network"
    ):
        Finetune(model=wrapped, optimizer=sgd(wrapped))


@pytest.mark.parametrize("wrap", [Inside, nn.DataParallel], ids=lambda wrap: wrap.__name__)
def test_a_growing_model_of_avalanches_grows_in_a_wrapper(wrap):
    model = nn.Sequential(nn.Flatten(), IncrementalClassifier(64, 2))
    wrapped = wrap(model)
    strategy = Finetune(model=wrapped, optimizer=sgd(wrapped), train_mb_size=32)
    toy.train(strategy, toy.stream().train_stream[:2])
    assert model[1].classifier.out_features == 7
    assert any(
        model[1].classifier.weight is p for group in strategy.optimizer.param_groups for p in group["params"]
    )
