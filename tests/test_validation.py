"""Held-out training images are answered after every epoch, and the run does not notice."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from incrlt import run
from incrlt.benchmarks.protocols import Protocol, resolve
from incrlt.errors import UserError
from incrlt.experiment import schema
from incrlt.runner.validation import Validation

TINY = """\
benchmark: {dataset: digits, base_classes: 5, increment: 5, imbalance_ratio: 4, holdout: long-tailed-cil}
model: {name: resnet8, width: 2, head: cosine}
strategy: {name: lucir}
memory: {per_class: 3}
training: {epochs: 2, batch_size: 64, precision: fp32, threads: 1}
device: cpu
"""


class NoTestImages:
    """A dataset whose images say their own label in their first pixel, and that has no test images."""

    mean, std = (0.0,), (1 / 255,)  # prepared pixels are the raw ones

    def __init__(self, labels):
        self.train_labels = torch.as_tensor(labels)
        self.train_images = self.train_labels.to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)


def strategy(seen, answer):
    """A strategy whose network answers ``answer(label)``; it notes the modes in which it was asked."""
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout())
    model[0].eval()  # as a stage that freezes a part leaves it

    def ask(network, images, rebalanced):
        assert rebalanced and not any(module.training for module in model.modules())
        said = [seen.index(answer(int(label))) for label in images[:, 0, 0, 0].round()]
        return torch.eye(len(seen))[said]

    return SimpleNamespace(
        model=model, network=model, device=torch.device("cpu"), seen_classes=seen,
        compute=SimpleNamespace(run=ask), readouts=lambda output: {"cnn": output, "nme": -output},
        rebalance=None, router=None,
    )  # fmt: skip


def test_classes_count_the_same_and_only_those_that_have_arrived():
    labels = np.repeat(np.arange(4), 40)
    rule = {"num_classes": 4, "max_images": 40, "imbalance_ratio": 8.0, "holdout": "long-tailed-cil"}
    protocol = Protocol.free("own", 2, 2, [2, 0, 3, 1], augmentation="none", **rule)
    resolved = resolve(protocol, labels)
    held = np.concatenate(resolved.holdout_indices)
    counts = np.bincount(np.argsort(protocol.class_order)[labels[held]], minlength=4).tolist()
    assert counts == [1, 4, 0, 3]  # images 10, 40, 5, 20 by arrival: the rarest gives none of its own

    # arrival 0 is class 2, whose pixel is 2; the network takes class 0 (arrival 1) for class 2 where it can
    own = strategy([0, 1], lambda pixel: 0)
    score = Validation(NoTestImages(labels), resolved, batch_size=2).score(own)
    readouts = {"cnn": 50.0, "nme": 50.0}  # two classes: the other way round is always the other one
    assert score == {"accuracy": 50.0, "classes": 2, "images": 5, "readouts": readouts}
    assert [module.training for module in own.model.modules()] == [True, False, True]

    everything = strategy([0, 1, 2, 3], lambda pixel: protocol.class_order.index(pixel))
    score = Validation(NoTestImages(labels), resolved, 3).score(everything)
    assert score["accuracy"] == score["readouts"]["cnn"] == 100.0 and score["readouts"]["nme"] == 0.0
    everything.rebalance = SimpleNamespace(readouts=lambda network, output: {"beside": output})
    score = Validation(NoTestImages(labels), resolved, 3).score(everything)
    assert score["readouts"] == {"cnn": 100.0, "nme": 0.0, "beside": 100.0}


def test_without_held_out_images_there_is_nothing_to_ask(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    with pytest.raises(UserError, match=r"Set benchmark\.holdout: long-tailed-cil"):
        schema.load(path, ["benchmark.holdout=none", "output.validation=true"])
    assert schema.load(path).hash() == schema.load(path, ["output.validation=true"]).hash()


def test_a_run_with_validation_has_the_bits_of_one_without(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    for name, more in (("plain", []), ("seen", ["output.validation=true"])):
        assert run.main([str(path), "--out", str(tmp_path / name), *more]) == 0
    plain, seen = (next((tmp_path / name / "tiny").iterdir()) for name in ("plain", "seen"))
    for name in ("confusions.npz", "evaluations.npz", "results.csv"):
        assert (plain / name).read_bytes() == (seen / name).read_bytes(), name
    events = [json.loads(line) for line in (seen / "log.jsonl").read_text().splitlines()]
    told = [event["validation"] for event in events if event["event"] in ("epoch", "experience")]
    assert len(told) == 6 and all(0 <= score["accuracy"] <= 100 for score in told)
    assert [score["classes"] for score in told] == [5, 5, 5, 10, 10, 10]
    assert "validation" not in (plain / "log.jsonl").read_text()
