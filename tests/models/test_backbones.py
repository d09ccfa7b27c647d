"""What every backbone keeps, found by listing the package; and a user's own, from a module of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import toy
from torch import nn

import incrlt.models
from incrlt.checkpoint import CheckpointFolder
from incrlt.errors import UserError
from incrlt.experts.ncl import NCL
from incrlt.experts.ride import RIDE
from incrlt.experts.single import Single
from incrlt.models import Layout, build
from incrlt.models.backbone import backbone_of, variants
from incrlt.models.maps import with_maps
from incrlt.strategies import LUCIR

sys.path.insert(0, str(Path(__file__).parent))  # a user starts from the folder of their module
OWN = "own_backbone:MyNet"


def _cases():
    smallest = {
        cls: name for name, (cls, _) in reversed(variants().items())
    }  # one variant of each file is enough
    for name in (*smallest.values(), OWN):
        _, backbone = backbone_of(name, in_channels=1, width=4, last_relu=False)
        for shared in backbone.shares:
            yield pytest.param(name, Layout(2, shared=shared), id=f"{name}-{shared}")
    yield pytest.param("resnet8", Layout(2, shared="two_stages", fusion=True), id="resnet8-fusion")
    yield pytest.param("resnet8", Layout(2, width_factor=0.75, shortcut="padding"), id="resnet8-narrow")


contract = pytest.mark.parametrize(("name", "layout"), list(_cases()))


def _network(name, layout, **options):
    torch.manual_seed(0)
    network = build(name, layout=layout, **{"in_channels": 1, "width": 4, **options})
    network.grow(range(3))
    return network


def _images(count=4):
    return torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(1))


@contract
def test_features_have_the_width_that_is_told(name, layout):
    network = _network(name, layout)
    features = network.extract(_images())
    assert {branch.num_features for branch in network.branches} == {features.shape[-1]}
    assert network.heads[0].num_features == features.shape[-1]
    assert features.shape[:2] == (2, 4) and features.isfinite().all()
    assert not torch.allclose(features[0], features[1], atol=1e-4), "experts are drawn one by one"


@contract
def test_an_image_in_evaluation_does_not_depend_on_those_beside_it(name, layout):
    network, x = _network(name, layout), _images()
    network.extract(x)  # moves running statistics, where there are any
    network.eval()
    alone = torch.cat([network.extract(x[row : row + 1]) for row in range(4)], dim=1)
    torch.testing.assert_close(alone, network.extract(x), rtol=1e-4, atol=1e-5)


@contract
def test_every_parameter_trains_and_experts_own_theirs(name, layout):
    network = _network(name, layout)
    features = network.extract(_images())
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    (features * weights)[0].sum().backward()
    first, second = (list(branch.parameters()) for branch in network.branches)
    assert not {id(p) for p in first} & {id(p) for p in second}
    for parameter in (*network.stem.parameters(), *first):
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0
    assert not any(parameter.grad.any() for parameter in second)


@contract
def test_the_last_relu_makes_features_positive_and_without_it_they_carry_signs(name, layout):
    for last_relu in (True, False):
        features = _network(name, layout, last_relu=last_relu).extract(_images())
        positive = last_relu or layout.fusion  # SHIKE's product keeps the ReLU, its shallow map the signs
        if not layout.fusion:
            assert bool((features < 0).any()) != positive


@contract
def test_the_same_seed_draws_the_same_weights_and_a_state_brings_them_back(name, layout):
    network, again = _network(name, layout), _network(name, layout)
    torch.manual_seed(5)
    other = build(name, layout=layout, in_channels=1, width=4)
    other.load_state_dict(network.state_dict())
    for found in (again, other):
        assert torch.equal(network.eval()(_images()), found.eval()(_images()))


@contract
def test_channels_last_and_any_size_of_images(name, layout):
    network = _network(name, layout).eval()
    x = torch.randn(2, 1, 32, 24)
    expected = network.extract(x)
    found = network.to(memory_format=torch.channels_last).extract(
        x.contiguous(memory_format=torch.channels_last)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- maps


def _tells(network):
    return all(
        isinstance(m, nn.Identity) or hasattr(m, "with_maps") for m in (network.stem, *network.branches)
    )


@contract
@pytest.mark.parametrize("training", [True, False])
def test_with_maps_features_statistics_and_gradients_are_the_same_bits(name, layout, training):
    plain, telling = (_network(name, layout).train(training) for _ in range(2))
    x = _images()
    if not _tells(plain):
        with pytest.raises(UserError, match="Whole does not tell any"):
            telling.forward_all(x, maps=True)
        return
    expected, found = plain.forward_all(x), telling.forward_all(x, maps=True)
    assert expected.maps is None
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.features, expected.features)
    for output in (expected, found):
        output.logits.square().sum().backward()
    for (key, ours), theirs in zip(telling.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is theirs.grad is None or torch.equal(ours.grad, theirs.grad), key
    assert not toy.changed(toy.weights(plain), toy.weights(telling))


@contract
def test_maps_are_those_of_each_expert_and_carry_signs(name, layout):
    network, x = _network(name, layout), _images()
    if not _tells(network):
        return
    maps = network.forward_all(x, maps=True).known_maps
    assert len(maps) >= 2
    for level in maps:
        assert level.dim() == 5 and level.shape[:2] == (2, 4)
        assert (level < 0).any(), "before the ReLU"
    first = len(with_maps(network.stem, x)[1])
    for number, level in enumerate(maps):
        same = torch.equal(level[0], level[1])
        assert same == (number < first), "what is shared is the same map, what is not is another"
        assert not same or level[0].data_ptr() == level[1].data_ptr(), "and takes no room"


def test_maps_by_hand():
    """Stage by stage of a resnet14: the sum of the last block, whose ReLU is what the next stage gets."""
    network, x = _network("resnet14", Layout()), _images()
    network.eval()
    maps = network.forward_all(x, maps=True).maps
    stem, branch = network.stem, network.branches[0]
    seen = torch.relu(stem.bn(stem.conv(x)))
    for stage, level in zip((stem.stage1, branch.stage2, branch.stage3), maps, strict=True):
        first, last = stage
        seen = first(seen)
        inner = last.bn2(last.conv2(torch.relu(last.bn1(last.conv1(seen)))))
        torch.testing.assert_close(level[0], inner + seen)
        seen = last(seen)
    torch.testing.assert_close(
        maps[2][0].mean(dim=(2, 3)), network.extract(x)[0]
    )  # no last ReLU: cosine heads


def test_pooled_distillation_reaches_every_stage():
    """PODNet's spatial term (Douillard et al. 2020) between two networks: a gradient for each stage's parameters."""
    student, teacher = _network("resnet8", Layout(2)), _network("resnet8", Layout(2), width=4).eval()
    torch.manual_seed(3)
    for parameter in teacher.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))

    def pooled(level):
        square = level.square()
        both = torch.cat([square.sum(-1).flatten(2), square.sum(-2).flatten(2)], dim=-1)
        return nn.functional.normalize(both, dim=-1)

    with torch.no_grad():
        targets = teacher.forward_all(_images(), maps=True).known_maps
    for stage, level in enumerate(student.forward_all(_images(), maps=True).known_maps):
        student.zero_grad()
        (pooled(level) - pooled(targets[stage])).norm(dim=-1).mean().backward(retain_graph=True)
        reached = [student.stem.stage1, student.branches[0].stage2, student.branches[1].stage3]
        found = [any(p.grad is not None and p.grad.any() for p in part.parameters()) for part in reached]
        assert found == [True, stage > 0, stage > 1]


def test_a_network_that_tells_maps_wants_an_extract_that_does():
    network, x = _network("resnet8", Layout(2)), _images()
    assert network.forward_all(x).maps is None
    network.tells_maps = True
    assert (
        len(network.forward_all(x).maps)
        == len(network.forward_all(x, extract=network.extract_maps).maps)
        == 3
    )
    assert network.forward_all(x, maps=False).maps is None
    with pytest.raises(UserError, match="let it stand in for extract_maps"):
        network.forward_all(x, extract=network.extract)


# ---------------------------------------------------------------------- a user's own


def test_a_network_of_the_users_own_learns_under_lucir_and_is_found_again(tmp_path):
    torch.manual_seed(0)
    model = build(OWN, layout=Single(num_experts=2).layout, in_channels=1, width=8)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    strategy = LUCIR(
        model=model, optimizer=sgd, experts=Single(num_experts=2), train_mb_size=16, train_epochs=40,
        evaluator=toy.quiet(),
    )  # fmt: skip
    torch.manual_seed(1)
    strategy.train(toy.stream().train_stream[0])
    assert toy.accuracy(strategy, toy.stream().test_stream[:1]) > 0.5, "four classes, chance is 0.25"
    CheckpointFolder(tmp_path / "checkpoints").save({"strategy": strategy.state_dict(trained=True)})
    loaded, x = incrlt.models.load(tmp_path), torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(x), model.eval()(x))


def test_a_class_itself_may_be_given_and_its_own_weights_stay():
    import own_backbone

    given = _network(own_backbone.MyNet, Layout(2))
    assert given.architecture["name"] == OWN
    assert torch.equal(given.eval()(_images()), _network(OWN, Layout(2)).eval()(_images()))
    torch.manual_seed(0)
    expected = own_backbone.Front(1, 4)  # as torch draws them: it has no initialise of its own
    assert torch.equal(given.stem.first.weight, expected.first.weight)


def test_what_is_no_backbone_or_cannot_have_the_layout_is_explained():
    class Local:
        shares, stem, branch = ("stem",), None, None

    with pytest.raises(
        UserError, match="cannot share 'two_stages' between experts; it can share 'stem', 'nothing'"
    ):
        build(OWN, layout=Layout(2, shared="two_stages"))
    with pytest.raises(UserError, match="MyNet has experts of full width only"):
        build(OWN, layout=RIDE().layout)
    assert build(OWN, layout=NCL().layout).num_experts == 3
    with pytest.raises(UserError, match="is no backbone: it lacks shares, stem, branch"):
        build("own_backbone:Front")
    with pytest.raises(UserError, match="was not found"):
        build("own_backbone:YourNet")
    with pytest.raises(UserError, match="made inside a function"):
        build(Local)
    with pytest.raises(UserError, match=r"or my_pkg.my_mod:MyNet. Did you mean 'resnet32'"):
        build("resnet34")


class Untold:
    """Branches that do not tell their width."""

    shares = ("stem",)

    def __init__(self, **settings):
        pass

    def stem(self, layout):
        return nn.Identity()

    def branch(self, layout, expert):
        return nn.Flatten()


def test_a_branch_must_tell_its_width():
    with pytest.raises(UserError, match="must tell the width of their features as num_features"):
        build(Untold)


def test_yaml_may_name_it_and_a_dry_run_looks_for_its_class(tmp_path):
    from incrlt.experiment import schema

    def loaded(name):
        page = tmp_path / "experiment.yaml"
        page.write_text(
            f"benchmark: {{dataset: digits, base_classes: 4, increment: 2}}\nstrategy: {{name: finetune}}\n"
            f"model: {{name: '{name}'}}\ntraining: {{epochs: 1}}\n"
        )
        return schema.load(page).model.name

    assert loaded(OWN) == OWN
    with pytest.raises(UserError, match=r"model.name 'own_backbone:Net': own_backbone.py has no class 'Net'"):
        loaded("own_backbone:Net")
    with pytest.raises(
        UserError, match=r"model.name 'no_where:Net': no Python file of module 'no_where' was found"
    ):
        loaded("no_where:Net")
    with pytest.raises(
        UserError,
        match=r"resnet32, or timm:NAME, or my_pkg.my_mod:MyNet; got 'resnet34'. Did you mean 'resnet32'",
    ):
        loaded("resnet34")
