"""What an experiment may say of large and pretrained networks: refused in a dry run, with the way out."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from incrlt.errors import UserError
from incrlt.experiment import schema, sections

pytestmark = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="pip install 'incrlt[timm]'")

PAGE = """
benchmark: {dataset: cifar100, protocol: lfh-shuffled-10, augmentation: none}
strategy: {name: lucir}
memory: {per_class: 20}
"""
LITE0 = "timm:tf_efficientnet_lite0"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.yaml"
    path.write_text(PAGE)
    (tmp_path / "weights.pth").write_bytes(b"weights")
    return path


def model(page: Path, **settings: Any) -> list[str]:
    values = {"name": f"'{LITE0}'", "pretrained": page.with_name("weights.pth"), **settings}
    return [f"model={{{', '.join(f'{key}: {value}' for key, value in values.items() if value is not None)}}}"]


@pytest.mark.parametrize(
    "name", ["timm:resnet50", "timm:resnext50_32x4d.a1_in1k", "timm:vit_small_patch16_224"]
)
def test_networks_of_timm_are_named(page: Path, name: str) -> None:
    assert schema.load(page, [f"model.name='{name}'"]).model.name == name


REFUSED = [
    ({"name": "'timm:swin_tiny'"}, [], "of no family that is known.*A family is added in two places"),
    ({"width": 32}, [], "model.width is 32.*decided by its name"),
    (
        {"name": "timm:vit_tiny_patch16_224", "last_relu": "true"},
        [],
        "no activation ends the features of a Vision",
    ),
    ({"pretrained": "nowhere.pth"}, [], "no file nowhere.pth"),
    ({"pretrained": "package:no_such"}, [], "not installed"),
    ({"name": "resnet32"}, [], "model.pretrained is for networks of timm"),
    (
        {"name": "timm:resnet50"},
        ["experts={name: ride}"],
        "0.75 times the width.*Set experts.width_factor: 1",
    ),
    ({"pretrained": None, "train": "heads"}, [], "without model.pretrained they are random"),
    ({"pretrained": None, "norm": "frozen"}, [], "model.norm: frozen keeps parts.*random"),
    ({"train": "heads"}, ["experts={name: shike}"], "Set experts.fusion: false, or model.train: branches"),
    ({"train": "branches"}, ["training.lr_stem=0.01"], "training.lr_stem would do nothing"),
    ({"train": "heads"}, ["training.lr_branches=0.01"], "training.lr_branches would do nothing"),
    ({"train": "heads", "norm": "frozen"}, [], "model.norm 'frozen' would do nothing: everything but heads"),
    ({"name": "timm:convnext_tiny", "norm": "frozen"}, [], "ConvNeXt has no batch norm"),
    ({"train": "adapters"}, [], "family Vision Transformer; timm:tf_efficientnet_lite0 is of EfficientNet"),
    ({"adapter_rank": 4}, [], "model.adapter_rank would do nothing"),
    ({}, ["data.feature_cache=kept"], "with model.train 'all' everything moves"),
    (
        {"train": "heads"},
        ["data.feature_cache=kept", "benchmark.augmentation=crop-flip"],
        "random augmentation",
    ),
    ({"train": "heads"}, ["data.feature_cache=kept", "benchmark.augmentation=null"], "augmentation: none"),
    (
        {"train": "heads"},
        ["data.feature_cache=kept", "training.step=compile"],
        "does not go with training.step",
    ),
]


@pytest.mark.parametrize(("settings", "overrides", "sentence"), REFUSED)
def test_what_does_not_go_together_is_refused(
    page: Path, settings: dict[str, Any], overrides: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        schema.load(page, [*model(page, **settings), *overrides])


def test_a_folder_of_small_pictures_is_refused(page: Path) -> None:
    page.write_text(
        "benchmark: {dataset: folder, base_classes: 1, increment: 1}\nstrategy: {name: finetune}\n"
    )
    with pytest.raises(UserError, match=r"Set benchmark\.image_size, such as 224"):
        schema.load(page, model(page), with_data=False)


def test_weights_are_hashed_by_their_bytes_wherever_they_lie(page: Path, tmp_path: Path) -> None:
    one = schema.load(page, model(page)).hash()
    elsewhere = tmp_path / "elsewhere.pth"
    elsewhere.write_bytes(b"weights")
    assert schema.load(page, model(page, pretrained=elsewhere)).hash() == one
    elsewhere.write_bytes(b"other weights")
    assert schema.load(page, model(page, pretrained=elsewhere)).hash() != one
    assert schema.load(page, model(page, pretrained=None)).hash() != one


def test_fields_of_today_leave_the_hashes_of_yesterday(page: Path) -> None:
    """As it was before networks of timm, feature caches and rates by part were there."""
    quickstart = Path(__file__).parent.parent / "experiments" / "quickstart.yaml"
    assert schema.load(quickstart).hash().startswith("be2846bff475")
    shike = quickstart.with_name("cifar100lt_10tasks_lucir_shike.yaml")
    assert schema.load(shike).hash().startswith("d6944c96c3ce")
    for section, usual in sections.ADDED_LATER.items():
        for key in usual:
            if section != "experts":
                fields = sections.Experiment.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
                assert fields[key].default == usual[key]
    cached = schema.load(page, [*model(page, train="heads"), "data.feature_cache=kept"])
    assert cached.hash() == schema.load(page, model(page, train="heads")).hash()
    assert cached.hash() != schema.load(page, model(page)).hash()
