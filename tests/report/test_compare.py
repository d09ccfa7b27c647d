from __future__ import annotations

import random
import re

import pytest
from draws import seeds

from incrlt.report import compare, compare_charts, page, read_run
from incrlt.report.__main__ import main, page_names

SMALL = {"sizes": (4, 2, 2), "epochs": 1}


@pytest.fixture
def three(make_run, tmp_path):
    """Two runs of one protocol, one of another."""
    return [
        make_run(tmp_path, seed=0, **SMALL),
        make_run(tmp_path, seed=1, done=2, **SMALL),
        make_run(tmp_path, protocol_hash="ffffffffffff", holdout="long-tailed-cil", **SMALL),
    ]


def groups(folders):
    runs = [read_run(folder) for folder in folders]
    return compare.grouped(
        [
            (run, folder / f"{index}.html")
            for index, (run, folder) in enumerate(zip(runs, folders, strict=True))
        ]
    )


def test_protocols_never_share_a_table(three):
    first, second = groups(three)
    assert [len(first.runs), len(second.runs)] == [2, 1]
    assert first.reason == ""
    assert second.reason == (
        "Not comparable with the first table (1a2b3c4d5e6f): the protocols differ in "
        "hold-out rule (none there, long-tailed-cil here)."
    )


def test_differing_lists_and_memories_are_named(make_run, tmp_path):
    other = {
        "class_order": [7, 6, 5, 4, 3, 2, 1, 0],
        "memory": {"per_class": 5},
        "protocol_hash": "eeeeeeeeeeee",
    }
    _, group = groups([make_run(tmp_path, **SMALL), make_run(tmp_path, **other, **SMALL)])
    assert (
        "class order; memory rule (per_class 20, selection herding there, per_class 5 here)" in group.reason
    )


def test_same_rule_with_another_hash_means_other_images(make_run, tmp_path):
    _, group = groups(
        [make_run(tmp_path, **SMALL), make_run(tmp_path, protocol_hash="dddddddddddd", **SMALL)]
    )
    assert "differ in the kept images" in group.reason


def test_run_without_a_hash_stands_alone(make_run, tmp_path):
    folders = [make_run(tmp_path, seed=seed, **SMALL) for seed in range(3)]
    for folder in folders[1:]:
        (folder / "protocol.json").unlink()
    _, second, third = groups(folders)
    assert "unknown" in second.reason
    assert "unknown" in third.reason


def test_index_has_one_table_per_protocol(three, tmp_path, capsys):
    assert main([*map(str, three), "-o", str(tmp_path / "out")]) == 0
    index, *pages = capsys.readouterr().out.split()
    text = (tmp_path / "out" / "index.html").read_text().replace(str(page.get_plotlyjs()), "")
    assert index.endswith("index.html")
    assert len(pages) == 3
    assert text.count("<table") == 6  # every run, means over seeds, and a legend, of two protocols
    links = re.findall(r'href="([^"#:]+\.[a-z]+)"', text)
    assert {link.rsplit(".")[-1] for link in links} == {"html", "csv", "md", "tex"}
    for link in links:
        assert (tmp_path / "out" / link).is_file()
    assert "hold-out rule" in text
    assert "2 of 3" in text  # the unfinished run says so


