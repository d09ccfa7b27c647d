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
SHORT, REST = "single,penalty,ride,contrast", "ncl,shike"
TINY = ["data.on_device=true", "training.epochs=1", "training.threads=1", "rebalance=null", "model.width=8"]


class Ranks:
    """The processes of a run, started together; what they print goes to files."""

    def __init__(self, host, size, words, out):
        self.host = host
        self.outputs = [out / f"rank-{rank}" for rank in range(size)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        told = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environments = [{**told, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
        order = {"words": words, "environments": environments, "outputs": list(map(str, self.outputs))}
        self.pids = self._ask(order)["pids"]

    def _ask(self, order):
        self.host.stdin.write(json.dumps(order) + "\n")
        self.host.stdin.flush()
        return json.loads(self.host.stdout.readline())

    def send(self, number, *ranks):
        for rank in ranks or range(len(self.pids)):
            os.kill(self.pids[rank], number)

    def ended(self, timeout=300, ranks=None):
        """Return exit codes and what was printed; None for a process that has not ended, which is killed."""
        pids = self.pids if ranks is None else [self.pids[rank] for rank in ranks]
        codes = self._ask({"wait": pids, "seconds": timeout})["codes"]
        return codes, [path.read_text() for path in self.outputs]

    def until_saved(self, folder, number, timeout=600):
        """Wait for a checkpoint of a number or a later one: two of each experience, from 0; return its number."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            found = [int(path.name.split("-")[0]) for path in folder.glob("quickstart/*/checkpoints/*.pt")]
            if max(found, default=-1) >= number:
                return max(found)
            time.sleep(0.02)
        self.send(signal.SIGKILL)
        raise AssertionError(f"no checkpoint {number} within {timeout} s: {self.ended()}")


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Start processes as torchrun does, without its own seconds and those of imports."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    host = subprocess.Popen(
        [sys.executable, str(HERE / "forked_ranks.py")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield lambda size, *words: Ranks(host, size, words, tmp_path_factory.mktemp("ranks"))
    host.stdin.close()
    host.stdout.close()
    host.kill()  # its own end takes seconds
    host.wait()


@pytest.fixture(scope="module")
def spread(started, tmp_path_factory):
    """Train strategies of ``spread_runs.py`` in several processes; return what is left, by name."""

    def train(size, names, batch_norm="sync"):
        out = tmp_path_factory.mktemp("spread")
        words = [str(HERE / "spread_runs.py"), names, batch_norm, str(out)]
        codes, said = started(size, *words).ended()
        assert codes == [0] * size, said
        return {name: torch.load(out / f"{name}.pt") for name in names.split(",")}

    return train


@pytest.fixture(scope="module")
def alone(spread):
    return spread(1, SHORT)


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


def test_two_processes_are_one(alone, spread):
    """LUCIR, a second stage and a router, three experiences, batches of 13 images; contrast with second views."""
    check_same(spread(2, SHORT), alone)


@pytest.mark.soak
def test_two_processes_are_one_with_the_other_expert_methods(spread):
    check_same(spread(2, REST), spread(1, REST))


@pytest.mark.soak
def test_three_processes_are_one(alone, spread):
    """13 images and 9 do not divide by three, and a last batch has fewer images than there are processes."""
    names = ("ride", "contrast")
    check_same(spread(3, ",".join(names)), {name: alone[name] for name in names})


@pytest.mark.soak
def test_local_batch_norm_is_another_computation_and_all_processes_agree_on_it(alone, spread):
    """What they do not agree on is refused after each epoch, momentum copies and their statistics too."""
    found = spread(2, "single,contrast", "local")
    for name in found:
        key = next(key for key in found[name]["weights"] if key.endswith("conv.weight"))
        assert found[name]["weights"][key].isfinite().all()
        assert (found[name]["weights"][key] - alone[name]["weights"][key]).abs().max() > 1e-6


def run_words(out):
    words = ["-m", "incrlt.run", str(HERE.parent / "experiments" / "quickstart.yaml"), "--out", str(out)]
    return [*words, *TINY]


@pytest.mark.timeout(1200)
def test_a_killed_process_ends_the_others_and_one_process_goes_on(started, tmp_path):
    running = started(2, *run_words(tmp_path))
    running.until_saved(tmp_path, 0)
    running.send(signal.SIGKILL, 1)
    codes, said = running.ended(timeout=90)
    assert codes == [2, -signal.SIGKILL]
    assert "another process of this run has ended" in said[0]
    codes, said = started(1, *run_words(tmp_path)).ended()
    assert codes == [0] and "resuming " in said[0]
    (folder,) = tmp_path.glob("quickstart/*")
    assert (folder / "DONE").exists()
    sessions = (folder / "environment.json").read_text()
    assert sessions.count('"processes": "2"') >= 1
    codes, said = started(2, *run_words(tmp_path)).ended()
    assert codes == [0, 0] and "this run is finished" in said[0] and said[1] == ""


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_run_goes_on_with_one_process_and_then_with_three(started, figure, tmp_path):
    """Begun by two, killed; one goes on, killed; three end it: the counts say that nothing was lost or done twice."""
    codes, said = started(1, *run_words(tmp_path / "straight")).ended(timeout=900)
    assert codes == [0], said
    saved = -1
    for size in (2, 1):
        running = started(size, *run_words(tmp_path))
        saved = running.until_saved(tmp_path, saved + 2)  # with an epoch of their own
        running.send(signal.SIGKILL)
        codes, said = running.ended(timeout=90)
        assert codes == [-signal.SIGKILL] * size, said
    codes, said = started(3, *run_words(tmp_path)).ended(timeout=900)
    assert codes == [0, 0, 0] and "resuming " in said[0], said
    (folder,) = tmp_path.glob("quickstart/*")
    assert (folder / "DONE").exists()
    sessions = json.loads((folder / "environment.json").read_text())["sessions"]
    assert [session.get("processes", "1") for session in sessions] == ["2", "1", "3"]
    epochs = [event for event in map(json.loads, (folder / "log.jsonl").open()) if event["event"] == "epoch"]
    assert [event["experience"] for event in epochs] == [0, 1, 2, 3]  # one epoch each
    assert {event["processes"] for event in epochs} == {1, 2, 3}
    (train, *_) = json.loads((folder / "cost.json").read_text())["stages"]
    assert train["images"] == sum(event["images"] for event in epochs)
    assert train["device_seconds"] == pytest.approx(sum(e["seconds"] * e["processes"] for e in epochs))
    (straight,) = tmp_path.glob("straight/quickstart/*")
    found, expected = (
        json.loads((place / "results.json").read_text())["readouts"]["cnn"]["numbers"]
        for place in (folder, straight)
    )
    apart = {name: abs(found[name] - value) for name, value in expected.items() if value is not None}
    figure(
        f"2, 1 and 3 processes, fp32: numbers differ by at most {max(apart.values())} points from one process's"
    )
    assert max(apart.values()) < 5  # sums in another order; one image of the smallest group is 1 point


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
def test_a_process_that_hangs_ends_the_others_with_a_sentence(started):
    """Not killed, but stopped: its connections stay open and nobody is told."""
    both = started(2, "-c", HANGING)
    codes, said = both.ended(timeout=120, ranks=[0])
    both.send(signal.SIGKILL, 1)
    both.ended(ranks=[1])
    assert codes == [1]
    assert "has not answered for 5 seconds" in said[0] and "the same command goes on from there" in said[0]


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
