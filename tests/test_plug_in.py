"""Plug-in use, both ways: our strategies in an ordinary Avalanche script, our plugins on Avalanche's Naive."""

from __future__ import annotations

import io

import incrlt._compat  # noqa: F401  (before avalanche)

import numpy as np
import pytest
import torch
import toy
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import InteractiveLogger, TensorboardLogger, TextLogger
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    EWCPlugin,
    LRSchedulerPlugin,
    LwFPlugin,
    ReplayPlugin,
    SupervisedPlugin,
)
from avalanche.training.supervised import Naive
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR

from incrlt.plugins import ExemplarMemory, SchedulerFactory, multistep_with_warmup
from incrlt.plugins.confusion import ConfusionRecorder
from incrlt.strategies import LUCIR, Finetune, ICaRL, Replay

OURS = [(Finetune, 0), (Replay, 5), (ICaRL, 5), (LUCIR, 5)]
ours = pytest.mark.parametrize(("cls", "memory"), OURS, ids=[cls.name for cls, _ in OURS])
kinds = pytest.mark.parametrize("kind", toy.KINDS)


def loop(strategy, benchmark):
    """The loop of every Avalanche tutorial; stream accuracy after each experience, on its own classes and all."""
    found = []
    for t, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        found.append((toy.accuracy(strategy, benchmark.test_stream[t : t + 1]),
                      toy.accuracy(strategy, benchmark.test_stream[: t + 1])))  # fmt: skip
    return found


@kinds
@ours
def test_our_strategies_run_on_every_kind_of_benchmark(cls, memory, kind):
    strategy = toy.make(cls, memory=memory, train_epochs=6)
    torch.manual_seed(1)
    found = loop(strategy, toy.benchmark(kind))
    assert strategy.seen_classes == [label for part in toy.parts() for label in sorted(part)]
    assert strategy.fallback_reason is None, "batches are cut from tensors"
    assert found[0][1] > 0.6, "four classes, chance is 0.25"
    assert found[2][1] > 0.2, "ten classes, chance is 0.1"
    if cls is Finetune:
        assert found[2][0] > 0.8, "what came last is known best"
    else:
        assert found[2][1] > 0.4, "and the old is not forgotten"


@pytest.mark.parametrize("kind", toy.KINDS[:3])
@ours
def test_they_compose_with_plugins_and_loggers(cls, memory, kind, tmp_path, capsys):
    """EWC, a scheduler, early stopping and three loggers at once."""
    text = io.StringIO()
    stream = "train_stream/Task000" if kind == "nc" else "train_stream"
    model_and_rate = {"lr": 0.1}
    evaluator = EvaluationPlugin(
        accuracy_metrics(epoch=True, experience=True, stream=True),
        loss_metrics(minibatch=True, epoch=True),
        forgetting_metrics(experience=True),
        loggers=[InteractiveLogger(), TextLogger(text), TensorboardLogger(tmp_path)],
    )
    rates, epochs = [], []
    strategy = toy.make(
        cls,
        memory=memory,
        train_epochs=4,
        eval_every=1,
        evaluator=evaluator,
        plugins=[EWCPlugin(ewc_lambda=0.01), EarlyStoppingPlugin(patience=3, val_stream_name=stream)],
        **model_and_rate,
    )
    scheduler = MultiStepLR(strategy.optimizer, milestones=[2], gamma=0.1)
    strategy.plugins.insert(0, LRSchedulerPlugin(scheduler))
    strategy.on_epoch_end = lambda s: (rates.append(round(s.epoch_lr, 6)), epochs.append(s.experience_index))
    benchmark = toy.benchmark(kind)
    torch.manual_seed(1)
    for t, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, eval_streams=[benchmark.train_stream[: t + 1]])
        metrics = strategy.eval(benchmark.test_stream)
    (accuracy,) = [v for k, v in metrics.items() if k.startswith("Top1_Acc_Stream/eval_phase/test")]
    assert accuracy > (0.2 if cls is Finetune else 0.45), "one class in ten is chance"
    assert rates[: epochs.count(0)] == [0.1, 0.1, 0.01, 0.01][: epochs.count(0)]
    assert any(
        key.startswith("StreamForgetting") or key.startswith("ExperienceForgetting") for key in metrics
    )
    assert "Top1_Acc_Epoch" in text.getvalue()
    assert "Top1_Acc_Stream" in capsys.readouterr().out
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def weights_with(plugin, kind="nc", cls=Finetune, memory=0, epochs=3):
    """Final weights and accuracy on the first four classes after two experiences."""
    strategy = toy.make(cls, memory=memory, train_epochs=epochs, plugins=[plugin] if plugin else [])
    benchmark = toy.benchmark(kind)
    torch.manual_seed(1)
    toy.train(strategy, benchmark.train_stream[:2])
    return toy.weights(strategy.model), toy.accuracy(strategy, benchmark.test_stream[:1]), strategy


@ours
@pytest.mark.parametrize(
    "plugin",
    [
        lambda: EWCPlugin(ewc_lambda=1.0),
        lambda: LwFPlugin(alpha=1.0, temperature=2.0),
        lambda: ReplayPlugin(mem_size=40),
    ],
    ids=["ewc", "lwf", "replay"],
)
def test_what_a_plugin_adds_reaches_the_weights(cls, memory, plugin):
    with_plugin, _, _ = weights_with(plugin(), cls=cls, memory=memory)
    without, _, _ = weights_with(None, cls=cls, memory=memory)
    assert "stem.conv.weight" in toy.changed(with_plugin, without)
    assert all(value.isfinite().all() for value in with_plugin.values())


