"""SHIKE's fusion of depths, second heads, and what stems of several maps mean for the network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from incrlt.models import Layout, build
from incrlt.models.backbones.resnet import LateBranch, PaddingShortcut

SHIKE = Layout(num_experts=3, shared="two_stages", fusion=True, second_heads=True, scale=30.0)


def _network(layout=SHIKE, classes=5, **options):
    torch.manual_seed(0)
    network = build("resnet8", layout=layout, in_channels=1, width=4, **options)
    network.grow(range(classes))
    return network


def _images(count=3):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_an_expert_is_the_pooled_product_of_a_deep_and_a_shallow_map():
    network = _network().eval()
    first, second = network.shared(_images())
    for k, branch in enumerate(network.branches):
        x = second if k == 1 else first
        for layer in branch.shallow:
            x = layer(x)
        product = branch.stage3(second) * x
        torch.testing.assert_close(branch((first, second)), product.mean((2, 3)))
    convolutions = [sum(isinstance(m, nn.Conv2d) for m in b.shallow) for b in network.branches]
    assert convolutions == [2, 1, 2]


def test_without_fusion_the_third_stage_stands_alone():
    network = _network(Layout(num_experts=2, shared="two_stages")).eval()
    maps = network.shared(_images())
    expected = torch.stack([branch.stage3(maps[1]).mean((2, 3)) for branch in network.branches])
    torch.testing.assert_close(network.extract(_images()), expected)


@pytest.mark.parametrize("last_relu", [True, False])
def test_signs_of_fused_features_come_from_the_shallow_map_alone(last_relu):
    features = _network(last_relu=last_relu).eval().extract(_images(16))
    assert (features[1] >= 0).all()  # both maps end with a ReLU
    assert (features[0] < 0).any()  # the shallow map of two convolutions does not


def test_without_fusion_the_last_relu_can_go():
    network = _network(Layout(num_experts=2, shared="two_stages"), last_relu=False).eval()
    assert all((features < 0).any() for features in network.extract(_images(16)))


def test_fusion_has_the_right_gradient():
    torch.manual_seed(0)
    branch = LateBranch(2, 1, last_relu=False, source=0).double()
    maps = (
        torch.randn(2, 2, 8, 8).double().requires_grad_(),
        torch.randn(2, 4, 4, 4).double().requires_grad_(),
    )
    branch.train()
    for norm in (m for m in branch.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = 0.0  # statistics stay while differences are taken
    assert torch.autograd.gradcheck(lambda *m: branch(m), maps, fast_mode=True)
    branch(maps).sum().backward()
    assert maps[0].grad.abs().sum() > 0 and branch.shallow[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("channels", "sides"), [((4, 8), (2, 2)), ((3, 8), (2, 3)), ((4, 4), (0, 0))])
def test_padding_shortcut_by_hand(channels, sides):
    shortcut = PaddingShortcut(*channels, stride=2)
    x = torch.arange(2.0 * channels[0] * 5 * 5).reshape(2, channels[0], 5, 5)
    y = shortcut(x)
    assert torch.equal(y[:, sides[0] : sides[0] + channels[0]], x[:, :, ::2, ::2])
    assert y.abs().sum() == x[:, :, ::2, ::2].abs().sum() and y.shape[1] == channels[1]


def test_second_heads_answer_where_rebalanced_logits_are_asked_for():
    network = _network().eval()
    features = network.extract(_images())
    first, second = network.classify(features, False), network.classify(features, True)
    for k in range(3):
        torch.testing.assert_close(first.expert_logits[k], network.heads[k](features[k])[0])
        torch.testing.assert_close(second.expert_logits[k], network.second_heads[k](features[k])[0])
    network.second_heads[1].class_scale.data[:5] = 2.0
    network.heads[0].class_scale.data[:5] = 5.0  # of no effect: second heads are read
    scaled = network.classify(features, True).expert_logits
    torch.testing.assert_close(scaled[1], 2 * second.expert_logits[1])
    torch.testing.assert_close(scaled[0], second.expert_logits[0])
    torch.testing.assert_close(network(_images()), scaled.mean(0))  # evaluation reads them by itself
    network.train()
    trained = network.forward_all(_images())
    expected = torch.stack([head(f)[0] for head, f in zip(network.heads, trained.features, strict=True)])
    torch.testing.assert_close(trained.expert_logits, expected)


def test_scales_are_those_of_the_heads_that_answered():
    network = _network().eval()
    for k in range(3):
        network.heads[k].scale.data.fill_(k + 1.0)
        network.second_heads[k].scale.data.fill_(k + 7.0)
    features = network.extract(_images())
    assert network.classify(features, False).scales.tolist() == [1.0, 2.0, 3.0]
    out = network.classify(features, True)
    assert out.scales.tolist() == [7.0, 8.0, 9.0] and not out.scales.requires_grad
    torch.testing.assert_close(out.expert_logits, out.scales[:, None, None] * out.cosines)


def test_second_heads_grow_freeze_and_imprint_like_the_first():
    network = _network()
    old = [head.rows().detach().clone() for head in network.all_heads]
    replaced = network.grow(range(5, 20))
    assert len(replaced) == 2 * 6  # weights and class scales
    assert all(torch.equal(head.rows()[:5], rows) for head, rows in zip(network.all_heads, old, strict=True))
    prototypes = F.normalize(torch.randn(3, 15, 16), dim=-1)
    network.imprint(prototypes)
    for heads in (network.heads, network.second_heads):
        for k in range(3):
            torch.testing.assert_close(F.normalize(heads[k].rows()[5:], dim=-1), prototypes[k])
            torch.testing.assert_close(
                heads[k].rows()[5:].norm(dim=1).mean(), heads[k].rows()[:5].norm(dim=1).mean()
            )
    network.freeze_old(5)
    for head in network.all_heads:
        head.weight.data.add_(1.0)
    network.restore_frozen()
    assert all(torch.equal(head.rows()[:5], rows) for head, rows in zip(network.all_heads, old, strict=True))


def test_second_heads_travel_with_the_state():
    small, large = _network(), _network(classes=30)
    large.load_state(small.state())
    small.eval(), large.eval()
    assert torch.equal(small(_images()), large(_images()))
    assert large.second_heads[2].num_classes == 5
