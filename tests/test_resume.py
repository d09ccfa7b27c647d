"""A run that was killed and goes on ends bit for bit where the straight run ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from incrlt import report

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300", "CUDA_VISIBLE_DEVICES": ""}
TINY = """\
benchmark: {dataset: digits, base_classes: 4, increment: 3, order: shuffled, imbalance_ratio: 20}
model: {name: resnet8, width: 8, head: cosine}
training: {epochs: 2, batch_size: 64, schedule: cosine, precision: fp32, threads: 1}
device: cpu
"""
CASES = {
    "lucir_lws": ["strategy.name=lucir", "memory.per_class=5", "rebalance.name=lws", "rebalance.epochs=2"],
    # the memory is chosen, and old quotas cut, before the last stage trains on what was there before
    "lucir_finetune_lws": [
        "strategy.name=lucir",
        "strategy.class_balanced_finetune=2",
        "memory.total=24",
        "rebalance.name=lws",
        "rebalance.epochs=1",
        "training.schedule=multistep",
        "training.warmup_epochs=1",
    ],
    "lucir_bf16": [
        "strategy.name=lucir",
        "memory.per_class=5",
        "training.precision=bf16",
        "training.channels_last=true",
    ],
    # a discriminant is taken away while the next experience trains, and later rates are others than the first
    "shike_lda": [
        "strategy.name=lucir",
        "memory.per_class=5",
        "experts={name: shike, num_experts: 2, classifier_epochs: 1, classifier_warmup: 0}",
        "rebalance={name: lda, beside: false}",
        "training.later_lr=0.03",
    ],
    "icarl": ["strategy.name=icarl", "model.head=linear", "memory.total=20", "memory.selection=random"],
    "lucir_ride_router": [
        "strategy.name=lucir",
        "memory.per_class=5",
        "experts.name=ride",
        "experts.num_experts=2",
        "router.name=expert_assignment",
        "router.epochs=1",
    ],
    "joint": ["strategy.name=joint", "memory=null"],
    "finetune": ["strategy.name=finetune", "memory=null", "training.schedule=multistep"],
}
EPOCH_SAVED = "incrlt.runner.run:Run._epoch_end"
EPOCH_LOGGED = "incrlt.runner.folder:RunFolder.log"
EXPERIENCE_SAVED = "incrlt.runner.run:Run._experience_end"
STEP = "incrlt.training.template:IncrTemplate.optimizer_step"
EVALUATED = "incrlt.plugins.confusion:ConfusionRecorder.after_eval_iteration"
RESULTS_WRITTEN = "incrlt.runner.run:Run._write_counts"
SAME_BYTES = (
    "results.csv",
    "per_class.csv",
    "classes.json",
    "protocol.json",
    "evaluations.npz",
    "thumbnails.npz",
)
OF_A_ROUTER = ("routing.csv", "routing_sweep.csv")
KINDS = ("scalars", "images", "histograms", "tensors")
VARIES = {
    "time", "seconds", "images_per_second", "train_seconds", "eval_seconds", "between_seconds", "peak_bytes",
    "device_seconds",
}  # fmt: skip


def after(where: str, calls: int) -> dict[str, Any]:
    return {"after": where, "calls": calls}


class Runs:
    """Runs cases in forks of one process that has everything imported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.yaml = folder / "tiny.yaml"
        self.yaml.write_text(TINY)
        self.straight: dict[str, Path] = {}
        self.seconds = 0.0
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "forked_runs.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.kill()  # its own end takes seconds
        self.process.wait(30)

    def words(self, case: str, out: str, *more: str) -> list[str]:
        return [str(self.yaml), *CASES[case], "--out", str(self.folder / out), *more]

    def run(
        self, case: str, out: str, *more: str, kill: dict[str, Any] | None = None, **order: Any
    ) -> tuple[int, str]:
        """Return the exit code (negative: signal) and what was printed; ``order`` is more for ``forked_runs.py``."""
        return self.words_run([*CASES[case], *more], out, kill=kill, **order)

    def words_run(self, words: list[str], out: str, *more: str, kill=None, **order: Any) -> tuple[int, str]:
        """The same with words of one's own."""
        output = self.folder / f"{out}.txt"
        args = [str(self.yaml), *words, "--out", str(self.folder / out), *more]
        order |= {"args": args, "output": str(output), "kill": kill}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.seconds = answer["seconds"]
        return answer["code"], output.read_text()

    def path(self, out: str) -> Path:
        """Return the run folder under ``out``."""
        (found,) = (self.folder / out).glob("*/*")
        return found

    def reference(self, case: str) -> Path:
        """Return the folder of the run that nobody killed."""
        if case not in self.straight:
            code, text = self.run(case, f"{case}-straight")
            assert code == 0, text
            self.straight[case] = self.path(f"{case}-straight")
        return self.straight[case]

    def killed(self, case: str, out: str, kills: list[dict[str, Any]]) -> str:
        """Kill a run again and again, then let it end; return what the last process printed."""
        for kill in kills:
            code, text = self.run(case, out, kill=kill)
            assert code == -signal.SIGKILL, text
            assert not (self.path(out) / "DONE").exists()
        code, text = self.run(case, out)
        assert code == 0, text
        return text


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    started = Runs(tmp_path_factory.mktemp("resume"))
    yield started
    started.close()


