"""Plots of the docs: every number comes out of the JSON, and a bar is as long as its number says."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("docutils", reason="the docs extra is not installed")
FILE = Path(__file__).resolve().parents[1] / "docs" / "_ext" / "perf_plots.py"
spec = importlib.util.spec_from_file_location("perf_plots", FILE)
plots = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plots)


def texts(shown):
    return " | ".join(node.astext() for node in shown)


def spread(median):
    return {"n": 9, "median": median, "quartiles": [0.9 * median, 1.2 * median]}


def test_bars_are_as_long_as_their_numbers():
    drawn = plots.svg([("a", "one", 4.0, 4.0, 4.0), ("b < c", "two", 1.0, 0.5, 2.0)])
    first, second = (float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', drawn))
    assert first == pytest.approx(4 * second, rel=1e-3)
    assert len(re.findall("<path", drawn)) == 1, "a whisker where there is a spread"
    assert "b &lt; c" in drawn


def test_the_cpu_shows_the_newest_file_with_losses(tmp_path):
    def file(name, value):
        row = {
            "milliseconds": {kind: spread(value) for kind in ("published", "stacked", "closed_form")},
            "times_as_fast_as_published": {"closed_form": spread(7 * value)},
        }
        machine = {"processor": "some processor", "torch": "2.15.0", "note": "busy"}
        content = {
            "kernels": {"machine": machine, "figures": {"settings": {"threads": 1, "rounds": 9}, "ncl": row}}
        }
        (tmp_path / name).write_text(json.dumps(content))

    file("2026-01-01_kernels_cpu.json", 1.0)
    file("2026-02-01_kernels_cpu.json", 2.0)
    (tmp_path / "2026-03-01_cpu.json").write_text(json.dumps({"herding": {}}))
    shown = texts(plots.of_cpu(tmp_path))
    assert "2026-02-01_kernels_cpu.json: some processor; torch 2.15.0; 1 thread(s); n = 9" in shown
    assert "2.00" in shown and "14.0 (12.6 to 16.8)" in shown and "1.00" not in shown


def test_without_a_gpu_the_page_says_so(tmp_path):
    assert "nothing on this page was measured on one" in texts(plots.of_gpu(tmp_path))


def test_files_of_a_gpu_appear_as_they_come(tmp_path):
    machine = {"gpu": "NVIDIA H200", "torch": "2.11.0", "triton": "3.6.0"}
    row = {
        "terms": "ncl", "shape": [3, 128, 100], "dtype": "fp32", "kind": "triton", "device_us": [4.0, 5.0, 6.0],
        "host_us": [80.0, 90.0, 99.0], "launches": 3, "peak_bytes": 2_500_000, "first_call_seconds": 0.75,
        "gigabytes_per_second": 61.4, "share_of_copy": 0.25,
    }  # fmt: skip
    failed = {
        "terms": "ncl",
        "shape": [6, 1, 2],
        "dtype": "bf16",
        "kind": "published",
        "failed": "OutOfMemory",
    }
    kernels = {
        "machine": machine,
        "rows": [row, failed],
        "skipped": {"liger": "not installed"},
        "left_out": ["x"],
    }
    (tmp_path / "kernels_h200.json").write_text(json.dumps(kernels))
    step = {
        "method": "lucir", "kernels": "auto", "asked": "graph", "step": "graph", "images_per_second": 4321.0,
        "quartiles": [4000.0, 4400.0],
    }  # fmt: skip
    (tmp_path / "steps_h200.json").write_text(json.dumps({"machine": machine, "rows": [step]}))
    shown = texts(plots.of_gpu(tmp_path))
    for part in (
        "NVIDIA H200",
        "triton 3.6.0",
        "5.0",
        "90.0",
        "61",
        "25%",
        "2.5",
        "0.75",
        "OutOfMemory",
        "4.32e+03",
    ):
        assert part in shown, part
    assert "liger: not installed; not measured, no time left: 1 rows" in shown


def test_the_repository_has_figures_to_show():
    assert "closed form, ms" in texts(plots.of_cpu(plots.DATA))
