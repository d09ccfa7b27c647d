"""The bridge: batches composed like the stock loader's, and refusal of everything not known exactly."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from typing import Any

import incrlt._compat  # noqa: F401

import numpy as np
import pytest
import torch
from avalanche.benchmarks import class_incremental_benchmark, nc_benchmark
from avalanche.benchmarks.utils import AvalancheDataset, as_classification_dataset
from avalanche.benchmarks.utils.data_loader import (
    GroupBalancedDataLoader,
    GroupBalancedInfiniteDataLoader,
    MultiDatasetDataLoader,
    ReplayDataLoader,
    SingleDatasetDataLoader,
    TaskBalancedDataLoader,
)
from avalanche.models import SimpleMLP
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)
from torchvision import transforms as v1
from torchvision.datasets import CIFAR100, FakeData

from incrlt.data.augment import Augmentation, build
from incrlt.data.avalanche import NotExactError, TensorCache, class_aware_loader, convert, explain, tensorise
from incrlt.data.tensors import ImageTensors, TensorBatches

SHAPE = (1, 4, 4)
PLAIN = build("none", SHAPE, (0.0,), (1 / 255,), train=True)
"""Normalisation that gives grey levels back, so that a pixel names its sample."""


def dataset(count: int = 200, classes: int = 10) -> ImageTensors:
    """Images whose pixels are the sample's number."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, *SHAPE).contiguous()
    return ImageTensors(images, torch.arange(count) % classes)


def benchmark(train: Any = None, **kwargs: Any) -> Any:
    kwargs = {"train_transform": PLAIN, "eval_transform": PLAIN, "seed": 1, "task_labels": False} | kwargs
    return nc_benchmark(train or dataset(), dataset(50), n_experiences=5, **kwargs)


def contents(loader: Any) -> list[list[tuple[int, ...]]]:
    """Per batch and sample: image number, label, further columns."""
    batches = []
    for batch in loader:
        assert isinstance(batch, list)
        number = batch[0].float().flatten(1)[:, 0].round().long()
        batches.append([tuple(row) for row in torch.stack([number, *batch[1:]], 1).tolist()])
    return batches


def assert_same_epoch(ours: TensorBatches, theirs: Any, ordered: bool = False) -> None:
    """Same number and sizes of batches, and only samples with the label and columns they have there."""
    a, b = contents(ours), contents(theirs)
    assert len(ours) == len(theirs) == len(a) == len(b)
    assert [len(batch) for batch in a] == [len(batch) for batch in b]
    if ordered:
        assert a == b
    assert set(flat(a)) <= everything(theirs)


def flat(batches: list[list[Any]]) -> list[Any]:
    return [sample for batch in batches for sample in batch]


def everything(loader: Any) -> set[tuple[int, ...]]:
    """All samples that a loader's data sets hold, read the stock way."""
    parts = getattr(loader, "datasets", None) or [loader.dataset]
    return {
        (int(torch.as_tensor(x).float().flatten()[0].round()), *map(int, rest))
        for part in parts
        for x, *rest in (part[i] for i in range(len(part)))
    }


