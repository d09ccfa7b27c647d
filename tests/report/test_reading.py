from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

import incrlt
from incrlt.errors import UserError
from incrlt.report import read_run
from incrlt.report.reading import number

SMALL = {"sizes": (4, 2, 2), "epochs": 2}


@pytest.fixture
def folder(make_run, tmp_path):
    return make_run(tmp_path, **SMALL)


def test_whole_run_has_no_problems(folder):
    run = read_run(folder)
    assert run.problems == ()
    assert (run.method, run.protocol_name, run.protocol_hash) == (
        "LUCIR+LWS",
        "lfh-shuffled-10",
        "1a2b3c4d5e6f",
    )
    assert (run.num_done, run.num_planned, run.finished) == (3, 3, True)
    assert list(run.records) == ["cnn", "nme"]
    assert len(run.events("epoch")) == 6


def test_numbers_are_computed_from_the_counts_not_read(folder):
    content = json.loads((folder / "results.json").read_text())
    content["readouts"]["cnn"]["numbers"]["last_accuracy/over_tasks"] = 99.9
    (folder / "results.json").write_text(json.dumps(content))
    assert read_run(folder).summaries["cnn"]["numbers"]["last_accuracy/over_tasks"] != 99.9


def test_unfinished_run_says_how_far_it_is(make_run, tmp_path):
    run = read_run(make_run(tmp_path, done=1, **SMALL))
    assert run.problems == (
        "The run has not finished: 1 of 3 experiences are evaluated; averages are over these.",
    )


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "protocol.json", "environment.json", "log.jsonl", "classes.json", "confusions.npz"],
)
def test_missing_file_is_named_with_what_is_lost(folder, name):
    (folder / name).unlink()
    assert any(problem.startswith(f"{name} is missing: ") for problem in read_run(folder).problems)


@pytest.mark.parametrize("name", ["config.yaml", "protocol.json", "environment.json", "classes.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe\x00", b"null", b"[" * 3000])
def test_damaged_file_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    problems = read_run(folder).problems
    assert any(name in problem for problem in problems), problems


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip"])
def test_damaged_counts_fall_back_to_saved_numbers(folder, content):
    expected = read_run(folder).summaries["cnn"]["numbers"]
    (folder / "confusions.npz").write_bytes(content)
    run = read_run(folder)
    assert run.summaries["cnn"]["numbers"] == pytest.approx(expected)
    assert any("those saved in results.json" in problem for problem in run.problems)
    assert not any(str(folder) in problem for problem in run.problems)  # no machine paths on the page


def test_counts_that_do_not_fit_the_classes_are_a_problem(folder):
    (folder / "results.json").unlink()
    classes = json.loads((folder / "classes.json").read_text())
    classes["experience_of_class"] = [0] * 8
    (folder / "classes.json").write_text(json.dumps(classes))
    run = read_run(folder)
    assert any("must be 8 x 8" in problem for problem in run.problems)
    assert any("no accuracies" in problem for problem in run.problems)


def test_torn_log_lines_are_left_out_and_counted(folder):
    with open(folder / "log.jsonl", "a") as file:
        file.write('{"event": "epoch", "terms": {"c')
    run = read_run(folder)
    assert run.problems == ("1 of 11 lines of log.jsonl are damaged and left out.",)
    assert len(run.events("epoch")) == 6


def test_other_version_is_named(folder):
    environment = json.loads((folder / "environment.json").read_text()) | {"incrlt": "0.0.1"}
    (folder / "environment.json").write_text(json.dumps(environment))
    assert read_run(folder).problems == (
        f"The run was written by incrlt 0.0.1; this page by {incrlt.__version__}.",
    )


@pytest.mark.parametrize("version", [0, 7, None, "one"])
def test_results_of_another_format_are_left_out(folder, version):
    content = json.loads((folder / "results.json").read_text()) | {"format": version}
    (folder / "results.json").write_text(json.dumps(content))
    run = read_run(folder)
    assert run.problems == (f"results.json has format {version}, this version reads 1: it is left out.",)
    assert run.method == "lucir"  # from the configuration instead
    assert set(run.summaries) == {"cnn", "nme"}


def test_folder_that_is_no_run(folder, tmp_path):
    with pytest.raises(UserError, match=r"holds no file of a run.*Did you mean"):
        read_run(folder.parent)
    with pytest.raises(UserError, match="is not a folder"):
        read_run(tmp_path / "nothing")


