"""Option combinations, each run on a few digits to its end; and runs that must be the same, or not, by their seeds.

``make soak`` runs them; ``--share 0.1`` runs a tenth, and ``--share 0.5-1`` goes on where half was done.
"""

from __future__ import annotations

import random
import signal
from collections import Counter

import pytest
from test_options import walk
from test_resume import Runs, differences, final_state

pytestmark = [pytest.mark.soak, pytest.mark.timeout(36_000)]

COMBINATIONS = 200
TINY = """\
benchmark: {dataset: digits, base_classes: 4, increment: 3, order: shuffled, imbalance_ratio: 20}
model: {name: resnet8, width: 4}
strategy: {name: lucir}
memory: {per_class: 3}
training: {epochs: 2, batch_size: 64, precision: fp32, threads: 1}
device: cpu
"""
SHORT = ["training.epochs=2", "training.batch_size=64", "training.threads=1"]
ENOUGH, HANGS = 300, 3000
"""Processor seconds of one run, which takes a few whoever else is busy; seconds on the clock after which it hangs."""
SLOW = (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGALRM)
COMPILED = 5
"""Of combinations with ``step: compile`` those whose number this divides are compiled, with ten times the seconds: a
compiler of C++ needs minutes for each pass of a network, and each is the same code in most of them. The others run
eager steps once the dry run has taken them."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    started = Runs(tmp_path_factory.mktemp("soak-runs"))
    started.yaml.write_text(TINY)
    yield started
    started.close()


def test_option_combinations_end_or_are_refused_before_data(runs, cases, figure):
    """What a dry run accepts trains, evaluates and reports; what it refuses, it refuses in a sentence."""
    counts, faults = Counter(), []
    for number in cases(COMBINATIONS):
        words, out = [*walk(random.Random(1000 + number)), *SHORT], f"walk-{number}"
        code, text = runs.words_run(words, out, "--dry-run")
        outcome = "refused"
        if code == 0:
            code, text = ran(runs, words, out, number % COMPILED == 0)
            outcome = "ended" if code == 0 else "too slow" if code in SLOW else "failed"
        elif code != 2:
            outcome = "failed"
        if "Traceback" in text:
            outcome = "traceback"
        counts[outcome] += 1
        if outcome not in ("ended", "refused"):
            faults.append((number, words, outcome, " ".join(text.split())[-1500:]))
    figure(f"option combinations: {dict(counts)}")
    assert not faults, "\n".join(map(str, faults))


def ran(runs: Runs, words: list[str], out: str, compiled: bool) -> tuple[int, str]:
    """Run to the end, within its seconds; compiled only where that is the combination's turn."""
    longer = 10 if "training.step=compile" in words and compiled else 1
    if longer == 1 and "training.step=compile" in words:
        words = [*words, "training.step=eager"]
    limits = {"CPU": ENOUGH * longer}
    return runs.words_run(words, out, patience=HANGS * longer, limits=limits)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_run_twice_is_the_same_to_the_bit(runs, threads, figure):
    states = []
    for number in (1, 2):
        states.append(state_of(runs, f"threads-{threads}-{number}", f"training.threads={threads}"))
    assert differences(*states) == []
    figure(f"{threads} thread(s): two runs the same to the bit")


FIELDS = ("class_order", "images", "init", "batches", "augmentation")


def test_each_seed_decides_what_it_names(runs, figure):
    """Each one changes the run, twice in the same way; all that take their number from ``all`` are ``all``."""
    usual = state_of(runs, "seeds")
    for field in FIELDS:
        once = state_of(runs, f"{field}-1", f"seeds.{field}=7")
        again = state_of(runs, f"{field}-2", f"seeds.{field}=7")
        assert differences(once, again) == [], field
        assert differences(usual, once) != [], field
    every = state_of(runs, "all", "seeds.all=7")
    apart = state_of(runs, "apart", "seeds.init=7", "seeds.batches=7", "seeds.augmentation=7")
    assert differences(every, apart) == []
    figure(
        f"seeds: {len(FIELDS)} fields, each changes the run and twice in the same way; all = its three fields"
    )


def state_of(runs: Runs, out: str, *words: str) -> dict:
    code, text = runs.words_run(
        ["benchmark.augmentation=shift", *words], out, patience=HANGS, limits={"CPU": ENOUGH}
    )
    assert code == 0, text
    return final_state(runs.path(out))
