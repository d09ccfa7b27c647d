"""Features of a strategy's model: the right numbers, and no trace left."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.models import SimpleMLP
from streams import KINDS, contents, make, naive
from torch.nn.functional import normalize
from torch.utils.data import TensorDataset

from incrlt.errors import UserError
from incrlt.plugins.features import features_of


class Experts(torch.nn.Module):
    """Two experts on images, as our own networks tell their features."""

    def __init__(self):
        super().__init__()
        self.branches = torch.nn.ModuleList(torch.nn.Linear(12, 4) for _ in range(2))
        self.dropout = torch.nn.Dropout(0.5)
        self.calls = []

    def forward_all(self, x):
        self.calls.append(
            (x.clone(), torch.is_grad_enabled(), self.training, torch.is_autocast_enabled("cpu"))
        )
        hidden = torch.stack([branch(x.flatten(1)) for branch in self.branches])
        return SimpleNamespace(features=self.dropout(hidden))


class Features(Experts):
    """The contract of Avalanche's BaseModel."""

    forward_all = property()  # hasattr says no

    def get_features(self, x):
        return self.branches[0](x.flatten(1))


def images(evaluate=None):
    """Seven images 3 x 4, with an evaluation transform."""
    pixels = torch.randn(7, 1, 3, 4, generator=torch.Generator().manual_seed(2))
    data = TensorDataset(pixels, torch.arange(7))
    data.targets = list(range(7))
    groups = {"train": (None, None), "eval": (evaluate, None)}
    return as_classification_dataset(data, transform_groups=groups)


def strategy(model, **more):
    return SimpleNamespace(model=model, device=torch.device("cpu"), eval_mb_size=3, **more)


def test_experts_are_normalised_one_by_one_and_concatenated():
    model, data = Experts(), images()
    features, labels = features_of(strategy(model), data)
    raw = torch.stack([data[index][0] for index in range(7)]).flatten(1)
    expected = torch.cat([normalize(branch(raw), dim=1) for branch in model.branches], dim=1)
    torch.testing.assert_close(features, expected)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert labels.tolist() == list(range(7))
    assert [len(call[0]) for call in model.calls] == [3, 3, 1]
    assert not any(grad or training for _, grad, training, _ in model.calls)
    assert model.training


def test_mirror_averages_with_the_flipped_image():
    model, data = Experts(), images()
    flipped = images(lambda x: x.flip(-1))
    plain = features_of(strategy(model), data)[0]
    other = features_of(strategy(model), flipped)[0]
    both = features_of(strategy(model), data, mirror=True)[0]
    assert (plain - other).abs().max() > 0.1
    torch.testing.assert_close(both, (plain + other) / 2)


def test_get_features_and_the_input_of_the_last_linear():
    data = images()
    raw = torch.stack([data[index][0] for index in range(7)]).flatten(1)
    model = Features()
    torch.testing.assert_close(
        features_of(strategy(model), data)[0], normalize(model.branches[0](raw), dim=1)
    )
    plain = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)
    )
    torch.testing.assert_close(features_of(strategy(plain), data)[0], normalize(plain[:3](raw), dim=1))


def test_avalanches_own_model():
    model, data = SimpleMLP(num_classes=3, input_size=12, hidden_size=6), images()
    features, _ = features_of(strategy(model), data)
    assert features.shape == (7, 6)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(7))


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_transforms_in_the_order_of_the_data(kind):
    stock = naive()
    dataset = make(kind).train_stream[1].dataset
    features, labels = features_of(stock, dataset)
    _, expected_labels, _ = contents(dataset)
    assert labels.tolist() == expected_labels
    stock.model.eval()
    rows = torch.stack([sample[0] for sample in dataset.eval()])
    assert set(rows[:, 1].tolist()) == {0.0}, "the eval transforms leave no mark"
    inner = stock.model.norm(stock.model.body(rows[:, 2:] / 16)).relu()
    torch.testing.assert_close(features, normalize(inner, dim=1))


def test_the_strategys_autocast_is_used():
    model = Experts()
    with_autocast = strategy(model, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    features, _ = features_of(with_autocast, images())
    assert all(call[3] for call in model.calls)
    assert features.dtype == torch.float32
    features_of(strategy(model, autocast=contextlib.nullcontext), images())
    assert not model.calls[-1][3]


def test_random_transforms_do_not_move_the_random_state():
    noisy, model = images(lambda x: x + torch.rand(())), Experts()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    features_of(strategy(model), noisy)
    torch.testing.assert_close(torch.get_rng_state(), state, rtol=0, atol=0)


def test_modes_and_hooks_are_restored_after_an_error():
    class Fails(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def forward(self, x):
            raise RuntimeError("boom")

    model = Fails()
    with pytest.raises(RuntimeError, match="boom"):
        features_of(strategy(model), images())
    assert model.training
    assert not model.layer._forward_pre_hooks


def test_wrong_models_and_data_are_explained():
    with pytest.raises(UserError, match="get_features"):
        features_of(strategy(torch.nn.Flatten()), images())
    with pytest.raises(UserError, match="forward_all gives no features"):
        silent = torch.nn.Identity()
        silent.forward_all = lambda x: SimpleNamespace(features=None)
        features_of(strategy(silent), images())


def test_rows_of_a_table_have_no_mirror_image():
    """Before: an error after training, so that iCaRL and LUCIR could not keep exemplars of a table."""
    table = make("nc").train_stream[0].dataset
    plain, labels = features_of(naive(), table)
    mirrored, same = features_of(naive(), table, mirror=True)
    assert torch.equal(plain, mirrored) and torch.equal(labels, same)


def test_no_data_no_features():
    features, labels = features_of(strategy(Experts()), images().subset([]))
    assert len(features) == len(labels) == 0


def test_importing_the_package_is_light():
    code = "import sys, incrlt.plugins as p; dir(p); assert not {'torch', 'avalanche'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_decoded_images_of_the_strategy_give_the_same_features():
    """With a tensor cache the images are decoded once, and every number stays as it was."""
    from incrlt.data.augment import Augmentation
    from incrlt.data.stored import TensorCache
    from incrlt.data.tensors import ImageTensors

    pixels = torch.randint(
        0, 256, (7, 1, 3, 4), generator=torch.Generator().manual_seed(2), dtype=torch.uint8
    )
    to_float = Augmentation(ops=(), mean=(0.5,), std=(0.25,))
    groups = {"train": (None, None), "eval": (to_float, None)}
    data = as_classification_dataset(ImageTensors(pixels, torch.arange(7)), transform_groups=groups)
    model = Experts()
    plain = features_of(strategy(model), data)
    reads = []
    original = ImageTensors.__getitem__
    try:
        ImageTensors.__getitem__ = lambda self, index: reads.append(index) or original(self, index)
        cached = features_of(strategy(model, tensor_cache=TensorCache("cpu")), data)
    finally:
        ImageTensors.__getitem__ = original
    assert not reads, "the images come from the tensor"
    torch.testing.assert_close(cached[0], plain[0])
    assert cached[1].tolist() == plain[1].tolist()
    features_of(
        strategy(model, tensor_cache=TensorCache("cpu")), images(lambda x: x + 0)
    )  # unknown: falls back