def experiences(bench: Any, *which: int) -> list[Any]:
    return [bench.train_stream[i].dataset.train() for i in which]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("task_labels", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_nc_benchmark_train_loader(mapped: bool, task_labels: bool, shuffle: bool) -> None:
    bench = benchmark(
        task_labels=task_labels,
        class_ids_from_zero_from_first_exp=mapped and not task_labels,
        class_ids_from_zero_in_each_exp=mapped and task_labels,
    )
    (data,) = experiences(bench, 3)
    stock = TaskBalancedDataLoader(data, oversample_small_groups=True, batch_size=16, shuffle=shuffle)
    ours = convert(stock, "cpu")
    assert_same_epoch(ours, stock, ordered=not shuffle)
    shown = flat(contents(ours))
    assert set(shown) == everything(stock) and len(shown) == len(data)
    assert all(len(sample) == 3 for sample in shown)


def test_class_incremental_benchmark_without_task_labels() -> None:
    bench = class_incremental_benchmark(
        {"train": as_classification_dataset(dataset()), "test": as_classification_dataset(dataset(50))},
        num_experiences=5,
    )
    data = bench.train_stream[2].dataset.train()
    stock = DataLoader(data, batch_size=16, shuffle=False)
    ours = convert(stock, "cpu")
    assert ours.augmentation is None  # no transforms: uint8 as the stock loader gives it
    assert_same_epoch(ours, stock, ordered=True)
    assert next(iter(ours))[0].dtype == next(iter(stock))[0].dtype == torch.uint8
    assert all(len(sample) == 2 for sample in flat(contents(ours)))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("oversample", [False, True])
@pytest.mark.parametrize(("size", "memory_size"), [(16, 16), (16, 5), (7, 64)])
def test_replay_loader_composition(size: int, memory_size: int, oversample: bool, drop_last: bool) -> None:
    bench = benchmark()
    data, old = experiences(bench, 1, 0)
    memory = old.subset(list(range(0, 40, 3)))
    stock = ReplayDataLoader(
        data,
        memory,
        oversample_small_tasks=oversample,
        batch_size=size,
        batch_size_mem=memory_size,
        shuffle=True,
        drop_last=drop_last,
    )
    ours = convert(stock, "cpu")
    new = {number for number, *_ in everything(DataLoader(data))}

    def shares(loader: Any) -> list[tuple[int, int]]:
        return [(sum(n in new for n, *_ in b), sum(n not in new for n, *_ in b)) for b in contents(loader)]

    assert_same_epoch(ours, stock)
    assert shares(ours) == shares(stock)
    if oversample and not drop_last:  # each pass over the memory shows all of it
        replayed = [s for b in contents(ours) for s in b if s[0] not in new][: len(memory)]
        assert len(set(replayed)) == len(replayed)


@pytest.mark.parametrize("oversample", [False, True])
def test_group_balanced_loaders(oversample: bool) -> None:
    long, middle, short = experiences(benchmark(), 0, 1, 2)
    parts = [middle.subset(range(11)), long, short.subset(range(3))]
    for stock in (
        GroupBalancedDataLoader(parts, oversample, batch_size=10, shuffle=True),
        MultiDatasetDataLoader(parts, [2, 7, 4], 0, oversample, shuffle=True),
        MultiDatasetDataLoader(parts, [2, 7, 9], 1, oversample, shuffle=True, drop_last=True),
    ):
        assert_same_epoch(convert(stock, "cpu"), stock)


def test_task_balanced_replay() -> None:
    bench = benchmark(task_labels=True)
    new, old, older = experiences(bench, 2, 1, 0)
    memory = old.subset(range(9)).concat(older.subset(range(4)))
    stock = ReplayDataLoader(new, memory, True, 8, 5, task_balanced_dataloader=True, shuffle=True)
    ours = convert(stock, "cpu")
    assert_same_epoch(ours, stock)

    def tasks(loader: Any) -> list[Counter[int]]:
        return [Counter(task for *_, task in batch) for batch in contents(loader)]

    assert tasks(ours) == tasks(stock)


def test_eval_loader_uses_eval_transforms_in_order() -> None:
    twice = Augmentation((), (0.0,), (1 / 510,))
    bench = benchmark(eval_transform=twice)
    data = bench.train_stream[0].dataset.eval()
    stock = SingleDatasetDataLoader(data, batch_size=16)
    ours = convert(stock, "cpu")
    assert ours.augmentation == twice and ours.shuffle is False
    assert_same_epoch(ours, stock, ordered=True)


def test_experience_with_concatenated_memory() -> None:
    bench = benchmark()
    data, old, older = experiences(bench, 2, 1, 0)
    joined = data.concat(old.subset([3, 1, 1])).concat(older.subset([7, 2]).concat(data.subset([0])))
    stock = DataLoader(joined, batch_size=9)
    assert_same_epoch(convert(stock, "cpu"), stock, ordered=True)


def test_deep_nests_of_subsets_and_concatenations() -> None:
    rng = np.random.default_rng(0)
    datasets = experiences(benchmark(train=dataset(250)), 0, 1, 2, 3, 4)
    exact = 0
    for _ in range(60):
        one, two = (datasets[k] for k in rng.integers(len(datasets), size=2))
        made = one.concat(two) if rng.random() < 0.5 else one
        if rng.random() < 0.2:
            made = made.freeze_transforms()
        made = made.subset(rng.permutation(len(made))[: rng.integers(1, 80)].tolist())
        datasets.append(made)
        stock = DataLoader(made, batch_size=32)
        reason = explain(stock)
        assert reason is None or "different transforms" in reason, reason
        if reason is None:
            exact += 1
            assert_same_epoch(convert(stock, "cpu"), stock, ordered=True)
    assert exact > 30


def test_torch_nests_and_several_stored_sets() -> None:
    one, two = dataset(60), dataset(90)
    nest = ConcatDataset([Subset(one, [5, 3, 3]), two, Subset(Subset(two, range(50)), [7, 9])])
    stock = DataLoader(nest, batch_size=13)
    assert_same_epoch(convert(stock, "cpu"), stock, ordered=True)
    inner = Subset(two, list(range(9, 60)))
    inner.targets = two.targets[9:60].tolist()  # type: ignore[attr-defined]
    wrapped = as_classification_dataset(inner, {"train": (PLAIN, None), "eval": None})
    stock = DataLoader(wrapped, batch_size=13)
    assert_same_epoch(convert(stock, "cpu"), stock, ordered=True)


def test_float_tensors_without_transforms_are_kept_as_they_are() -> None:
    source = TensorDataset(torch.arange(30.0)[:, None] + 0.25, torch.arange(30) % 3)
    stock = DataLoader(source, batch_size=8)
    ours = list(convert(stock, "cpu"))
    for mine, theirs in zip(ours, stock, strict=True):
        assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])
    assert convert(DataLoader(source, 8, shuffle=True), "cpu").shuffle


