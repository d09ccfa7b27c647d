"""Several processes on one run: the numbers of one process, and what happens when one of them is gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import toy

from incrlt import processes
from incrlt.errors import UserError
from incrlt.experts.single import Single
from incrlt.models.synced_norm import Synced, synced
from incrlt.processes import ALONE, World
from incrlt.training.compute import Compute
from incrlt.training.graph import Stepper, obstacle

HERE = Path(__file__).resolve().parent
SHORT, REST = "single,penalty,ride", "ncl,shike"
TINY = ["data.on_device=true", "training.epochs=1", "training.threads=1", "rebalance=null", "model.width=8"]


def environment(rank, size, port):
    return {
        **os.environ,
        "PYTHONPATH": str(HERE.parent),
        "OMP_NUM_THREADS": "1",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def started(size, *words):
    """What torchrun starts, without torchrun's own seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, *words],
            env=environment(rank, size, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def ended(running, timeout=300):
    said = [process.communicate(timeout=timeout)[0] for process in running]
    return [process.returncode for process in running], said


def spread(size, names, out, batch_norm="sync"):
    out.mkdir(exist_ok=True)
    codes, said = ended(started(size, str(HERE / "spread_runs.py"), names, batch_norm, str(out)))
    assert codes == [0] * size, said
    return {name: torch.load(out / f"{name}.pt") for name in names.split(",")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return spread(1, SHORT, tmp_path_factory.mktemp("alone"))


def check_same(found, expected):
    """The same exemplars and counts to the bit; weights and terms but for the order of sums."""
    for name, one in expected.items():
        other = found[name]
        for key, value in one["memory"].items():
            assert torch.equal(other["memory"][key], value) if torch.is_tensor(value) else True, (name, key)
        for mine, theirs in zip(one["counts"], other["counts"], strict=True):
            assert torch.equal(mine, theirs), name
        for key, value in one["weights"].items():
            largest = float(value.nan_to_num().abs().max()) if value.numel() else 0.0
            torch.testing.assert_close(
                other["weights"][key], value, rtol=0, atol=1e-10 * max(1.0, largest), equal_nan=True, msg=key
            )
        assert other["terms"] == pytest.approx(one["terms"], rel=1e-9)


def test_two_processes_are_one(alone, tmp_path):
    """LUCIR, a second stage and a router, three experiences, batches of 13 images."""
    check_same(spread(2, SHORT, tmp_path), alone)


@pytest.mark.soak
def test_two_processes_are_one_with_the_other_expert_methods(tmp_path):
    check_same(spread(2, REST, tmp_path / "two"), spread(1, REST, tmp_path / "one"))


@pytest.mark.soak
def test_three_processes_are_one(alone, tmp_path):
    """13 images and 9 do not divide by three, and a last batch has fewer images than there are processes."""
    check_same(spread(3, "ride", tmp_path), {"ride": alone["ride"]})


@pytest.mark.soak
def test_local_batch_norm_is_another_computation_and_all_processes_agree_on_it(alone, tmp_path):
    found = spread(2, "single", tmp_path, "local")["single"]
    key = "stem.conv.weight"
    assert found["weights"][key].isfinite().all()
    assert (found["weights"][key] - alone["single"]["weights"][key]).abs().max() > 1e-6


def run_words(out):
    words = ["-m", "incrlt.run", str(HERE.parent / "experiments" / "quickstart.yaml"), "--out", str(out)]
    return [*words, *TINY]


def test_a_killed_process_ends_the_others_and_one_process_goes_on(tmp_path):
    running = started(2, *run_words(tmp_path))
    log = None
    for _ in range(600):  # until the first epoch is in the log
        time.sleep(0.1)
        log = next(tmp_path.glob("quickstart/*/log.jsonl"), None)
        if log is not None and '"event": "epoch"' in log.read_text():
            break
    running[1].send_signal(signal.SIGKILL)
    codes, said = ended(running, timeout=90)
    assert codes == [2, -signal.SIGKILL]
    assert "another process of this run has ended" in said[0]
    codes, said = ended(started(1, *run_words(tmp_path)))
    assert codes == [0] and "resuming " in said[0]
    (folder,) = tmp_path.glob("quickstart/*")
    assert (folder / "DONE").exists()
    sessions = (folder / "environment.json").read_text()
    assert sessions.count('"processes": "2"') >= 1
    codes, said = ended(started(2, *run_words(tmp_path)))
    assert codes == [0, 0] and "this run is finished" in said[0] and said[1] == ""


@pytest.mark.soak
def test_a_run_goes_on_with_one_process_and_then_with_three(tmp_path):
    """Begun by two, killed; one goes on, killed; three end it: the counts say that nothing was lost or done twice."""
    before = 0
    for size in (2, 1):
        running, log = started(size, *run_words(tmp_path)), None
        for _ in range(900):  # until it has finished an epoch of its own
            time.sleep(0.1)
            log = next(tmp_path.glob("quickstart/*/log.jsonl"), None)
            if log is not None and log.read_text().count('"event": "epoch"') > before:
                break
        before = log.read_text().count('"event": "epoch"')
        for process in running:
            process.send_signal(signal.SIGKILL)
        codes, said = ended(running, timeout=90)
        assert codes == [-signal.SIGKILL] * size, said
    codes, said = ended(started(3, *run_words(tmp_path)))
    assert codes == [0, 0, 0] and "resuming " in said[0], said
    (folder,) = tmp_path.glob("quickstart/*")
    assert (folder / "DONE").exists()
    sessions = json.loads((folder / "environment.json").read_text())["sessions"]
    assert [session.get("processes", "1") for session in sessions] == ["2", "1", "3"]
    epochs = [event for event in map(json.loads, (folder / "log.jsonl").open()) if event["event"] == "epoch"]
    assert [event["experience"] for event in epochs] == [0, 1, 2, 3]  # one epoch each
    assert {event["processes"] for event in epochs} >= {2, 3}
    (train, *_) = json.loads((folder / "cost.json").read_text())["stages"]
    assert train["images"] == sum(event["images"] for event in epochs)
    assert train["device_seconds"] == pytest.approx(sum(e["seconds"] * e["processes"] for e in epochs))


HANGING = """
import os, signal, sys
from datetime import timedelta
import torch
from incrlt import processes
from incrlt.errors import UserError
processes.PATIENCE = timedelta(seconds=5)
with processes.joined() as world:
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    try:
        world.check_same("x", [torch.ones(2)])
    except UserError as error:
        sys.exit(str(error))
"""


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_others_with_a_sentence():
    """Not killed, but stopped: its connections stay open and nobody is told."""
    first, hanging = started(2, "-c", HANGING)
    try:
        said = first.communicate(timeout=120)[0]
    finally:
        hanging.kill()
        hanging.communicate()
    assert first.returncode == 1
    assert "has not answered for 5 seconds" in said and "the same command goes on from there" in said


# ---------------------------------------------------------------------------- parts, in one process


def test_rows_are_shared_out_evenly():
    for count in (0, 1, 2, 13, 128):
        for size in (1, 2, 3, 5):
            parts = [range(count)[World(rank, size).rows(count)] for rank in range(size)]
            assert [row for part in parts for row in part] == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_exchanges_nothing():
    value, rows = torch.randn(3), torch.randn(2, 4, 5)
    assert ALONE.sum(value) is value and ALONE.tell("x") == "x"
    assert ALONE.spread(lambda x: x, rows) is rows
    with processes.joined() as world:
        assert world is ALONE


class Echo(World):
    """Two processes with equal rows: a sum is twice the own part."""

    def sum(self, tensor):
        return tensor + tensor


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_of_all_rows_by_torchs_own_batch_norm(momentum):
    torch.manual_seed(0)
    x = 40 + torch.randn(6, 3, 4, 4, dtype=torch.float64)
    plain = torch.nn.BatchNorm2d(3, momentum=momentum).double()
    other = torch.nn.BatchNorm2d(3, momentum=momentum).double()
    synced(other, Echo(size=2))
    assert isinstance(other, Synced) and isinstance(other, torch.nn.BatchNorm2d)
    for _ in range(2):
        expected, found = plain(torch.cat([x, x])), other(x)
        torch.testing.assert_close(found, expected[:6], rtol=1e-11, atol=1e-11)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-11, atol=1e-11, msg=name)
    torch.testing.assert_close(other.eval()(x), plain.eval()(x), rtol=1e-11, atol=1e-11)


def test_gradients_of_a_synced_batch_norm():
    norm = torch.nn.BatchNorm2d(2, track_running_stats=False).double()
    synced(norm, ALONE)
    assert torch.autograd.gradcheck(norm, torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("step", ["auto", "graph"])
def test_a_captured_step_gives_way_to_several_processes(step, monkeypatch):
    """Asked for by name it is refused; what chooses by itself runs eagerly and says why."""
    monkeypatch.setattr(Stepper, "make", object())  # as where graphs can be had
    compute = Compute(torch.device("cpu"), "fp32")
    compute.world = World(size=2)
    model = toy.network()

    def make():
        return Stepper(step, compute, model, lambda: obstacle(compute, model, Single(), False, []))

    if step == "graph":
        with pytest.raises(UserError, match="what processes exchange is not captured"):
            make()
    else:
        assert make().reason == "what processes exchange is not captured"


def test_compiled_parts_see_the_rows_of_their_own_process():
    """What is compiled computes each process's share; the exchange is around it, in eager code."""
    compute, model, seen = Compute(torch.device("cpu"), "fp32"), toy.network(), []

    class Halves(Echo):
        def spread(self, part, images):
            seen.append("exchange")
            return part(images[self.rows(len(images))])

    compute.world = Halves(size=2)
    compute._compiled[id(model), False] = lambda images: seen.append(len(images)) or model.extract(images)
    assert compute.extract(model, torch.zeros(6, 1, 8, 8)).shape[1] == 3
    assert seen == ["exchange", 3]


def test_a_wrong_batch_norm_is_refused():
    with pytest.raises(UserError, match="allowed: sync, local"), processes.joined("global"):
        pass
