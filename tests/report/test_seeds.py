from __future__ import annotations

import csv
import io
import json
import re

import numpy as np
import pytest
import yaml

from incrlt.metrics import StreamRecord, write_results
from incrlt.metrics.evaluation import load_evaluations, save_evaluations
from incrlt.report import export, read_run, seeds
from incrlt.report.__main__ import main

LAST = "last_accuracy/over_tasks"
SMALL = {"sizes": (4, 2), "epochs": 1, "readouts": ("cnn",)}


def with_value(folder, value):
    """Make the run's last accuracy a round number: without its counts, results.json is read."""
    (folder / "confusions.npz").unlink()
    content = json.loads((folder / "results.json").read_text())
    content["readouts"]["cnn"]["numbers"][LAST] = value
    (folder / "results.json").write_text(json.dumps(content))
    return read_run(folder)


def changed(folder, **sections):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | sections))
    return folder


@pytest.fixture
def methods(make_run, tmp_path):
    """A with seeds 0, 1, 2 at 10, 20, 30; B with seeds 1, 2, 3 at 21, 33, 99; one more of A is unfinished."""
    runs = [with_value(make_run(tmp_path, "a", seed=s, method="A", **SMALL), 10.0 * s + 10) for s in range(3)]
    runs += [
        with_value(make_run(tmp_path, "b", seed=s, method="B", **SMALL), value)
        for s, value in ((1, 21.0), (2, 33.0), (3, 99.0))
    ]
    return [*runs, read_run(make_run(tmp_path, "a", seed=7, done=1, method="A", **SMALL))]


def test_mean_and_standard_error(methods):
    first, second = seeds.lines(methods, [LAST])
    assert (first.label, first.seeds) == ("A", ("0", "1", "2"))
    # deviations -10, 0, 10: s^2 = 200 / 2, s / sqrt(3)
    assert first.estimate(LAST) == seeds.Estimate(20, pytest.approx(10 / 3**0.5), 3)
    assert second.estimate(LAST).mean == 51


def test_differences_are_paired_by_seed(methods):
    first, second = seeds.lines(methods, [LAST])
    # common seeds 1 and 2: 21 - 20 and 33 - 30; seed 3 of B has no partner
    assert second.minus(first, LAST) == seeds.Estimate(2, pytest.approx(1), 2)
    assert seeds.reference_of(second, [first, second]) is first
    assert seeds.reference_of(first, [first, second]) is None


def test_one_seed_has_no_error_and_none_has_no_mean():
    assert seeds.estimate([3.0]) == seeds.Estimate(3, None, 1)
    assert seeds.estimate([]) == seeds.Estimate(None, None, 0)


def test_another_option_is_another_line_and_another_place_is_not(make_run, tmp_path):
    folders = [make_run(tmp_path / name, seed=s, **SMALL) for s, name in enumerate("xyz")]
    changed(folders[1], output={"folder": "elsewhere"}, device="cuda")
    changed(folders[2], training={"epochs": 160, "batch_size": 128})
    first, second = seeds.lines([read_run(folder) for folder in folders], [LAST])
    assert (first.seeds, second.seeds) == (("0", "1"), ("2",))
    assert export.distinct_labels([first, second]) == [
        "LUCIR+LWS, training.epochs 1", "LUCIR+LWS, training.epochs 160",
    ]  # fmt: skip


def test_the_same_seed_twice_counts_once(make_run, tmp_path):
    runs = [read_run(make_run(tmp_path / place, seed=0, **SMALL)) for place in "xy"]
    (line,) = seeds.lines(runs, [LAST])
    assert line.estimate(LAST).n == 1
    assert seeds.repeats(runs) == 1


def test_a_run_with_a_gap_in_its_counts_is_in_no_mean(make_run, tmp_path):
    whole, gap = (make_run(tmp_path, seed=seed, **SMALL) for seed in range(2))
    arrays = dict(np.load(gap / "confusions.npz"))
    del arrays["cnn_001"]
    np.savez(gap / "confusions.npz", **arrays)
    (line,) = seeds.lines([read_run(whole), read_run(gap)], [LAST])
    assert line.seeds == ("0",)


