"""What each stage cost, by hand."""

from __future__ import annotations

import pytest

from incrlt.metrics.spent import BETWEEN, EVALUATION, spent


def epoch(t, stage, seconds, images, **more):
    told = {"event": "epoch", "experience": t, "stage": stage, "seconds": seconds, "images": images}
    return {**told, "processes": 1, "stored": False, "peak_bytes": 100, **more}


LOG = [
    {"event": "start"},
    epoch(0, "train", 2.0, 50),
    epoch(0, "train", 1.0, 50, peak_bytes=300),
    epoch(0, "lws", 0.5, 20, stored=True),
    {"event": "experience", "experience": 0, "eval_seconds": 0.25, "between_seconds": 0.125, "test_images": 10,
     "macs": 1000, "head_macs": 7, "processes": 1, "peak_bytes": 200},
    epoch(1, "train", 4.0, 30, processes=2),
    epoch(1, "lws", 0.5, 20, processes=2),
    {"event": "experience", "experience": 1, "eval_seconds": 0.5, "between_seconds": 0.5, "test_images": 20,
     "macs": 1100, "head_macs": 9, "processes": 2, "peak_bytes": 150},
]  # fmt: skip


def test_every_stage_by_hand():
    rows = {row["stage"]: row for row in spent(LOG)}
    assert list(rows) == ["train", "lws", BETWEEN, EVALUATION]
    train, lws, between, evaluation = rows.values()
    assert (train["epochs"], train["device_seconds"], train["images"]) == (3, 2 + 1 + 2 * 4, 130)
    assert train["multiply_adds"] == 100 * 1000 + 30 * 1100
    assert (train["peak_bytes"], lws["peak_bytes"], evaluation["peak_bytes"]) == (300, 100, 200)
    assert (lws["device_seconds"], lws["multiply_adds"]) == (0.5 + 2 * 0.5, 20 * 7 + 20 * 1100)
    assert between["device_seconds"] == 0.125 + 2 * 0.5 and between["images"] is None
    assert (evaluation["device_seconds"], evaluation["images"]) == (0.25 + 2 * 0.5, 30)
    assert evaluation["multiply_adds"] == 10 * 1000 + 20 * 1100


def test_an_experience_that_has_not_ended_has_no_multiply_adds_and_keeps_its_seconds():
    (train, lws, _, _) = spent([*LOG, epoch(2, "train", 8.0, 30)])
    assert train["device_seconds"] == 19 and train["images"] == 160 and train["multiply_adds"] is None
    assert lws["multiply_adds"] is not None


def test_a_log_of_an_older_version_tells_images_by_their_speed():
    old = {"event": "epoch", "experience": 0, "stage": "train", "seconds": 1.4, "images_per_second": 50 / 1.4}
    (row,) = spent([old])
    assert row["images"] == 50 and row["device_seconds"] == pytest.approx(1.4)
    assert row["multiply_adds"] is None and row["peak_bytes"] is None


@pytest.mark.parametrize("value", [None, "3", True, float("nan"), -1.0, [1]])
def test_what_a_damaged_line_holds_counts_as_unknown(value):
    (row,) = spent([{"event": "epoch", "stage": "train", "seconds": value, "images": value, "experience": 0}])
    assert row["device_seconds"] == 0 and row["images"] is None and row["multiply_adds"] is None
