"""A pretrained network that only trains heads, from its run to an update, with features computed once per picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import write

import incrlt.__main__
from incrlt.data.features import FeatureCache
from incrlt.lifecycle import export as exporting
from incrlt.lifecycle import learned, versions
from incrlt.lifecycle.answers import Answerer
from incrlt.models.backbones.timm_backbone import TimmBackbone

pytest.importorskip("timm", reason="networks of timm need timm: pip install 'incrlt[timm]'")

PAGE = """
benchmark: {{dataset: folder, base_classes: 2, increment: [1], image_size: 32, augmentation: none}}
model: {{name: "timm:resnet10", pretrained: {weights}, train: heads}}
strategy: {{name: lucir, less_forget: 0}}
experts: {{name: shike, num_experts: 2, fusion: false, classifier_epochs: 1, classifier_warmup: 0}}
memory: {{per_class: 4}}
training: {{epochs: 1, batch_size: 16, precision: fp32, threads: 1}}
data: {{root: {photos}{cache}}}
output: {{folder: {runs}}}
device: cpu
"""


def incrlt_(*words: object) -> int:
    return incrlt.__main__.main([str(word) for word in words])


def ran(tmp_path: Path, name: str, cache: str = "") -> Path:
    page = tmp_path / f"{name}.yaml"
    weights, photos, runs = (tmp_path / part for part in ("weights.pth", "photos", "runs"))
    page.write_text(PAGE.format(weights=weights, photos=photos, runs=runs, cache=cache))
    assert incrlt_("run", page) == 0
    return next((runs / name).iterdir())


def test_kept_features_change_nothing_and_an_update_needs_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    torch.save(TimmBackbone("timm:resnet10", 3, 16, True).whole().state_dict(), tmp_path / "weights.pth")
    for part, count, first in (("train", 12, 0), ("test", 4, 100)):
        write(tmp_path / "photos" / part, {"heron": count, "swan": count - 2, "coot": count - 3}, first=first)
    asked: list[FeatureCache] = []
    made = FeatureCache.__init__

    def noted(self: FeatureCache, folder: Path) -> None:
        made(self, folder)
        asked.append(self)

    monkeypatch.setattr(FeatureCache, "__init__", noted)
    plain, kept = ran(tmp_path, "plain"), ran(tmp_path, "kept", f", feature_cache: {tmp_path / 'features'}")
    (cache,) = asked
    assert cache.computed == 31 + 7 + 12  # trained on, tested on, exemplars in the mirror (class means)
    assert cache.found > cache.computed
    one, other = (np.load(folder / "confusions.npz") for folder in (plain, kept))
    assert sorted(one) == sorted(other)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    told = json.loads((kept / "environment.json").read_text())["weights"]
    assert told["file"] == "weights.pth"
    assert len(told["sha256"]) == 64
    assert plain.name == kept.name  # where features are kept changes no result

    (tmp_path / "weights.pth").unlink()
    monday = write(tmp_path / "monday", {"teal": 6})
    assert incrlt_("update", kept, monday, "--accept", "none") == 0
    assert asked[-1].computed <= 6
    assert asked[-1].found > 0
    assert incrlt_("predict", kept, monday, "-o", tmp_path / "answers.csv") == 0
    assert "teal" in (tmp_path / "answers.csv").read_text()

    traced: list[torch.export.ExportedProgram] = []
    monkeypatch.setattr(
        exporting,
        "_write",
        lambda _, graph, given, *rest: traced.append(torch.export.export(graph.eval(), given)),
    )
    answerer = Answerer(learned.read(versions.path_of(kept, 2)), torch.device("cpu"))
    assert answerer.network.kept_features is not None
    assert exporting._graphs(tmp_path, answerer) == ["expert_0.onnx", "expert_1.onnx"]
    assert len(traced) == 3  # kept features are looked up by content, which no graph can