def cifar(count: int = 40, transform: Any = None) -> CIFAR100:
    made = CIFAR100.__new__(CIFAR100)
    rng = np.random.default_rng(0)
    made.data = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    made.targets = (np.arange(count) % 10).tolist()
    made.transform, made.target_transform, made.transforms = transform, None, None
    return made


@pytest.mark.parametrize("inside", [False, True])
def test_torchvision_pictures_are_decoded_and_their_transforms_translated(inside: bool) -> None:
    norm = v1.Compose([v1.ToTensor(), v1.Normalize((0.5,) * 3, (0.25,) * 3)])
    source = cifar(transform=norm if inside else None)
    given = None if inside else norm
    bench = nc_benchmark(source, cifar(), 2, False, train_transform=given, eval_transform=given)
    data = bench.train_stream[1].dataset.train()
    stock = DataLoader(data, batch_size=8)
    for mine, theirs in zip(convert(stock, "cpu"), stock, strict=True):
        torch.testing.assert_close(mine[0], theirs[0], atol=1e-6, rtol=1e-5)
        assert torch.equal(mine[1], theirs[1]) and torch.equal(mine[2], theirs[2])
    assert source.transform is (norm if inside else None)  # the user's data set is not changed


def test_known_random_transforms_are_replaced_by_batched_ones() -> None:
    train = v1.Compose([v1.RandomCrop(32, 4), v1.RandomHorizontalFlip(), v1.ToTensor()])
    bench = nc_benchmark(cifar(), cifar(), 2, False, train_transform=train, eval_transform=v1.ToTensor())
    (data,) = experiences(bench, 0)
    ours = convert(DataLoader(data, 8, shuffle=True), "cpu")
    assert ours.augmentation == Augmentation(
        build("crop-flip", (3, 32, 32), (0.0,) * 3, (1.0,) * 3, True).ops, (0.0,), (1.0,)
    )


