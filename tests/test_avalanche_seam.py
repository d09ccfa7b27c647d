"""What the template relies on in Avalanche 0.6: names, signatures, and the order of its callbacks.

A new Avalanche that renames or reorders any of this fails here, by name, before it fails somewhere deep.
"""

from __future__ import annotations

import inspect

import incrlt._compat  # noqa: F401

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.utils.data import TensorDataset

# Method -> parameters after self. "**" stands for keyword arguments handed on.
METHODS = {
    "train": ["experiences", "eval_streams", "**"],
    "eval": ["exp_list", "**"],
    "_before_training_exp": ["**"],
    "_after_training_exp": ["**"],
    "_before_training_epoch": ["**"],
    "_after_training_epoch": ["**"],
    "_before_eval_exp": ["**"],
    "_train_exp": ["experience", "eval_streams", "**"],
    "_train_cleanup": [],
    "_eval_cleanup": [],
    "train_dataset_adaptation": ["**"],
    "eval_dataset_adaptation": ["**"],
    "make_train_dataloader": [
        "num_workers", "shuffle", "pin_memory", "persistent_workers", "drop_last", "**",
    ],
    "make_eval_dataloader": ["num_workers", "shuffle", "pin_memory", "persistent_workers", "**"],
    "model_adaptation": ["model"],
    "make_optimizer": ["reset_optimizer_state", "remove_params", "verbose_optimizer", "**"],
    "check_model_and_optimizer": ["reset_optimizer_state", "**"],
    "training_epoch": ["**"],
    "eval_epoch": ["**"],
    "criterion": [],
    "forward": [],
    "backward": [],
    "optimizer_step": [],
    "stop_training": [],
    "_unpack_minibatch": [],
}  # fmt: skip

CONSTRUCTOR = {
    "model", "optimizer", "criterion", "train_mb_size", "train_epochs", "eval_mb_size", "device", "plugins",
    "evaluator", "eval_every", "peval_mode",
}  # fmt: skip

# Attributes read or set outside Avalanche's own code.
ATTRIBUTES = {
    "experience", "adapted_dataset", "dataloader", "mbatch", "mb_output", "loss", "optimizer", "model",
    "plugins", "is_training", "is_eval", "clock", "device", "train_mb_size", "eval_mb_size", "train_epochs",
    "_criterion", "_stop_training", "_eval_streams", "current_eval_stream",
}  # fmt: skip

TRAIN_ITERATION = [
    "before_training_iteration",
    "before_forward",
    "after_forward",
    "before_backward",
    "after_backward",
    "before_update",
    "after_update",
    "after_training_iteration",
]
EVAL_ITERATION = [
    "before_eval_iteration",
    "before_eval_forward",
    "after_eval_forward",
    "after_eval_iteration",
]
ORDER_OF_TRAIN = [
    "before_training",
    "before_train_dataset_adaptation",
    "after_train_dataset_adaptation",
    "make_train_dataloader",  # before the model grows and before plugins may replace the loader
    "check_model_and_optimizer",
    "make_optimizer",  # once in a strategy's life, to start from a clean optimizer
    "model_adaptation",
    "make_optimizer",
    "before_training_exp",
    "before_training_epoch",
    *TRAIN_ITERATION,
    *TRAIN_ITERATION,
    "after_training_epoch",
    "before_training_epoch",
    *TRAIN_ITERATION,
    *TRAIN_ITERATION,
    "after_training_epoch",
    "after_training_exp",
    "after_training",
    "_train_cleanup",
]
ORDER_OF_EVAL = [
    "before_eval",
    "before_eval_dataset_adaptation",
    "after_eval_dataset_adaptation",
    "make_eval_dataloader",
    "model_adaptation",  # evaluation adapts the model too: why our heads must not grow then
    "before_eval_exp",
    *EVAL_ITERATION,
    "after_eval_exp",
    "after_eval",
    "_eval_cleanup",
]


def parameters(function) -> list[str]:
    marks = {inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.VAR_POSITIONAL: "*"}
    found = list(inspect.signature(function).parameters.values())[1:]
    return [marks.get(parameter.kind, parameter.name) for parameter in found]


@pytest.mark.parametrize(("method", "expected"), METHODS.items(), ids=METHODS.keys())
def test_overridden_methods_have_the_known_signature(method, expected):
    assert parameters(getattr(SupervisedTemplate, method)) == expected


