"""Growing heads against official layers and against what growth must keep; networks of one and more experts."""

from __future__ import annotations

import io

import pytest
import torch

from incrlt.errors import UserError
from incrlt.models import CosineHead, LinearHead, build
from incrlt.models.heads import capacity_for
from incrlt.models.router import Router


def test_cosine_head_is_the_official_layer(golden):
    case = {key: torch.as_tensor(value) for key, value in golden("lucir_cosine_linear").items()}
    for eta in ("1.0", "4.5"):
        head = CosineHead(16, scale=float(eta)).double()
        head.grow(13)
        head.weight.data[:13] = case["weight"]
        features = case["features"].clone().requires_grad_()
        logits, _ = head(features)
        torch.testing.assert_close(logits, case[f"logits_eta{eta}"], rtol=1e-9, atol=1e-12)
        assert logits[1].abs().sum() == 0  # the all-zero feature
        factors = (torch.arange(5 * 13).reshape(5, 13) % 5 - 2).double()
        (logits * factors).sum().backward()
        torch.testing.assert_close(
            head.weight.grad[:13], case[f"grad_weight_eta{eta}"], rtol=1e-8, atol=1e-11
        )
        torch.testing.assert_close(head.scale.grad, case[f"grad_eta_eta{eta}"], rtol=1e-8, atol=1e-11)
        assert head.weight.grad[13:].abs().sum() == 0


