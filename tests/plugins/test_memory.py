"""The exemplar memory on Avalanche's own Naive, over every benchmark kind."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import COUNTS, KINDS, TRAIN_SHIFT, Digits, contents, indices, make, naive

from incrlt.errors import UserError
from incrlt.plugins import ExemplarMemory
from incrlt.plugins.features import features_of
from incrlt.plugins.herding import herding
from incrlt.plugins.memory import quotas


class Watcher(SupervisedPlugin):
    """Notes what each experience trains on: as the data set says, and as the batches bring it."""

    def __init__(self):
        super().__init__()
        self.adapted, self.batches, self.sizes = [], [], []

    def before_training_exp(self, strategy, **kwargs):
        self.adapted.append(contents(strategy.adapted_dataset))
        self.batches.append(set())

    def before_training_iteration(self, strategy, **kwargs):
        self.batches[-1].update(int(number) for number in strategy.mb_x[:, 0])

    def after_training_exp(self, strategy, **kwargs):
        self.sizes.append(len(strategy.adapted_dataset))


def own(experience):
    """Image numbers and labels of an experience."""
    return contents(experience.dataset)[:2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("selection", ["herding", "random"])
def test_exemplars_are_in_the_next_experience(kind, selection):
    memory, watcher = ExemplarMemory(per_class=4, selection=selection), Watcher()
    strategy = naive(memory, watcher)
    benchmark = make(kind)
    label_of = {}
    for step, experience in enumerate(benchmark.train_stream):
        before = contents(memory.dataset())[0] if len(memory) else []
        strategy.train(experience)
        numbers, labels = own(experience)
        label_of.update(zip(numbers, labels, strict=True))
        seen, seen_labels, pixels = watcher.adapted[step]
        assert sorted(seen) == sorted(numbers + before), "exactly this experience and the exemplars so far"
        assert seen_labels == [label_of[number] for number in seen], "labels travel with their images"
        assert set(pixels) == {TRAIN_SHIFT}, "exemplars go through the train transforms as well"
        assert watcher.batches[step] == set(seen), "and the loader brings them"
        counts = memory.counts()
        assert set(counts) == set(label_of.values())
        kept = contents(memory.dataset())[0]
        assert len(kept) == len(set(kept)) == len(memory) == sum(counts.values())
    available = np.bincount([*label_of.values()], minlength=10)
    assert counts == {label: min(4, available[label]) for label in counts}, "also with one image"
    assert sorted(available) == sorted(COUNTS)
    strategy.eval(benchmark.test_stream)


@pytest.mark.parametrize("flavor", ["lucir", "long-tailed-cil"])
def test_the_choice_is_herding_of_evaluation_features(flavor):
    memory = ExemplarMemory(per_class=3, flavor=flavor)
    strategy = naive(memory)
    experience = make("nc").train_stream[0]
    strategy.train(experience)
    features, labels = features_of(strategy, experience.dataset)
    for label in (0, 1):
        mine = (labels == label).nonzero()[:, 0]
        expected = mine[herding([features[mine]], 3, flavor)[0]].tolist()
        assert memory.state_dict()["places"][3 * label : 3 * label + 3, 1].tolist() == expected


def test_total_budget_shrinks_and_keeps_the_ranking():
    memory = ExemplarMemory(total=23)
    strategy = naive(memory)
    rank: dict[int, list] = {}
    for step, experience in enumerate(make("nc", [20] * 10).train_stream):
        strategy.train(experience)
        classes = 2 * (step + 1)
        share, rest = divmod(23, classes)
        expected = [min(20, share + (position < rest)) for position in range(classes)]
        assert list(memory.counts().values()) == expected
        state = memory.state_dict()
        for label, places in zip(
            state["labels"].tolist(), state["places"].split(state["counts"].tolist()), strict=True
        ):
            previous = rank.get(label, places.tolist())
            assert places.tolist() == previous[: len(places)]
            rank[label] = places.tolist()


def test_unused_tail_quota_is_handed_on():
    plain, handed = ExemplarMemory(total=60), ExemplarMemory(total=60, redistribute=True)
    for memory in (plain, handed):
        strategy = naive()
        for experience in make("nc").train_stream:
            memory.update(strategy, experience)
    assert len(plain) < 60
    assert len(handed) == 60


def test_redistribution_of_a_per_class_budget_is_within_its_total():
    memory = ExemplarMemory(per_class=6, redistribute=True)
    strategy = naive()
    for experience in make("nc").train_stream:
        memory.update(strategy, experience)
        assert len(memory) <= 6 * len(memory.counts())
    assert max(memory.counts().values()) > 6


@settings(max_examples=300, deadline=None)
@given(
    available=st.lists(st.integers(0, 60), max_size=25),
    total=st.integers(0, 400),
    redistribute=st.booleans(),
)
def test_quotas_properties(available, total, redistribute):
    shares = quotas(available, total, redistribute=redistribute)
    assert len(shares) == len(available)
    assert all(0 <= share <= images for share, images in zip(shares, available, strict=True))
    assert sum(shares) <= total
    short = [share for share, images in zip(shares, available, strict=True) if share < images]
    if redistribute:
        assert sum(shares) == min(total, sum(available)), "unused only when all have given all"
        if short:
            assert max(shares) - min(short) <= 1, "nobody is ahead of one who could still give"
            assert short == sorted(short, reverse=True), "the remainder goes to the first"
    elif available:
        share, rest = divmod(total, len(available))
        equal = [share + (position < rest) for position in range(len(available))]
        assert shares == [min(pair) for pair in zip(equal, available, strict=True)]


@settings(max_examples=100, deadline=None)
@given(
    arrivals=st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=5), max_size=6),
    total=st.integers(0, 99),
)
def test_a_fixed_total_never_needs_a_dropped_image_back(arrivals, total):
    """Sharing what is stored equals sharing what there once was: forgetting images loses nothing."""
    stored: list[int] = []
    original: list[int] = []
    for arrival in arrivals:
        original += arrival
        stored = quotas([*stored, *arrival], total, redistribute=True)
        assert stored == quotas(original, total, redistribute=True)


def state_bytes(memory):
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("selection", ["herding", "random"])
def test_state_round_trip_continues_bit_by_bit(kind, selection):
    def memory_of():
        return ExemplarMemory(total=20, selection=selection, redistribute=True, seed=3)

    straight, broken = memory_of(), memory_of()
    strategy = naive(straight)
    for step, experience in enumerate(make(kind).train_stream):
        strategy.train(experience)
        if step == 2:
            state = torch.load(io.BytesIO(state_bytes(straight)), weights_only=True)
            broken.load_state_dict(state, make(kind).train_stream)
            assert contents(broken.dataset()) == contents(straight.dataset())
            assert broken.counts() == straight.counts()
        if step > 2:
            broken.update(strategy, experience)
    assert state_bytes(broken) == state_bytes(straight)


def test_a_state_is_refused_on_another_stream():
    memory = ExemplarMemory(per_class=2)
    strategy = naive()
    for experience in make("nc").train_stream:
        memory.update(strategy, experience)
    with pytest.raises(UserError, match="another train stream"):
        ExemplarMemory(per_class=2).load_state_dict(
            memory.state_dict(), make("nc", COUNTS[::-1]).train_stream
        )
    with pytest.raises(UserError, match="only 2"):
        ExemplarMemory(per_class=2).load_state_dict(memory.state_dict(), make("nc").train_stream[:2])


def test_empty_memory_has_a_state_too():
    memory = ExemplarMemory(total=5)
    assert memory.dataset() is None
    assert len(memory) == 0
    other = ExemplarMemory(total=5)
    other.load_state_dict(memory.state_dict(), [])
    assert other.counts() == {}


def test_update_is_idempotent_and_own_exemplars_are_not_doubled():
    memory, watcher = ExemplarMemory(per_class=3), Watcher()
    strategy = naive(memory, watcher)
    stream = make("nc").train_stream
    strategy.train(stream[0])
    before = state_bytes(memory)
    torch.nn.init.normal_(strategy.model.body.weight)  # another model would choose otherwise
    memory.update(strategy, stream[0])
    assert state_bytes(memory) == before
    strategy.train(stream[0])
    assert sorted(watcher.adapted[1][0]) == sorted(own(stream[0])[0])
    assert state_bytes(memory) == before


@pytest.mark.parametrize("selection", ["herding", "random"])
def test_update_leaves_random_states_and_modes_alone(selection):
    memory = ExemplarMemory(per_class=3, selection=selection)
    strategy = naive(memory)
    experience = make("nc").train_stream[0]
    strategy.model.train()
    strategy.model.norm.eval()  # a frozen layer inside a training model
    modes = [module.training for module in strategy.model.modules()]
    weights = {name: value.clone() for name, value in strategy.model.state_dict().items()}
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    memory.update(strategy, experience)
    torch.testing.assert_close(torch.get_rng_state(), states[0], rtol=0, atol=0)
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
    assert [module.training for module in strategy.model.modules()] == modes
    for name, value in strategy.model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0)
    assert not any(module._forward_pre_hooks for module in strategy.model.modules())


def test_a_failed_update_can_be_repeated():
    memory = ExemplarMemory(per_class=3)
    strategy = naive(memory, model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(65, 10)))
    experience = make("nc").train_stream[0]
    linear, strategy.model = strategy.model, torch.nn.Flatten()
    with pytest.raises(UserError, match="get_features"):
        memory.update(strategy, experience)
    assert len(memory) == 0
    strategy.model = linear
    memory.update(strategy, experience)
    assert len(memory) == 6


def test_random_selection_depends_on_the_seed_only():
    def choice(seed, torch_seed):
        torch.manual_seed(torch_seed)
        memory = ExemplarMemory(per_class=3, selection="random", seed=seed)
        strategy = naive(memory)
        for experience in make("nc").train_stream:
            memory.update(strategy, experience)
        return memory.state_dict()["places"].tolist()

    assert choice(1, 1) == choice(1, 2)
    assert choice(1, 1) != choice(2, 1)


@pytest.mark.parametrize("selection", ["herding", "random"])
def test_a_class_that_comes_again_draws_on_both(selection):
    """Overlapping experiences: exemplars of both visits compete for one quota."""
    from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
    from avalanche.benchmarks.utils import as_classification_dataset

    threes = indices([0, 0, 0, 40, 5, 5, 0, 0, 0, 0], (3,))
    fours, fives = (indices([0, 0, 0, 0, 5, 5, 0, 0, 0, 0], (label,)) for label in (4, 5))
    data = [
        as_classification_dataset(Digits(np.concatenate([threes[:20], fours]))),
        as_classification_dataset(Digits(np.concatenate([threes[20:], fives]))),
    ]
    stream = with_classes_timeline(benchmark_from_datasets(train=data, test=data)).train_stream
    memory, watcher = ExemplarMemory(per_class=10, selection=selection), Watcher()
    strategy = naive(memory, watcher)
    for experience in stream:
        strategy.train(experience)
    assert memory.counts() == {3: 10, 4: 5, 5: 5}
    assert set(memory.state_dict()["places"][:10, 0].tolist()) == {0, 1}
    numbers, labels, _ = contents(memory.dataset())
    assert labels == [3] * 10 + [4] * 5 + [5] * 5
    assert len(set(numbers)) == 20


def test_periodic_evaluation_in_training_does_no_harm():
    memory = ExemplarMemory(per_class=3)
    strategy = naive(memory)
    benchmark = make("nc")
    for step, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        before = state_bytes(memory)
        strategy.eval(benchmark.test_stream[: step + 1])
        assert state_bytes(memory) == before


def test_exemplars_help_against_forgetting():
    """On the whole stream, a memory beats none by far (the reason why it exists)."""

    def accuracy(*plugins):
        strategy = naive(*plugins, epochs=4)
        strategy.optimizer = torch.optim.SGD(strategy.model.parameters(), lr=0.1, momentum=0.9)
        benchmark = make("nc", [30] * 10)
        for experience in benchmark.train_stream:
            strategy.train(experience)
        strategy.model.eval()
        samples = [s for experience in benchmark.test_stream for s in experience.dataset.eval()]
        predicted = strategy.model(torch.stack([sample[0] for sample in samples])).argmax(1)
        return (predicted == torch.tensor([sample[1] for sample in samples])).float().mean()

    assert accuracy(ExemplarMemory(per_class=10)) > accuracy() + 0.2


def test_wrong_arguments_are_explained():
    for arguments in ({}, {"per_class": 2, "total": 3}):
        with pytest.raises(UserError, match="exactly one of per_class and total"):
            ExemplarMemory(**arguments)
    for value in (0, -1, 2.5, True):
        with pytest.raises(UserError, match="whole number >= 1"):
            ExemplarMemory(total=value)
    with pytest.raises(UserError, match="Did you mean 'herding'"):
        ExemplarMemory(total=3, selection="herdin")
    with pytest.raises(UserError, match="flavor"):
        ExemplarMemory(total=3, flavor="icarl")


def test_data_without_targets_are_refused():
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import AvalancheDataset

    data = [AvalancheDataset([torch.utils.data.TensorDataset(torch.zeros(2, 65), torch.zeros(2))])]
    experience = benchmark_from_datasets(train=data).train_stream[0]
    with pytest.raises(UserError, match="targets"):
        ExemplarMemory(total=3).update(naive(), experience)
