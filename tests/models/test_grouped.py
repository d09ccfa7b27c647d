"""Branches that run as one module give what they give one after the other."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from incrlt.errors import UserError
from incrlt.models import Layout, build
from incrlt.models.grouped import GroupedBranches

LAYOUTS = {
    "ride": Layout(num_experts=3, width_factor=0.75, shortcut="padding"),
    "projection": Layout(num_experts=3),
    "ncl": Layout(num_experts=2, shared="nothing", shortcut="padding"),
    "shike": Layout(num_experts=3, shared="two_stages", fusion=True),
    "late": Layout(num_experts=2, shared="two_stages"),
}


class _Groups(TorchFunctionMode):
    """Records the number of groups of every convolution."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.conv2d:
            self.seen.append(args[6] if len(args) > 6 else (kwargs or {}).get("groups", 1))
        return function(*args, **(kwargs or {}))


def _network(name):
    torch.manual_seed(0)
    network = build("resnet8", layout=LAYOUTS[name], in_channels=1, width=4).double()
    network.grow(range(3))
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.uniform_(-0.5, 0.5)
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.5, 1.5)
    return network


def _images():
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()


def _factors(features):
    return torch.randn(features.shape, generator=torch.Generator().manual_seed(2)).double()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYOUTS)
def test_network_gives_the_same_features_gradients_and_statistics(name, training):
    plain, grouped = _network(name).train(training), _network(name).train(training)
    grouped.grouped = True
    with _Groups() as groups:
        theirs = grouped.extract(_images())
    assert max(groups.seen) == LAYOUTS[name].num_experts  # it did run as one
    ours = plain.extract(_images())
    torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-11)
    (ours * _factors(ours)).sum().backward()
    (theirs * _factors(ours)).sum().backward()
    for (key, p), (_, q) in zip(plain.named_parameters(), grouped.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), key
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-10, msg=key)
    for (key, p), (_, q) in zip(plain.named_buffers(), grouped.named_buffers(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-9, atol=1e-11, msg=key)
    counters = {int(b) for n, b in grouped.branches.named_buffers() if n.endswith("num_batches_tracked")}
    assert counters == {int(training)}


def test_training_goes_the_same_way():
    plain, grouped = _network("ride"), _network("ride")
    grouped.grouped = True
    for network in (plain, grouped):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            features = network.extract(_images())
            network.classify(features, False).logits.square().sum().backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
    state = plain.state_dict()
    for key, tensor in grouped.state_dict().items():
        torch.testing.assert_close(tensor, state[key], rtol=1e-7, atol=1e-9, msg=key)
    assert not torch.equal(
        state["branches.1.stage3.0.conv2.weight"], _network("ride").branches[1].stage3[0].conv2.weight
    )


@pytest.mark.parametrize("name", ["ride", "projection", "ncl"])
def test_owned_form_is_its_branches_side_by_side(name):
    network = _network(name)
    branches = list(copy.deepcopy(network.branches))
    grouped = GroupedBranches.from_branches(branches)
    assert sum(p.numel() for p in grouped.parameters()) == sum(
        p.numel() for b in branches for p in b.parameters()
    )
    shared = network.shared(_images()).detach()
    expected = torch.stack([branch(shared) for branch in branches])
    features = grouped(shared)
    torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-11)
    (expected * _factors(expected)).sum().backward()
    (features * _factors(expected)).sum().backward()
    for key, parameter in grouped.body.named_parameters():
        grads = torch.cat([dict(branch.named_parameters())[key].grad for branch in branches])
        torch.testing.assert_close(parameter.grad, grads, rtol=1e-9, atol=1e-10, msg=key)
    states = [branch.state_dict() for branch in branches]  # with the statistics of the pass above
    for key, tensor in grouped.body.state_dict().items():
        parts = [state[key] for state in states]
        together = parts[0] if tensor.dim() == 0 else torch.cat(parts)
        torch.testing.assert_close(tensor, together, rtol=1e-9, atol=1e-11, msg=key)
    again = torch.stack([branch.eval()(shared) for branch in branches])
    torch.testing.assert_close(grouped.eval()(shared), again, rtol=1e-9, atol=1e-11)
    with torch.no_grad():
        branches[0].stage2[0].conv1.weight.zero_() if name != "ncl" else branches[0].stem.conv.weight.zero_()
    torch.testing.assert_close(grouped(shared), again, rtol=1e-9, atol=1e-11)  # copies, not views


def test_checkpoints_do_not_depend_on_how_branches_run():
    plain, grouped = _network("ride"), _network("ride")
    grouped.grouped = True
    grouped.extract(_images())
    plain.load_state(grouped.state())
    assert list(plain.state_dict()) == list(grouped.state_dict())
    twin = copy.deepcopy(grouped).eval()
    torch.testing.assert_close(
        plain.eval().extract(_images()), twin.extract(_images()), rtol=1e-9, atol=1e-11
    )


def test_frozen_branches_keep_their_statistics():
    network = _network("ride").train()
    network.grouped = True
    network.freeze_backbone()
    before = {key: tensor.clone() for key, tensor in network.branches.state_dict().items()}
    network.extract(_images())
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.branches.state_dict().items())


def test_branches_that_differ_are_refused():
    wide, narrow = build("resnet8", width=4).branches[0], build("resnet8", width=6).branches[0]
    with pytest.raises(UserError, match="different shapes"):
        GroupedBranches.from_branches([wide, narrow])
    shike = build("resnet8", layout=LAYOUTS["shike"], width=4)
    with pytest.raises(UserError, match="different shapes"):
        GroupedBranches.from_branches(list(shike.branches))
