"""The table of full-length trainings is a sweep like any other, with what is usual for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from incrlt.sweep import __main__ as command
from incrlt.sweep import table
from perf import trainings


def test_the_table_of_the_repository_can_be_run(tmp_path):
    sweep = table.from_file(trainings.TABLE, table.read(trainings.TABLE))
    tasks = sweep.tasks(tmp_path)
    assert [task.epochs for task in tasks[:3]] == [1760, 1760, 2090]
    assert all(task.checked.benchmark.holdout == "long-tailed-cil" for task in tasks)


@pytest.mark.parametrize(
    ("words", "usual"),
    [
        ([], [str(trainings.TABLE), "--lanes", "2", "--out", "runs/queue"]),
        (["own.yaml", "--lanes", "3"], ["own.yaml", "--lanes", "3", "--out", "runs/queue"]),
        (["--out=here", "--dry-run"], [str(trainings.TABLE), "--out=here", "--dry-run", "--lanes", "2"]),
    ],
)
def test_what_is_not_said_is_as_usual(monkeypatch, words, usual):
    asked = []
    monkeypatch.setattr(trainings, "sweep", lambda given: asked.append(given) or 0)
    assert trainings.main(words) == 0 and asked == [usual]


@pytest.mark.slow
def test_two_runs_from_start_to_comparison_and_not_once_more(tmp_path, capsys):
    experiments = Path(__file__).parent.parent / "experiments"
    row = f"experiment: {experiments}/quickstart.yaml\nseeds: [0, 1]\n"
    own = tmp_path / "own.yaml"
    own.write_text(row + "overrides: [training.epochs=1, rebalance=null, model.width=2]\n")
    words = [str(own), "--lanes", "2", "--out", str(tmp_path / "out")]
    assert trainings.main(words) == 0
    told = capsys.readouterr().out
    assert told.count("running   quickstart") == 2 and told.count("done      quickstart") == 2
    folders = sorted((tmp_path / "out" / "quickstart").iterdir())
    assert [folder.name[-2:] for folder in folders] == ["s0", "s1"]
    pages = next((tmp_path / "out" / "sweeps").glob("own-*/report"))
    content = table.read(pages / "sweep.json")
    assert content["runs"] == {"done": 2} and content["hash"].startswith(pages.parent.name[-8:])
    page = (pages / "sweep.html").read_text()
    assert content["hash"][:12] in page and "nothing is chosen" in page and 'href="index.html"' in page
    assert (pages / "index.html").is_file() and (pages.parent / "sweep.yaml").is_file()

    assert command.main(words) == 0
    assert "running" not in capsys.readouterr().out
