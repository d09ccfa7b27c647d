"""The routing recorder against routed inference on the same images, and its files."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
import toy

from incrlt.errors import UserError
from incrlt.experts.ride import RIDE
from incrlt.models import load
from incrlt.plugins import ConfusionRecorder, RoutingRecorder
from incrlt.stages.expert_assignment import ExpertAssignment
from incrlt.strategies import LUCIR

IMAGES = np.array([24] * 10)


@pytest.fixture(scope="module")
def run():
    """LUCIR with two experts and a router over two experiences, recorded."""
    recorder, routing = ConfusionRecorder(), RoutingRecorder()
    strategy = toy.make(
        LUCIR, experts=RIDE(num_experts=3, reweight_after=1.0), router=ExpertAssignment(epochs=3, batch_size=32),
        train_epochs=2, base_epochs=10, plugins=[recorder, routing],
    )  # fmt: skip
    torch.manual_seed(1)
    benchmark = toy.stream()
    for t, experience in enumerate(benchmark.train_stream[:2]):
        strategy.train(experience)
        strategy.eval(benchmark.test_stream[: t + 1])
    return strategy, recorder, routing


def test_counts_are_those_of_inference_that_stops(run):
    strategy, recorder, routing = run
    x, y = toy.digits()[0][toy.chosen(False)], toy.digits()[1][toy.chosen(False)]
    first = [label for part in toy.parts()[:2] for label in part]
    seen = torch.isin(y, torch.tensor(first))
    position = {
        label: place for place, label in enumerate(toy.ORDER)
    }  # toy.stream numbers classes by arrival
    x, labels = (x[seen].float() / 255 - 0.3) / 0.4, torch.tensor([position[int(label)] for label in y[seen]])
    strategy.model.eval()
    answer = strategy.model.predict(x)
    expected = np.zeros((7, 3), dtype=int)
    np.add.at(expected, (labels.numpy(), answer.experts_used.numpy() - 1), 1)
    assert np.array_equal(routing.used[1].numpy(), expected)
    right = np.trace(recorder.records()["routed"].confusions[1])
    assert right == int((answer.class_ids == labels).sum())


def test_counts_hold_every_image_of_every_experience(run):
    _, _, routing = run
    assert [used.sum().item() for used in routing.used] == [40, 70]
    assert all((np.diff(costs) > 0).all() for costs in routing.macs)


def test_an_experience_without_evaluation_is_named():
    recorder, routing = ConfusionRecorder(), RoutingRecorder()
    strategy = toy.make(
        LUCIR, experts=RIDE(num_experts=2), router=ExpertAssignment(epochs=1), train_epochs=1,
        plugins=[recorder, routing],
    )  # fmt: skip
    toy.train(strategy, toy.stream().train_stream[:2])
    with pytest.warns(UserWarning, match="drops the evaluation after experience 1.*experience 0,") as caught:
        strategy.eval(toy.stream().test_stream[:2])
    dropped = [str(warning.message).split()[0] for warning in caught if "drops" in str(warning.message)]
    assert dropped == ["ConfusionRecorder", "RoutingRecorder"]
    with pytest.raises(
        UserError, match=r"no evaluation after training experience 0.*after every strategy.train"
    ):
        recorder.records()


def test_files_and_the_ends_of_the_curve(run, tmp_path):
    _, recorder, routing = run
    routing.write(tmp_path, np.array([0] * 4 + [1] * 3), IMAGES[:7])
    rows = list(csv.DictReader((tmp_path / "routing.csv").open()))
    curve = list(csv.DictReader((tmp_path / "routing_sweep.csv").open()))
    assert [row["experience"] for row in rows] == ["0", "1"]
    assert float(curve[0]["mean_experts"]) == 1
    assert float(curve[-1]["mean_experts"]) == 3
    all_experts = recorder.records()["cnn"].confusions[1]
    accuracy = 100 * np.trace(all_experts) / all_experts.sum()
    assert float(curve[-1]["accuracy/over_images"]) == pytest.approx(accuracy)


def test_it_remembers(run):
    _, _, routing = run
    copy = RoutingRecorder()
    copy.load_state_dict(routing.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(copy.used, routing.used, strict=True))
    assert copy.macs == routing.macs


def test_without_a_router_nothing_is_written(tmp_path):
    routing = RoutingRecorder()
    strategy = toy.make(LUCIR, plugins=[routing])
    strategy.train(toy.stream().train_stream[0])
    strategy.eval(toy.stream().test_stream[:1])
    routing.write(tmp_path, np.zeros(4, dtype=int), IMAGES[:4])
    assert not list(tmp_path.iterdir())


def test_a_routed_network_comes_back_with_its_router(run, tmp_path):
    from incrlt.checkpoint import CheckpointFolder

    strategy = run[0]
    CheckpointFolder(tmp_path / "checkpoints").save({"strategy": strategy.state_dict(trained=True)})
    network, x = load(tmp_path), torch.rand(20, 1, 8, 8)
    strategy.model.eval()
    ours, theirs = network.predict(x), strategy.model.predict(x)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.experts_used, theirs.experts_used)


def test_test_images_of_classes_yet_to_come_are_left_out():
    routing = RoutingRecorder()
    strategy = toy.make(
        LUCIR,
        experts=RIDE(num_experts=2),
        router=ExpertAssignment(epochs=1),
        train_epochs=1,
        plugins=[routing],
    )
    strategy.eval(toy.stream().test_stream)  # nothing has arrived: no router to ask
    strategy.train(toy.stream().train_stream[0])
    strategy.eval(toy.stream().test_stream)
    assert [int(used.sum()) for used in routing.used] == [40]
