"""A strategy and an expert method put together, and what a training of the two shows."""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from incrlt.errors import UserError
from incrlt.experiment.methods import Kind, find
from incrlt.experts.base import ExpertMethod
from incrlt.models.named import name_of
from incrlt.testing import digits
from incrlt.training.randomness import global_state
from incrlt.training.template import IncrTemplate
from incrlt.types import LossContext

Settings: TypeAlias = Mapping[str, object]
Part: TypeAlias = tuple[Kind, type, Mapping[str, object]]
"""A class, what it is, and its hyper-parameters."""
Weights: TypeAlias = dict[str, Tensor]
FIRST = 16
"""Epochs on the first experience, where it is to be learned."""


def has_a_file(cls: type) -> bool:
    """Return whether YAML could name a class: at the top of a module that can be found."""
    if "<" in cls.__qualname__ or cls.__module__ == "__main__":
        return False
    try:
        return importlib.util.find_spec(cls.__module__) is not None
    except (ImportError, ValueError):
        return False


def short(kind: Kind, cls: type) -> dict[str, object]:
    """Settings that make later stages of a method, or a stage itself, two epochs long, without warm-up."""
    fields = getattr(cls, "__dataclass_fields__", {})
    names = list(find(kind, name_of(cls)).parameters) if has_a_file(cls) else list(fields)
    own = ("epochs",) if kind in ("rebalance", "router") else ()
    stages: dict[str, object] = {name: 2 for name in names if name.endswith("_epochs") or name in own}
    return stages | {name: 0 for name in names if name.endswith("_warmup")}


class Learner:
    """A strategy's class with an expert method's class; trainings are done once and shared by promises.

    Args:
        strategy: Class of a strategy.
        experts: Class of an expert method.
        settings: Hyper-parameters of the strategy.
        expert_settings: Hyper-parameters of the expert method.
    """

    def __init__(
        self,
        strategy: type[IncrTemplate],
        experts: type[ExpertMethod],
        settings: Settings | None = None,
        expert_settings: Settings | None = None,
    ) -> None:
        self.strategy, self.experts = strategy, experts
        self.settings = {**short("strategy", strategy), **(settings or {})}
        self.expert_settings = {**short("experts", experts), **(expert_settings or {})}

    @property
    def subject(self) -> str:
        """How messages call the pair."""
        return f"{self.strategy.__name__} with experts {self.experts.__name__}"

    def method(self, **options: object) -> ExpertMethod:
        """Make the expert method."""
        return self.experts(**{**self.expert_settings, **options})

    def parts(self) -> list[Part]:
        """Return strategy and experts, each with its hyper-parameters."""
        method = self.method()
        own = {name: getattr(method, name) for name in getattr(self.experts, "__dataclass_fields__", {})}
        return [("strategy", self.strategy, self.settings), ("experts", self.experts, own)]

    def build(self, experts: ExpertMethod | None = None, **options: Any) -> IncrTemplate:
        """Make a strategy on a tiny network; with a memory where it takes one."""
        given = {**self.settings, "experts": experts or self.method(), **options}
        try:
            return digits.make(self.strategy, **given)
        except UserError as refused:
            try:
                return digits.make(self.strategy, memory=0, **given)
            except UserError:
                raise refused from None

    @functools.cached_property
    def trained(self) -> Trained:
        """The whole stream, evaluated after each experience."""
        return Trained(self.build(train_epochs=3, base_epochs=FIRST))

    @functools.cached_property
    def uninterrupted(self) -> Weights:
        """Weights after the whole stream, trained without evaluation."""
        strategy = self.build(train_epochs=3)
        torch.manual_seed(1)
        digits.train(strategy, digits.stream().train_stream)
        return digits.weights(strategy.model)

    def two_experiences(self, **options: int) -> Weights:
        """Weights after an epoch on each of two experiences."""
        strategy = self.build(None, train_epochs=1, **options)
        torch.manual_seed(1)
        digits.train(strategy, digits.stream().train_stream[:2])
        return digits.weights(strategy.model)

    def context(self, epoch: int, epochs: int, constants: dict[object, object]) -> LossContext:
        """Return a context of a loss in the trained network's last experience, one class with a single image.

        Its network is a copy, since a loss may write into buffers: each context starts alike.
        """
        strategy = self.trained.strategy
        counts = torch.full((strategy.network.num_classes,), 24)
        counts[-1], counts[0] = 1, 0
        return LossContext(
            counts, strategy.num_old, epoch, epochs, network=copy.deepcopy(strategy.model), constants=constants,
            second_view=lambda name: batch()[0],
        )  # fmt: skip


