"""Momentum encoder and queue against plain loops."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from incrlt.models import ContrastLayout, Layout, build

EXPERTS, DIM = 2, 6


def _network(size=8, momentum=0.9, published=False, seed=0):
    torch.manual_seed(seed)
    contrast = ContrastLayout(DIM, size, momentum, published)
    layout = Layout(num_experts=EXPERTS, shared="nothing", contrast=contrast)
    network = build("resnet8", layout=layout, in_channels=1, width=4)
    network.grow(range(3))
    return network


def _unit(batch, seed=0):
    keys = torch.randn(EXPERTS, batch, DIM, generator=torch.Generator().manual_seed(seed))
    return F.normalize(keys, dim=-1)


def _images(batch=4):
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def _values(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("batches", [[3, 3, 3], [8, 1], [5, 20, 3], [1] * 11, [16, 16], [0, 2]])
def test_queue_is_a_ring_for_any_batch(batches):
    contrast = _network().contrast
    ring, place, total = contrast.queue.clone(), 0, 0
    for number, batch in enumerate(batches):
        keys = _unit(batch, number)
        contrast.enqueue(keys)
        for one in range(batch):
            ring[:, :, place] = keys[:, one]
            place = (place + 1) % 8
        total += batch
        negatives, valid = contrast.negatives()
        assert torch.equal(negatives, ring)
        assert valid.tolist() == [column < total for column in range(8)]
        assert int(contrast.pointer) == place


def test_first_columns_are_unit_vectors_that_are_no_negatives():
    negatives, valid = _network(size=32).contrast.negatives()
    torch.testing.assert_close(negatives.norm(dim=1), torch.ones(EXPERTS, 32))
    assert torch.linalg.matrix_rank(negatives[0]) == DIM and not torch.equal(negatives[0], negatives[1])
    assert not valid.any()
    assert _network(published=True).contrast.negatives()[1].all()


def test_negatives_survive_an_enqueue_before_the_backward_pass():
    contrast = _network().contrast
    queries = _unit(3).requires_grad_()
    negatives, _ = contrast.negatives()
    loss = (queries @ negatives).square().sum()
    contrast.enqueue(_unit(3, 1))
    loss.backward()
    torch.testing.assert_close(queries.grad, 2 * (queries @ negatives) @ negatives.transpose(1, 2))


def test_queries_and_keys_agree_while_copies_are_copies():
    network = _network()
    queries = network.contrast.project(network.extract(_images()))
    keys = network.contrast.keys(_images())
    torch.testing.assert_close(queries, keys)
    torch.testing.assert_close(keys.norm(dim=-1), torch.ones(EXPERTS, 4))
    assert queries.requires_grad and not keys.requires_grad
    queries[..., 0].sum().backward()
    assert all(p.grad is not None for p in network.contrast.projections.parameters())
    frozen = [*network.contrast.key_branches.parameters(), *network.contrast.key_projections.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in frozen)


def _moved(network):
    """Move every query parameter and statistic away from its copy."""
    with torch.no_grad():
        for part in (network.branches, network.contrast.projections):
            for tensor in [*part.parameters(), *(b for b in part.buffers() if b.is_floating_point())]:
                tensor.add_(torch.rand_like(tensor))
    return network


def test_update_is_the_moving_average():
    network = _moved(_network())
    before = _values(network.contrast)
    network.contrast.update(network.branches)
    after = network.contrast.state_dict()
    sources = {"key_branches": network.branches, "key_projections": network.contrast.projections}
    for part, source in sources.items():
        parameters = {name for name, _ in source.named_parameters()}
        for name, theirs in source.state_dict().items():
            old, new = before[f"{part}.{name}"], after[f"{part}.{name}"]
            expected = 0.9 * old + 0.1 * theirs if name in parameters else theirs
            torch.testing.assert_close(new, expected)
            assert name not in parameters or not torch.equal(new, old)


def test_published_starts_apart_and_never_moves_key_projections_or_statistics():
    network = _network(published=True)
    ours, theirs = network.contrast.key_branches.state_dict(), network.branches.state_dict()
    convolutions = [name for name, tensor in ours.items() if tensor.dim() == 4]
    assert not any(torch.equal(ours[name], theirs[name]) for name in convolutions)
    _moved(network)
    before = _values(network.contrast)
    network.contrast.update(network.branches)
    network.contrast.restart(network.branches)
    after = _values(network.contrast)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"key_branches.{name}" for name, _ in network.branches.named_parameters()}
    name = "1.branch.stage3.0.conv2.weight"
    expected = 0.9 * before[f"key_branches.{name}"] + 0.1 * network.branches.state_dict()[name]
    torch.testing.assert_close(after[f"key_branches.{name}"], expected)


def test_restart_copies_and_empties_the_queue():
    network = _moved(_network())
    network.contrast.enqueue(_unit(5))
    network.contrast.restart(network.branches)
    torch.testing.assert_close(
        network.contrast.keys(_images()), network.contrast.project(network.extract(_images()))
    )
    assert not network.contrast.negatives()[1].any()
    network.contrast.enqueue(_unit(2, 9))
    negatives, valid = network.contrast.negatives()
    assert valid.tolist() == [True] * 2 + [False] * 6
    torch.testing.assert_close(negatives[:, :, :2], _unit(2, 9).transpose(1, 2))


def test_state_holds_copies_queue_and_place():
    network = _moved(_network())
    network.contrast.update(network.branches)
    network.contrast.enqueue(_unit(5))
    other = _network(seed=3)
    other.load_state(copy.deepcopy(network.state()))
    assert torch.equal(other.contrast.negatives()[0], network.contrast.negatives()[0])
    assert torch.equal(other.contrast.negatives()[1], network.contrast.negatives()[1])
    other.eval(), network.eval()
    assert torch.equal(other.contrast.keys(_images()), network.contrast.keys(_images()))
    network.contrast.enqueue(_unit(5, 1))
    other.contrast.enqueue(_unit(5, 1))
    assert torch.equal(other.contrast.queue, network.contrast.queue)


def test_the_networks_are_the_same_with_and_without_a_momentum_encoder():
    with_it = _network()
    torch.manual_seed(0)
    without = build("resnet8", layout=Layout(EXPERTS, "nothing"), in_channels=1, width=4)
    assert all(
        torch.equal(t, with_it.branches.state_dict()[n]) for n, t in without.branches.state_dict().items()
    )
