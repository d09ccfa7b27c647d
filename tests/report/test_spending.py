from __future__ import annotations

import json

import pytest

from incrlt.report import page, read_run
from incrlt.report.spending import spending


def test_the_table_says_where_the_time_went(make_run, tmp_path):
    folder = make_run(tmp_path, sizes=(6, 3, 3), epochs=2)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for event in lines:
        if event["event"] == "experience":
            event |= {"between_seconds": 0.4, "test_images": 100, "macs": 2_000_000_000, "head_macs": 10}
        if event["event"] == "epoch":
            event |= {"images": 3000, "peak_bytes": 3 * 2**29, "stored": False}
    (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in lines))
    run = read_run(folder)
    train, between, evaluation = spending(run)
    total = 6 * 1.4 + 3 * 0.4 + 3 * 2.2
    assert (train["stage"], train["epochs"], train["seconds"]) == ("train", 6, "8.4 s")
    assert train["share"] == pytest.approx(100 * 8.4 / total)
    assert (train["images"], train["tera"], train["peak"]) == (18_000, pytest.approx(36.0), "1.5 GiB")
    assert between["share"] == pytest.approx(100 * 1.2 / total) and between["peak"] == ""
    assert evaluation["images"] == 300 and evaluation["tera"] == pytest.approx(0.6)
    shown = page.write(folder).read_text()
    assert "Where the time went" in shown and "<td>36.000</td>" in shown


def test_a_run_without_a_log_has_no_such_table(make_run, tmp_path):
    folder = make_run(tmp_path, sizes=(6, 3), epochs=1)
    (folder / "log.jsonl").unlink()
    assert spending(read_run(folder)) == []
    assert "Where the time went" not in page.write(folder).read_text()
