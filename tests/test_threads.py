"""Threads follow the work and the cores that are free."""

from __future__ import annotations

import math
import time

import pytest
import torch

from incrlt.models import build, cost
from incrlt.runner import threads
from incrlt.runner.threads import Cores, choose_threads


def cores(total: int = 16, allowed: int = 16, quota: float | None = None, busy: float = 0.0) -> Cores:
    return Cores(total, allowed, quota, busy)


def work(name: str, image: tuple[int, int, int], batch: int) -> float:
    return batch * cost.macs(build(name, in_channels=image[0]), image)


def test_a_small_network_takes_one_thread_and_a_large_one_every_free_core():
    small, large = work("resnet8", (1, 8, 8), 32), work("resnet32", (3, 32, 32), 128)
    assert 1e7 < small < 1e8 < 5e9 < large < 1.2e10
    assert choose_threads(None, small, 16, cores()).number == 1
    assert choose_threads(None, large, 16, cores()).number == 16
    assert choose_threads(None, large, 2, cores(2, 2, None, 1.2)).number == 1  # the other core is taken


@pytest.mark.parametrize(
    ("machine", "known", "number"),
    [
        (cores(quota=3.5), 16, 3),  # a container
        (cores(quota=0.5), 16, 1),
        (cores(allowed=4), 16, 4),  # taskset
        (cores(busy=13.6), 16, 2),
        (cores(busy=40.0), 16, 1),
        (cores(64, 4, None, 30.0), 16, 4),  # others have the other cores
        (cores(), 3, 3),  # OMP_NUM_THREADS=3
    ],
)
def test_the_number_is_bounded_by_what_there_is(machine, known, number):
    assert choose_threads(None, 1e10, known, machine).number == number


def test_between_the_two_each_thread_has_enough_to_do():
    assert [choose_threads(None, n * 2.5e8, 16, cores()).number for n in (0.5, 1.9, 2, 5.5)] == [1, 1, 2, 5]


def test_what_is_asked_for_is_taken_and_a_run_that_goes_on_keeps_its_number():
    assert choose_threads(7, 1.0, 2, cores(1, 1)).number == 7
    assert choose_threads(None, 1.0, 16, cores(busy=15.0), before=8).number == 8
    assert (
        choose_threads(None, 1e10, 16, cores(allowed=4), before=8).number == 4
    )  # moved to a smaller machine
    for damaged in (0, -1, "8", True, 1.5, None):
        assert choose_threads(None, 1.0, 16, cores(), before=damaged).number == 1


def test_where_a_gpu_computes_torch_decides_within_the_limits():
    assert choose_threads(None, 0.0, 8, cores(quota=2.0)).number == 2
    assert choose_threads(None, 0.0, 8, cores(busy=16.0)).number == 8


def test_the_reason_is_said():
    chosen = choose_threads(None, 2.4e7, 2, cores(2, 2, None, 1.0))
    assert chosen.reason == "2.4e+07 multiply-adds a step feed 1; 2 usable cores, 1.0 of 2 busy, 2 by torch"


@pytest.mark.parametrize(
    ("content", "found"), [("200000 100000", 2.0), ("50000 100000\n", 0.5), ("max 100000", None), ("", None)]
)
def test_limits_of_both_versions_of_control_groups_are_read(tmp_path, content, found):
    (tmp_path / "cpu.max").write_text(content)
    assert threads.quota(((str(tmp_path / "cpu.max"), None),)) == found


def test_the_first_version_has_two_files_and_minus_one_for_no_limit(tmp_path):
    places = ((str(tmp_path / "none"), None), (str(tmp_path / "quota"), str(tmp_path / "period")))
    assert threads.quota(places) is None
    (tmp_path / "period").write_text("100000\n")
    (tmp_path / "quota").write_text("-1\n")
    assert threads.quota(places) is None
    (tmp_path / "quota").write_text("150000\n")
    assert threads.quota(places) == 1.5


def test_busy_cores_are_counted_from_the_ticks_between_two_looks(tmp_path, monkeypatch):
    clock = tmp_path / "stat"
    #                     user nice system idle iowait irq softirq steal
    clock.write_text("cpu  1000   0    100 5000    100   0       0     0  0 0\ncpu0 1\n")
    later = "cpu  1060   0    110 5025    105   0       0     0  0 0\n"  # 70 of 100 ticks at work
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.write_text(later))
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 10)
    assert threads.busy_now(place=str(clock)) == pytest.approx(7.0)
    assert threads.busy_now(place=str(tmp_path / "none")) == math.inf


def test_this_machine_has_a_core_for_us():
    found = threads.cores()
    assert 1 <= found.free <= found.usable <= found.total
    assert choose_threads(None, 1e12, torch.get_num_threads(), found).number >= 1