@kinds
def test_replay_of_avalanche_keeps_old_classes_in_our_strategy(kind):
    _, with_replay, strategy = weights_with(ReplayPlugin(mem_size=60), kind, epochs=6)
    _, without, _ = weights_with(None, kind, epochs=6)
    assert strategy.fallback_reason is None
    assert with_replay > without + 0.3


def test_early_stopping_stops_an_experience_and_the_next_one_trains():
    epochs = []
    strategy = toy.make(
        Finetune, memory=0, lr=1e-8, train_epochs=6, eval_every=1,
        plugins=[EarlyStoppingPlugin(patience=2, val_stream_name="train_stream/Task000")],
    )  # fmt: skip
    strategy.on_epoch_end = lambda s: epochs.append(s.experience_index)
    benchmark = toy.benchmark("nc")
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, eval_streams=[benchmark.train_stream[:1]])
    assert 2 <= epochs.count(0) < 6
    assert epochs.count(1) >= 1


# ---------------------------------------------------------------------------- our plugins on Avalanche's Naive


class Labels(SupervisedPlugin):
    """Labels of all training batches, per experience."""

    def __init__(self):
        super().__init__()
        self.counts = []

    def before_training_exp(self, strategy, **kwargs):
        self.counts.append(torch.zeros(10, dtype=torch.long))

    def before_forward(self, strategy, **kwargs):
        self.counts[-1] += strategy.mb_y.bincount(minlength=10)


def naive(plugins, epochs=10, lr=0.5):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        train_mb_size=16,
        train_epochs=epochs,
        eval_mb_size=64,
        plugins=plugins,
        evaluator=toy.quiet(),
    )


@kinds
def test_our_memory_feeds_naive(kind):
    labels = Labels()
    benchmark = toy.benchmark(kind)
    with_memory = naive([ExemplarMemory(per_class=8), labels])
    toy.train(with_memory, benchmark.train_stream)
    first, second, third = toy.parts()
    expected = torch.zeros(3, 10, dtype=torch.long)
    expected[0, list(first)], expected[1, list(second)], expected[2, list(third)] = 240, 240, 240
    expected[1:, list(first)] = expected[2:, list(second)] = 80
    assert torch.equal(torch.stack(labels.counts), expected)
    without = naive([])
    toy.train(without, benchmark.train_stream)
    kept, lost = (toy.accuracy(s, benchmark.test_stream[:1]) for s in (with_memory, without))
    assert kept > lost + 0.3


@kinds
def test_our_recorder_agrees_with_the_accuracy_of_avalanche(kind):
    recorder, benchmark = ConfusionRecorder(), toy.benchmark(kind)
    strategy = naive([ExemplarMemory(per_class=8), recorder])
    expected = []
    for t, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        expected.append(toy.accuracy(strategy, benchmark.test_stream[: t + 1]))
    record = recorder.records()["cnn"]
    got = [np.trace(matrix) / matrix.sum() for matrix in record.confusions]
    assert [matrix.sum() for matrix in record.confusions] == [40, 70, 100]
    assert got == pytest.approx(expected), "Naive never answers a class it has not seen here"
    assert recorder.class_ids == [label for part in toy.parts() for label in sorted(part)]
    assert list(record.experience_of_class) == [0] * 4 + [1] * 3 + [2] * 3
    assert list(record.images_of_class) == [24] * 10


@kinds
@ours
def test_our_recorder_agrees_with_avalanche_in_our_strategies(cls, memory, kind):
    recorder, benchmark = ConfusionRecorder(), toy.benchmark(kind)
    strategy = toy.make(cls, memory=memory, plugins=[recorder])
    expected = [found for _, found in loop(strategy, benchmark)]
    records = recorder.records()
    assert set(records) == ({"cnn", "nme"} if cls in (ICaRL, LUCIR) else {"cnn"})
    record = records["nme" if cls is ICaRL else "cnn"]
    assert [np.trace(m) / m.sum() for m in record.confusions] == pytest.approx(expected)


def test_our_recorder_leaves_out_classes_yet_to_come_and_recounts():
    recorder, benchmark = ConfusionRecorder(), toy.benchmark("nc")
    strategy = naive([recorder])
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    strategy.eval(benchmark.test_stream)
    (matrix,) = recorder.records()["cnn"].confusions
    assert matrix.shape == (4, 4)
    assert matrix.sum(1).tolist() == [10] * 4


def test_an_evaluation_inside_training_is_replaced_by_the_one_after_it():
    recorder, benchmark = ConfusionRecorder(), toy.benchmark("nc")
    strategy = toy.make(ICaRL, plugins=[recorder], eval_every=1)
    for t, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, eval_streams=[benchmark.train_stream[:1]])
        strategy.eval(benchmark.test_stream[: t + 1])
    for record in recorder.records().values():
        assert [int(matrix.sum()) for matrix in record.confusions] == [40, 70, 100]


@kinds
def test_our_scheduler_starts_anew_on_naive(kind):
    rates = []
    spy = SupervisedPlugin()
    spy.before_training_epoch = lambda strategy, **kwargs: rates.append(
        strategy.optimizer.param_groups[0]["lr"]
    )
    schedule = SchedulerFactory(multistep_with_warmup([0.75], gamma=0.1, warmup_epochs=2))
    toy.train(naive([schedule, spy], epochs=4, lr=0.4), toy.benchmark(kind).train_stream)
    assert rates == pytest.approx([0.2, 0.4, 0.4, 0.04] * 3)
