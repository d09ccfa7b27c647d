"""What every strategy with every expert method must keep, found by listing the package: new files join alone."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math

import pytest
import torch
import toy

from incrlt.errors import UserError
from incrlt.experiment.methods import find, load_class, names
from incrlt.training.randomness import global_state

PAIRS = list(itertools.product(names("strategy"), names("experts")))
pytestmark = pytest.mark.parametrize("pair", PAIRS, ids=["-".join(pair) for pair in PAIRS])


def build(pair, **options):
    """A strategy with its expert method; a memory where the strategy accepts one."""
    strategy, experts = (
        load_class(kind, name) for kind, name in zip(("strategy", "experts"), pair, strict=True)
    )
    options["experts"] = experts(**short("experts", pair[1]), **options.pop("experts", {}))
    options = short("strategy", pair[0]) | options
    try:
        return toy.make(strategy, **options)
    except UserError:
        return toy.make(strategy, memory=0, **options)


def short(kind, name):
    """Stages of two epochs, without warm-up."""
    names = find(kind, name).parameters
    stages = {name: 2 for name in names if name.endswith("_epochs")}
    return stages | {name: 0 for name in names if name.endswith("_warmup")}


def plain(value):
    """State as text that two equal states share."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), value.tolist())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def random_states(strategy):
    generators = [strategy.feed.order.get_state(), strategy.feed.augmentation.get_state()]
    return plain([global_state(strategy.device), generators])


class Trained:
    """One run over the stream; notes what the tests ask about."""

    def __init__(self, pair):
        self.strategy = build(pair, train_epochs=3, base_epochs=16)
        self.terms, self.accuracies, self.touched, self.random, self.rows = [], [], [], [], []
        self.experts_before = copy.deepcopy(self.strategy.experts)
        self.strategy.on_epoch_end = self.note
        torch.manual_seed(1)
        benchmark = toy.stream()
        for t, experience in enumerate(benchmark.train_stream):
            old = [head.weight.detach().clone() for head in self.strategy.model.heads]
            num_old = self.strategy.model.num_classes
            self.strategy.train(experience)
            self.rows.append(
                [(a[:num_old], head.weight.detach()[:num_old].clone())
                 for a, head in zip(old, self.strategy.model.heads, strict=True)]
            )  # fmt: skip
            before = toy.weights(self.strategy.model), random_states(self.strategy)
            classes = self.strategy.seen_classes
            self.accuracies.append(toy.accuracy(self.strategy, benchmark.test_stream[: t + 1]))
            toy.accuracy(self.strategy, benchmark.test_stream)  # classes yet to come, too
            self.touched.append(toy.changed(before[0], toy.weights(self.strategy.model)))
            self.random.append((before[1], random_states(self.strategy)))
            assert self.strategy.seen_classes == classes

    def note(self, strategy):
        self.terms.append((strategy.experience_index, strategy.stage.name, dict(strategy.epoch_terms)))


@pytest.fixture(scope="module")
def trained():
    made = {}

    def once(pair):
        if pair not in made:
            made[pair] = Trained(pair)
        return made[pair]

    return once


def test_it_learns_the_stream(pair, trained):
    run = trained(pair)
    assert run.accuracies[0] > 0.5, "four classes, chance is 0.25"
    assert run.strategy.seen_classes == list(range(10))
    assert run.strategy.experience_index == 3


def test_loss_terms_are_named_and_finite(pair, trained):
    run = trained(pair)
    assert [t for t, stage, _ in run.terms if stage == "train"] == [0] * 16 + [1] * 3 + [2] * 3
    assert all(terms for _, _, terms in run.terms)
    for _, _, terms in run.terms:
        assert all(isinstance(name, str) and name and math.isfinite(value) for name, value in terms.items())


def test_the_loss_of_the_first_experience_falls(pair, trained):
    terms = trained(pair).terms
    losses = [sum(values.values()) for t, stage, values in terms if t == 0 and stage == "train"]
    assert losses[-1] < 0.8 * losses[0]


def test_evaluation_changes_neither_weights_nor_random_states(pair, trained):
    run = trained(pair)
    assert run.touched == [set()] * 3
    assert all(before == after for before, after in run.random)


def test_the_expert_method_holds_no_state(pair, trained):
    run = trained(pair)
    experts = run.strategy.experts
    assert vars(experts) == vars(run.experts_before)
    assert experts == run.experts_before
    with pytest.raises(AttributeError):  # frozen
        experts.anything = 1


def test_rows_of_old_classes_stay_where_the_strategy_says_so(pair, trained):
    run = trained(pair)
    pairs = [rows for experience in run.rows[1:] for rows in experience]
    kept = all(torch.equal(before, after) for before, after in pairs)
    assert kept == bool(getattr(run.strategy, "freeze_old_rows", False))


