"""Runs killed at random system calls, in TensorBoard's records and in the report, and runs short of files or memory.

``make soak`` runs them; ``--share 0.1`` runs a tenth.
"""

from __future__ import annotations

import random
import signal
from typing import Any

import pytest
from test_resume import Runs, assert_same

from incrlt import manifest

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

CASE = "lucir_lws"
KILLS = 30
SYSTEM = {"os:replace": 60, "os:fsync": 160, "os:truncate": 2, "pathlib:Path.unlink": 90}
"""Calls that change the disk, with about as many as a run makes."""
CRASHES = (-signal.SIGSEGV, -signal.SIGABRT)
"""How native libraries end a process that has no memory left; what is saved must go on all the same."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    started = Runs(tmp_path_factory.mktemp("soak"))
    yield started
    started.close()


def random_kill(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Return a kind and a kill of that kind."""
    kind = rng.choice(["system", "system", "tensorboard", "report"])
    if kind == "system":
        where = rng.choice(list(SYSTEM))
        return kind, {rng.choice(["before", "after"]): where, "calls": rng.randint(1, SYSTEM[where])}
    if kind == "tensorboard":
        event, shown = {"half_event": rng.randint(1, 200)}, rng.choice(["epoch", "experience", "finish"])
        at = {rng.choice(["before", "after"]): f"incrlt.runner.board:Board.{shown}", "calls": 1}
        return kind, rng.choice([event, at])
    torn = {"half_written": 1, "module": "incrlt.report.page"}
    return kind, rng.choice([torn, {"before": "incrlt.report:write", "calls": 1}])


def test_runs_killed_at_random_calls_end_where_the_straight_run_ends(runs, cases, figure):
    """A chain of kills ends when a process reaches its end; each end is compared bit for bit."""
    reference, wanted = runs.reference(CASE), len(cases(KILLS))
    rng, killed, ends = random.Random(13), {"system": 0, "tensorboard": 0, "report": 0}, 0
    while sum(killed.values()) < wanted:
        out = f"chain-{ends}"
        for _ in range(4):
            kind, kill = random_kill(rng)
            code, text = runs.run(CASE, out, kill=kill, patience=300)
            assert code in (0, -signal.SIGKILL), (kill, code, text)
            killed[kind] += code != 0
            if code == 0:
                break
        code, text = runs.run(CASE, out, patience=300)
        assert code == 0, text
        assert "Traceback" not in text and "damaged" not in text, text
        assert_same(runs.path(out), reference)
        assert (runs.path(out) / "report.html").read_text().rstrip().endswith("</html>")
        ends += 1
    figure(f"{sum(killed.values())} kills ({killed}), {ends} ends, each the straight run's to the bit")


@pytest.mark.parametrize(("name", "most"), [("NOFILE", most) for most in (4, 5, 6, 7, 8, 10, 20)])
def test_a_run_short_of_file_descriptors_ends_or_is_a_sentence(runs, name, most, figure):
    figure(f"RLIMIT_{name} {most}: {ended(runs, f'{name}-{most}', {name: most})}")


@pytest.mark.parametrize("kilobytes", [1, 10, 100, 1000, 10_000])
def test_a_run_that_may_write_no_large_file_ends_or_is_a_sentence(runs, kilobytes, figure):
    figure(f"RLIMIT_FSIZE {kilobytes} kB: {ended(runs, f'size-{kilobytes}', {'FSIZE': kilobytes * 1000})}")


@pytest.mark.parametrize("more", [0, 10, 30, 100, 1000])
def test_a_run_short_of_memory_ends_or_is_a_sentence(runs, more, figure):
    """Megabytes beyond what a process has that imported everything and computed nothing."""
    figure(f"memory, {more} MB more: {ended(runs, f'memory-{more}', {'AS': -more * 1_000_000 or -1})}")


def ended(runs: Runs, out: str, limits: dict[str, int]) -> str:
    """Run under limits, then without; return what became of the first."""
    code, text = runs.run(CASE, out, limits=limits, patience=300)
    assert "Traceback" not in text, text
    assert code in (0, 2) or ("AS" in limits and code in CRASHES), (code, text)
    if code:
        assert text.strip() and len(text) < 20_000, text
        said = " ".join(text.split())[-160:] if code == 2 else f"a library crashed, signal {-code}"
        code, text = runs.run(CASE, out, patience=300)
        assert code == 0, text
    else:
        said = "it ended"
    folder = runs.path(out)
    assert manifest.read(folder).differences(folder) == []
    assert_same(folder, runs.reference(CASE))
    return said