def test_seeds_are_listed_by_number(make_run, tmp_path):
    runs = [read_run(make_run(tmp_path, seed=seed, **SMALL)) for seed in (10, 2, 1)]
    (line,) = seeds.lines(runs, [LAST])
    assert line.seeds == ("1", "2", "10")


def test_run_without_a_configuration_stands_alone(make_run, tmp_path):
    folders = [make_run(tmp_path, seed=s, **SMALL) for s in range(2)]
    for folder in folders:
        (folder / "config.yaml").unlink()
    assert len(seeds.lines([read_run(folder) for folder in folders], [LAST])) == 2


def test_markdown_and_latex_and_csv(methods, monkeypatch):
    monkeypatch.setattr(export, "PAPER", {LAST: "last"})
    lines = seeds.lines(methods, [LAST])
    assert export.as_markdown(lines) == (
        "| method | read-out | n | last |\n| --- | --- | ---: | ---: |\n"
        "| A | cnn | 3 | 20.00 ± 5.77 |\n| B | cnn | 3 | 51.00 ± 24.25 |\n"
        "| B − A | cnn | 2 | +2.00 ± 1.00 |\n"  # 1 and 3, over the common seeds 1 and 2
    )
    rows = export.as_latex("p", lines).splitlines()
    assert rows[5] == r"A & cnn & 3 & $20.00 \pm 5.77$ \\"
    assert rows[6] == r"B & cnn & 3 & $\mathbf{51.00} \pm 24.25$ \\"
    assert rows[7:9] == [r"\midrule", r"B $-$ A & cnn & 2 & $+2.00 \pm 1.00$ \\"]
    row = list(csv.DictReader(export.as_csv("p", "1a2b", lines).splitlines()))[1]
    assert (row["method"], row["seeds"], row["mean"], row["n"]) == ("B", "1; 2; 3", "51.0", "3")
    assert (row["difference_to"], row["paired_n"], row["difference"]) == ("A", "2", "2.0")


def test_less_forgetting_is_better(methods, monkeypatch):
    monkeypatch.setattr(export, "PAPER", {"forgetting/x": "f"})
    lines = seeds.lines(methods, [LAST])
    for line, value in zip(lines, (3.0, 2.0), strict=True):
        line.values["forgetting/x"] = {"0": value}
    assert r"$\mathbf{2.00}$" in export.as_latex("p", lines)
    assert r"$3.00$" in export.as_latex("p", lines)


def test_names_are_escaped(methods):
    (line, *_) = seeds.lines(methods, [LAST])
    strange = [seeds.Line("a_b|c&d%", "e", "cnn", ("0",), {}, {name: {} for name in export.PAPER})]
    assert "| a\\_b\\|c&amp;d% |" in export.as_markdown(strange)
    assert r"a\_b|c\&d\% & cnn & 1 & --" in export.as_latex("p", strange)
    assert line.label == "A"


def test_tables_of_two_protocols_are_two_files(make_run, tmp_path):
    make_run(tmp_path / "r", **SMALL)
    make_run(tmp_path / "r", protocol_hash="ffffffffffff", **SMALL)
    runs = [str(path.parent) for path in (tmp_path / "r").rglob("DONE")]
    assert main([*runs, "-o", str(tmp_path / "out")]) == 0
    files = {path.name for path in (tmp_path / "out").glob("*.csv")}
    assert files == {"lfh-shuffled-10-1a2b3c4d5e6f.csv", "lfh-shuffled-10-ffffffffffff.csv"}


def answered(folder, labels, predicted):
    record = load_evaluations(folder / "evaluations.npz")
    answers = {"labels": np.array(labels), "predicted_cnn": np.array(predicted)}
    save_evaluations(folder / "evaluations.npz", record.steps, answers)
    return read_run(folder)


LABELS = [0, 0, 1, 1]
PREDICTED = ([0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 1, 2])  # worked out in tests/metrics/test_bias.py


