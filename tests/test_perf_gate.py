"""The gate over figures: it names what got worse, lets pass what did not, and compares like with like alone."""

from __future__ import annotations

import copy
import json

import pytest

from perf import gate

GPU = {"gpu": "NVIDIA H200", "processor": "one", "torch": "2.11.0", "triton": "3.6.0", "threads": 8}


def kernel_row(kind, microseconds, **changes):
    row = {
        "terms": "ncl", "shape": [3, 128, 100], "dtype": "fp32", "kind": kind, "launches": 3, "peak_bytes": 1000,
        "share_of_copy": 0.5, "device_us": [0.9 * microseconds, microseconds, 1.1 * microseconds],
    }  # fmt: skip
    return row | changes


KERNELS = {"machine": GPU, "rows": [kernel_row("published", 1000.0), kernel_row("triton", 10.0)]}
COUNTS = {
    "machine": {"triton": "3.6.0", "torch": "2.11.0"},
    "counts": {"kernels": {"ncl sm_90": {"registers": 88, "spilled_bytes": 0}}},
}
CPU = {
    "kernels": {
        "machine": {"processor": "one", "torch": "2.15.0", "triton": None, "threads": 1, "gpu": None},
        "figures": {
            "ncl (3, 128, 100)": {
                "milliseconds": {"closed_form": {"n": 9, "median": 1.0, "quartiles": [0.9, 1.1]}},
                "times_as_fast_as_published": {
                    "closed_form": {"n": 9, "median": 6.0, "quartiles": [5.5, 6.5]}
                },
            }
        },
    }
}
STEPS = {
    "machine": GPU,
    "rows": [
        {"method": "lucir", "kernels": "auto", "asked": step, "images_per_second": speed}
        for step, speed in (("eager", 100.0), ("graph", 300.0))
    ],
}


def changed(content, path, value):
    new = copy.deepcopy(content)
    *parents, last = path
    inner = new
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return new


CLOSED_FORM = (
    "kernels",
    "figures",
    "ncl (3, 128, 100)",
    "times_as_fast_as_published",
    "closed_form",
)


@pytest.mark.parametrize("content", [KERNELS, COUNTS, CPU, STEPS])
def test_a_file_passes_against_itself(content):
    lines, compared = gate.compare(content, copy.deepcopy(content))
    assert lines == [] and compared > 0


@pytest.mark.parametrize(
    ("content", "path", "value", "line"),
    [
        (COUNTS, ("counts", "kernels", "ncl sm_90", "registers"), 89, "registers went from 88 to 89 (+1.1 %)"),
        (COUNTS, ("counts", "kernels", "ncl sm_90", "spilled_bytes"), 8, "spilled_bytes went from 0 to 8 (was 0)"),
        (KERNELS, ("rows", 1, "launches"), 4, "ncl (3, 128, 100) fp32, triton: launches went from 3 to 4"),
        (KERNELS, ("rows", 1, "peak_bytes"), 1100, "peak bytes went from 1000 to 1100 (+10.0 %)"),
        (KERNELS, ("rows", 1, "share_of_copy"), 0.4, "share of a copy's bandwidth went from 0.5 to 0.4"),
        (KERNELS, ("rows", 1, "device_us"), [19, 20, 21], "times as fast as published went from 100 to 50"),
        (STEPS, ("rows", 1, "images_per_second"), 150.0, "times as fast as eager went from 3 to 1.5 (-50.0 %)"),
        (CPU, CLOSED_FORM, {"n": 9, "median": 4.0, "quartiles": [3.5, 4.5]}, "closed_form went from 6 to 4"),
    ],
)  # fmt: skip
def test_a_regression_is_named(content, path, value, line):
    lines, _ = gate.compare(content, changed(content, path, value))
    assert len(lines) == 1 and line in lines[0]