def test_constructor_takes_the_known_keywords():
    signature = inspect.signature(SupervisedTemplate.__init__).parameters
    assert set(signature) - {"self", "kwargs"} >= CONSTRUCTOR
    assert all(signature[name].kind is inspect.Parameter.KEYWORD_ONLY for name in CONSTRUCTOR)


def test_minibatch_views_are_properties():
    for view in ("mb_x", "mb_y", "mb_task_id"):
        assert isinstance(inspect.getattr_static(SupervisedTemplate, view), property), view


class Trace(SupervisedPlugin):
    """Writes the name of every callback into ``calls``."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__()
        self.calls = calls


def note(name: str):
    def callback(self, strategy, *args, **kwargs):
        self.calls.append(name)

    return callback


CALLBACKS = [name for name in dir(SupervisedPlugin) if name.startswith(("before_", "after_"))]
for name in CALLBACKS:
    setattr(Trace, name, note(name))


def traced(name: str):
    def method(self, *args, **kwargs):
        self.calls.append(name)
        return getattr(super(TracedTemplate, self), name)(*args, **kwargs)

    return method


class TracedTemplate(SupervisedTemplate):
    """The stock template that notes when the methods which are no callbacks run."""

    calls: list[str]


SEAMS = (
    "make_train_dataloader", "make_eval_dataloader", "check_model_and_optimizer", "model_adaptation",
    "make_optimizer", "_train_cleanup", "_eval_cleanup",
)  # fmt: skip
for name in SEAMS:
    setattr(TracedTemplate, name, traced(name))


@pytest.fixture
def benchmark_of_two():
    torch.manual_seed(0)
    images, labels = torch.rand(16, 4), torch.arange(4).repeat_interleave(4)
    data = TensorDataset(images, labels)
    data.targets = labels.tolist()
    return nc_benchmark(data, data, 2, task_labels=False, fixed_class_order=[0, 1, 2, 3])


@pytest.fixture
def strategy():
    calls: list[str] = []
    model = nn.Linear(4, 4)
    built = TracedTemplate(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_mb_size=4,
        train_epochs=2,
        eval_mb_size=8,
        plugins=[Trace(calls)],
        evaluator=EvaluationPlugin(loggers=[]),
    )
    built.calls = calls
    return built


def test_callbacks_of_training_come_in_the_known_order(strategy, benchmark_of_two):
    strategy.train(benchmark_of_two.train_stream[0])
    assert strategy.calls == ORDER_OF_TRAIN


def test_callbacks_of_evaluation_come_in_the_known_order(strategy, benchmark_of_two):
    strategy.train(benchmark_of_two.train_stream[0])
    strategy.calls.clear()
    strategy.eval(benchmark_of_two.test_stream[:1])
    assert strategy.calls == ORDER_OF_EVAL


def test_attributes_are_there_before_and_after_training(strategy, benchmark_of_two):
    assert {name for name in ATTRIBUTES if not hasattr(strategy, name)} == set()
    strategy.train(benchmark_of_two.train_stream[0])
    assert {name for name in ATTRIBUTES if not hasattr(strategy, name)} == set()


def test_batches_are_lists_and_the_clock_is_the_last_plugin(strategy, benchmark_of_two):
    seen = []
    strategy.plugins[0].before_forward = lambda agent, **kwargs: seen.append(agent.mbatch)
    strategy.train(benchmark_of_two.train_stream[0])
    assert all(isinstance(batch, list) and len(batch) == 3 for batch in seen)  # images, labels, task labels
    assert type(strategy.plugins[-1]).__name__ == "Clock"


def test_added_losses_reach_the_gradient(strategy, benchmark_of_two):
    """Regularisers add to ``strategy.loss`` in before_backward: it is a tensor of shape [] or [1] by then."""
    shapes = []

    def add(agent, **kwargs):
        shapes.append(tuple(agent.loss.shape))
        agent.loss = agent.loss + 0.0 * agent.model.weight.sum()

    strategy.plugins[0].before_backward = add
    strategy.train(benchmark_of_two.train_stream[0])
    assert set(shapes) <= {(), (1,)}
    assert strategy.model.weight.grad is not None


def test_loader_set_in_before_training_exp_is_the_one_used(strategy, benchmark_of_two):
    """Why the loader is converted after ``super()._before_training_exp``: plugins replace it there."""
    used = []

    def replace(agent, **kwargs):
        agent.dataloader = list(agent.dataloader)[:1]

    strategy.plugins[0].before_training_exp = replace
    strategy.plugins[0].before_forward = lambda agent, **kwargs: used.append(1)
    strategy.train(benchmark_of_two.train_stream[0])
    assert len(used) == strategy.train_epochs
