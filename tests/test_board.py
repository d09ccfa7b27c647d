"""TensorBoard shows what the run's own files say: events are read back and compared with them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from incrlt.metrics import class_accuracy, load_records
from incrlt.metrics.evaluation import load_evaluations
from incrlt.metrics.groups import GROUPS, class_groups
from incrlt.run import main
from incrlt.runner.board import HIGH, LOW, UNKNOWN, Board, flattened, head_values, matrix_picture

TINY = """\
benchmark: {dataset: digits, base_classes: 4, increment: 3, order: shuffled, imbalance_ratio: 20}
model: {name: resnet8, width: 8, head: cosine}
strategy: {name: lucir}
experts: {name: ride, num_experts: 2}
router: {name: expert_assignment, epochs: 1}
memory: {per_class: 5}
training: {epochs: 2, batch_size: 64, schedule: cosine, precision: fp32, threads: 1, warmup_epochs: 0}
device: cpu
"""


def events(folder: Path) -> EventAccumulator:
    everything = dict.fromkeys(("scalars", "images", "histograms", "tensors"), 0)  # 0: keep all
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def series(found: EventAccumulator, tag: str) -> dict[int, float]:
    """Return step -> value; a step that stands twice is an error."""
    values = found.Scalars(tag)
    assert len({value.step for value in values}) == len(values), f"{tag} has a step twice"
    return {value.step: value.value for value in values}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of a finished run with experts, a router and two read-outs."""
    out = tmp_path_factory.mktemp("board")
    (out / "tiny.yaml").write_text(TINY)
    assert main([str(out / "tiny.yaml"), "--out", str(out / "runs")]) == 0
    (found,) = (out / "runs").glob("*/*")
    return found


@pytest.fixture(scope="module")
def shown(folder) -> EventAccumulator:
    return events(folder / "tensorboard")


@pytest.mark.slow
def test_loss_terms_are_those_of_the_log(folder, shown):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch"]
    for name in {name for epoch in epochs for name in epoch["terms"]}:
        expected = {n: e["terms"][name] for n, e in enumerate(epochs, 1) if name in e["terms"]}
        assert series(shown, f"loss/{name}") == pytest.approx(expected, rel=1e-6), name
    for tag, key in (("loss", "loss"), ("learning_rate", "lr")):
        expected = {n: epoch[key] for n, epoch in enumerate(epochs, 1)}
        assert series(shown, f"training/{tag}") == pytest.approx(expected, rel=1e-6)


def test_accuracies_groups_and_forgetting_are_those_of_the_results(folder, shown):
    readouts = json.loads((folder / "results.json").read_text())["readouts"]
    assert {"cnn", "nme", "routed"} <= set(readouts)
    for readout, summary in readouts.items():
        assert {f"accuracy/{group}_over_classes" for group in GROUPS} <= set(summary["per_experience"])
        for name, values in summary["per_experience"].items():
            expected = {t: value for t, value in enumerate(values) if value is not None}
            tag = f"{readout}/{name}"
            if expected:
                assert series(shown, tag) == pytest.approx(expected, rel=1e-6), tag
            else:
                assert tag not in shown.Tags()["scalars"]


def test_each_task_has_the_curve_of_its_column_in_the_accuracy_matrix(folder, shown):
    matrix = json.loads((folder / "results.json").read_text())["readouts"]["nme"]["accuracy_matrix"]
    for j in range(3):
        expected = {t: matrix[t][j] for t in range(j, 3)}
        assert series(shown, f"nme/accuracy_of_experience/{j:02d}") == pytest.approx(expected, rel=1e-6)


def test_the_average_is_that_of_the_experiences_so_far(folder, shown):
    values = json.loads((folder / "results.json").read_text())["readouts"]["cnn"]["per_experience"]
    so_far = {t: np.mean(values["accuracy/over_tasks"][: t + 1]) for t in range(3)}
    assert series(shown, "cnn/average_incremental_accuracy/over_tasks") == pytest.approx(so_far, rel=1e-6)


