"""What a state_dict says beside its tensors: classes, names, normalisation, growth, and how a network answers."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from incrlt.errors import UserError
from incrlt.models import ContrastLayout, CosineHead, Layout, LinearHead, MomentumContrast, build
from incrlt.models.facts import FORMAT, SUFFIX, Facts, tensors_alone
from incrlt.models.router import Router

IDS = [7, 2, 19, 4]


def _network(classes=IDS, router=False, seed=0, **options):
    torch.manual_seed(seed)
    network = build(**{"name": "resnet8", "num_experts": 2, "in_channels": 1, "width": 4, **options})
    network.grow(classes)
    if router:
        network.router = Router(2, 16, top=3, hidden=4, normalise=True)
    return network


def _images():
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def _through_a_file(state):
    stored = io.BytesIO()
    torch.save(state, stored)
    return torch.load(io.BytesIO(stored.getvalue()), weights_only=True)


@pytest.mark.parametrize("classes", [IDS, range(40)])
@pytest.mark.parametrize("known", [[], [0, 1], range(20)])
def test_a_state_dict_brings_the_network_back(classes, known):
    """Into a fresh one, which answered ``[B, 0]``, and into one that knows other classes."""
    network = _network(classes, router=True)
    network.normalisation = {"mean": [0.25], "std": [0.5]}
    network.class_names = {int(label): f"class {label}" for label in classes}
    other = _network(known, seed=1)
    said = other.load_state_dict(_through_a_file(network.state_dict()))
    assert not said.missing_keys and not said.unexpected_keys
    assert other.class_ids == list(classes) and other.class_names == network.class_names
    assert other.normalisation == network.normalisation
    network.eval(), other.eval()
    assert torch.equal(other(_images()), network(_images()))
    assert torch.equal(other.predict(_images()).experts_used, network.predict(_images()).experts_used)
    other.grow([99])
    assert other.num_classes == len(classes) + 1 == other.heads[1].num_classes


def test_an_optimizer_that_was_there_before_trains_what_was_loaded():
    network, other = _network(range(20)), _network([])
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other.load_state_dict(network.state_dict())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert all(id(p) in held for p in other.parameters())
    before = other.heads[0].weight.detach().clone()
    other.forward_all(_images()).logits.square().sum().backward()
    optimizer.step()
    assert (other.heads[0].weight[:20] != before[:20]).any(dim=1).all()


def test_a_state_without_router_drops_it_and_one_with_others_settings_builds_it_anew():
    routed = _network(router=True)
    routed.load_state_dict(_network().state_dict())
    assert routed.router is None
    routed.router = Router(2, 16, top=3, hidden=4, normalise=False)  # of the same shapes
    state, random = _network(router=True).state_dict(), torch.random.get_rng_state()
    routed.load_state_dict(state)
    assert routed.router.normalise is True
    assert torch.equal(random, torch.random.get_rng_state())
    kept = routed.router
    routed.load_state_dict(_network(router=True).state_dict())
    assert routed.router is kept


@pytest.mark.parametrize("make", [CosineHead, LinearHead])
def test_a_head_alone_knows_its_rows(make):
    head, fresh = make(8), make(8)
    head.grow(5)
    fresh.load_state_dict(head.state_dict())
    features = torch.randn(2, 8)
    assert torch.equal(fresh(features)[0], head(features)[0]) and fresh.num_classes == 5
    head.grow(30)
    fresh.load_state_dict(head.state_dict())
    assert torch.equal(fresh(features)[0], head(features)[0])


def test_frozen_rows_stay_what_was_loaded():
    """As when a plugin brings back the best epoch inside a stage: not what was frozen before."""
    head = CosineHead(8)
    head.grow(4)
    state = copy.deepcopy(head.state_dict())
    state["weight"] += 1
    head.freeze(2)
    head.load_state_dict(state)
    head.restore_frozen()
    assert torch.equal(head.weight, state["weight"]) and head.num_frozen == 2


def test_a_router_and_a_momentum_encoder_refuse_what_their_shapes_do_not_show():
    router = Router(2, 4, normalise=True)
    with pytest.raises(UserError, match="has normalise True, this one has False"):
        Router(2, 4, normalise=False).load_state_dict(router.state_dict())
    with pytest.raises(UserError, match="has shared True, this one has False"):
        Router(2, 4, shared=False).load_state_dict(router.state_dict())
    branches = [torch.nn.Linear(3, 4)]
    encoder = MomentumContrast(branches, 4, ContrastLayout(published=True))
    with pytest.raises(UserError, match="has published True, this one has False"):
        MomentumContrast(branches, 4).load_state_dict(encoder.state_dict())
    copied = MomentumContrast(branches, 4, ContrastLayout(published=True))
    copied.load_state_dict(encoder.state_dict())
    assert torch.equal(copied.queue, encoder.queue)


@pytest.mark.parametrize("load", ["load_state_dict", "load_state"])
def test_weights_of_a_network_that_answers_otherwise_are_refused(load):
    """With and without the last ReLU tensors have the same names and shapes."""
    signed, other = _network(last_relu=False), _network([], last_relu=True)
    state = signed.state() if load == "load_state" else signed.state_dict()
    with pytest.raises(UserError, match="has last_relu False, this one True"):
        getattr(other, load)(state)
    assert other.class_ids == []


def test_an_older_state_is_taken_where_it_means_something_and_refused_where_not():
    network = _network()
    older = tensors_alone(network.state_dict())
    with pytest.raises(UserError, match=r"older incrlt .* call network.grow\(class_ids\)"):
        _network([]).load_state_dict(older)
    with pytest.raises(UserError, match=r"older incrlt .* how many classes the head has"):
        CosineHead(16).load_state_dict(tensors_alone(network.heads[0].state_dict()))
    grown = _network(seed=1)
    grown.load_state_dict(older)
    network.eval(), grown.eval()
    assert torch.equal(grown(_images()), network(_images()))
    backbone = {name: value for name, value in older.items() if name.startswith(("stem", "branches"))}
    _network([]).load_state_dict(backbone, strict=False)


def test_checkpoints_hold_what_they_held():
    """``state()`` says in words of its own what facts say; files of before are read, and read ours."""
    network = _network(router=True)
    state = network.state()
    assert list(state) == ["architecture", "normalisation", "class_ids", "router", "tensors"]
    assert not [name for name in state["tensors"] if name.endswith(SUFFIX)]
    assert "combination" not in state["architecture"]["layout"]  # Layout(**layout) of older code
    for classes in (IDS, []):  # before the first growth too
        other = _network([3])
        other.load_state(_network(classes).state())
        assert other.class_ids == classes


class _Newer(Facts):
    def facts(self):
        return {"format": FORMAT + 1}


def test_newer_and_damaged_states_say_so():
    state = _network().state_dict()
    state[SUFFIX] = _Newer().get_extra_state()
    with pytest.raises(
        UserError, match=f"newer incrlt .format {FORMAT + 1}, this one reads {FORMAT}.; update"
    ):
        _network([]).load_state_dict(state)
    for damaged in (torch.zeros(3, dtype=torch.uint8), torch.zeros(0), "text", None, torch.ones(2, 2)):
        with pytest.raises(UserError, match="damaged"):
            _network([]).load_state_dict({**state, SUFFIX: damaged})
    head = _network().heads[0].state_dict()
    network = _network([])
    for classes in ([1, 1], [-1], ["a"], {"a": 1}, None):
        with pytest.raises(UserError, match="damaged: its classes"):
            network.load_state({**_network().state(), "class_ids": classes})
    fake = CosineHead(16)
    fake.num_classes = 10**9
    with pytest.raises(UserError, match="damaged: 1000000000 classes"):
        CosineHead(16).load_state_dict({**head, SUFFIX: fake.get_extra_state()})


def test_the_facts_are_a_tensor_like_the_rest():
    """Code that clones, moves or compares a state goes on working."""
    state = _network(router=True).state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert next(name for name in state if name.endswith(SUFFIX)) == SUFFIX
    contrast = build("resnet8", layout=Layout(2, shared="nothing", contrast=ContrastLayout()), width=4)
    assert f"contrast.{SUFFIX}" in contrast.state_dict()