def test_imprinting_is_the_official_block(golden):
    case = {key: torch.as_tensor(value) for key, value in golden("lucir_imprint").items()}
    head = CosineHead(16)
    head.grow(6)
    head.weight.data[:6] = case["W_old"]
    head.grow(3)
    unit = torch.nn.functional.normalize(case["features"], dim=-1).mean(1)
    head.imprint(torch.nn.functional.normalize(unit, dim=-1))
    torch.testing.assert_close(head.weight[6:9], case["W_new"], rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(head.weight[:6], case["W_old"])


@pytest.mark.parametrize("make", [CosineHead, LinearHead])
def test_growth_keeps_old_logits_and_reports_replaced_parameters(make):
    head = make(8)
    assert len(head.grow(10)) == 0  # ten classes fit the first sixteen rows
    features = torch.randn(5, 8)
    before, _ = head(features)
    replaced = head.grow(10)
    after, _ = head(features)
    assert after.shape == (5, 20)
    torch.testing.assert_close(after[:, :10], before, rtol=1e-5, atol=1e-6)
    assert {len(new) for _, new in replaced} == {capacity_for(20)}
    assert all(torch.equal(new[:10], old[:10]) for old, new in replaced)


@pytest.mark.parametrize("make", [CosineHead, LinearHead])
def test_frozen_rows_survive_momentum_and_weight_decay(make):
    head = make(4)
    head.grow(6)
    with torch.no_grad():
        bias = getattr(head, "bias", torch.zeros(16)).uniform_(-1, 1)
    old_bias = bias[:6].clone()
    head.freeze(4)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    old = head.weight[:4].clone()
    for _ in range(3):
        optimizer.zero_grad()
        head(torch.randn(7, 4))[0].square().sum().backward()
        optimizer.step()
        head.restore_frozen()
        assert not head.weight.grad[:4].any()
    assert torch.equal(head.weight[:4], old)
    assert not torch.equal(head.weight[4:6], torch.zeros(2, 4))
    if make is LinearHead:
        assert not head.bias.grad[:4].any()
        assert torch.equal(head.bias[:4], old_bias[:4])
        assert not torch.equal(head.bias[4:6], old_bias[4:])


def test_label_space_and_arrival_space():
    network = build("resnet8", in_channels=1)
    network.grow([7, 2])
    network.eval()
    images = torch.randn(3, 1, 8, 8)
    arrival, labels = network.forward_all(images).logits, network(images)
    assert labels.shape == (3, 8)
    assert torch.equal(labels[:, [7, 2]], arrival)
    assert (labels[:, [0, 1, 3, 4, 5, 6]] == -1000).all()
    assert network.positions(torch.tensor([2, 7, 5])).tolist() == [1, 0, -1]


def test_evaluation_changes_neither_network_nor_random_state():
    network = build("resnet8", in_channels=1)
    network.grow([0, 1])
    network.eval()
    before, state = torch.random.get_rng_state(), {k: v.clone() for k, v in network.state_dict().items()}
    network(torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_class_scales_act_in_evaluation_only_unless_asked():
    network = build("resnet8", in_channels=1)
    network.grow([0, 1])
    network.heads[0].class_scale.data[:2] = torch.tensor([2.0, 3.0])
    network.eval()
    images = torch.randn(2, 1, 8, 8)
    plain = network.forward_all(images, rebalanced=False).logits
    torch.testing.assert_close(network(images), plain * torch.tensor([2.0, 3.0]))


def test_state_travels_between_networks_of_different_size():
    small, large = build("resnet8", in_channels=1), build("resnet8", in_channels=1)
    small.grow(range(5))
    large.grow(range(40))
    large.load_state(small.state())
    small.eval(), large.eval()
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(small(images), large(images))


def _with_router(**settings):
    network = build("resnet8", num_experts=2, in_channels=1, width=4)
    network.grow(range(5))
    network.router = Router(num_experts=2, num_features=16, **settings)
    return network


def test_router_travels_with_the_state():
    network = _with_router(top=3, hidden=4, shared=False)
    stored = io.BytesIO()
    torch.save(network.state(), stored)
    state = torch.load(io.BytesIO(stored.getvalue()), weights_only=True)  # tensors and plain data alone
    other = build("resnet8", num_experts=2, in_channels=1, width=4)
    random = torch.random.get_rng_state()
    other.load_state(state)
    assert torch.equal(random, torch.random.get_rng_state())
    assert list(other.state_dict()) == list(network.state_dict())
    for key, tensor in other.state_dict().items():
        torch.testing.assert_close(tensor, network.state_dict()[key], rtol=0, atol=0, equal_nan=True, msg=key)
    network.eval(), other.eval()
    logits, features = torch.randn(2, 3, 5), torch.randn(2, 3, 16)
    assert torch.equal(other.router(logits, features), network.router(logits, features))


def test_prediction_is_delegated_with_its_options():
    network = _with_router(top=3).eval()
    images = torch.randn(6, 1, 8, 8)
    every, first = network.predict(images, budget=2), network.predict(images, budget=1)
    assert every.experts_used.tolist() == [2] * 6 and first.experts_used.tolist() == [1] * 6
    torch.testing.assert_close(every.logits, network(images))
    with pytest.raises(TypeError, match="spend"):
        network.predict(images, spend=1)


@pytest.mark.parametrize("option", ["budget", "threshold"])
def test_a_budget_that_is_no_number_is_explained(option):
    network = build("resnet8", in_channels=1, width=8).eval()
    network.grow([0, 1])
    with pytest.raises(UserError, match=f"{option} is '2'; give a number"):
        network.predict(torch.zeros(1, 1, 8, 8), **{option: "2"})


def test_a_state_without_router_drops_it():
    network, plain = _with_router(), build("resnet8", num_experts=2, in_channels=1, width=4)
    plain.grow(range(5))
    network.load_state(plain.state())
    assert network.router is None
    before = {key: value for key, value in plain.state().items() if key != "router"}  # of before routers were
    network.load_state(before)
    assert network.router is None


def test_experts_are_averaged():
    network = build("resnet8", num_experts=3, in_channels=1)
    network.grow(range(4))
    network.eval()
    out = network.forward_all(torch.randn(2, 1, 8, 8))
    assert out.features.shape == (3, 2, 64)
    torch.testing.assert_close(out.logits, out.expert_logits.mean(0))
    assert not torch.equal(out.expert_logits[0], out.expert_logits[1])


def test_unknown_names_are_explained():
    with pytest.raises(UserError, match="Did you mean 'resnet32'"):
        build("resnet34")
    with pytest.raises(UserError, match="cosine, linear"):
        build("resnet8", head="square")