def test_the_picture_of_the_matrix_has_its_colours(folder, shown):
    matrix = json.loads((folder / "results.json").read_text())["readouts"]["cnn"]["accuracy_matrix"]
    pictures = shown.Images("cnn/accuracy_matrix")
    assert [picture.step for picture in pictures] == [0, 1, 2]
    drawn = np.asarray(Image.open(io.BytesIO(pictures[-1].encoded_image_string)))
    np.testing.assert_array_equal(drawn, matrix_picture(matrix))


def test_a_cell_is_as_dark_as_its_accuracy():
    picture = matrix_picture([[0.0, None], [100.0, 50.0]]).astype(int)
    corner = picture[1::32, 1::32]  # beside the text
    assert corner[0, 0].tolist() == list(LOW) and corner[1, 0].tolist() == list(HIGH)
    assert corner[0, 1].tolist() == list(UNKNOWN)
    assert np.abs(corner[1, 1] - (np.array(LOW) + HIGH) / 2).max() <= 0.5
    assert len(np.unique(picture[32:, 32:].reshape(-1, 3), axis=0)) > 1, "the value is written into the cell"
    assert matrix_picture([[50.0] * 30] * 30).shape == (360, 360, 3)


def test_histograms_are_those_of_the_classes(folder, shown):
    record = load_records(folder)["cnn"]
    accuracy, groups = class_accuracy(record), class_groups(record.images_of_class)
    assert set(groups) >= {"medium", "few"}
    for name, where in {"all": groups != "", **{group: groups == group for group in GROUPS}}.items():
        for histogram in shown.Histograms(f"cnn/class_accuracy/{name}") if where.any() else ():
            expected = accuracy[histogram.step][where & ~np.isnan(accuracy[histogram.step])]
            values = histogram.histogram_value
            assert values.num == len(expected) and sum(values.bucket) == len(expected)
            assert (values.min, values.max) == pytest.approx((expected.min(), expected.max()))
            assert values.sum == pytest.approx(expected.sum())


def test_experts_and_calibration_are_those_of_the_evaluations(folder, shown):
    evaluations, record = load_evaluations(folder / "evaluations.npz"), load_records(folder)["cnn"]
    right, confidence = evaluations.series("right"), evaluations.series("confidence_cnn")
    for t in range(3):
        tested = record.confusions[t].sum(axis=1)
        together = series(shown, "experts/first_2/over_classes")[t]
        assert together == pytest.approx(100 * (right[t][:, 1, 1] / tested).mean())
        alone = series(shown, "experts/expert_0/over_classes")[t]
        assert alone == pytest.approx(100 * (right[t][:, 0, 0] / tested).mean())
        images, hits, millionths = confidence[t].sum(axis=0)
        error = np.abs(millionths / 1e6 - hits).sum() / images.sum()
        assert series(shown, "cnn/calibration_error/all")[t] == pytest.approx(100 * error)
    assert set(series(shown, "experts/disagreement/over_classes")) == {0, 1, 2}