@pytest.mark.parametrize(
    ("content", "path", "value"),
    [
        (COUNTS, ("counts", "kernels", "ncl sm_90", "registers"), 80),  # better
        (KERNELS, ("rows", 1, "peak_bytes"), 1010),
        (KERNELS, ("rows", 1, "share_of_copy"), 0.45),  # within 15 %
        (KERNELS, ("rows", 1, "kind"), "another"),  # not in both
        (CPU, CLOSED_FORM, {"n": 9, "median": 4.0, "quartiles": [3.0, 5.6]}),  # quartiles overlap
        (CPU, ("kernels", "figures", "ncl (3, 128, 100)", "milliseconds", "closed_form", "median"), 50.0),
    ],
)
def test_noise_and_absolute_times_pass(content, path, value):
    assert gate.compare(content, changed(content, path, value))[0] == []


def test_a_machine_that_is_slower_throughout_is_no_regression():
    slower = changed(KERNELS, ("rows", 0, "device_us"), [1900, 2000, 2100])
    slower = changed(slower, ("rows", 1, "device_us"), [19, 20, 21])
    assert gate.compare(KERNELS, slower)[0] == []


@pytest.mark.parametrize(
    ("content", "path", "value", "reason"),
    [
        (KERNELS, ("machine", "gpu"), "NVIDIA H100", "gpu differs: NVIDIA H200 in the old file, NVIDIA H100"),
        (KERNELS, ("machine", "triton"), "3.7.0", "triton differs"),
        (COUNTS, ("machine", "triton"), "3.7.0", "triton differs"),
        (CPU, ("kernels", "machine", "processor"), "another", "processor differs"),
        (CPU, ("kernels", "machine", "threads"), 2, "threads differs"),
        (KERNELS, ("rows",), [], "no figure in common"),
    ],
)
def test_unlike_files_are_refused(content, path, value, reason):
    with pytest.raises(gate.NotAlikeError, match=reason):
        gate.compare(content, changed(content, path, value))


def test_what_does_not_matter_may_differ():
    gate.compare(KERNELS, changed(KERNELS, ("machine", "processor"), "beside the same GPU"))
    gate.compare(CPU, changed(CPU, ("kernels", "machine", "triton"), "3.6.0"))


def test_exit_codes(tmp_path, capsys):
    def file(name, content):
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return str(path)

    old = file("old.json", COUNTS)
    assert gate.main([old, old]) == 0
    worse = file("worse.json", changed(COUNTS, ("counts", "kernels", "ncl sm_90", "registers"), 99))
    assert gate.main([old, worse]) == 1
    assert "regression: kernels: ncl sm_90: registers went from 88 to 99 (+12.5 %)" in capsys.readouterr().out
    assert gate.main([old, file("gpu.json", KERNELS)]) == 2
    assert gate.main([old, str(tmp_path / "absent.json")]) == 2
    assert "not compared" in capsys.readouterr().err


@pytest.mark.slow
def test_no_step_makes_more_operators_than_the_baseline():
    """``python -m perf.counts`` renews it, where a change is meant."""
    pytest.importorskip("triton", reason="the counts are of Triton's kernels, too")
    from perf import counts
    from perf.step_counts import of_steps

    baseline = json.loads(counts.BASELINE.read_text())
    try:  # before seconds of counting
        gate.check_alike(baseline["machine"], counts.versions())
    except gate.NotAlikeError as reason:
        pytest.skip(f"the baseline is of other versions: {reason}")
    lines, compared = gate.compare(baseline, {"machine": counts.versions(), "counts": {"steps": of_steps()}})
    assert not lines, "\n".join(lines)
    assert compared == len(baseline["counts"]["steps"])


def test_a_machine_states_the_facts_that_decide():
    """Benchmarks are not run by default: this is what they all begin with."""
    from perf.machine import machine

    facts = machine()
    assert set(gate.ALIKE) <= set(facts)
    assert facts["gpu"] is None and facts["threads"] >= 1 and facts["torch"] and facts["processor"]
