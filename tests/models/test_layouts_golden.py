"""Every layout against the official forward pass with the same weights, and against the official parameter counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from incrlt.errors import UserError
from incrlt.models import ContrastLayout, CosineHead, Layout, build
from incrlt.models.cost import parameters
from incrlt.models.router import Router

RIDE = Layout(
    num_experts=3, width_factor=0.75, shortcut="padding", scale=30.0, learn_scale=False, unit_rows=True
)
NCL = Layout(num_experts=3, shared="nothing", shortcut="padding")
SHIKE = Layout(
    num_experts=3, shared="two_stages", fusion=True, scale=30.0, learn_scale=False, unit_rows=True,
    second_heads=True,
)  # fmt: skip
TOLERANCES = [(torch.float64, 1e-9), (torch.float32, 1e-4)]


def _hash_fill(number: int, count: int) -> np.ndarray:
    """The fill rule of the golden forwards: a 32-bit integer hash mapped to [-1, 1)."""
    h = (np.arange(count, dtype=np.uint64) + 1 + 1000003 * (number + 1)) % 2**32
    h ^= h >> np.uint64(16)
    h = h * np.uint64(0x85EBCA6B) % 2**32
    h ^= h >> np.uint64(13)
    h = h * np.uint64(0xC2B2AE35) % 2**32
    h ^= h >> np.uint64(16)
    return h / 2.0**31 - 1


def _fill(name: str, shape: torch.Size, number: int) -> torch.Tensor:
    w = torch.as_tensor(_hash_fill(number, shape.numel())).reshape(shape)
    if name.endswith("running_mean"):
        return 0.05 * w
    if name.endswith("running_var"):
        return 1 + 0.2 * w
    if len(shape) == 4:
        return w * (6 / shape[1:].numel()) ** 0.5
    if len(shape) == 2:
        return 0.3 * w
    return 0.1 * w if name.endswith("bias") else 1 + 0.1 * w


def _images(dtype: torch.dtype) -> torch.Tensor:
    return torch.as_tensor(_hash_fill(100000, 2 * 3 * 32 * 32) * 3**0.5).reshape(2, 3, 32, 32).to(dtype)


def _fill_in_order(parts: list[nn.Module], transposed_heads: bool) -> int:
    """Fill modules and heads in the order of the official state dict; returns how many tensors were filled."""
    number = 0
    for part in parts:
        if hasattr(part, "class_scale"):  # a head: its rows in use, stored as columns by RIDE and SHIKE
            rows = part.weight.data[: part.num_classes]
            shape = rows.T.shape if transposed_heads else rows.shape
            filled = _fill("weight", shape, number)
            rows.copy_(filled.T if transposed_heads else filled)
            number += 1
            if hasattr(part, "bias"):
                part.bias.data[: part.num_classes] = _fill("bias", torch.Size([part.num_classes]), number)
                number += 1
            continue
        for name, tensor in part.state_dict().items():
            if "num_batches_tracked" not in name:
                tensor.copy_(_fill(name, tensor.shape, number))
                number += 1
    return number


def _close(ours: torch.Tensor, case: dict[str, np.ndarray], key: str, tolerance: float) -> None:
    expected = torch.as_tensor(case[key]).to(ours.dtype)
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_lucir(golden, dtype, tolerance):
    case = golden("lucir_resnet32_forward")
    network = build("resnet32", head="cosine")
    network.grow(range(50))
    network.to(dtype)
    assert (
        _fill_in_order([network.stem, network.branches, network.heads[0]], False) == 166
    )  # and the scale, 1
    for mode in ("eval", "train"):
        network.train(mode == "train")
        features = network.extract(_images(dtype))
        _close(network.classify(features, False).logits, case, f"logits_{mode}", tolerance)
        _close(features[0], case, f"features_{mode}", tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_ride(golden, dtype, tolerance):
    case = golden("ride_resnet32_m3_forward")
    network = build("resnet32", layout=RIDE, last_relu=True)
    network.grow(range(100))
    network.to(dtype)
    order = [network.stem, *(b.stage2 for b in network.branches), *(b.stage3 for b in network.branches)]
    assert _fill_in_order([*order, *network.heads], True) == 358
    for mode in ("eval", "train"):
        network.train(mode == "train")
        features = network.extract(_images(dtype))
        out = network.classify(features, rebalanced=False)
        _close(out.expert_logits, case, f"logits_{mode}", tolerance)
        _close(out.logits, case, f"mean_logits_{mode}", tolerance)
        assert out.scales.tolist() == [30.0] * 3
        if mode == "eval":
            _close(features.transpose(0, 1), case, "features_eval", tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_ncl(golden, dtype, tolerance):
    case = golden("ncl_resnet32_forward")  # one of the networks
    network = build("resnet32", layout=NCL, head="linear")
    network.grow(range(100))
    network.to(dtype)
    for branch, head in zip(network.branches, network.heads, strict=True):
        assert _fill_in_order([branch, head], False) == 157
    for mode in ("eval", "train"):
        network.train(mode == "train")
        out = network.classify(network.extract(_images(dtype)), rebalanced=False)
        for k in range(3):
            _close(out.features[k], case, f"features_{mode}", tolerance)
            _close(out.expert_logits[k], case, f"logits_{mode}", tolerance)
        assert out.scales is None and out.cosines is None


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_shike(golden, dtype, tolerance):
    case = golden("shike_resnet32_m3_forward")
    network = build("resnet32", layout=SHIKE, last_relu=True)
    network.grow(range(100))
    network.to(dtype)
    branches = network.branches
    parts = [network.stem, *(b.stage3 for b in branches), *network.heads, *network.second_heads]
    assert _fill_in_order([*parts, *(b.shallow for b in branches)], True) == 306
    for mode in ("eval", "train"):
        network.train(mode == "train")
        with torch.no_grad():
            maps = network.shared(_images(dtype))
            deep = torch.stack([b.stage3(maps[-1]).mean((2, 3)) for b in branches])
            shallow = torch.stack([b.shallow(maps[b.source]).mean((2, 3)) for b in branches])
            features = network.extract(_images(dtype))
        _close(deep, case, f"h_mean_{mode}", tolerance)
        _close(shallow, case, f"g_mean_{mode}", tolerance)
        _close(features, case, f"features_{mode}", tolerance)
        _close(network.classify(features, False).expert_logits, case, f"logits_{mode}_s1", tolerance)
        _close(network.classify(features, True).expert_logits, case, f"logits_{mode}_rt", tolerance)
    lowest = torch.stack([b.shallow(maps[b.source]).detach().min() for b in branches])
    _close(lowest, case, "g_min", tolerance)  # negative where the last convolution has no ReLU


@pytest.mark.parametrize("learn_scale", [True, False])
def test_cosine_heads_are_the_normed_linear_layer(golden, learn_scale):
    case = {key: torch.as_tensor(value) for key, value in golden("net_normed_linear").items()}
    head = CosineHead(16, scale=30.0, learn_scale=learn_scale).double()
    head.grow(12)
    head.weight.data[:12] = case["weight"].T
    features = case["features"].clone().requires_grad_()
    logits, _ = head(features)
    torch.testing.assert_close(logits, case["logits"], rtol=1e-9, atol=1e-11)
    factors = (torch.arange(6 * 12).reshape(6, 12) % 5 - 2).double()
    (logits * factors).sum().backward()
    torch.testing.assert_close(head.weight.grad[:12].T, case["grad_weight"], rtol=1e-8, atol=1e-10)
    others = [0, 1, 3, 4, 5]  # row 2 is zero: its gradient is the inverse of the clamp
    torch.testing.assert_close(features.grad[others], case["grad_features"][others], rtol=1e-8, atol=1e-10)
    assert ("scale" in dict(head.named_parameters())) == learn_scale


def _ride(num_experts):
    return Layout(
        num_experts=num_experts, width_factor=0.75, shortcut="padding", scale=30.0, learn_scale=False
    )


PLACES = {  # place in the golden array: how to build it
    0: ({}, 50),
    1: ({}, 100),
    3: ({"layout": _ride(2)}, 100),
    4: ({"layout": _ride(3)}, 100),
    5: ({"layout": _ride(4)}, 100),
    7: ({"layout": Layout(shortcut="padding", learn_scale=False)}, 100),
    8: ({"layout": Layout(shortcut="padding"), "head": "linear"}, 100),
    9: ({"layout": Layout(shared="nothing", shortcut="padding"), "head": "linear"}, 100),
    10: ({"layout": NCL, "head": "linear"}, 100),
    11: ({"layout": SHIKE}, 100),
}


@pytest.mark.parametrize("place", PLACES)
def test_parameter_counts(golden, place):
    options, classes = PLACES[place]
    network = build("resnet32", **options)
    network.grow(range(classes))
    assert parameters(network) == golden("net_parameters")["parameters"][place]


def test_the_router_is_counted(golden):
    network = build("resnet32", layout=_ride(3))
    network.grow(range(100))
    network.router = Router(num_experts=3, num_features=48)
    assert parameters(network) == golden("net_parameters")["parameters"][6]


def test_the_momentum_encoder_is_not_counted():
    contrast = Layout(num_experts=2, shared="nothing", contrast=ContrastLayout(queue_size=8))
    with_it, without = build("resnet8", layout=contrast), build("resnet8", layout=Layout(2, "nothing"))
    assert parameters(with_it) == parameters(without)
    assert len(list(with_it.parameters())) > len(list(without.parameters()))


def test_new_rows_start_on_the_unit_sphere_where_asked():
    network = build("resnet8", layout=SHIKE, in_channels=1, width=4)
    network.grow(range(5))
    network.grow(range(5, 40))
    for head in (*network.heads, *network.second_heads):
        torch.testing.assert_close(head.rows().norm(dim=1), torch.ones(40))
        assert head.weight[40:].abs().sum() == 0
    rows = network.heads[0].rows()
    assert (rows.mean(0).abs() < 0.2).all() and torch.linalg.matrix_rank(
        rows
    ) == 16  # directions of all kinds


def test_what_cannot_be_had_together_is_explained():
    with pytest.raises(UserError, match="two_stages"):
        Layout(fusion=True)
    with pytest.raises(UserError, match="nothing"):
        Layout(contrast=ContrastLayout())
    with pytest.raises(UserError, match=r"at least 0\.5"):
        Layout(shortcut="padding", width_factor=0.25)
    with pytest.raises(UserError, match="one of the two"):
        build("resnet8", layout=Layout(), num_experts=3)
    with pytest.raises(UserError, match="at least one expert"):
        Layout(num_experts=0)
    with pytest.raises(UserError, match="must be positive"):
        Layout(width_factor=0.0)
    with pytest.raises(UserError, match="momentum"):
        ContrastLayout(momentum=1.5)
    with pytest.raises(UserError, match="queue_size"):
        ContrastLayout(queue_size=0)
