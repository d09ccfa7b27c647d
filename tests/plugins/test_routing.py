"""The routing recorder against routed inference on the same images, and its files."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
import torch
import toy

from incrlt.errors import UserError
from incrlt.experts.ride import RIDE
from incrlt.metrics.yardsticks import YARDSTICKS, weight_grid
from incrlt.models import load
from incrlt.plugins import ConfusionRecorder, RoutingRecorder
from incrlt.stages.expert_assignment import ExpertAssignment
from incrlt.strategies import LUCIR

IMAGES = np.array([24] * 10)
ARRIVED = np.array([0] * 4 + [1] * 3)


@pytest.fixture(scope="module")
def resumed():
    """Recorders that get a state between the experiences of ``run``: what was saved, and what an older version did."""
    return {"now": RoutingRecorder(), "older": RoutingRecorder()}


@pytest.fixture(scope="module")
def run(resumed):
    """LUCIR with three experts and a router over two experiences, recorded."""
    recorder, routing = ConfusionRecorder(), RoutingRecorder()
    strategy = toy.make(
        LUCIR, experts=RIDE(num_experts=3, reweight_after=1.0), router=ExpertAssignment(epochs=3, batch_size=32),
        train_epochs=2, base_epochs=10, plugins=[recorder, routing, *resumed.values()],
    )  # fmt: skip
    torch.manual_seed(1)
    benchmark = toy.stream()
    for t, experience in enumerate(benchmark.train_stream[:2]):
        if t == 1:
            state = through_a_file(routing.state_dict())
            resumed["now"].load_state_dict(state)
            resumed["older"].load_state_dict({k: v for k, v in state.items() if k != "yardsticks"})
        strategy.train(experience)
        strategy.eval(benchmark.test_stream[: t + 1])
    return strategy, recorder, routing


def through_a_file(state):
    """Return a state as a checkpoint brings it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def table(routing, folder):
    """Return the rows of the recorder's ``routing.csv``."""
    routing.write(folder, ARRIVED, IMAGES[:7])
    with open(folder / "routing.csv", newline="") as file:
        return list(csv.DictReader(file))


def pictures():
    """The test images of the two experiences as the network sees them, and their classes in order of arrival."""
    x, y = toy.digits()[0][toy.chosen(False)], toy.digits()[1][toy.chosen(False)]
    first = [label for part in toy.parts()[:2] for label in part]
    seen = torch.isin(y, torch.tensor(first))
    position = {
        label: place for place, label in enumerate(toy.ORDER)
    }  # toy.stream numbers classes by arrival
    return (x[seen].float() / 255 - 0.3) / 0.4, torch.tensor([position[int(label)] for label in y[seen]])


def test_counts_are_those_of_inference_that_stops(run):
    strategy, recorder, routing = run
    x, labels = pictures()
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
    rows = table(routing, tmp_path)
    curve = list(csv.DictReader((tmp_path / "routing_sweep.csv").open()))
    assert [row["experience"] for row in rows] == ["0", "1"]
    assert float(curve[0]["mean_experts"]) == 1
    assert float(curve[-1]["mean_experts"]) == 3
    all_experts = recorder.records()["cnn"].confusions[1]
    accuracy = 100 * np.trace(all_experts) / all_experts.sum()
    assert float(curve[-1]["accuracy/over_images"]) == pytest.approx(accuracy)