def test_the_teacher_is_the_frozen_model_of_the_experience_before(pair, trained):
    strategy = trained(pair).strategy
    if not strategy.uses_teacher:
        assert strategy.teacher is None
        return
    assert not toy.changed(toy.weights(strategy.teacher), toy.weights(strategy.model))
    assert not strategy.teacher.training
    assert not any(p.requires_grad for p in strategy.teacher.parameters())
    own = {p.data_ptr() for p in strategy.model.parameters()}
    assert not own & {p.data_ptr() for p in strategy.teacher.parameters()}


def learns(strategy):
    """Train on two experiences; whether the classes of the first were learned well above chance."""
    torch.manual_seed(1)
    stream = toy.stream()
    strategy.train(stream.train_stream[0])
    accuracy = toy.accuracy(strategy, stream.test_stream[:1])
    strategy.train(stream.train_stream[1])
    return accuracy > 0.5


@pytest.mark.parametrize("num_experts", [1, 2])
def test_it_runs_with_any_number_of_experts(pair, num_experts):
    """A method without this field has the number that its layout says: then once is enough."""
    experts = load_class("experts", pair[1])
    free = "num_experts" in {field.name for field in dataclasses.fields(experts)}
    if not free and num_experts > 1:
        return
    options = {"num_experts": num_experts} if free else {}
    strategy = build(pair, experts=options, train_epochs=1, base_epochs=16)
    assert learns(strategy)
    assert strategy.model.num_experts == strategy.experts.layout.num_experts
    assert not free or strategy.model.num_experts == num_experts
    assert all(map(math.isfinite, strategy.epoch_terms.values()))


class InterruptedRunError(Exception):
    """Stands for the end of a process."""


STOPS = {
    "inside-the-first-stage": lambda s: s.stage_index == 0 and s.stage_epoch == 0,
    "between-stages": lambda s: s.stage_index == 0 and s.stage_epoch + 1 == s.stage.epochs,
    "inside-the-last-stage": lambda s: (
        s.stage_index + 1 == len(s.stages(s.experience)) and s.stage_epoch == 1
    ),
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_a_run_that_goes_on_from_a_checkpoint_ends_in_the_same_bits(pair, stop):
    """It stops in the second experience; the rest is another object's work."""
    expected = build(pair, train_epochs=3)
    torch.manual_seed(1)
    toy.train(expected, toy.stream().train_stream)
    first, saved = build(pair, train_epochs=3), {}

    def save_and_stop(strategy):
        if strategy.experience_index == 1 and stop(strategy):
            saved.update(copy.deepcopy(strategy.state_dict()))
            raise InterruptedRunError

    first.on_epoch_end = save_and_stop
    torch.manual_seed(1)
    with pytest.raises(InterruptedRunError):
        toy.train(first, toy.stream().train_stream)
    second = build(pair, train_epochs=3)
    second.load_state_dict(saved, toy.stream().train_stream)
    toy.train(second, list(toy.stream().train_stream)[second.experience_index :])
    assert not toy.changed(toy.weights(expected.model), toy.weights(second.model))


def run_of(pair, **options):
    strategy = build(pair, train_epochs=1, **options)
    torch.manual_seed(1)
    toy.train(strategy, toy.stream().train_stream[:2])
    return toy.weights(strategy.model)


def test_the_same_seeds_give_the_same_bits_and_others_do_not(pair):
    first = run_of(pair)
    assert not toy.changed(first, run_of(pair))
    convolution = next(name for name in first if name.endswith("conv.weight"))
    assert convolution in toy.changed(first, run_of(pair, batch_seed=1))
    assert convolution in toy.changed(first, run_of(pair, augmentation_seed=1))


def test_it_runs_on_the_loader_of_avalanche(pair):
    strategy = build(pair, fast_data=False, train_epochs=1, base_epochs=16)
    assert learns(strategy)
    assert all(map(math.isfinite, strategy.epoch_terms.values()))


def test_its_state_is_plain_and_brings_it_back(pair, trained):
    run = trained(pair)
    copy = build(pair)
    copy.load_state_dict(run.strategy.state_dict(trained=True), toy.stream().train_stream)
    assert not toy.changed(toy.weights(run.strategy.model), toy.weights(copy.model))
    assert toy.accuracy(copy, toy.stream().test_stream) == run.accuracies[-1]


def test_kernels_change_nothing_beyond_rounding(pair):
    """Terms of each epoch and the weights after two experiences, computed by two backends.

    At a small rate: a large one turns differences in the last digit into different trajectories.
    """

    def run(kernels):
        torch.manual_seed(0)
        strategy = build(pair, lr=1e-4, train_epochs=2, kernels=kernels)
        terms = []
        strategy.on_epoch_end = lambda strategy: terms.append(dict(strategy.epoch_terms))
        for experience in toy.stream().train_stream[:2]:
            strategy.train(experience)
        return terms, toy.weights(strategy.model)

    terms, weights = run("auto")
    expected_terms, expected_weights = run("reference")
    assert [list(epoch) for epoch in terms] == [list(epoch) for epoch in expected_terms]
    for epoch, expected in zip(terms, expected_terms, strict=True):
        assert epoch == pytest.approx(expected, rel=1e-4, abs=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(value, expected_weights[name], rtol=1e-3, atol=1e-4, msg=name)
