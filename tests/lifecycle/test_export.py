"""What is exported answers as the network does, without incrlt and torch, whatever the batch."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import CLASSES, picture

from incrlt import LongTailClassifier
from incrlt.errors import UserError
from incrlt.experiment import schema
from incrlt.lifecycle import eightbit
from incrlt.lifecycle import export as exporting
from incrlt.lifecycle.answers import Answerer
from incrlt.runner.kept import Pictures

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]  # torch takes seconds for each graph, minutes under load
ROUTED = {
    "strategy": "lucir", "experts": {"name": "ride", "num_experts": 2}, "rebalance": {"name": "lws", "epochs": 1},
    "router": {"name": "expert_assignment", "epochs": 2},
}  # fmt: skip
NEAREST = {"strategy": "icarl"}
SETTINGS = {"model.width": 4, "training.precision": "fp32", "model.head": "cosine"}


def arrays(labels, number=6, first=0):
    images = [np.asarray(picture(label, index)) for label in labels for index in range(first, first + number)]
    return np.stack(images), np.repeat([CLASSES[label] for label in labels], number)


@pytest.fixture(scope="module", params=[ROUTED, NEAREST], ids=["routed", "nearest"])
def exported(request, tmp_path_factory):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    place = tmp_path_factory.mktemp("export")
    model = LongTailClassifier(
        model="resnet8", epochs=3, device="cpu", memory_per_class=4, settings=SETTINGS, **request.param
    )
    model.fit(*arrays([0, 1, 2])).partial_fit(*arrays([3]))
    if request.param is ROUTED:  # a router that sends some pictures on, and others not
        answerer = Answerer(model.learned_)
        x = answerer.network.prepare(torch.from_numpy(arrays([0, 1, 2, 3])[0].transpose(0, 3, 1, 2).copy()))
        output = answerer.network.forward_all(x, rebalanced=True)
        scores = answerer.network.router(output.expert_logits, output.known_features, output.combine)
        values = model.learned_.experiment.resolved()
        values["router"]["threshold"] = float(scores.detach().median().sigmoid())
        asked = schema.parse(values, with_data=False)
        model.learned_ = dataclasses.replace(model.learned_, experiment=asked)
        model.__dict__.pop("_answerer", None)
    model.save(place / "run")
    return model, exporting.export(place / "run", place / "model", int8=request.param is NEAREST)


def test_the_example_answers_as_the_network_without_incrlt_and_torch(exported, tmp_path):
    model, found = exported
    pictures, _ = arrays([0, 1, 2, 3], number=5, first=40)
    np.save(tmp_path / "pictures.npy", pictures)
    code = (
        "import sys, runpy; sys.modules['torch'] = sys.modules['incrlt'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(found.folder / "example.py"), str(tmp_path / "pictures.npy")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    answers = Answerer(model.learned_)(torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()))
    names = [model.learned_.class_names[place] for place in answers.classes]
    assert [line.split()[0] for line in lines] == names
    assert [int(line.split()[2]) for line in lines] == answers.experts_used.tolist()
    expected = answers.probabilities.max(1).values
    assert np.allclose([float(line.split()[1]) for line in lines], expected, atol=2e-4)


@pytest.mark.parametrize("size", [1, 2, 5, 17])
def test_all_experts_in_one_graph_take_any_batch(exported, size):
    model, found = exported
    pictures = arrays([0, 1, 2, 3], number=5, first=60)[0][:size].transpose(0, 3, 1, 2)
    session = pytest.importorskip("onnxruntime").InferenceSession(str(found.folder / exporting.ALL))
    probabilities, _, used = session.run(None, {"pixels": np.ascontiguousarray(pictures)})
    expected = Answerer(model.learned_)(torch.from_numpy(pictures.copy()))
    assert np.abs(probabilities - expected.probabilities.numpy()).max() < 1e-4
    assert used.tolist() == expected.experts_used.tolist()


def test_some_pictures_stop_early_and_others_do_not(exported):
    model, found = exported
    used = Answerer(model.learned_)(
        torch.from_numpy(arrays([0, 1, 2, 3])[0].transpose(0, 3, 1, 2).copy())
    ).experts_used
    if model.strategy == "lucir":
        assert len(set(used.tolist())) > 1
        assert found.files[:3] == (exporting.ALL, "expert_0.onnx", "expert_1.onnx")
    else:
        assert found.files[0] == exporting.ALL and not any("expert_" in name for name in found.files[1:])


def test_what_lies_beside_the_graphs(exported):
    model, found = exported
    assert json.loads((found.folder / "labels.json").read_text()) == list(model.learned_.class_names)
    how = json.loads((found.folder / "preparation.json").read_text())
    assert (how["height"], how["channels"], how["resampling"]) == (12, 3, "bilinear")
    assert (how["threshold"] is None) == (model.strategy == "icarl")
    card = (found.folder / "README.md").read_text()
    assert "| few | 4 | 24 | 0 |" in card and model.learned_.facts.stream[:12] in card and "## Limits" in card
    assert found.difference < 1e-4 and found.checked == 16
    if model.strategy == "icarl":
        assert eightbit.FILE in found.files and found.int8.accuracy is None, (
            "this model was given no test pictures"
        )
        assert "## Eight bits" in card and "no test pictures to measure it on" in card
    example = (found.folder / "example.py").read_text()
    assert example.startswith('"""Answers with onnxruntime and NumPy') and len(example.splitlines()) <= 44


def test_eight_bits_are_measured_beside_the_whole_graph(exported, tmp_path):
    """Accuracy is that of the file as a stranger would run it, and ranges come from exemplars alone."""
    model, found = exported
    pictures, names = arrays([0, 1, 2, 3], number=5, first=80)
    order = model.learned_.class_names
    images = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
    tests = Pictures(images, torch.tensor([order.index(name) for name in names]))
    graph = Path(shutil.copy(found.folder / exporting.ALL, tmp_path))
    worth = eightbit.write(graph, model.learned_.exemplars, tests)
    session = pytest.importorskip("onnxruntime").InferenceSession(str(tmp_path / eightbit.FILE))
    right = session.run(None, {"pixels": images.numpy()})[0].argmax(1) == tests.labels.numpy()
    assert worth.accuracy == pytest.approx(100 * right.mean()) and worth.tested == 20
    assert worth.accuracy_float == pytest.approx(
        100 * float((Answerer(model.learned_)(images).classes == tests.labels).float().mean())
    )
    assert worth.same >= 80 and "(float32 " in worth.sentence
    content = (tmp_path / eightbit.FILE).read_bytes()
    assert b"QuantizeLinear" in content and b"QuantizeLinear" not in graph.read_bytes()
    nothing = model.learned_.exemplars.only(torch.tensor([], dtype=torch.int64))
    with pytest.raises(UserError, match="this run keeps no exemplars"):
        eightbit.write(graph, nothing, tests)


def test_graphs_that_answer_otherwise_are_refused(exported):
    model, found = exported
    experts = [name for name in found.files if name.startswith("expert_")]
    other = Answerer(model.learned_)
    with torch.no_grad():
        for parameter in other.network.branches.parameters():
            parameter.mul_(1.5)
    with pytest.raises(UserError, match="the graphs do not answer as the network does"):
        exporting.check(found.folder, other, experts)


def test_a_missing_package_is_told(exported, monkeypatch, tmp_path):
    monkeypatch.setattr(exporting, "NEEDED", ("onnx", "surely_not_here"))
    with pytest.raises(UserError, match=r"export needs surely_not_here: pip install 'incrlt\[export\]'"):
        exporting.export(tmp_path, tmp_path / "model")
