from __future__ import annotations

import numpy as np
import pytest

from incrlt.metrics import CONVENTIONS, class_rows
from incrlt.report import read_run, tables


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
    rows = tables.classes(run.records)
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


def test_remarks_name_the_hold_out(run):
    assert tables.published_remarks(run) == [
        "The published rows train without a held-out 10 % of the images; this run trains on all of them."
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