def test_yardsticks_are_those_of_the_experts_one_by_one(run, tmp_path):
    """Each answer again, by loops over images in double precision; ten test images of each class."""
    strategy, _, routing = run
    x, labels = pictures()
    strategy.model.eval()
    with torch.no_grad():
        logits = strategy.model.forward_all(x, rebalanced=True).expert_logits.double().numpy()
    used = strategy.model.predict(x).experts_used.tolist()
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    right = dict.fromkeys(YARDSTICKS, 0)
    grid = dict.fromkeys(weight_grid(3), 0)
    for n, label in enumerate(labels.tolist()):
        stops = [logits[: k + 1, n].mean(0).argmax() == label for k in range(3)]
        right["routed"] += stops[used[n] - 1]
        right["all_experts"] += stops[-1]
        right["uniform_mean"] += stops[-1]
        right["probability_mean"] += shares[:, n].mean(0).argmax() == label
        right["stop_ceiling"] += any(stops)
        right["oracle_ceiling"] += any(logits[k, n].argmax() == label for k in range(3))
        for weights in grid:
            grid[weights] += (np.array(weights) @ logits[:, n]).argmax() == label
    right["best_weights_ceiling"] = max(grid.values())
    row = table(routing, tmp_path)[1]
    for name, count in right.items():
        assert float(row[f"{name}/over_classes"]) == pytest.approx(100 * count / 70), name
    chosen = tuple(float(row[f"best_weights_ceiling/weight_of_expert_{k}"]) for k in range(3))
    assert grid[chosen] == right["best_weights_ceiling"]
    assert len(set(right.values())) > 3, "a run in which all yardsticks agree shows nothing"


def test_ceilings_lie_where_they_must_and_answers_are_those_of_the_read_outs(run, tmp_path):
    _, recorder, routing = run
    for t, row in enumerate(table(routing, tmp_path)):
        value = {name: float(row[f"{name}/over_classes"]) for name in YARDSTICKS}
        assert value["best_weights_ceiling"] >= max(value["uniform_mean"], value["all_experts"])
        assert value["stop_ceiling"] >= max(value["routed"], value["all_experts"])
        # no theorem, a mean may be right where no expert is; but far from it here
        assert value["oracle_ceiling"] >= value["best_weights_ceiling"]
        assert (
            row["oracle_ceiling/medium_over_classes"] == row["oracle_ceiling/over_classes"]
        )  # 24 images each
        for name, readout in (("routed", "routed"), ("all_experts", "cnn")):
            counts = recorder.records()[readout].confusions[t]
            assert value[name] == pytest.approx(100 * np.trace(counts) / counts.sum()), name


def test_a_run_that_goes_on_writes_the_bytes_of_one_that_was_not_killed(run, resumed, tmp_path):
    _, _, routing = run
    for name, one in (("straight", routing), ("now", resumed["now"])):
        (tmp_path / name).mkdir()
        table(one, tmp_path / name)
    straight, now = ((tmp_path / name / "routing.csv").read_bytes() for name in ("straight", "now"))
    assert straight == now
    assert resumed["now"].line() == routing.line()


def test_what_an_older_version_recorded_stays_empty_and_the_rest_is_counted(run, resumed, tmp_path):
    _, _, routing = run
    rows = table(resumed["older"], tmp_path)
    new = [name for name in rows[0] if name.split("/")[0] in YARDSTICKS]
    assert len(new) == 4 * 7 + 3 and {rows[0][name] for name in new} == {""}
    expected = table(routing, tmp_path)
    assert {**expected[0], **dict.fromkeys(new, "")} == rows[0]
    assert rows[1] == expected[1]
    again = RoutingRecorder()
    again.load_state_dict(through_a_file(resumed["older"].state_dict()))
    assert table(again, tmp_path) == rows, "what is empty stays so, from state to state"


def test_the_line_says_what_stands_beside_the_router(run, resumed, tmp_path):
    routing = run[2]
    row = table(routing, tmp_path)[1]
    line = routing.line()
    assert line.startswith(f"router: {float(row['mean_experts']):.2f} experts per image, ")
    assert f"; over classes {float(row['routed/over_classes']):.1f} % right (all experts " in line
    assert f"any expert {float(row['oracle_ceiling/over_classes']):.1f})" in line
    state = routing.state_dict()
    older = RoutingRecorder()
    older.load_state_dict({k: v for k, v in state.items() if k != "yardsticks"})
    assert older.line() == line.split(";")[0]


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
