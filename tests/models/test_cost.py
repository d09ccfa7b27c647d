"""Multiply-accumulates against the arithmetic of RIDE's tables."""

from __future__ import annotations

import pytest
import torch

from incrlt.models import ContrastLayout, Layout, build
from incrlt.models.cost import head_macs, macs, parameters

CIFAR = [  # layout, experts that run, million multiply-accumulates at 100 classes
    (Layout(shortcut="padding"), None, 68.87),
    (Layout(2, width_factor=0.75, shortcut="padding"), None, 74.9),
    (Layout(3, width_factor=0.75, shortcut="padding"), None, 100.4),
    (Layout(4, width_factor=0.75, shortcut="padding"), None, 125.8),
    (Layout(6, width_factor=0.75, shortcut="padding"), None, 176.7),
    (Layout(3, width_factor=0.75, shortcut="padding"), 1, 24.04 + 25.44),
    (Layout(3, width_factor=0.75, shortcut="padding"), 2, 24.04 + 2 * 25.44),
    (Layout(3, shortcut="padding"), None, 158.5),
    (Layout(3, "nothing", shortcut="padding"), None, 206.6),
    (Layout(3, "nothing", shortcut="padding"), 2, 2 * 68.87),
    (Layout(3, "two_stages", fusion=True, second_heads=True), None, 120.1),
]


@pytest.mark.parametrize(("layout", "experts", "millions"), CIFAR)
def test_multiply_accumulates_of_the_published_networks(layout, experts, millions):
    network = build("resnet32", layout=layout)
    network.grow(range(100))
    assert macs(network, experts=experts) / 1e6 == pytest.approx(millions, abs=0.1)


def test_multiply_accumulates_by_hand():
    network = build("resnet8", layout=Layout(shortcut="padding"), in_channels=1, width=2)
    network.grow(range(5))
    stem = 9 * 64 * (1 * 2 + 2 * 2 + 2 * 2)
    stages = 9 * 16 * (2 * 4 + 4 * 4) + 9 * 4 * (4 * 8 + 8 * 8)
    assert macs(network, (1, 8, 8)) == stem + stages + 5 * 8
    assert head_macs(network) == 5 * 8


def test_shares_of_the_example_exits():
    """RIDE's example: 40.99 % stop after one expert, 9.47 % after two."""
    network = build("resnet32", layout=Layout(3, width_factor=0.75, shortcut="padding"))
    network.grow(range(100))
    shares = [0.4099, 0.0947, 0.4954]
    mean = sum(share * macs(network, experts=k + 1) for k, share in enumerate(shares))
    assert mean / 1e6 == pytest.approx(77.1, abs=0.1)


def test_counting_changes_nothing():
    contrast = ContrastLayout(dim=4, queue_size=8)
    network = build("resnet8", layout=Layout(2, "nothing", contrast=contrast), in_channels=1, width=4)
    network.grow(range(3))
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    random = torch.random.get_rng_state()
    parameters(network), macs(network, (1, 8, 8))
    assert network.training and torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_rows_count_as_classes_arrive():
    network = build("resnet8", layout=Layout(2, second_heads=True), width=4)
    empty = parameters(network)
    network.grow(range(7))
    assert parameters(network) - empty == 7 * 16 * 4
    linear = build("resnet8", head="linear", width=4)
    before = parameters(linear)
    linear.grow(range(7))
    assert parameters(linear) - before == 7 * (16 + 1)