def test_one_run_without_a_folder_goes_into_the_run(three, capsys):
    assert main([str(three[0])]) == 0
    assert capsys.readouterr().out.strip() == str(three[0].resolve() / "report.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "is not a folder"),
        (["."], "holds no file of a run"),
        (["{0}", "{1}"], "add -o FOLDER"),
        (["{0}", "-o", "{0}/DONE"], "cannot make the folder"),
    ],
)
def test_bad_input_is_one_sentence(three, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main([argument.format(*three) for argument in arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1


def test_same_run_twice_is_one_page(three, tmp_path, capsys):
    assert main([str(three[0]), str(three[0]), "-o", str(tmp_path / "out")]) == 0
    assert len(capsys.readouterr().out.split()) == 1


def test_page_names_are_unique_and_plain(make_run, tmp_path):
    runs = [read_run(make_run(tmp_path / place, "a b/ü", **SMALL)) for place in "xyz"]
    names = page_names(runs)
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9._~-]+\.html", name) for name in names)


def test_a_folder_that_holds_nothing_yet_is_left_out_of_many(make_run, tmp_path, capsys):
    runs = [make_run(tmp_path / name, sizes=(3, 3), epochs=1) for name in ("a", "b")]
    (tmp_path / "empty").mkdir()
    assert main([*map(str, runs), str(tmp_path / "empty"), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "left out:" in said.err and len(said.out.splitlines()) == 3
    assert main([str(tmp_path / "empty")]) == 2


def test_a_method_is_one_curve_with_its_error_and_unfinished_runs_stand_alone(make_run, tmp_path):
    settings = {"readouts": ("cnn",), **SMALL}
    folders = [make_run(tmp_path, seed=seed, **settings) for seed in range(2)]
    (group,) = groups([*folders, make_run(tmp_path, seed=2, done=2, **settings)])
    mean, alone = compare.chart(group)["data"]
    both = [read_run(folder).summaries["cnn"]["per_experience"]["accuracy/over_tasks"] for folder in folders]
    assert mean["y"] == pytest.approx([(a + b) / 2 for a, b in zip(*both, strict=True)], abs=0.006)
    # the standard error of two values is half their distance
    assert mean["error_y"]["array"] == pytest.approx(
        [abs(a - b) / 2 for a, b in zip(*both, strict=True)], abs=0.006
    )
    assert (alone["name"], len(alone["y"])) == ("lucir (unfinished)", 2)
    assert "error_y" not in alone


def test_bias_and_variance_end_the_page_where_they_were_recorded(make_run, tmp_path):
    older = [make_run(tmp_path / "older", seed=seed, **SMALL) for seed in range(3)]
    newer = [make_run(tmp_path / "newer", seed=seed, num_experts=2, **SMALL) for seed in range(3)]
    texts = []
    for name, runs in (("a", older), ("b", newer)):
        main([*map(str, runs), "-o", str(tmp_path / name)])
        texts.append((tmp_path / name / "index.html").read_text())
    assert ['<section id="bias">' in text for text in texts] == [False, True]


@pytest.mark.parametrize("seed", seeds(8, 30))
def test_fields_of_another_type_never_stop_the_comparison(
    make_run, spoil, tmp_path, monkeypatch, capsys, seed
):
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "")
    generator = random.Random(seed)
    folders = [make_run(tmp_path, seed=s, num_experts=2, **SMALL) for s in range(3)]
    for folder in folders:
        spoil(folder, generator, ("protocol.json", "environment.json", "results.json"))
        if generator.random() < 0.4:
            (folder / "confusions.npz").unlink()
    assert main([*map(str, folders), "-o", str(tmp_path / "out")]) == 0
    assert "<h1>Runs compared</h1>" in (tmp_path / "out" / "index.html").read_text()


def test_lines_named_alike_are_told_apart_in_the_chart_and_in_the_tooltip(make_run, tmp_path):
    runs = [make_run(tmp_path, name, readouts=("cnn",), **SMALL) for name in ("plain", "wide", "deep")]
    (group,) = groups(runs)
    names = [f"LUCIR+LWS, {name}" for name in ("plain", "wide", "deep")]
    assert [trace["name"] for trace in compare.chart(group)["data"]] == names
    content = compare._content(group, tmp_path)
    assert [line["reference"] for line in content["lines"]] == [None, names[0], names[0]]


def index_of(runs, out):
    assert main([*map(str, runs), "-o", str(out), "--share-plotly"]) == 0
    return (out / "index.html").read_text()


def test_a_difference_over_fewer_seeds_says_over_how_many(make_run, tmp_path):
    runs = [make_run(tmp_path, "a", seed=seed, **SMALL) for seed in range(2)]
    runs += [make_run(tmp_path, "b", seed=seed, skill=0.5, **SMALL) for seed in (1, 2)]
    text = index_of(runs, tmp_path / "out")
    assert "over 1 common seed, to" in text and text.count(">n = 1<") == 2
    both = index_of([*runs[:2], runs[2], make_run(tmp_path, "b", seed=0, **SMALL)], tmp_path / "both")
    assert "over 2 common seeds, to" in both and both.count(">n = 2<") == 2 and "(n = " not in text + both


def test_runs_that_no_mean_takes_in_are_counted(make_run, tmp_path):
    runs = [make_run(tmp_path / place, seed=0, **SMALL) for place in "xy"]
    runs += [make_run(tmp_path, seed=seed, done=2, **SMALL) for seed in (1, 2)]
    text = index_of(runs, tmp_path / "out")
    assert "Left out: 2 runs unfinished, 1 run of a configuration and seed that an earlier run has." in text
    whole = [runs[0], make_run(tmp_path, seed=3, **SMALL)]
    assert "Left out" not in index_of(whole, tmp_path / "whole")


def test_a_configuration_that_holds_itself_never_stops_the_comparison(make_run, tmp_path):
    folders = [make_run(tmp_path, seed=seed, **SMALL) for seed in range(2)]
    (folders[1] / "config.yaml").write_text("a: &a {b: *a}\n")
    assert "<h1>Runs compared</h1>" in index_of(folders, tmp_path / "out")


def test_every_seed_is_a_dot_and_their_mean_a_bar():
    from incrlt.report.compare_charts import over_seeds
    from incrlt.report.seeds import estimate

    values = {"weak": {"0": 20.0, "1": 24.0}, "strong": {"0": 30.0}, "unknown": {}}
    chart = over_seeds(
        {name: ("cnn own", own, estimate(list(own.values()))) for name, own in values.items()}, "last, %"
    )
    dots, mean, lone, lone_mean = chart["data"]
    assert (dots["x"], dots["y"], dots["text"]) == ([20.0, 24.0], ["weak", "weak"], ["seed 0", "seed 1"])
    # half of the interval of two values: 12.706 standard errors, |a - b| / 2 each; the axis does not follow it
    assert (mean["x"], mean["error_x"]["array"]) == ([22.0], [25.41])
    assert mean["text"] == ["n = 2, 95 % interval ± 25.41"] and chart["layout"]["xaxis"]["range"] == [
        15.0,
        35.0,
    ]
    assert (lone["x"], lone_mean["text"]) == ([30.0], ["n = 1"]) and "error_x" not in lone_mean
    assert {trace["meta"] for trace in chart["data"]} == {"cnn own"}
    assert chart["layout"]["xaxis"]["title"]["text"] == "last, %"


def test_where_every_line_has_one_seed_the_table_says_it_all():
    from incrlt.report.compare_charts import over_seeds
    from incrlt.report.seeds import estimate

    one = {name: ("cnn", {"0": 1.0}, estimate([1.0])) for name in ("a", "b")}
    assert over_seeds(one, "x") is None


def test_the_interval_is_students_of_three_seeds_and_drawn_whole():
    from incrlt.report.compare_charts import over_seeds
    from incrlt.report.seeds import estimate

    assert estimate([1.0, 2.0, 3.0]).half == pytest.approx(4.303 / 3**0.5)
    assert (estimate([1.0]).half, estimate([]).half) == (None, None)
    own = {"0": 1.0, "1": 2.0, "2": 3.0}
    chart = over_seeds({name: ("", own, estimate(list(own.values()))) for name in ("a", "b" * 50)}, "x")
    low, high = chart["layout"]["xaxis"]["range"]
    assert (low, high) == (
        pytest.approx(2 - 4.303 / 3**0.5, abs=0.01),
        pytest.approx(2 + 4.303 / 3**0.5, abs=0.01),
    )
    assert chart["layout"]["yaxis"]["ticktext"][1] == "b" * 17 + "…" + "b" * 16


def test_the_legend_is_a_table_with_the_look_of_every_curve(make_run, tmp_path):
    """Nine curves: the number at a curve's end is its row, and no two rows look alike."""
    runs = [
        make_run(tmp_path, f"way_{place}", readouts=("cnn",), skill=0.1 + 0.1 * place, **SMALL)
        for place in range(9)
    ]
    (group,) = groups(runs)
    chart = compare.chart(group)
    rows = compare_charts.legend(chart)
    assert (
        len({(row["colour"], row["stroke"], row["sign"]) for row in rows})
        == len({row["name"] for row in rows})
        == 9
    )
    assert (
        [trace["text"][-1] for trace in chart["data"]] == [row["number"] for row in rows] == list("123456789")
    )
    finals = [read_run(run).summaries["cnn"]["per_experience"]["accuracy/over_tasks"][-1] for run in runs]
    assert [row["last"] for row in rows] == pytest.approx(finals, abs=0.006)
    assert chart["layout"]["showlegend"] is False
    text = index_of(runs, tmp_path / "out")
    assert text.count("data-line=") == 9 and 'data-legend="chart-1"' in text