def test_images_are_decoded_once_and_only_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[int] = Counter()
    original = CIFAR100.__getitem__

    def counting(self: CIFAR100, index: int) -> Any:
        reads[index] += 1
        return original(self, index)

    source = cifar()
    bench = nc_benchmark(
        source, cifar(), 2, False, train_transform=v1.ToTensor(), eval_transform=v1.ToTensor()
    )
    monkeypatch.setattr(CIFAR100, "__getitem__", counting)
    cache = TensorCache("cpu")
    first, second = experiences(bench, 0, 1)
    convert(DataLoader(first, 8), "cpu", cache=cache)
    assert len(reads) == len(first)
    before = sum(reads.values())
    assert convert(DataLoader(first, 8), "cpu", cache=cache) and sum(reads.values()) == before
    joined = convert(DataLoader(second.concat(first.subset([1, 2])), 8), "cpu", cache=cache)
    assert joined.num_images == len(second) + 2 and len(reads) == 40
    # The first sample is read once more to learn its size; nothing else twice.
    assert sum(reads.values()) <= 40 + 2


def test_tensors_are_not_copied_and_caches_travel_empty() -> None:
    source, cache = dataset(), TensorCache("cpu")
    ours = convert(DataLoader(source, 8), "cpu", cache=cache)
    assert ours.images.data_ptr() == source.images.data_ptr()
    for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert twin.device == cache.device and len(pickle.dumps(twin)) < 1000


class Unknown(Dataset[tuple[torch.Tensor, int]]):
    """A user's data set that augments by itself."""

    targets = (0, 1, 0)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(1, 4, 4), self.targets[index]


class OwnLoader(DataLoader[Any]):
    """A user's loader."""


class OwnReplay(ReplayDataLoader):
    """A user's loader."""


def mixed_sizes() -> FakeData:
    class Sized(FakeData):
        def __getitem__(self, index: int) -> Any:
            return Image.new("RGB", (4 + index % 2, 4)), 0

    Sized.__module__ = "torchvision.datasets.fake"
    return Sized(6)


def train_data(**kwargs: Any) -> Any:
    return experiences(benchmark(**kwargs), 0)[0]