def test_run_with_one_file_left_is_still_read(folder):
    for path in folder.iterdir():
        if path.name != "log.jsonl":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    run = read_run(folder)
    assert run.method == "unknown method"
    assert run.summaries == {}


def test_method_of_a_run_that_has_only_begun_is_in_its_log(make_run, tmp_path):
    folder = make_run(tmp_path, done=0, **SMALL)
    (folder / "confusions.npz").unlink()
    assert read_run(folder).method == "lucir"  # the strategy, without a better source
    (folder / "log.jsonl").write_text('{"event": "start", "method": "LUCIR+RIDE"}\n')
    assert read_run(folder).method == "LUCIR+RIDE"


def test_evaluations_of_another_run_are_left_out(make_run, tmp_path):
    folder = make_run(tmp_path, num_experts=2, **SMALL)
    other = make_run(tmp_path / "other", sizes=(5, 2, 2), epochs=1, num_experts=2)
    shutil.copy(other / "evaluations.npz", folder)
    run = read_run(folder)
    assert run.evaluations.steps == {}
    (problem,) = run.problems
    assert problem.startswith("evaluations.npz does not fit the counts: ")
    assert problem.endswith("calibration, experts and what the memory holds are not shown.")


@pytest.mark.parametrize("content", ["a: !!bool x\n", "a: &a {b: *a}\n"])
def test_yaml_that_parses_to_nothing_usable_is_damaged(folder, content):
    (folder / "config.yaml").write_text(content)
    (problem,) = read_run(folder).problems
    assert problem.startswith("config.yaml is damaged (")


@pytest.mark.parametrize("value", [10**400, float("nan"), float("inf"), True, "1", None])
def test_what_is_no_finite_number_is_none(value):
    assert number(value) is None


@pytest.mark.parametrize("lost", ["cnn_001", "cnn_000"])
def test_a_finished_run_whose_counts_have_a_gap_says_so(folder, lost):
    arrays = dict(np.load(folder / "confusions.npz"))
    del arrays[lost]
    np.savez(folder / "confusions.npz", **arrays)
    run = read_run(folder)
    assert run.finished and not run.complete
    (problem,) = run.problems
    assert problem.startswith(f"The run has finished, but cnn has counts of {lost[-1]} of 3 experiences")


def bomb(levels: int = 12) -> str:
    """Anchors that stand for 9 ** 12 values in half a kilobyte."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.timeout(20)
def test_anchors_that_stand_for_billions_of_values_are_left_out(folder):
    (folder / "config.yaml").write_text(bomb())
    run = read_run(folder)
    assert run.config == {}
    assert run.problems == (
        "config.yaml is damaged (its anchors stand for 3.57e+11 values; at most 20,000 are read): the configuration is "
        "not shown.",
    )


def test_anchors_of_an_ordinary_file_are_read(folder):
    (folder / "config.yaml").write_text("training: &t {lr: 0.1}\nrebalance: *t\n")
    run = read_run(folder)
    assert run.problems == () and run.config["rebalance"] == {"lr": 0.1}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "name", ["config.yaml", "protocol.json", "log.jsonl", "classes.json", "confusions.npz"]
)
def test_a_pipe_is_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    (problem, *_) = read_run(folder).problems
    assert name in problem and "it is no ordinary file" in problem


def test_a_file_that_is_far_too_large_is_not_read(folder, monkeypatch):
    monkeypatch.setattr("incrlt.report.reading.LARGEST_LOG", 100)
    monkeypatch.setattr("incrlt.metrics.record.LARGEST_ARRAYS", 100)
    problems = " ".join(read_run(folder).problems)
    assert (
        "log.jsonl is damaged (it has more than 100 bytes): loss curves and cost are not shown." in problems
    )
    assert "bytes; at most 100 are read: curves per class are not shown." in problems


def test_messages_are_cut(folder):
    (folder / "config.yaml").write_text("? [" + "x" * 100_000 + "]\n: 1\n")
    described = json.loads((folder / "results.json").read_text()) | {"format": "y" * 700_000}
    (folder / "results.json").write_text(json.dumps(described))
    problems = read_run(folder).problems
    assert len(problems) == 2 and all(len(problem) <= 600 for problem in problems)


def test_thousands_of_experiences_are_refused(folder, monkeypatch):
    monkeypatch.setattr("incrlt.metrics.record.MOST_EXPERIENCES", 2)
    (problem, _) = read_run(folder).problems
    assert problem == "the counts name 3 experiences; at most 2 are read: curves per class are not shown."
