"""Many runs: what is asked is checked, what is done is skipped, what was lost goes on, what is poor is stopped."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from filelock import FileLock

from incrlt.endings import BAD_INPUT, Terminated
from incrlt.errors import UserError
from incrlt.sweep import __main__ as command
from incrlt.sweep import engines, outcome, page, table, work
from incrlt.sweep.asha import Asha, asha, goes_on
from incrlt.sweep.show import Show, summary
from incrlt.sweep.show import table as rows_of
from incrlt.sweep.spaces import drawn, grid_values, space
from incrlt.sweep.task import Progress, progress

TINY = """\
benchmark: {dataset: digits, base_classes: 5, increment: 5, imbalance_ratio: 4, holdout: long-tailed-cil}
model: {name: resnet8, width: 2, head: cosine}
strategy: {name: lucir}
memory: {per_class: 3}
training: {epochs: 3, batch_size: 64, precision: fp32}
device: cpu
"""
SWEEPS = sorted((Path(__file__).parent.parent / "experiments" / "sweeps").glob("*.yaml"))
EPOCHS = 6  # two experiences of three


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def sweep_of(path: Path, **row) -> table.Sweep:
    return table.from_file(path.with_name("own.yaml"), {"experiment": path.name, **row})


# ------------------------------------------------------------------------------------------------ what is asked


def test_a_grid_has_lists_ranges_and_whole_sections():
    assert grid_values("k", "0..3, 7") == (0, 1, 2, 3, 7)
    assert grid_values("k", "[0.5, 0.75], [0.9], null, 1e-3") == ([0.5, 0.75], [0.9], None, 1e-3)
    assert grid_values("experts", "{name: ride, num_experts: 2}, {name: single}")[1] == {"name": "single"}
    assert grid_values("k", ["0..1", 1, True]) == (0, 1, True), "each once, and true is not 1"
    assert grid_values("k", 0.1) == (0.1,)


@pytest.mark.parametrize(
    ("given", "said"), [("", "no values"), ("4..0", "must rise"), ("[1", "not valid YAML")]
)
def test_a_wrong_grid_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        grid_values("training.lr", given)


def test_a_search_draws_from_its_space_the_same_values_however_many_trials_there_are():
    spaces = {
        "training.lr": space("training.lr", "log(0.001, 10)"),
        "training.epochs": space("training.epochs", "linear(2, 5)"),
        "training.momentum": space("training.momentum", "linear(0.0, 1)"),
        "model.head": space("model.head", "choice(cosine, linear)"),
    }
    draws = [drawn(spaces, 0, trial) for trial in range(300)]
    assert {draw["training.epochs"] for draw in draws} == {2, 3, 4, 5}
    assert all(type(draw["training.momentum"]) is float for draw in draws)
    assert {draw["model.head"] for draw in draws} == {"cosine", "linear"}
    rates = sorted(draw["training.lr"] for draw in draws)
    assert rates[0] >= 0.001 and rates[-1] <= 10
    assert 0.05 < rates[150] < 0.2, "half of the draws are below the middle of the logarithm, 0.1"
    fewer = {"training.lr": spaces["training.lr"]}
    assert [drawn(fewer, 0, trial) for trial in range(3)] == [
        {"training.lr": draw["training.lr"]} for draw in draws[:3]
    ]
    assert drawn(fewer, 1, 0) != drawn(fewer, 0, 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("0.1", "write log"),
        ("log(0, 1)", "low < high above 0"),
        ("linear(2, 1)", "low < high"),
        ("log(0.1)", "takes two numbers"),
        ("linear(a, b)", "takes two numbers"),
        ("choice()", "no values"),
    ],
)
def test_a_wrong_space_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        space("training.lr", given)


def test_runs_come_seed_by_seed_the_wanted_row_first_and_each_once(tiny):
    rows = [
        {"experiment": tiny.name, "seeds": "0..1", "grid": {"experts.name": ["single", "ncl"]}},
        {"experiment": tiny.name, "seeds": [0, 5], "priority": 1},
    ]
    sweep = table.from_file(tiny.with_name("own.yaml"), rows)
    tasks = sweep.tasks(tiny.parent)
    assert [task.label for task in tasks] == [
        "tiny seeds.all=0", "tiny seeds.all=5", "tiny experts.name=ncl seeds.all=0",
        "tiny experts.name=single seeds.all=1", "tiny experts.name=ncl seeds.all=1",
    ]  # fmt: skip
    assert all(task.checked.training.threads == 1 and not task.checked.output.validation for task in tasks)


def test_a_sweep_is_a_file_with_a_hash_of_its_content(tiny):
    more = {"search": {"training.lr": "log(0.01, 0.3)"}, "trials": 2, "stop_early": True, "seeds": "0..1"}
    sweep = sweep_of(tiny, **more)
    copy = tiny.parent / "elsewhere" / "copy.yaml"
    copy.parent.mkdir()
    copy.write_text(sweep.yaml())
    again = table.from_file(copy, table.read(copy))
    assert again.hash == sweep.hash  # of the files as they are now
    keys = [task.key for task in sweep.tasks(tiny.parent)]
    assert [task.key for task in again.tasks(tiny.parent)] == keys and len(set(keys)) == 4
    assert all(task.checked.output.validation for task in again.tasks(tiny.parent))
    assert sweep_of(tiny, **more, search_seed=1).hash != sweep.hash
    tiny.write_text(TINY.replace("epochs: 3", "epochs: 4"))
    assert sweep_of(tiny, **more).hash != sweep.hash, "the experiment's own content counts"


def test_rows_that_differ_in_overrides_alone_are_told_apart_everywhere(tiny, tmp_path):
    both = ["training.epochs=2", "benchmark.holdout=none"]
    rows = [
        {"experiment": tiny.name, "seeds": [0], "overrides": both},
        {
            "experiment": tiny.name,
            "seeds": [0],
            "overrides": [*both, "rebalance.name=lws", "rebalance.epochs=1"],
        },
    ]
    sweep = table.from_file(tiny.with_name("own.yaml"), rows)
    queue, _, _ = queue_of(sweep, tmp_path)
    labels = ["tiny seeds.all=0", "tiny rebalance.name=lws rebalance.epochs=1 seeds.all=0"]
    assert [item.task.label for item in queue.items] == labels, "in console and table"
    found = outcome.settings(queue.items, sweep.rows)
    expected = ["tiny", "tiny, rebalance.name=lws, rebalance.epochs=1"]
    assert [setting.changed for setting in found] == expected, "in report and sweep.json"
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / tiny.name).write_text(TINY.replace("width: 2", "width: 4"))
    two = table.from_file(
        tmp_path / "own.yaml", [{"experiment": "tiny.yaml"}, {"experiment": "more/tiny.yaml"}]
    )
    assert table.apart(two.rows) == [(f"{tmp_path.name}/tiny",), ("more/tiny",)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"seed": 1}, "has seed; a row takes experiment.*Did you mean 'seeds'"),
        ({"overrides": "a=1"}, "give a list"),
        ({"overrides": ["training.epoch=3"]}, "tiny:.*epoch"),
        ({"search": {"training.lr": "log(0.1,1)"}}, "needs how many trials"),
        ({"trials": 3}, "needs what is searched"),
        ({"trials": 1.5, "search": {"training.lr": "log(0.1,1)"}}, "give a whole number"),
        ({"metric": "last_accuracy/over_tasks"}, "never on test images"),
        ({"stop_early": True}, "trials of a search"),
        ({"stop_early": {"eta": 1}}, "eta is 1"),
        ({"grid": {"training.lr": [1]}, "search": {"training.lr": "log(0.1,1)"}, "trials": 1}, "remove one"),
        ({"grid": [1]}, "give a mapping"),
        ({"seeds": "0..9999", "grid": {"seeds.init": "0..1"}}, "20000 runs"),
        ({"metric": "validation/average", "overrides": ["benchmark.holdout=none"]}, "holds out none"),
    ],
)
def test_a_wrong_sweep_is_refused_before_the_first_run(tiny, row, said):
    with pytest.raises(UserError, match=said):
        sweep_of(tiny, **row).tasks(tiny.parent)


# ------------------------------------------------------------------------------------------------ early stopping


def test_asha_keeps_the_best_third_of_those_that_have_been_at_a_rung():
    rule, seen = Asha(eta=3, first=1 / 9), {}
    assert rule.rungs == pytest.approx((1 / 9, 1 / 3))
    first, second = rule.rungs
    decisions = [
        goes_on(rule, seen, name, {first: figure})
        for name, figure in zip("abcdef", [5, 4, 6, 3, 5, 5.5], strict=True)
    ]
    # a is alone; b is below a; c is the best of three; of six two go on: f is second to c
    assert decisions == [True, False, True, False, False, True]
    assert goes_on(rule, seen, "a", {first: 5.0}), "judged once, when it came"
    assert goes_on(rule, seen, "a", {first: 5.0, second: 7.0})
    assert not goes_on(rule, seen, "c", {first: 6.0, second: 6.9})


def test_early_stopping_is_a_yes_or_a_mapping():
    assert (asha(None), asha(False), asha(True), asha({"eta": 4})) == (None, None, Asha(), Asha(4))
    with pytest.raises(UserError, match="give true"):
        asha("yes")


# ------------------------------------------------------------------------------------------------ the queue


class Stub:
    """An engine whose runs write three epochs a look; ``ends`` says otherwise, run by run, start by start."""

    def __init__(self, tasks, figure=lambda task, epoch: 50.0, ends=None):
        self.by_words = {tuple(task.words): task for task in tasks}
        self.figure, self.ends = figure, ends or {}
        self.started: list[str] = []
        self.busy, self.most, self.closed = 0, 0, False

    def start(self, words, log):
        task = self.by_words[tuple(words)]
        self.started.append(task.label)
        self.busy += 1
        self.most = max(self.most, self.busy)
        own = self.ends.get(task.label, [])
        return StubJob(self, task, own.pop(0) if own else None)

    def close(self):
        self.closed = True


class StubJob:
    def __init__(self, engine, task, end):
        self.engine, self.task, self.end, self.over = engine, task, end, False

    def code(self):
        if self.over or (self.end is not None and progress(self.task).epochs >= self.end[0]):
            return self._leave(-15 if self.over else self.end[1])
        write_epochs(self.task, self.engine.figure, 3)
        if progress(self.task).epochs < EPOCHS:
            return None
        (self.task.folder() / "DONE").touch()
        return self._leave(0)

    def stop(self):
        self.over = True

    def _leave(self, code):
        self.engine.busy -= 1
        return code


def write_epochs(task, figure, number):
    name, _, run = task.key.partition("/")
    folder = task.out / name / f"01234567-{run}"
    folder.mkdir(parents=True, exist_ok=True)
    done = progress(task).epochs
    with open(folder / "log.jsonl", "a") as log:
        for epoch in range(done, min(done + number, EPOCHS)):
            event = {"event": "epoch", "experience": epoch // 3, "seconds": 2.0, "time": 100 + 2.0 * epoch}
            log.write(json.dumps({**event, "validation": {"accuracy": figure(task, epoch)}}) + "\n")


def queue_of(sweep, tmp_path, lanes=2, **stub):
    tasks = sweep.tasks(tmp_path)
    engine = Stub(tasks, **stub)
    judge = work.Judge(sweep.rows, tmp_path / "state.json")
    told: list[str] = []
    tell = lambda item: told.append(f"{item.state} {item.task.label}")  # noqa: E731
    return work.Queue(tasks, engine, lanes, judge, tmp_path, tell, wait=0.0), engine, told


def states(queue):
    return [item.state for item in queue.items]


def test_what_is_done_is_skipped_and_no_more_run_than_there_are_lanes(tiny, tmp_path):
    sweep = sweep_of(tiny, seeds="0..4")
    queue, engine, _ = queue_of(sweep, tmp_path)
    queue.work()
    assert states(queue) == ["done"] * 5 and engine.most == 2 and engine.closed
    assert engine.started == [f"tiny seeds.all={seed}" for seed in range(5)]
    again, idle, told = queue_of(sweep_of(tiny, seeds="0..5"), tmp_path)
    again.work()
    assert idle.started == ["tiny seeds.all=5"] and len(told) == 2, "a larger grid runs what is new in it"


def test_a_lost_worker_goes_on_bad_input_does_not_and_no_progress_ends(tiny, tmp_path):
    ends = {
        "tiny seeds.all=0": [(3, engines.LOST)],
        "tiny seeds.all=1": [(0, BAD_INPUT)],
        "tiny seeds.all=2": [(3, -9)] * 9,
        "tiny seeds.all=3": [(0, 0)] * 9,  # says that it is done, and is not
    }
    queue, engine, told = queue_of(sweep_of(tiny, seeds="0..3"), tmp_path, ends=ends)
    queue.work()
    assert states(queue) == ["done", "failed", "failed", "failed"]
    assert [engine.started.count(f"tiny seeds.all={seed}") for seed in range(4)] == [
        2,
        1,
        1 + work.TRIES,
        work.TRIES,
    ]
    assert told[-1].startswith("failed")
    assert "1 done, 3 failed" in summary(queue.items, 2)


def test_a_run_of_another_process_is_waited_for(tiny, tmp_path):
    sweep = sweep_of(tiny, seeds=[0])
    queue, engine, told = queue_of(sweep, tmp_path)
    task = queue.items[0].task
    write_epochs(task, lambda task, epoch: None, 3)
    lock = FileLock(task.folder() / ".lock")
    lock.acquire()
    looks = iter(range(3))
    queue._show = lambda items: lock.release() if next(looks, None) is None else None
    queue.work()
    assert [line.split()[0] for line in told] == ["elsewhere", "waiting", "running", "done"]
    assert engine.started == ["tiny seeds.all=0"]


def test_ctrl_c_stops_every_job_and_leaves_the_queue_to_go_on(tiny, tmp_path):
    sweep = sweep_of(tiny, seeds="0..2")
    queue, engine, _ = queue_of(sweep, tmp_path)

    def interrupt(items):
        if any(item.progress.epochs for item in items):
            raise KeyboardInterrupt

    queue._show = interrupt
    with pytest.raises(KeyboardInterrupt):
        queue.work()
    assert engine.busy == 0 and engine.closed
    again, _, _ = queue_of(sweep, tmp_path)
    assert [item.progress.epochs for item in again.items] == [3, 3, 0]
    again.work()
    assert states(again) == ["done"] * 3


def test_a_poor_trial_is_stopped_with_all_its_seeds_and_stays_so(tiny, tmp_path):
    row = {
        "search": {"training.lr": "log(0.01, 0.3)"},
        "trials": 3,
        "stop_early": {"first": 0.5},
        "seeds": "0..1",
    }
    sweep = sweep_of(tiny, **row)
    figure = lambda task, epoch: [60.0, 40.0, 70.0][task.trial] + epoch  # noqa: E731
    queue, engine, _ = queue_of(sweep, tmp_path, lanes=1, figure=figure)
    queue.work()
    assert states(queue) == ["done", "stopped", "done"] * 2
    assert len(engine.started) == 5, "the stopped trial's second seed is never begun"
    again, idle, _ = queue_of(sweep, tmp_path, figure=figure)
    again.work()
    assert idle.started == [] and states(again) == states(queue)

    found = outcome.settings(queue.items, sweep.rows)
    assert [setting.state for setting in found] == ["done", "stopped", "done"]
    best = outcome.chosen(found)["row 1"]
    assert best is found[2] and best.validation == outcome.Interval(73.5, 0.0, 2)  # (72 + 75) / 2, both seeds
    (chart,) = page.sensitivity(sweep, found, {}).values()
    rates = [dict(setting.drawn)["training.lr"] for setting in found]
    shown = {trace["name"]: (trace["x"], trace["y"]) for trace in chart["data"]}
    assert shown == {"finished": ([rates[0], rates[2]], [63.5, 73.5]), "stopped early": ([rates[1]], [42.0])}
    layout = chart["layout"]
    assert layout["xaxis"]["type"] == "log" and layout["yaxis"]["title"]["text"] == "validation/average, %"


# ------------------------------------------------------------------------------------------------ what is read


def test_progress_is_read_from_the_log_without_pauses_and_without_test_images(tiny, tmp_path):
    task = sweep_of(tiny, seeds=[0]).tasks(tmp_path)[0]
    assert progress(task) == Progress()
    write_epochs(task, lambda task, epoch: 10.0 * epoch, 4)
    folder = task.folder()
    (folder / "results.json").write_text("poison")
    with open(folder / "log.jsonl", "a") as log:  # the next day
        log.write(json.dumps({"event": "epoch", "experience": 1, "seconds": 2.0, "time": 90_000.0}) + "\n")
        log.write('{"event": "epoch", "exper')
    found = progress(task)
    assert (found.epochs, found.seconds, found.seconds_per_epoch) == (5, 10.0, 2.0)
    assert found.figures[3] == {"validation/average": 25.0, "validation/last": 30.0}
    assert found.figures[4] == {} and found.figure("validation/average") is None, "no figure is no zero"
    assert found.at((0.5, 0.9), EPOCHS, "validation/average") == {0.5: 20.0}


def test_the_time_that_is_left_is_epochs_at_the_measured_speed(tiny):
    def item(state, epochs, rate, row=0):
        task = SimpleNamespace(epochs=10, row=row)
        return work.Item(task, state, Progress(epochs=epochs, seconds_per_epoch=rate))

    assert work.seconds_left([item("waiting", 0, None)], 2) is None
    items = [
        item("running", 4, 2.0),
        item("running", 0, 4.0),
        item("waiting", 0, None),
        item("done", 10, 3.0),
    ]
    # 6 x 2 + 10 x 4 + 10 x 3 (the mean of 2, 4 and 3)
    assert work.seconds_left(items, 1) == 82
    assert work.seconds_left(items, 2) == 41
    assert work.seconds_left(items, 9) == 40, "no sooner than its longest run"


def test_an_interval_is_students_and_differences_are_paired():
    assert outcome.interval([]) == outcome.Interval(None, None, 0)
    assert outcome.interval([3.0]) == outcome.Interval(3.0, None, 1)
    found = outcome.interval([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.half == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    gap = outcome.paired({"a": 5.0, "b": 7.0, "c": 1.0}, {"b": 6.0, "a": 4.0})
    assert gap == outcome.Interval(1.0, 0.0, 2)


# ------------------------------------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--on", "pbs"], "allowed: lanes, ray"),
        (["--slurm", "a=1"], "--slurm is for --on slurm"),
        (["--lanes", "0"], "give 1 or more"),
        (["--gpu", "2"], "no share of a GPU"),
        (["--search", "training.lr=log(0.1,1)"], "needs --trials"),
        (["--grid", "seeds"], "has no values|not of the form"),
        (["--metric", "test/last"], "never on test images"),
    ],
)
def test_wrong_options_are_one_sentence(tiny, tmp_path, capsys, words, said):
    assert command.main([str(tiny), "--out", str(tmp_path / "out"), *words]) == BAD_INPUT
    error = " ".join(capsys.readouterr().err.split())
    assert re.search(said, error), error
    assert "Traceback" not in error


def test_a_dry_run_trains_nothing_and_a_sweep_file_takes_no_grid(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    words = [str(tiny), "--grid", "seeds.all=0..2", "--out", str(out)]
    assert command.main([*words, "--dry-run"]) == 0
    assert "3 runs: 3 waiting | 0 of 18 epochs" in capsys.readouterr().out and not out.exists()
    assert command.main([*words, "--print-sweep"]) == 0
    own = tmp_path / "own.yaml"
    own.write_text(capsys.readouterr().out)
    assert yaml.safe_load(own.read_text())["grid"] == {"seeds.all": [0, 1, 2]}
    assert command.main([str(own), "--grid", "seeds.all=0", "--dry-run"]) == BAD_INPUT
    assert "says itself what is run; leave out --grid" in capsys.readouterr().err


@pytest.mark.parametrize(("reason", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_whoever_stops_a_sweep_is_told_how_to_go_on(tiny, tmp_path, capsys, monkeypatch, reason, code):
    def stopped(queue):
        raise reason

    monkeypatch.setattr(work.Queue, "work", stopped)
    assert command.main([str(tiny), "--out", str(tmp_path)]) == code
    assert f"goes on: python -m incrlt.sweep {tiny} --out {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_the_sweeps_of_the_repository_can_be_run(path, tmp_path):
    sweep = table.from_file(path, table.read(path))
    assert sweep.tasks(tmp_path)
    assert {row.metric for row in sweep.rows} <= {None, *table.METRICS}


# ------------------------------------------------------------------------------------------------ other engines

RESULTS = ("confusions.npz", "results.csv", "per_class.csv")


def folders(out: Path) -> list[Path]:
    return sorted((out / "tiny").iterdir())


def swept(tiny: Path, out: Path, *words: str) -> list[list[bytes]]:
    overrides = ["training.epochs=1", "benchmark.holdout=none", "--grid", "seeds.all=0,1", "--lanes", "2"]
    assert command.main([str(tiny), *overrides, "--out", str(out), *words]) == 0
    return [[(folder / name).read_bytes() for name in RESULTS] for folder in folders(out)]


@pytest.fixture(scope="module")
def by_lanes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lanes")
    (folder / "tiny.yaml").write_text(TINY)
    return swept(folder / "tiny.yaml", folder / "out")


@pytest.mark.slow
def test_ray_computes_what_lanes_do(tiny, tmp_path, request):
    pytest.importorskip("ray", reason="needs incrlt[ray]")
    assert swept(tiny, tmp_path / "out", "--on", "ray") == request.getfixturevalue("by_lanes")


@pytest.mark.slow
def test_submitit_computes_what_lanes_do(tiny, tmp_path, request):
    pytest.importorskip("submitit", reason="needs incrlt[slurm]")
    words = ["--on", "slurm:local", "--slurm", "timeout_min=5"]
    assert swept(tiny, tmp_path / "out", *words) == request.getfixturevalue("by_lanes")


@pytest.mark.parametrize(("name", "on", "extra"), [("ray", "ray", "ray"), ("submitit", "slurm", "slurm")])
def test_a_package_that_is_missing_is_named_with_its_extra(
    tiny, tmp_path, capsys, monkeypatch, name, on, extra
):
    monkeypatch.setitem(sys.modules, name, None)
    assert command.main([str(tiny), "--out", str(tmp_path), "--on", on]) == BAD_INPUT
    assert f"pip install 'incrlt[{extra}]'" in " ".join(capsys.readouterr().err.split())


def test_the_table_shows_what_is_under_way_first_and_counts_the_rest(tiny, tmp_path):
    sweep = sweep_of(tiny, seeds="0..4")
    queue, _, _ = queue_of(sweep, tmp_path)
    done, running = queue.items[0], queue.items[3]
    write_epochs(running.task, lambda task, epoch: 40.0, 3)
    done.state, done.progress = "done", Progress(epochs=6, seconds=18.0, seconds_per_epoch=3.0)
    running.state, running.progress = "running", progress(running.task)
    stream = io.StringIO()
    show = Show(2, stream)
    show._out.print(rows_of(queue.items, 2, most=2))
    told = " ".join(stream.getvalue().split())
    assert "seeds.all=3" in told and "seeds.all=0" not in told and "and 3 more" in told
    assert re.search(r"running\W+3 of 6\W+2\W+40\.00\W+6\.0 s", told), told
    # left: 3 epochs at 2 s, and 3 runs of 6 at the mean of 2 and 3: (6 + 45) / 2
    assert (
        "5 runs: 1 done, 1 running, 3 waiting | 9 of 30 epochs | 0.5 epochs/s | spent 24.0 s | eta 25.5 s"
        in told
    )
