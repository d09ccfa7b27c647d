"""What plugins may write to a strategy, one row each: used, or refused in words; docs/avalanche.md has the table."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import toy
from avalanche.models import SimpleMLP
from avalanche.training.plugins import SupervisedPlugin
from torch.nn import CrossEntropyLoss
from torch.utils.data import DataLoader

from incrlt.errors import UserError
from incrlt.plugins import ConfusionRecorder, EvaluationRecorder, cosine
from incrlt.strategies import LUCIR, Finetune

IMAGES = 4 * 24


class Write(SupervisedPlugin):
    """Calls a function in one hook."""

    def __init__(self, hook, write):
        super().__init__()
        setattr(self, hook, lambda strategy, **kwargs: write(strategy))


class Watch(SupervisedPlugin):
    """What the step was made of, seen after all other plugins."""

    def __init__(self):
        super().__init__()
        self.losses, self.features, self.gradients, self.images, self.epochs = [], [], [], [], []
        self.labels = set()

    def before_backward(self, strategy, **kwargs):
        logits = strategy.mb_out.expert_logits[0]
        wanted = torch.nn.functional.cross_entropy(logits, strategy.positions(strategy.mb_y))
        self.losses.append((strategy.loss.item(), wanted.item()))
        self.features.append(strategy.mb_out.features[0].detach())

    def after_backward(self, strategy, **kwargs):
        self.gradients.append(
            sum(float(p.grad.abs().sum()) for p in strategy.model.parameters() if p.grad is not None)
        )

    def after_training_iteration(self, strategy, **kwargs):
        self.images.append(len(strategy.mb_x))
        self.labels |= set(strategy.mb_y.tolist())

    def after_training_epoch(self, strategy, **kwargs):
        self.epochs.append(strategy.epoch_images)


def trained(kind, hook, write, epochs=1):
    """Train the first experience; returns the strategy, what was seen, and which parameters of the backbone moved."""
    watch = Watch()
    strategy = toy.make(kind, memory=0, plugins=[Write(hook, write), watch], train_epochs=epochs)
    before = toy.weights(strategy.model)
    strategy.train(toy.stream().train_stream[0])
    names = {name for name, _ in strategy.model.named_parameters() if not name.startswith("heads.")}
    now = toy.weights(strategy.model)
    return strategy, watch, {name for name in names if not torch.equal(before[name], now[name])}


def black(strategy):
    strategy.mbatch[0] = torch.zeros_like(strategy.mbatch[0])


def one_class(strategy):
    strategy.mbatch[1] = torch.ones_like(strategy.mbatch[1])


def add_seven(strategy):
    strategy.loss = strategy.loss + 7


def no_loss(strategy):
    strategy.loss = strategy.loss * 0


def half(strategy):
    strategy.adapted_dataset = strategy.adapted_dataset.subset(list(range(0, IMAGES, 2)))


def ten_images(strategy):
    data = strategy.experience.dataset.train().subset(list(range(10)))
    strategy.dataloader = DataLoader(data, batch_size=5, collate_fn=data.collate_fn)


def rate_of_zero(strategy):
    for group in strategy.optimizer.param_groups:
        group["lr"] = 0.0


def another_optimizer(strategy):
    strategy.optimizer = torch.optim.SGD(strategy.model.parameters(), lr=0.0)


def no_gradients(strategy):
    for parameter in strategy.model.parameters():
        parameter.grad = None


def second_experience(strategy):
    strategy.experience = toy.stream().train_stream[1]


USED = [
    ("mbatch: images", "before_forward", black, lambda s, w, moved: all(bool((f == f[0]).all()) for f in w.features)),
    ("mbatch: labels", "before_forward", one_class,
     lambda s, w, moved: w.labels == {1} and w.losses[0][0] == pytest.approx(w.losses[0][1])),
    ("loss, added", "after_forward", add_seven,
     lambda s, w, moved: w.losses[0][0] == pytest.approx(w.losses[0][1] + 7)),
    ("loss, replaced", "before_backward", no_loss, lambda s, w, moved: w.gradients == [0.0] * 3),
    ("adapted_dataset", "after_train_dataset_adaptation", half,
     lambda s, w, moved: w.epochs == [IMAGES // 2] and int(s.class_counts.sum()) == IMAGES // 2),
    ("dataloader, per experience", "before_training_exp", ten_images,
     lambda s, w, moved: w.images == [5, 5] and int(s.class_counts.sum()) == 10),
    ("dataloader, per epoch", "before_training_epoch", ten_images, lambda s, w, moved: w.images == [5, 5]),
    ("optimizer.param_groups", "before_training_epoch", rate_of_zero, lambda s, w, moved: not moved),
    ("optimizer", "before_training_epoch", another_optimizer,
     lambda s, w, moved: not moved and s.optimizer.param_groups[0]["lr"] == 0.0),
    ("gradients", "after_backward", no_gradients, lambda s, w, moved: not moved),
    ("experience", "before_train_dataset_adaptation", second_experience,
     lambda s, w, moved: s.seen_classes == [4, 5, 6] and w.epochs == [72]),
    ("train_epochs", "before_training_exp", lambda s: setattr(s, "train_epochs", 2),
     lambda s, w, moved: w.epochs == [IMAGES] * 2),
    ("train_mb_size", "before_train_dataset_adaptation", lambda s: setattr(s, "train_mb_size", IMAGES),
     lambda s, w, moved: w.images == [IMAGES]),
]  # fmt: skip


@pytest.mark.parametrize("kind", [Finetune, LUCIR])
@pytest.mark.parametrize(("hook", "write", "seen"), [row[1:] for row in USED], ids=[row[0] for row in USED])
def test_what_is_written_is_used(kind, hook, write, seen):
    assert not seen(*trained(kind, hook, lambda strategy: None))
    assert seen(*trained(kind, hook, write))


@pytest.mark.parametrize("kind", [Finetune, LUCIR])
def test_a_stop_ends_the_stage(kind):
    _, watch, _ = trained(kind, "after_training_epoch", lambda s: s.stop_training(), epochs=3)
    assert watch.epochs == [IMAGES]


def another_model(strategy):
    strategy.model = copy.deepcopy(strategy.model)


def foreign_optimizer(strategy):
    strategy.optimizer = torch.optim.SGD(toy.network().parameters(), lr=0.1)


def another_criterion(strategy):
    strategy._criterion = CrossEntropyLoss(label_smoothing=0.1)


def smoother_criterion(strategy):
    strategy._criterion.label_smoothing = 0.1


REFUSED = [
    ("model", "before_training_epoch", another_model, "put another model"),
    ("criterion", "before_training_exp", another_criterion, "trains on the loss of its expert method"),
    ("criterion, in place", "before_training_exp", smoother_criterion, "trains on the loss of its expert method"),
    ("optimizer of another model", "before_training_exp", foreign_optimizer, "no parameter of the model"),
]  # fmt: skip


@pytest.mark.parametrize("kind", [Finetune, LUCIR])
@pytest.mark.parametrize(
    ("hook", "write", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_would_not_be_used_is_refused(kind, hook, write, words):
    with pytest.raises(UserError, match=words):
        trained(kind, hook, write)


def test_with_a_schedule_the_rate_at_the_start_of_an_experience_is_the_schedules():
    """A rate that a plugin left in the optimizer lasts until then, and without a schedule for ever."""
    rates = []
    for schedule, expected in ((cosine(), 0.1), (None, 0.0)):
        watch = Write("before_training_epoch", lambda s: rates.append(s.optimizer.param_groups[0]["lr"]))
        plugins = [watch, Write("after_training_exp", rate_of_zero)]
        strategy = toy.make(Finetune, memory=0, schedule=schedule, plugins=plugins, train_epochs=1)
        toy.train(strategy, toy.stream().train_stream[:2])
        assert rates[-2:] == [pytest.approx(0.1), pytest.approx(expected)]


class Counting(SupervisedPlugin):
    """Counts the epochs it is called in."""

    epochs = 0

    def after_training_epoch(self, strategy, **kwargs):
        self.epochs += 1


def test_a_plugin_that_comes_later_is_called_and_one_that_leaves_is_not():
    counting = Counting()
    strategy = toy.make(Finetune, memory=0, train_epochs=2)
    strategy.plugins.append(counting)
    strategy.train(toy.stream().train_stream[0])
    assert counting.epochs == 2
    strategy.plugins.remove(counting)
    strategy.train(toy.stream().train_stream[1])
    assert counting.epochs == 2


def test_the_rate_of_evaluation_is_not_read_again():
    """As in Avalanche, whose periodic evaluation is a plugin that the constructor makes."""
    evaluated = []
    watch = Write("before_eval", lambda s: evaluated.append(1))
    for wanted, value in ((-1, 1), (1, -1)):
        strategy = toy.make(Finetune, memory=0, train_epochs=2, eval_every=wanted, plugins=[watch])
        strategy.eval_every = value
        evaluated.clear()
        strategy.train(toy.stream().train_stream[0], eval_streams=[toy.stream().test_stream[:1]])
        assert bool(evaluated) == (wanted == 1)


def test_the_batch_size_of_evaluation_is_used():
    sizes = []
    watch = Write("after_eval_iteration", lambda s: sizes.append(len(s.mb_y)))
    strategy = toy.make(Finetune, memory=0, train_epochs=1, plugins=[watch])
    strategy.train(toy.stream().train_stream[0])
    strategy.eval_mb_size = 25
    strategy.eval(toy.stream().test_stream[:1])
    assert sizes == [25, 15]


@pytest.mark.parametrize("hook", ["before_training_exp", "before_training_epoch", "before_eval"])
def test_another_device_is_refused(hook):
    """Before: batches went there and the network stayed, an error of PyTorch's."""
    elsewhere = Write(hook, lambda s: setattr(s, "device", torch.device("meta")))
    strategy = toy.make(Finetune, memory=0, train_epochs=1, plugins=[elsewhere], fast_data=False)
    with pytest.raises(UserError, match="device is meta, and the strategy was made for cpu"):
        strategy.train(toy.stream().train_stream[0])
        strategy.eval(toy.stream().test_stream[:1])