def test_bias_and_variance_over_seeds(make_run, tmp_path):
    folders = [make_run(tmp_path, seed=s, num_experts=2, **SMALL) for s in range(3)]
    runs = [answered(folder, LABELS, one) for folder, one in zip(folders, PREDICTED, strict=True)]
    (row,) = seeds.bias_rows(runs)
    assert (row["runs"], row["training_sets"], row["readout"]) == (3, 1, "cnn")
    found = {name: row["parts"][name]["over_classes"] for name in ("bias", "variance", "error")}
    assert found == pytest.approx({"bias": 50, "variance": 25, "error": 50})


def test_training_sets_drawn_anew_are_taken_together_other_tests_are_not(make_run, tmp_path):
    a = answered(make_run(tmp_path, seed=0, num_experts=2, **SMALL), LABELS, PREDICTED[0])
    drawn = make_run(tmp_path, seed=0, num_experts=2, protocol_hash="dddddddddddd", **SMALL)
    b = answered(make_run(tmp_path, seed=1, num_experts=2, **SMALL), LABELS, PREDICTED[2])
    (row,) = seeds.bias_rows([a, b, answered(drawn, LABELS, PREDICTED[1])])
    assert (row["runs"], row["training_sets"]) == (3, 2)
    assert seeds.bias_rows([a, b, answered(drawn, LABELS[::-1], PREDICTED[1])]) == []
    assert seeds.bias_rows([a, b]) == []  # two that differ have no main answer


def test_runs_of_older_versions_have_no_bias(make_run, tmp_path):
    assert seeds.bias_rows([read_run(make_run(tmp_path, seed=s, **SMALL)) for s in range(2)]) == []


HOSTILE = "=1+1\n\\input{x} <script>alert(1)</script> | [a](b)"


def hostile(make_run, tmp_path):
    runs = [read_run(make_run(tmp_path, f"e{k}", sizes=(3, 2), epochs=1, method=HOSTILE)) for k in range(2)]
    return seeds.lines(runs, list(export.PAPER))


def test_no_text_is_a_formula_in_a_spreadsheet(make_run, tmp_path):
    lines = hostile(make_run, tmp_path)
    rows = list(csv.DictReader(io.StringIO(export.as_csv("@SUM(A1)", "+1", lines))))
    assert len(rows) == len(lines) * len(export.PAPER)
    for row in rows:
        assert (
            row["method"].startswith("'=1+1")
            and row["protocol"] == "'@SUM(A1)"
            and row["protocol_hash"] == "'+1"
        )
        assert float(row["mean"]) == float(row["mean"]), "numbers stay numbers, negative ones too"


def test_class_names_are_no_formulas_in_the_files_of_a_run(tmp_path):
    record = StreamRecord((np.diag([2, 2]),), np.array([0, 0]), np.array([3, 3]), ("=cmd|x", "-cat"))
    write_results(tmp_path, {"cnn": record})
    names = [row["name"] for row in csv.DictReader(io.StringIO((tmp_path / "per_class.csv").read_text()))]
    assert names == ["'=cmd|x", "'-cat"]


def test_no_tag_and_no_line_break_stands_in_markdown(make_run, tmp_path):
    lines = hostile(make_run, tmp_path)
    text = export.as_markdown(lines)
    assert "<script>" not in text and "&lt;script&gt;" in text
    head, _, *rows = text.splitlines()
    cells = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    assert set(cells) == {len(re.findall(r"\|", head))}
    assert "[a](b)" not in text


def test_nothing_leaves_the_comment_of_a_latex_table(make_run, tmp_path):
    text = export.as_latex("name\n\\input{/etc/passwd}\u2028x", hostile(make_run, tmp_path))
    first, second, *_ = text.splitlines()
    assert first.startswith("% name ") and second == "\\begin{tabular}{llrrrrrrrr}"
    assert "\\input{x}" not in text


def test_a_long_name_is_cut_and_stays_its_own(make_run, tmp_path):
    long = [make_run(tmp_path, "x" * 180 + end, sizes=(3, 2), epochs=1, protocol="p" * 300) for end in "ab"]
    assert main([*map(str, long), "-o", str(tmp_path / "out")]) == 0
    names = {path.name for path in (tmp_path / "out").glob("*")}
    assert max(map(len, names)) < 120 and len([name for name in names if name.startswith("xxx")]) == 2
