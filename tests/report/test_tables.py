from __future__ import annotations

import numpy as np
import pytest
import yaml

from incrlt.metrics import CONVENTIONS, class_rows
from incrlt.report import page, read_run, tables


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory):
    return read_run(make_run(tmp_path_factory.mktemp("runs"), sizes=(6, 3, 3), epochs=2))


def test_every_number_is_in_the_table_with_its_meaning(run):
    rows = tables.numbers(run.summaries)
    assert len(rows) == len(CONVENTIONS)
    assert rows[0]["values"] == [
        summary["numbers"]["average_incremental_accuracy/over_tasks"] for summary in run.summaries.values()
    ]


def test_experience_rows_join_plan_log_and_metrics(run):
    row = tables.experiences(run)[1]
    assert (row["new_classes"], row["memory_images"], row["train_seconds"]) == (3, 17 * 9, pytest.approx(2.8))
    assert row["over_tasks"] == run.summaries["cnn"]["per_experience"]["accuracy/over_tasks"][1]


def test_class_rows_carry_the_other_read_out(run):
    rows = tables.classes(run)
    assert [row["others"] for row in rows] == [
        [row["accuracy_last"]] for row in class_rows(run.records["nme"])
    ]
    assert rows[0]["curve"].count(",") == 3
    assert rows[-1]["curve"] == ""  # one value is no curve


def test_sparkline_runs_from_bottom_at_0_to_top_at_100():
    assert tables.sparkline(np.array([0.0, 100.0])) == "2,20.0 94,2.0"
    assert tables.sparkline(np.array([np.nan, 50.0])) == ""
    assert tables.sparkline(np.linspace(0, 100, 1000)).count(",") == tables.SPARK_POINTS


def test_published_rows_mark_the_same_method(run):
    rows = tables.published_rows(run)
    same = [row for row in rows if row["same"]]
    assert {row["method"] for row in same} == {"LUCIR+LWS"}
    ours = run.summaries["cnn"]["numbers"]["average_incremental_accuracy/over_tasks"]
    assert same[0]["differences"][0]["average"] == pytest.approx(ours - 39.0)


def test_remarks_name_hold_out_and_length(run):
    assert tables.published_remarks(run) == [
        "This run has 2 epochs per experience instead of 160.",
        "The published rows train without a held-out 10 % of the images; this run trains on all of them.",
    ]


def test_facts_name_seed_memory_and_commit(run):
    facts = dict(tables.facts(run))
    assert facts["Memory"] == "per class 20, selection herding"
    assert facts["Commit"] == "0123456789 (with uncommitted changes)"
    assert facts["Device"] == "cpu, bf16, 2 threads"
    assert facts["Training"] == "8.4 s"
    assert "torch 2.15.0" in facts["Versions"]


def test_seeds_that_follow_from_others_are_not_listed(run):
    seeds = {"all": 3, "class_order": 1993, "init": None}
    changed = type(run)(**{**vars(run), "config": {**run.config, "seed": seeds}})
    assert dict(tables.facts(changed))["Seeds"] == "all 3, class order 1993"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, ""),
        (12.34, "12.3 s"),
        (59.99, "60.0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (3725, "1 h 02 min"),
    ],
)
def test_duration(seconds, text):
    assert tables.duration(seconds) == text


@pytest.fixture
def offline(make_run, tmp_path):
    """A run of all classes at once with RIDE's three experts and its router."""
    rule = {"protocol": "offline", "method": "Finetune+RIDE+router", "memory": {}}
    folder = make_run(tmp_path, sizes=(12,), epochs=40, readouts=("cnn",), **rule)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["experts"] = {"name": "ride", "num_experts": 3}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return read_run(folder)


def test_an_offline_run_finds_its_row_with_all_its_figures(offline):
    (same,) = [row for row in tables.published_rows(offline) if row["same"]]
    assert same["method"] == "RIDE-3"
    ours = offline.summaries["cnn"]["numbers"]
    assert same["differences"][0] == {
        "overall": pytest.approx(ours["last_accuracy/over_seen_images"] - 48.6),
        "many": pytest.approx(ours["last_accuracy/many_over_classes"] - 67.0),
        "medium": pytest.approx(ours["last_accuracy/medium_over_classes"] - 49.9),
        "few": pytest.approx(ours["last_accuracy/few_over_classes"] - 25.7),
    }


def test_remarks_of_an_offline_run_are_those_of_its_row(offline):
    assert tables.published_remarks(offline) == ["This run has 40 epochs per experience instead of 200."]


def test_an_offline_page_names_its_own_conventions(offline):
    text = page.render("run.html", "plotly.js", **page.contents(offline))
    assert "overall with last_accuracy/over_seen_images, many with last_accuracy/many_over_classes" in text
    assert "<th>average</th>" not in text and "held-out" not in text
    assert "RIDE-3 on offline, ours - published" in text


def test_one_thread_is_one_thread(run):
    changed = type(run)(**{**vars(run), "environment": {"device": "cpu", "threads": 1}})
    assert dict(tables.facts(changed))["Device"] == "cpu, 1 thread"