REFUSED = {
    "own loader class": (lambda: OwnLoader(dataset(), 4), "OwnLoader"),
    "own replay class": (lambda: OwnReplay(train_data(), train_data()), "OwnReplay"),
    "a list": (lambda: [], "list"),
    "endless": (lambda: GroupBalancedInfiniteDataLoader([train_data()]), "GroupBalancedInfinite"),
    "never ending": (lambda: MultiDatasetDataLoader([train_data()], [4], never_ending=True), "never ends"),
    "sampler": (lambda: DataLoader(dataset(), 4, sampler=WeightedRandomSampler([1.0] * 9, 9)), "Weighted"),
    "with replacement": (lambda: DataLoader(dataset(), 4, sampler=RandomSampler(dataset(), True)), "replac"),
    "part": (lambda: DataLoader(dataset(), 4, sampler=RandomSampler(range(9), num_samples=4)), "a part"),
    "batch sampler": (lambda: DataLoader(dataset(), batch_sampler=[[0], [1]]), "batch sampler"),
    "no batches": (lambda: DataLoader(dataset(), batch_size=None), "collate|batch sampler"),
    "collate": (lambda: DataLoader(dataset(), 4, collate_fn=list), "collate function"),
    "generator": (lambda: DataLoader(dataset(), 4, generator=torch.Generator()), "generator"),
    "multi generator": (
        lambda: SingleDatasetDataLoader(train_data(), 4, generator=torch.Generator()),
        "generator",
    ),
    "unknown data set": (lambda: DataLoader(Unknown(), 4), "Unknown may give another image"),
    "jitter": (lambda: DataLoader(train_data(train_transform=v1.ColorJitter()), 4), "ColorJitter"),
    "function": (lambda: DataLoader(train_data(train_transform=lambda x: x), 4), "function"),
    "three tensors": (lambda: DataLoader(TensorDataset(*[torch.zeros(3)] * 3), 4), "3 tensors"),
    "float labels": (lambda: DataLoader(TensorDataset(torch.zeros(3), torch.zeros(3)), 4), "labels are"),
    "mixed sizes": (lambda: DataLoader(mixed_sizes(), 4), "differ in size"),
    "pictures as they are": (lambda: DataLoader(cifar(), 4), "PIL images"),
    "joined sizes": (
        lambda: DataLoader(
            ConcatDataset([dataset(), ImageTensors(torch.zeros(2, 1, 5, 5).byte(), [0, 0])]), 4
        ),
        "size or type",
    ),
    "target transform": (
        lambda: DataLoader(
            as_classification_dataset(dataset(), {"train": (PLAIN, int), "eval": (None, int)}), 4
        ),
        "target transform",
    ),
    "different transforms": (
        lambda: DataLoader(
            train_data().concat(train_data(train_transform=build("shift", SHAPE, (0.0,), (1.0,), True))), 4
        ),
        "different transforms",
    ),
    "empty": (lambda: DataLoader(AvalancheDataset([]), 4), "no samples"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_exact_is_refused_with_a_reason(case: str) -> None:
    make, reason = REFUSED[case]
    loader = make()
    with pytest.raises(NotExactError, match=reason):
        convert(loader, "cpu")
    assert tensorise(loader, "cpu") is None
    assert explain(loader)


def test_too_large_data_sets_are_refused() -> None:
    data = experiences(nc_benchmark(cifar(), cifar(), 2, False, train_transform=v1.ToTensor()), 0)[0]
    assert "GiB" in str(explain(DataLoader(data, 4), cache=TensorCache("cpu", max_bytes=1000)))


def test_in_place_of_the_loader_of_a_stock_strategy_with_replay() -> None:
    """Replay sets its loader late; what it set is read, replaced, and trains."""

    class Fast(Naive):
        def _before_training_exp(self, **kwargs: Any) -> None:
            super()._before_training_exp(**kwargs)
            self.kinds.append(type(self.dataloader).__name__)
            stock = self.dataloader
            self.dataloader = convert(stock, "cpu", cache=self.cache)
            self.steps.append((len(stock), len(self.dataloader)))

    model = SimpleMLP(input_size=16, hidden_size=8)
    strategy = Fast(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.001),
        train_mb_size=8,
        plugins=[ReplayPlugin(mem_size=20)],
        evaluator=EvaluationPlugin(),
    )
    strategy.kinds, strategy.steps, strategy.cache = [], [], TensorCache("cpu")
    for experience in benchmark().train_stream[:3]:
        strategy.train(experience)
    assert strategy.kinds == ["TaskBalancedDataLoader", "ReplayDataLoader", "ReplayDataLoader"]
    assert strategy.steps == [(5, 5)] * 3


@pytest.mark.parametrize("class_aware", [False, True])
def test_class_aware_loader_orders_alike_with_and_without_tensors(class_aware: bool) -> None:
    data = experiences(benchmark(train=dataset(120)), 0)[0].subset([*range(12), 23])
    made = [
        class_aware_loader(
            data,
            batch_size=5,
            device="cpu",
            class_aware=class_aware,
            permutation_generator=torch.Generator().manual_seed(4),
            fast=fast,
        )
        for fast in (True, False)
    ]
    assert isinstance(made[0], TensorBatches) and isinstance(made[1], DataLoader)
    assert contents(made[0]) == contents(made[1])
    assert contents(made[0]) != contents(made[0])  # the next epoch has another order


def test_class_aware_loader_serves_what_cannot_be_tensors() -> None:
    data = as_classification_dataset(Unknown(), {"train": (None, None), "eval": (None, None)})
    loader = class_aware_loader(data, batch_size=2, device="cpu")
    assert isinstance(loader, DataLoader) and [len(batch[1]) for batch in loader] == [2, 1]
