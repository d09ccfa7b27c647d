"""Double networks compute in double throughout; single images before batch norms are explained."""

from __future__ import annotations

import pytest
import torch

from incrlt.errors import UserError
from incrlt.experts.ncl import NCL
from incrlt.experts.ride import RIDE
from incrlt.experts.shike import SHIKE
from incrlt.losses import momentum_contrast
from incrlt.models import build
from incrlt.models.router import Router

METHODS = {"ride": RIDE(), "shike": SHIKE(), "ncl": NCL(contrastive=1.0, queue=8)}


def _network(method, head="cosine"):
    torch.manual_seed(0)
    network = build("resnet8", layout=method.layout, head=head, in_channels=1, width=4)
    network.grow(range(5))
    network.router = Router(network.num_experts, network.heads[0].num_features, top=3)
    return network


@pytest.mark.parametrize("head", ["cosine", "linear"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_double_network_answers_in_double(method, head):
    network = _network(method, head)
    single = _network(method, head).eval()
    network.double().eval()
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    output = network.forward_all(x)
    assert output.logits.dtype == output.features.dtype == torch.float64
    torch.testing.assert_close(
        output.logits.float(), single.forward_all(x.float()).logits, rtol=1e-3, atol=1e-4
    )
    found = network.predict(x, threshold=0.0)
    assert found.logits.dtype == torch.float64
    torch.testing.assert_close(
        network.predict(x).logits[found.experts_used == 3], network(x)[found.experts_used == 3]
    )
    network.normalisation = {"mean": [0.5], "std": [0.25]}
    prepared = network.prepare(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8))
    assert prepared.dtype == torch.float64 and torch.allclose(
        prepared, torch.tensor(2.0, dtype=torch.float64)
    )
    network.grow(range(5, 20))  # another capacity
    assert network(x).dtype == torch.float64 and network(x).shape == (6, 20)


def test_a_momentum_encoder_goes_along():
    network = _network(METHODS["ncl"]).double()
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    output, keys = network.forward_all(x), network.contrast.keys(x)
    negatives, valid = network.contrast.negatives()
    loss = momentum_contrast(network.contrast.project(output.features), keys, negatives, valid, 0.2)
    network.contrast.enqueue(keys)
    assert loss.dtype == torch.float64 and network.contrast.queue.dtype == torch.float64


def test_under_autocast_features_and_logits_are_fp32():
    network = _network(METHODS["ride"]).eval()
    with torch.autocast("cpu", torch.bfloat16):
        output = network.forward_all(torch.randn(2, 1, 8, 8), maps=True)
    assert output.features.dtype == torch.float32
    assert {level.dtype for level in output.maps} == {torch.float32}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_one_image_whose_maps_are_one_pixel_is_explained(method):
    network = _network(method)
    with pytest.raises(UserError, match="one image of 4 x 4 pixels cannot be normalised by its batch"):
        network.forward_all(torch.randn(1, 1, 4, 4))
    network.forward_all(torch.randn(1, 1, 8, 8))
    network.forward_all(torch.randn(2, 1, 4, 4))
    network.eval().forward_all(torch.randn(1, 1, 4, 4))


def test_other_errors_of_torch_come_through():
    with pytest.raises(RuntimeError, match="channels"):
        _network(METHODS["ride"]).forward_all(torch.randn(1, 3, 4, 4))