def final_state(folder: Path) -> dict[str, Any]:
    newest = sorted((folder / "checkpoints").glob("*.pt"))[-1]
    state = torch.load(newest, weights_only=True)
    return {"strategy": state["strategy"], "recorder": state["recorder"], "steps": state["steps"]}


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Return the places at which two nests of tensors and plain data differ in a bit."""
    if type(a) is not type(b):
        return [f"{where}: {type(a)} and {type(b)}"]
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        return [] if same else [where]
    if isinstance(a, dict):
        if list(a) != list(b):
            return [f"{where}: keys {list(a)} and {list(b)}"]
        return [found for key in a for found in differences(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [f"{where}: lengths {len(a)} and {len(b)}"]
        pairs = zip(a, b, strict=True)
        return [found for i, (x, y) in enumerate(pairs) for found in differences(x, y, f"{where}[{i}]")]
    return [] if a == b else [f"{where}: {a} and {b}"]


def without_time(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_time(v) for key, v in value.items() if key not in VARIES}
    return value


def log(folder: Path) -> list[dict[str, Any]]:
    return [without_time(json.loads(line)) for line in (folder / "log.jsonl").read_text().splitlines()]


def shown(folder: Path) -> dict[str, Any]:
    """Return every value TensorBoard reads of a run, by tag and in order of steps, but for those that are times."""
    found = {}
    for place in ("tensorboard", "tensorboard/final"):
        events = EventAccumulator(str(folder / place), size_guidance=dict.fromkeys(KINDS, 0)).Reload()
        for tag in events.Tags()["scalars"]:
            if tag.split("/")[-1] not in VARIES:
                found[place, tag] = [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["images"]:
            found[place, tag] = [(event.step, event.encoded_image_string) for event in events.Images(tag)]
        for tag in events.Tags()["histograms"]:
            found[place, tag] = [(event.step, event.histogram_value) for event in events.Histograms(tag)]
    return found


def assert_same(folder: Path, reference: Path) -> None:
    """Raise unless two finished runs agree in everything but time."""
    assert differences(final_state(folder), final_state(reference)) == []
    assert log(folder) == log(reference)
    results = [without_time(json.loads((f / "results.json").read_text())) for f in (folder, reference)]
    assert results[0] == results[1]
    costs = [json.loads((f / "cost.json").read_text())["stages"] for f in (folder, reference)]
    assert [without_time(row) for row in costs[0]] == [without_time(row) for row in costs[1]]
    with np.load(folder / "confusions.npz") as ours, np.load(reference / "confusions.npz") as theirs:
        assert ours.files == theirs.files
        for key in ours.files:
            assert np.array_equal(ours[key], theirs[key]), key
    assert shown(folder) == shown(reference)
    routed = [name for name in OF_A_ROUTER if (reference / name).exists()]
    for name in (*SAME_BYTES, *routed):
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name
    left = {path.name for path in folder.rglob("*") if path.name.endswith(".tmp")}
    assert left == set()
    assert {p.name for p in folder.iterdir()} == {p.name for p in reference.iterdir()}


# Numbers below count from the start of each process; an experience of lucir_lws has 2 + 2 epochs.
KILLS = {
    "lucir_lws": [
        after(STEP, 3),  # before the first checkpoint
        after(EPOCH_SAVED, 1),  # inside the first stage
        after(EPOCH_SAVED, 1),  # between the stages
        after(EPOCH_SAVED, 1),  # inside the second stage
        after(EVALUATED, 1),  # trained, half evaluated
        after(EXPERIENCE_SAVED, 1),  # between experiences
        after(EPOCH_LOGGED, 1),  # logged, not saved: experience 2 begins again
        after(EPOCH_SAVED, 3),  # inside the second stage, where the main optimizer rests
        after(STEP, 2),
        after(EPOCH_SAVED, 5),  # the last epoch of all
        after(RESULTS_WRITTEN, 1),  # results of the last experience written, not saved
        after(EXPERIENCE_SAVED, 1),  # everything but the report
    ],
    "lucir_finetune_lws": [
        after(EPOCH_SAVED, 4),  # experience 2, first stage (2 + 1 epochs in experience 1)
        after(EPOCH_SAVED, 2),  # exemplars were chosen for the finetune
        after(EPOCH_SAVED, 2),  # inside lws
        after(EPOCH_SAVED, 3),  # experience 3, inside the finetune
        after(STEP, 2),
    ],
    "lucir_bf16": [after(EPOCH_SAVED, 3), after(EXPERIENCE_SAVED, 1), after(STEP, 2)],
    "icarl": [after(EPOCH_SAVED, 3), after(EPOCH_SAVED, 2), after(STEP, 1), after(EVALUATED, 1)],
    "lucir_ride_router": [
        after(EXPERIENCE_SAVED, 1),  # the next process has the router's counts from the checkpoint
        after(EVALUATED, 1),  # half counted
        after(RESULTS_WRITTEN, 1),  # written, not saved: counted again
    ],
    "shike_lda": [
        after(EPOCH_SAVED, 6),  # experience 1, between stages: 4 epochs before, 2 of its first
        after(EPOCH_SAVED, 1),  # heads balanced, the discriminant not fitted
        after(EPOCH_SAVED, 1),  # fitted
        after(EXPERIENCE_SAVED, 1),
        after(EPOCH_SAVED, 1),  # experience 2, inside the first stage at the later rate
    ],
    "joint": [after(EPOCH_SAVED, 3), after(EXPERIENCE_SAVED, 1), after(EPOCH_SAVED, 1)],
    "finetune": [after(EPOCH_SAVED, 1), after(EXPERIENCE_SAVED, 2), after(EPOCH_SAVED, 1)],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_runs_end_where_the_straight_run_ends(runs, case):
    text = runs.killed(case, f"{case}-killed", KILLS[case])
    assert "resuming" in text
    assert_same(runs.path(f"{case}-killed"), runs.reference(case))


def test_killed_while_a_checkpoint_is_written(runs):
    kills = [{"half_written": n} for n in (1, 2, 4, 5)]  # the first one leaves no checkpoint at all
    for number, kill in enumerate(kills):
        code, text = runs.run("lucir_lws", "half", kill=kill)
        assert code == -signal.SIGKILL, text
        leftovers = list((runs.path("half") / "checkpoints").glob(".*.tmp"))
        assert len(leftovers) == 1, f"kill {number}: the leftover of the kill before must be gone"
    code, text = runs.run("lucir_lws", "half")
    assert code == 0, text
    assert "damaged" not in text
    assert_same(runs.path("half"), runs.reference("lucir_lws"))


@pytest.mark.parametrize("both", [False, True])
def test_a_damaged_checkpoint_is_named_and_costs_no_bit(runs, both):
    out = f"damaged-{both}"
    code, text = runs.run("lucir_lws", out, kill=after(EPOCH_SAVED, 7))
    assert code == -signal.SIGKILL, text
    newest_first = sorted((runs.path(out) / "checkpoints").glob("*.pt"), reverse=True)
    damaged = newest_first if both else newest_first[:1]
    for path in damaged:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(bytes(content))
    code, text = runs.run("lucir_lws", out)
    assert code == 0, text
    instead = "starting anew" if both else "going on from the one before it"
    for path in damaged:
        assert f"checkpoint {path.name} is damaged; {instead}" in " ".join(text.split())
    assert ("resuming" in text) is not both
    assert_same(runs.path(out), runs.reference("lucir_lws"))


def test_killed_from_outside_at_random_moments(runs):
    reference = runs.reference("lucir_lws")
    runs.run("finetune", "clock")  # how long a run takes here and now
    chance, kills, code = random.Random(0), 0, None
    for _ in range(4):
        seconds = runs.seconds * chance.uniform(0.2, 0.8)
        code, text = runs.run("lucir_lws", "random", kill={"seconds": seconds})
        kills += code == -signal.SIGKILL
        if code != -signal.SIGKILL:
            break
    assert kills
    code, text = runs.run("lucir_lws", "random")
    assert code == 0, text
    assert_same(runs.path("random"), reference)


def test_the_command_itself_killed(runs):
    """No fork: a process that has imported nothing before. Its start takes ten times the run, so that it has one."""
    command = [sys.executable, "-m", "incrlt.run", *runs.words("lucir_lws", "command")]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_lines(process, runs.folder / "command", 9)  # in the second experience, after a whole first one
    time.sleep(random.Random(1).uniform(0.0, 0.05))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    code, text = runs.run("lucir_lws", "command")
    assert code == 0, text
    assert_same(runs.path("command"), runs.reference("lucir_lws"))


def wait_for_lines(process: subprocess.Popen, out: Path, lines: int) -> None:
    deadline = time.monotonic() + 250
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        logs = list(out.glob("*/*/log.jsonl"))
        if logs and logs[0].read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.01)
    pytest.fail("the run did not get going")


def test_a_finished_run_is_not_run_twice_unless_asked(runs):
    reference = runs.reference("finetune")
    runs.run("finetune", "twice")
    folder = runs.path("twice")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code, text = runs.run("finetune", "twice")
    assert code == 0
    assert "this run is finished; --restart runs it again" in text
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    code, text = runs.run("finetune", "twice", "--restart")
    assert code == 0
    assert "finished; --restart" not in text
    assert (folder / "log.jsonl").stat().st_mtime_ns > before[folder / "log.jsonl"]
    assert_same(folder, reference)


def test_a_restart_that_is_killed_goes_on_as_the_new_run(runs):
    reference = runs.reference("finetune")
    assert runs.run("finetune", "restarted")[0] == 0
    code, text = runs.run("finetune", "restarted", "--restart", kill=after(EPOCH_SAVED, 3))
    assert code == -signal.SIGKILL, text
    folder = runs.path("restarted")
    assert not (folder / "DONE").exists()
    assert not (folder / "report.html").exists()
    code, text = runs.run("finetune", "restarted")
    assert code == 0
    assert "resuming in experience 1, after epoch 1" in text
    assert_same(folder, reference)


def test_a_finished_run_without_report_gets_it(runs):
    assert runs.run("finetune", "reported")[0] == 0
    page = runs.path("reported") / "report.html"
    page.unlink()
    assert runs.run("finetune", "reported")[0] == 0
    assert page.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("kill", "done"), [(after(EPOCH_SAVED, 1), 0), (after(EPOCH_SAVED, 5), 1)], ids=["first", "second"]
)
def test_a_killed_run_has_a_report(runs, kill, done):
    out = f"unfinished-{done}"
    code, text = runs.run("lucir_lws", out, kill=kill)
    assert code == -signal.SIGKILL, text
    folder = runs.path(out)
    page = report.write(folder).read_text()
    assert f"The run has not finished: {done} of 3 experiences are evaluated" in page
    assert ('aria-label="4 training images of' in page) is (done > 0)
    assert f"<dd>{kill['calls']}</dd>" in page, "epochs in the facts"