def test_the_router_shows_the_rows_of_its_file(folder, shown):
    with open(folder / "routing.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    yardsticks = ("routed", "probability_mean", "best_weights_ceiling", "oracle_ceiling")
    for name in ("mean_experts", "macs_saved", *(f"{name}/over_classes" for name in yardsticks)):
        expected = {t: float(row[name]) for t, row in enumerate(rows)}
        assert series(shown, f"routing/{name}") == pytest.approx(expected, rel=1e-6)


def test_runs_can_be_compared_by_their_settings_and_final_numbers(folder):
    found = events(folder / "tensorboard" / "final")
    results = json.loads((folder / "results.json").read_text())
    for readout, summary in results["readouts"].items():
        for name, value in summary["numbers"].items():
            if value is not None:
                assert series(found, f"{readout}/{name}") == pytest.approx({0: value}, rel=1e-6)
    assert series(found, "cost/parameters") == {0: results["parameters"]}
    contents = found.PluginTagToContent(metadata.PLUGIN_NAME)
    assert set(contents) == {metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG}
    given = metadata.parse_session_start_info_plugin_data(contents[metadata.SESSION_START_INFO_TAG]).hparams
    assert given["training.epochs"].number_value == 2
    assert given["experts.name"].string_value == "ride"
    assert given["method"].string_value == results["method"]
    assert given["protocol_hash"].string_value == results["protocol_hash"]


def test_settings_are_flat_numbers_and_words():
    nested = {"a": {"b": {"c": 1, "d": 0.5}, "e": [1, 2]}, "f": None, "g": False, "h": "x"}
    flat = {"a.b.c": 1, "a.b.d": 0.5, "a.e": "1, 2", "f": "none", "g": "false", "h": "x"}
    assert flattened(nested) == flat


def test_heads_tell_the_length_of_rows_in_use_and_the_learned_factors(tmp_path):
    weight = torch.zeros(16, 2)
    weight[:3] = torch.tensor([[3.0, 4.0], [0.0, 1.0], [2.0, 0.0]])
    factor = torch.ones(16)
    head = SimpleNamespace(weight=weight, class_scale=factor, num_classes=3, scale=torch.tensor([7.0]))
    assert set(head_values([head])) == {"weight_norm"}  # nobody has trained the factors
    factor[1] = 3.0
    values = head_values([head, head])
    assert values["weight_norm"].tolist() == [[5.0, 1.0, 2.0]] * 2
    assert values["class_scale"].tolist() == [[1.0, 3.0, 1.0]] * 2
    board = Board(tmp_path)
    board.heads(0, [head, head], [500, 50, 5, 5])  # a class is yet to come
    board.close()
    found = events(tmp_path)
    means = {"over_classes": 8 / 3, "many": 5.0, "medium": 1.0, "few": 2.0}
    for group, mean in means.items():
        assert series(found, f"head/weight_norm/{group}")[0] == pytest.approx(mean)
    assert series(found, "head/class_scale/medium") == {0: 3.0}
    assert series(found, "head/scale/expert_1") == {0: 7.0}


def epoch(loss: float) -> dict:
    return {"terms": {"ce": loss}, "loss": loss, "lr": 0.1, "images_per_second": 1.0}


def test_what_comes_after_a_checkpoint_is_cut(tmp_path):
    first = Board(tmp_path)
    first.epoch(1, epoch(1.0))
    remembered = first.sizes()
    first.epoch(2, epoch(2.0))
    first.close()
    second = Board(tmp_path)  # died before its first checkpoint: its file is unknown
    second.cut(remembered)
    second.epoch(2, epoch(3.0))
    second.close()
    third = Board(tmp_path)
    third.cut(remembered)
    third.epoch(2, epoch(4.0))
    third.close()
    assert series(events(tmp_path), "loss/ce") == {1: 1.0, 2: 4.0}


def test_a_run_begun_anew_leaves_no_event_of_the_run_before(tmp_path):
    board = Board(tmp_path)
    board.epoch(1, epoch(1.0))
    board.finish({"a": 1}, {"readouts": {}, "seconds": 1.0})
    board.close()
    assert len(list(tmp_path.rglob("events.*"))) == 2
    Board(tmp_path).cut({})
    assert list(tmp_path.rglob("events.*")) == []


def test_nothing_is_made_before_the_first_value(tmp_path):
    board = Board(tmp_path / "tensorboard")
    assert board.sizes() == {}
    board.cut({})
    board.close()
    assert not (tmp_path / "tensorboard").exists()


def test_the_run_tells_the_precision_it_used(folder):
    machine = json.loads((folder / "environment.json").read_text())
    assert (machine["precision"], machine["threads"], machine["device"]) == ("fp32", 1, "cpu")
