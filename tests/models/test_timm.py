"""Networks of timm in stem and branches: cut and whole are the same, and cost what the papers say."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from incrlt import families
from incrlt.errors import UserError
from incrlt.models import Layout, build, cost, timm_cuts
from incrlt.models.backbones.timm_backbone import TimmBackbone

timm = pytest.importorskip("timm", reason="networks of timm need timm: pip install 'incrlt[timm]'")

SMALL = {
    "resnet": "timm:resnet10",
    "convnext": "timm:convnext_atto",
    "efficientnet": "timm:tf_efficientnet_lite0",
    "vit": "timm:vit_tiny_patch16_224",
}
"""One small network of each family."""
CUTS = ("stem", "two_stages", "nothing", "all")


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=SMALL)
def whole(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    """A name, and the network of timm with statistics that are not those of the beginning."""
    torch.manual_seed(0)
    name = SMALL[request.param]
    model = TimmBackbone(name, 3, 16, True).whole()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.1, 0.1)
            nn.init.uniform_(part.weight, 0.5, 1.5)
    return name, model.eval()


def parts(name: str, model: nn.Module, layout: Layout, last_relu: bool = True) -> tuple[nn.Module, nn.Module]:
    backbone = TimmBackbone(
        name, 3, 16, last_relu, weights=lambda new: new.load_state_dict(model.state_dict())
    )
    return backbone.stem(layout).eval(), backbone.branch(layout, 0).eval()


def test_every_family_has_a_cut_and_an_example() -> None:
    assert set(families.FAMILIES) == set(timm_cuts.CLASSES) == set(SMALL)
    assert [families.family_of(name) for name in families.EXAMPLES] == list(families.FAMILIES)


@pytest.mark.parametrize("shared", CUTS)
@torch.no_grad()
def test_cut_and_whole_are_the_same(whole: tuple[str, nn.Module], shared: str, pictures: Tensor) -> None:
    name, model = whole
    stem, branch = parts(name, model, Layout(shared=shared))  # type: ignore[arg-type]
    features = branch(stem(pictures))
    assert features.shape == (2, branch.num_features)
    assert torch.equal(features, model(pictures))


@pytest.mark.parametrize("shared", ["stem", "nothing"])
@torch.no_grad()
def test_maps_change_nothing_and_are_before_the_activations(
    whole: tuple[str, nn.Module], shared: str, pictures: Tensor
) -> None:
    name, model = whole
    stem, branch = parts(name, model, Layout(shared=shared))  # type: ignore[arg-type]
    if "vit" in name:
        assert not hasattr(branch, "with_maps")
        return
    inside, common = (pictures, ()) if shared == "nothing" else stem.with_maps(pictures)
    features, own = branch.with_maps(inside)
    assert torch.equal(features, model(pictures))
    told, wanted = (*common, *own), model.forward_intermediates(pictures, intermediates_only=True)
    stages = [level.relu() if "resnet" in name else level for level in told]
    last = (
        stages[-2] if "efficientnet" in name else stages[-1]
    )  # its last convolution is a stage of its own here
    assert torch.equal(last, wanted[-1])
    assert "convnext" in name or told[-1].min() < 0


@torch.no_grad()
def test_without_the_last_activation_features_carry_a_sign(
    whole: tuple[str, nn.Module], pictures: Tensor
) -> None:
    name, model = whole
    stem, branch = parts(name, model, Layout(), last_relu=False)
    features = branch(stem(pictures))
    assert features.min() < 0
    assert (
        torch.equal(features, model(pictures)) != families.FAMILIES[families.family_of(name)].last_activation
    )


def test_fused_experts_multiply_maps_of_three_sizes(pictures: Tensor) -> None:
    """Against the product written out."""
    torch.manual_seed(0)
    layout = Layout(num_experts=3, shared="two_stages", fusion=True)
    network = build("timm:resnet10", layout=layout).eval()
    with torch.no_grad():
        first, second, third, last = network.stem(pictures)
        assert torch.equal(third, last)
        assert [m.shape[1:] for m in (first, second, third)] == [(64, 16, 16), (128, 8, 8), (256, 4, 4)]
        for branch, shallow in zip(network.branches, (first, second, third), strict=True):
            deep = branch.stages[0](last)
            assert torch.equal(branch(network.stem(pictures)), (deep * branch.shallow(shallow)).mean((2, 3)))
    assert [sum(isinstance(m, nn.Conv2d) for m in b.shallow) for b in network.branches] == [3, 2, 1]
    assert not any(isinstance(list(b.shallow)[-1], nn.ReLU) for b in network.branches)


# Millions of parameters and giga multiply-adds at 224 pixels; RIDE's own count for ResNeXt-50 is 6.08.
PAPERS = {
    ("timm:resnet50", "ride"): (39.1, 5.77),
    ("timm:resnet50", "shike"): (121, 11.3),
    ("timm:resnext50_32x4d", "ride"): (38.3, 6.05),
    ("timm:resnet10", "ncl"): (14.7, 2.67),
    ("timm:tf_efficientnet_lite0", "stem"): (10.0, 0.92),
    ("timm:vit_small_patch16_224", "two"): (28.8, 6.1),
}
LAYOUTS = {
    "plain": Layout(),
    "ride": Layout(num_experts=3, width_factor=0.75, shortcut="padding"),
    "stem": Layout(num_experts=3),
    "two": Layout(num_experts=3, shared="two_stages"),
    "ncl": Layout(num_experts=3, shared="nothing", shortcut="padding"),
    "shike": Layout(num_experts=3, shared="two_stages", fusion=True),
}


@pytest.mark.parametrize(("name", "layout"), PAPERS)
def test_costs_are_those_of_the_papers(name: str, layout: str) -> None:
    millions, giga = PAPERS[name, layout]
    with torch.device("meta"):
        network = build(name, layout=LAYOUTS[layout])
    found = cost.parameters(network) / 1e6, cost.macs(network, (3, 224, 224)) / 1e9
    assert found == (pytest.approx(millions, rel=0.006), pytest.approx(giga, rel=0.006))
    if (name, layout) == ("timm:resnext50_32x4d", "ride"):
        assert found[1] == pytest.approx(6.08, rel=0.006)
        assert network.branches[0].num_features == 1536


def test_a_network_comes_back_from_its_state(pictures: Tensor) -> None:
    torch.manual_seed(0)
    network = build("timm:resnet10", layout=LAYOUTS["ride"]).eval()
    network.grow([0, 1, 2])
    other = build("timm:resnet10", layout=LAYOUTS["ride"]).eval()
    other.load_state(network.state())
    with torch.no_grad():
        assert torch.equal(other(pictures), network(pictures))


REFUSED = {
    "timm:swin_tiny_patch4_window7_224": "of no family that is known.*incrlt/families.py.*timm_cuts.py",
    "timm:resnetv2_50": "of no family",
    "timm:resnet51": "knows no 'resnet51'.*[Dd]id you mean",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=REFUSED[name]):
        build(name)


@pytest.mark.parametrize(
    ("name", "layout", "sentence"),
    [
        ("timm:vit_tiny_patch16_224", LAYOUTS["shike"], "no maps of several sizes"),
        ("timm:tf_efficientnet_lite0", LAYOUTS["ride"], "0.75 times its width.*experts.width_factor"),
        ("timm:resnet10", dataclasses.replace(LAYOUTS["ncl"], width_factor=0.5), "0.5 times its width"),
    ],
)
def test_layouts_that_a_family_cannot_have_are_refused(name: str, layout: Layout, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build(name, layout=layout)


def test_another_width_is_refused() -> None:
    with pytest.raises(UserError, match="decided by its name"):
        build("timm:resnet10", width=32)


def test_pictures_that_cannot_be_cut_into_patches_are_refused() -> None:
    with pytest.raises(UserError, match="multiples of 16"):
        build("timm:vit_tiny_patch16_224").extract(torch.zeros(1, 3, 40, 64))
