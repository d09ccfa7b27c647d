"""The command line is a frozen surface: options, exit codes, one-sentence errors, no torch."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

from incrlt import run
from incrlt.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = str(ROOT / "experiments" / "quickstart.yaml")
MAIN = str(ROOT / "experiments" / "cifar100lt_10tasks.yaml")

LIGHT = """
import sys
from incrlt.run import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
heavy = sorted({"torch", "torchvision", "avalanche", "sklearn", "plotly"} & set(sys.modules))
print(f"\\n@ {code} {heavy}")
"""


def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "incrlt.run", *words]
    env = {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)


@pytest.fixture
def executed(monkeypatch) -> list[tuple[object, run.RunOptions]]:
    """Put a recorder in the place of the module that trains."""
    calls: list[tuple[object, run.RunOptions]] = []
    fake = types.ModuleType("incrlt.runner.run")
    fake.execute = lambda experiment, options: calls.append((experiment, options)) or 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "incrlt.runner.run", fake)
    return calls


# ----------------------------------------------------------------------------------------- the frozen surface


def test_options_are_these_and_no_others():
    """Adding an option is a decision: settings belong in YAML."""
    actions = [action for action in run.parser()._actions if not isinstance(action, argparse._HelpAction)]
    assert {tuple(action.option_strings) or action.dest for action in actions} == {
        "experiment",
        "overrides",
        ("--data",),
        ("--out",),
        ("--seed",),
        ("--measure",),
        ("--batch-norm",),
        ("--skip-broken",),
        ("--resume",),
        ("--restart",),
        ("--dry-run",),
        ("--print-config",),
    }


def test_options_become_overrides_and_run_options(executed):
    words = [
        MAIN,
        "--data",
        "1e3",
        "training.epochs=2",
        "--out",
        "some where",
        "--seed",
        "4",
        "rebalance.name=lws",
    ]
    assert run.main(words) == 0
    [(experiment, options)] = executed
    assert (experiment.data.root, experiment.output.folder, experiment.seeds.all) == ("1e3", "some where", 4)
    assert (experiment.training.epochs, experiment.rebalance.name) == (2, "lws")
    assert options.resume == "auto"
    assert options.command == shlex.join(["python", "-m", "incrlt.run", *words])


def test_paths_with_any_letters_survive(executed):
    assert run.main([MAIN, "--data", 'a "b" \\ é😀 #{}', "--restart"]) == 0
    [(experiment, options)] = executed
    assert experiment.data.root == 'a "b" \\ é😀 #{}'
    assert options.resume == "restart"


def test_exit_code_is_that_of_the_run(executed, monkeypatch):
    monkeypatch.setattr(sys.modules["incrlt.runner.run"], "execute", lambda *_: 7)
    assert run.main([QUICKSTART]) == 7


@pytest.mark.parametrize(
    "words", [[], ["--nonsense"], [MAIN, "--seed", "x"], [MAIN, "--resume", "--restart"], [MAIN, "--dry"]]
)
def test_wrong_usage_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        run.main(words)
    assert stop.value.code == 2
    assert "usage: python -m incrlt.run" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- errors


def test_user_error_is_one_sentence_on_stderr(capsys):
    assert run.main([MAIN, "strategy.name=lucr"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert "Did you mean 'lucir'?" in err


def test_user_error_of_the_run_itself_has_no_traceback(executed, monkeypatch, capsys):
    def fail(*_: object) -> int:
        raise UserError("the disk is full. [bold]Free[/bold] some space.")

    monkeypatch.setattr(sys.modules["incrlt.runner.run"], "execute", fail)
    assert run.main([QUICKSTART]) == 2
    assert capsys.readouterr().err == "error: the disk is full. [bold]Free[/bold] some space.\n"
    monkeypatch.setenv("INCRLT_DEBUG", "1")
    with pytest.raises(UserError):
        run.main([QUICKSTART])


def test_ctrl_c_exits_with_130(executed, monkeypatch, capsys):
    def stop(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["incrlt.runner.run"], "execute", stop)
    assert run.main([QUICKSTART]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_debug_shows_the_traceback():
    plain, debug = call("nowhere.yaml"), call("nowhere.yaml", INCRLT_DEBUG="1")
    assert plain.returncode == 2 and "Traceback" not in plain.stderr
    assert debug.returncode == 1 and "Traceback" in debug.stderr


# ----------------------------------------------------------------------------------------- answers at once


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, ["--help"]),
        (0, [MAIN, "--dry-run"]),
        (0, [QUICKSTART, "--print-config"]),
        (2, [MAIN, "training.epochs=0"]),
        (2, [MAIN, "strategy.name=lucr"]),
        (2, ["nowhere.yaml"]),
    ],
)
def test_answers_without_torch(code, words):
    command = [sys.executable, "-c", LIGHT, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    returned, heavy = done.stdout.rpartition("@ ")[2].strip().split(" ", 1)
    assert (int(returned), heavy) == (code, "[]"), done.stderr


def test_dry_run_shows_plan_cost_and_place():
    done = call(MAIN, "--dry-run", "training.epochs=2", "--seed", "3")
    assert done.returncode == 0, done.stderr
    text = done.stdout
    # images per experience as published for lfh-shuffled-10 before the hold-out
    images = [5244, 378, 513, 519, 803, 671, 679, 530, 964, 202, 344]
    rows = [line.split("│") for line in text.splitlines() if line.startswith("│")][: len(images)]
    assert [int(row[4]) for row in rows] == images
    assert [int(row[3]) for row in rows] == list(range(50, 101, 5))
    assert "many 35 (8824 images), medium 35 (1718 images), few 30 (305 images)" in text
    assert "changed           training.epochs=2 seeds.all=3" in text
    assert "runs/cifar100lt_10tasks/<protocol hash>-" in text and "-s3\n" in text
    assert "22 epochs" in text
    assert "less_forget: 5.0" in text


def test_dry_run_counts_exemplars():
    """Twenty of each old class, fewer where the class has fewer: never more than 1,705 at the end."""
    from incrlt.benchmarks.longtail import class_counts
    from incrlt.experiment import schema
    from incrlt.experiment.plan import plan

    counts = class_counts("exponential", 100, 500, 100)
    assert sum(min(20, n) for n in counts) == 1705
    rows = plan(schema.load(MAIN))
    order = schema.load(MAIN).protocol().class_order
    for row in rows:
        old = order[: row["classes_seen"] - len(row["classes"])]
        assert row["exemplars"] == sum(min(20, counts[c]) for c in old)
        assert row["work"] == 160 * (row["images"] + row["exemplars"])


def test_dry_run_counts_every_stage_and_the_past_of_joint():
    from incrlt.experiment import schema
    from incrlt.experiment.plan import plan

    both = plan(schema.load(MAIN, ["rebalance.name=lws", "strategy.class_balanced_finetune=20"]))
    stream = both[1]["images"] + both[1]["exemplars"]
    assert (both[0]["later_epochs"], both[1]["later_epochs"]) == (30, 50)
    assert both[1]["work"] == stream * (160 + 30) + both[1]["exemplars"] * 20
    joint = plan(schema.load(MAIN, ["strategy.name=joint", "memory=null", "training.base_epochs=1"]))
    assert joint[0]["work"] == 5244
    assert joint[2]["work"] == 160 * (5244 + 378 + 513)
    total = plan(schema.load(MAIN, ["memory={total: 500}"]))
    assert [row["exemplars"] <= 500 for row in total] == [True] * 11
    shared = plan(schema.load(MAIN, ["memory={total: 500, redistribute: true}"]))
    assert [row["exemplars"] for row in shared] == [0] + [500] * 10


def test_print_config_can_be_run_again(tmp_path):
    printed = call(MAIN, "--print-config", "training.epochs=3").stdout
    (tmp_path / "again.yaml").write_text(printed)
    assert call(str(tmp_path / "again.yaml"), "--print-config").stdout == printed


def test_reader_that_leaves_early_is_no_error():
    command = f"'{sys.executable}' -m incrlt.run '{MAIN}' --dry-run | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.startswith("benchmark:")
    assert "Traceback" not in done.stderr and "Error" not in done.stderr


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (
            "data.hold=stream",
            "data.hold is for pictures from files, such as dataset 'folder', and would do nothing",
        ),
        ("--skip-broken", "data.skip_broken is for pictures from files"),
    ],
)
def test_words_on_files_of_pictures_are_refused_where_there_are_none(word, sentence, capsys):
    assert run.main([MAIN, word, "--dry-run"]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
