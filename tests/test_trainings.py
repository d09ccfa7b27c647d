"""The queue of trainings: what is done is skipped, what was cut goes on, what is wrong is said before any work."""

from __future__ import annotations

import pytest

from incrlt.errors import UserError
from perf import trainings

ROW = "- experiment: quickstart.yaml\n  seeds: [0, 1]\n  overrides: [training.epochs=1, rebalance=null]\n"


def table(folder, text):
    path = folder / "table.yaml"
    path.write_text(text)
    return path


def test_a_queue_names_what_fails_trains_the_rest_and_skips_what_is_done(tmp_path, capsys):
    no_data = "- experiment: cifar100lt_10tasks.yaml\n  overrides: [training.epochs=1]\n"
    out = tmp_path / "out"
    path = table(tmp_path, no_data + ROW)
    words = [str(path), "--lanes", "2", "--out", str(out), "--data", str(tmp_path)]
    assert trainings.main(words) == 1
    told = capsys.readouterr().out
    assert "FAILED    cifar100lt_10tasks" in told
    assert told.count("done      quickstart") == 2
    assert sorted(folder.name[-2:] for folder in (out / "quickstart").iterdir()) == ["s0", "s1"]
    assert all(run.progress() == (4, 4) for run in trainings.read(path, out, None)[1:])

    assert trainings.main(words) == 1
    told = capsys.readouterr().out
    assert told.count("  done      4 of 4 epochs") == 2
    assert told.count("started") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("experiment: x.yaml\n", "must be a list of rows"),
        ("- experiment: quickstart.yaml\n  seed: 1\n", "has seed; a row takes experiment, overrides, seeds"),
        ("- experiment: quickstart.yaml\n  seeds: 1\n", "give a list of whole numbers"),
        ("- experiment: quickstart.yaml\n  overrides: [training.epoch=3]\n", "epoch"),
        ("- experiment: none.yaml\n", "none.yaml"),
    ],
)
def test_a_wrong_table_is_refused_before_the_first_run(tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        trainings.read(table(tmp_path, text), tmp_path, None)


def test_the_table_of_the_repository_can_be_run(tmp_path):
    runs = trainings.read(trainings.HERE / "trainings.yaml", tmp_path, None)
    assert [run.progress() for run in runs[:3]] == [(0, 1760), (0, 1760), (0, 2090)]