def batch() -> tuple[Tensor, Tensor]:
    """Two images of each class, normalised, and their positions; the same ones at each call."""
    index = digits.chosen(True, 2, digits.ORDER)
    return (digits.digits()[0][index].float() / 255 - 0.3) / 0.4, torch.arange(10).repeat_interleave(2)


class Trained:
    """One run over the stream; notes what promises ask about."""

    def __init__(self, strategy: IncrTemplate) -> None:
        self.strategy = strategy
        self.experts_before = copy.deepcopy(strategy.experts)
        self.terms: list[tuple[int, str, dict[str, float]]] = []
        self.accuracies: list[float] = []
        self.touched: list[set[str]] = []
        self.random: list[tuple[object, object]] = []
        self.rows: list[list[tuple[Tensor, Tensor]]] = []
        self.epochs: list[int] = []
        strategy.on_epoch_end = self._note
        torch.manual_seed(1)
        benchmark = digits.stream()
        for t, experience in enumerate(benchmark.train_stream):
            self._train(experience)
            self._evaluate(benchmark.test_stream, t)

    def _note(self, strategy: IncrTemplate) -> None:
        self.terms.append((strategy.experience_index, strategy.stage.name, dict(strategy.epoch_terms)))

    def _train(self, experience: object) -> None:
        strategy = self.strategy
        old = [head.weight.detach().clone() for head in strategy.model.heads]
        num_old, before = strategy.model.num_classes, len(self.terms)
        strategy.train(experience)
        self.epochs.append(len(self.terms) - before)
        self.rows.append(
            [(rows[:num_old], head.weight.detach()[:num_old].clone())
             for rows, head in zip(old, strategy.model.heads, strict=True)]
        )  # fmt: skip

    def _evaluate(self, tests: Sequence[object], t: int) -> None:
        strategy = self.strategy
        before = digits.weights(strategy.model), random_states(strategy)
        classes = strategy.seen_classes
        self.accuracies.append(digits.accuracy(strategy, tests[: t + 1]))
        digits.accuracy(strategy, tests)  # classes yet to come, too
        touched = digits.changed(before[0], digits.weights(strategy.model))
        self.touched.append(touched | ({"seen_classes"} if strategy.seen_classes != classes else set()))
        self.random.append((before[1], random_states(strategy)))


def plain(value: object) -> object:
    """State as values that two equal states share."""
    if isinstance(value, Tensor):
        return (str(value.dtype), value.tolist())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def random_states(strategy: IncrTemplate) -> object:
    """All random states that training draws from, as plain values."""
    generators = [strategy.feed.order.get_state(), strategy.feed.augmentation.get_state()]
    return plain([global_state(strategy.device), generators])


class InterruptedRunError(Exception):
    """Stands for the end of a process."""


def resumed(build: Callable[[], IncrTemplate], stop: Callable[[IncrTemplate], bool]) -> Weights:
    """Train until ``stop`` is true in the second experience, go on with another object, and return its weights."""
    first, saved = build(), dict[str, object]()

    def save_and_stop(strategy: IncrTemplate) -> None:
        if strategy.experience_index == 1 and stop(strategy):
            saved.update(copy.deepcopy(strategy.state_dict()))
            raise InterruptedRunError

    first.on_epoch_end = save_and_stop
    torch.manual_seed(1)
    try:
        digits.train(first, digits.stream().train_stream)
    except InterruptedRunError:
        second = build()
        second.load_state_dict(saved, digits.stream().train_stream)
        digits.train(second, list(digits.stream().train_stream)[second.experience_index :])
        return digits.weights(second.model)
    raise AssertionError("no epoch of the second experience was the one to stop at")
