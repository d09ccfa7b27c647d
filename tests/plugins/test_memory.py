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
from streams import COUNTS, KINDS, TRAIN_SHIFT, Digits, contents, indices, make, naive, shift

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


# --- identity is the thing itself ------------------------------------------------------------------------


def two_streams():
    """Two benchmarks of other classes, whose experiences have the same numbers 0, 1, ..."""
    from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline

    streams = []
    for pairs in ([(0, 1), (2, 3)], [(4, 5), (6, 8)]):
        data = [as_data(indices([20] * 10, pair)) for pair in pairs]
        streams.append(with_classes_timeline(benchmark_from_datasets(train=data)).train_stream)
    return streams


def as_data(rows):
    from avalanche.benchmarks.utils import as_classification_dataset

    return as_classification_dataset(
        Digits(rows), transform_groups={"train": (shift, None), "eval": (torch.clone, None)}
    )


def stream_of(*data):
    from avalanche.benchmarks import benchmark_from_datasets

    return benchmark_from_datasets(train=list(data)).train_stream


def experience_of(data):
    """An experience of no stream, without a number."""
    from avalanche.benchmarks.scenarios import DatasetExperience

    return DatasetExperience(dataset=data)


def test_streams_that_restart_their_numbers():
    """Before: the second stream's experiences counted as seen, and took the first one's exemplars out of the data."""
    memory, watcher = ExemplarMemory(per_class=3), Watcher()
    strategy = naive(memory, watcher)
    arrived = 0
    for stream in two_streams():
        for experience in stream:
            strategy.train(experience)
            assert len(watcher.adapted[-1][0]) == 40 + 3 * arrived, "all exemplars so far, and its own images"
            arrived += 2
    assert memory.counts() == dict.fromkeys([0, 1, 2, 3, 4, 5, 6, 8], 3)


def test_a_memory_of_two_streams_is_found_again_in_both():
    first, second = two_streams()
    memory, again = ExemplarMemory(per_class=3), ExemplarMemory(per_class=3)
    for experience in [*first, *second]:
        memory.update(naive(), experience)
    state = torch.load(io.BytesIO(state_bytes(memory)), weights_only=True)
    again.load_state_dict(state, [*(e for s in two_streams() for e in s)])
    assert contents(again.dataset()) == contents(memory.dataset())
    assert state_bytes(again) == state_bytes(memory)
    with pytest.raises(UserError, match="another train stream"):
        ExemplarMemory(per_class=3).load_state_dict(state, second)


def test_an_experience_cut_into_many():
    from avalanche.benchmarks.scenarios.online import split_online_stream

    memory, watcher = ExemplarMemory(per_class=4), Watcher()
    strategy = naive(memory, watcher)
    for experience in split_online_stream(
        make("from-datasets").train_stream, experience_size=7, shuffle=True
    ):
        strategy.train(experience)
        numbers = watcher.adapted[-1][0]
        assert len(numbers) == len(set(numbers)), "no picture twice"
    assert memory.counts() == {label: min(4, COUNTS[label]) for label in memory.counts()}
    assert len(memory.counts()) == 10
    kept = contents(memory.dataset())[0]
    assert len(kept) == len(set(kept))


def test_data_that_hold_the_exemplars_already_do_not_get_them_twice():
    """A stream in which every experience repeats all that came before."""
    whole = as_data(indices([12] * 10, (0, 1, 2)))
    memory, watcher = ExemplarMemory(per_class=5), Watcher()
    strategy = naive(memory, watcher)
    for size in (12, 24, 36):
        strategy.train(stream_of(whole.subset(list(range(size))))[0])
        assert len(watcher.adapted[-1][0]) == size
    kept = contents(memory.dataset())[0]
    assert len(kept) == len(set(kept)) == 15


def test_the_same_data_in_other_objects_are_the_same_experience():
    whole = as_data(indices([12] * 10, (0, 1)))
    memory = ExemplarMemory(per_class=5, selection="random")
    memory.update(naive(), experience_of(whole.subset(list(range(24)))))
    before = state_bytes(memory)
    memory.update(naive(), experience_of(whole.subset(list(range(24)))))
    assert state_bytes(memory) == before


def test_pictures_behind_another_transform_are_others():
    """Permuted MNIST: the same files again and again."""
    from avalanche.benchmarks.utils import as_classification_dataset

    stored = Digits(indices([8] * 10, (0, 1)))
    memory, watcher = ExemplarMemory(per_class=2), Watcher()
    strategy = naive(memory, watcher)
    for seed in (0, 1):
        order = torch.randperm(64, generator=torch.Generator().manual_seed(seed)) + 1
        permute = Permute(order)
        data = as_classification_dataset(
            stored, transform_groups={"train": (permute, None), "eval": (permute, None)}
        )
        strategy.train(stream_of(data)[0])
    assert len(watcher.adapted[1][0]) == 16 + 4


class Permute:
    def __init__(self, order):
        self.order = order

    def __call__(self, row):
        return torch.cat([row[:1], row[self.order]])


def test_one_label_with_two_names_is_refused_before_training():
    from types import SimpleNamespace

    first, second = two_streams()
    first.benchmark = SimpleNamespace(class_names=dict(enumerate("abcdefghij")))
    memory = ExemplarMemory(per_class=2)
    strategy = naive(memory)
    strategy.train(first[0])
    weights = strategy.model.body.weight.clone()
    second.benchmark = SimpleNamespace(class_names={4: "e", 5: "f"})
    strategy.train(second[0])
    third = stream_of(as_data(indices([5] * 10, (0,))))
    third.benchmark = SimpleNamespace(class_names=["zebra"])
    weights = strategy.model.body.weight.clone()
    with pytest.raises(UserError, match=r"label 0 is 'a' .* 'zebra'"):
        strategy.train(third[0])
    torch.testing.assert_close(strategy.model.body.weight, weights, rtol=0, atol=0)
    state = memory.state_dict()
    first.benchmark = SimpleNamespace(class_names={0: "a", 1: "beta"})
    with pytest.raises(UserError, match="label 1 is 'b' in the saved memory and 'beta'"):
        ExemplarMemory(per_class=2).load_state_dict(state, [*first, *second])


class Renamed(Digits):
    """The same labels, but the pictures of one class moved on by one, as after a file of it was renamed."""

    def __init__(self, rows, label):
        super().__init__(rows)
        own = torch.tensor([target == label for target in self.targets]).nonzero()[:, 0]
        self.rows[own] = self.rows[own.roll(1)]


def test_a_renamed_file_is_noticed():
    from avalanche.benchmarks.utils import as_classification_dataset

    rows = indices([9] * 10, (0, 1))
    memory = ExemplarMemory(per_class=4)
    memory.update(naive(), experience_of(as_data(rows)))
    state = torch.load(io.BytesIO(state_bytes(memory)), weights_only=True)
    good = [experience_of(as_data(rows))]
    ExemplarMemory(per_class=4).load_state_dict(state, good)
    changed = [experience_of(as_classification_dataset(Renamed(rows, 1)))]
    with pytest.raises(
        UserError, match=r"[1-4] of 8 exemplars .* other pictures .* of class 1\): files were renamed"
    ):
        ExemplarMemory(per_class=4).load_state_dict(state, changed)
    older = {key: state[key] for key in ("labels", "counts", "places", "experiences", "random_state")}
    again = ExemplarMemory(per_class=4)
    again.load_state_dict(older, good)
    assert state_bytes(again) == state_bytes(memory), "what an older state lacks is read from the stream"
    ExemplarMemory(per_class=4).load_state_dict(older, changed)
