from __future__ import annotations

import csv
import json

from incrlt.metrics import CONVENTIONS, StreamRecord, summarise, write_results


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_files_hold_what_the_metrics_say(worked_example, tmp_path):
    record = worked_example
    content = write_results(
        tmp_path, {"cnn": record, "nme": record}, {"method": "LUCIR", "protocol": "lfh-shuffled-10"}
    )
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved == content
    assert saved["format"] == 1
    assert saved["method"] == "LUCIR"
    assert saved["conventions"] == CONVENTIONS
    assert saved["readouts"]["cnn"] == json.loads(json.dumps(summarise(record)))


def test_csv_has_one_row_per_experience_and_read_out(worked_example, tmp_path):
    record = worked_example
    write_results(tmp_path, {"cnn": record, "nme": record})
    rows = read_csv(tmp_path / "results.csv")
    assert [(row["readout"], row["experience"]) for row in rows] == [
        (r, str(t)) for r in ("cnn", "nme") for t in range(3)
    ]
    assert float(rows[2]["accuracy/over_tasks"]) == 50
    assert rows[0]["forgetting/chaudhry_over_tasks"] == ""  # undefined is an empty cell, not nan


def test_per_class_csv(worked_example, tmp_path):
    write_results(tmp_path, {"cnn": worked_example})
    rows = read_csv(tmp_path / "per_class.csv")
    assert [row["name"] for row in rows] == ["apple", "bear", "clock", "dolphin"]
    assert float(rows[1]["forgetting"]) == 30


def test_undefined_values_are_null(uneven_example, tmp_path):
    write_results(tmp_path, {"cnn": uneven_example})
    assert "NaN" not in (tmp_path / "results.json").read_text()


def test_no_records_still_write_whole_files(tmp_path):
    write_results(tmp_path, {})
    assert json.loads((tmp_path / "results.json").read_text())["readouts"] == {}
    assert (tmp_path / "results.csv").is_file()


def test_names_that_are_no_text_do_not_stop_the_run(tmp_path):
    names = ("caf\udce9", "tea")
    record = StreamRecord([[[1, 0], [0, 1]]], [0, 0], [5, 5], names)
    write_results(tmp_path, {"cnn": record})
    assert "caf?" in (tmp_path / "per_class.csv").read_text()