def foreign(plugin):
    model = SimpleMLP(num_classes=10, input_size=64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Finetune(
        model=model, optimizer=optimizer, plugins=[plugin], train_mb_size=32, evaluator=toy.quiet()
    )


def test_a_foreign_models_criterion_is_followed():
    """A criterion of zero moves nothing."""
    for criterion, moves in ((CrossEntropyLoss(), True), (lambda logits, labels: logits.sum() * 0, False)):
        strategy = foreign(
            Write("before_training_epoch", lambda s, own=criterion: setattr(s, "_criterion", own))
        )
        before = toy.weights(strategy.model)
        strategy.train(toy.stream().train_stream[0])
        assert bool(toy.changed(before, toy.weights(strategy.model))) == moves


def test_a_foreign_model_is_followed():
    other = SimpleMLP(num_classes=10, input_size=64)
    calls = []
    other.register_forward_hook(lambda *_: calls.append(1))
    strategy = foreign(Write("before_training_epoch", lambda s: setattr(s, "model", other)))
    strategy.train(toy.stream().train_stream[0])
    assert len(calls) == 3


def first_class(strategy):
    strategy.mb_output = torch.nn.functional.one_hot(torch.zeros_like(strategy.mb_y), 4).float()


def seen_in_evaluation(kind, hook, write):
    recorder = EvaluationRecorder()
    strategy = toy.make(
        kind, plugins=[Write(hook, write), recorder], train_epochs=1, memory=5 * (kind is LUCIR)
    )
    strategy.train(toy.stream().train_stream[0])
    found = toy.accuracy(strategy, toy.stream().test_stream[:1])
    return found, recorder.records()["cnn"].confusions[0], recorder


@pytest.mark.parametrize("kind", [Finetune, LUCIR])
def test_recorders_see_what_avalanches_metrics_see_in_evaluation(kind):
    """Before: the recorder counted the network's own answers, Avalanche's accuracy the changed ones."""
    found, matrix, recorder = seen_in_evaluation(kind, "after_eval_forward", first_class)
    assert found == 0.25 and matrix[:, 0].tolist() == [10] * 4
    assert set(recorder.answers["predicted_cnn"].tolist()) == {0}
    found, matrix, _ = seen_in_evaluation(kind, "before_eval_forward", black)
    assert found == 0.25 and sorted(matrix.sum(0).tolist()) == [0, 0, 0, 40]


def test_a_network_that_knew_other_classes_in_another_order_is_counted_by_label():
    """Before: columns of read-outs stood in the network's order, and were counted in the recorder's."""
    recorder = ConfusionRecorder()
    recorder.class_ids = [1, 3]
    scores = torch.tensor([[0.0, 9.0, 1.0], [9.0, 5.0, 0.0]])  # labels 3, 7, 1
    strategy = SimpleNamespace(
        model=SimpleNamespace(class_ids=[3, 7, 1]), device=torch.device("cpu"), mb_y=torch.tensor([1, 3]),
        mb_scores={"cnn": scores, "nme": scores}, mb_output=torch.tensor([[0, 1, 0, 0.0], [0, 0, 0, 9.0]]),
    )  # fmt: skip
    recorder.before_eval(strategy)
    recorder.after_eval_iteration(strategy)
    for counts in recorder._counting.values():
        assert counts.table().tolist() == [[1, 0], [0, 1]]


def test_loss_of_images_of_classes_yet_to_come_is_of_ordinary_size():
    """Before: near 1,000 per image of an unseen class, 300 for a test stream."""
    network = toy.network()
    network.grow([2, 0])
    logits = network.to_labels(torch.tensor([[1.0, 3.0], [2.0, 0.0]]), 4)
    found = network.with_floor(logits, torch.tensor([3, 2]))
    assert found[0].tolist() == [3.0, -1000.0, 1.0, 1.0]
    assert torch.equal(found[1], logits[1])
    losses = []
    strategy = toy.make(Finetune, memory=0, train_epochs=1)
    strategy.plugins.append(Write("after_eval_iteration", lambda s: losses.append(float(s.loss))))
    strategy.train(toy.stream().train_stream[0])
    strategy.eval(toy.stream().test_stream)
    assert len(losses) == 3 and max(losses) < 20
