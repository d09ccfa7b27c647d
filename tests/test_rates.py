"""A dry run estimates from runs that have finished on this machine, and from nothing else."""

from __future__ import annotations

import json
import platform

import pytest

from incrlt import run
from incrlt.experiment import rates, schema
from incrlt.files import write_atomic

QUICKSTART = "experiments/quickstart.yaml"
STAGES = [
    {"stage": "train", "epochs": 3, "device_seconds": 6.0, "images": 900},
    {"stage": "lws", "epochs": 1, "device_seconds": 1.0, "images": 100},
    {"stage": "between the stages", "epochs": 0, "device_seconds": 2.0, "images": None},
    {"stage": "evaluation", "epochs": 0, "device_seconds": 1.0, "images": 5000},
]


@pytest.fixture
def experiment(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    return schema.load(QUICKSTART)


def test_nothing_is_estimated_before_a_run_has_finished(experiment):
    assert rates.told(experiment, 1000) == {}


def test_images_of_all_stages_over_all_seconds(experiment):
    path = rates.note(experiment, "cpu, 2 threads", STAGES)
    entry = json.loads(path.read_text())
    assert entry["images_per_second"] == (900 + 100) / 10
    said = rates.told(experiment, 20_000)["time"]
    assert said.startswith("about 3 min 20 s, measured on this machine on ")
    assert entry["date"] in said and said.endswith("at 100 images/s, all told (cpu, 2 threads)")


def test_runs_of_other_lengths_and_seeds_share_a_rate_and_other_networks_do_not(experiment, monkeypatch):
    rates.note(experiment, "cpu", STAGES)
    for same in (["training.epochs=7"], ["seeds.all=4"], ["rebalance.epochs=9"], ["training.lr=0.3"]):
        assert rates.told(schema.load(QUICKSTART, same), 1000), same
    for other in (
        ["model.width=8"],
        ["experts.name=shike"],
        ["training.batch_size=7"],
        ["memory.per_class=3"],
    ):
        assert rates.told(schema.load(QUICKSTART, other), 1000) == {}, other
    monkeypatch.setattr(platform, "node", lambda: "elsewhere")
    assert rates.told(experiment, 1000) == {}


@pytest.mark.parametrize("rate", ["fast", -1, 0, float("nan"), None])
def test_a_damaged_ledger_says_nothing(experiment, rate):
    path = rates.note(experiment, "cpu", STAGES)
    write_atomic(path, json.dumps({**json.loads(path.read_text()), "images_per_second": rate}))
    assert rates.told(experiment, 1000) == {}
    path.write_text("half {")
    assert rates.told(experiment, 1000) == {}


def test_a_cache_that_cannot_be_written_costs_no_run(experiment, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INCRLT_CACHE", str(tmp_path / "file"))
    assert rates.note(experiment, "cpu", STAGES) is None


def test_a_dry_run_says_it(experiment, capsys):
    run.main([QUICKSTART, "--dry-run"])
    assert "measured on this machine" not in capsys.readouterr().out
    rates.note(experiment, "cpu", STAGES)
    run.main([QUICKSTART, "--dry-run"])
    assert "at 100 images/s" in " ".join(capsys.readouterr().out.split())
