from __future__ import annotations

import json
import re
from itertools import combinations

import numpy as np
import pytest

from incrlt.metrics.evaluation import load_evaluations, save_evaluations
from incrlt.report import figures, page, read_run


def concrete(value):
    """Replace theme colours by real ones, as the page's script does."""
    if isinstance(value, dict):
        return {key: concrete(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [concrete(inner) for inner in value]
    return "#123456" if isinstance(value, str) and value.startswith("@") else value


def colours(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return {colour for inner in value for colour in colours(inner)}
    return {value[1:]} if isinstance(value, str) and value.startswith("@") else set()


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory):
    return read_run(make_run(tmp_path_factory.mktemp("runs"), sizes=(6, 3, 3), epochs=3))


@pytest.fixture(scope="module")
def charts(run):
    return page.contents(run)["charts"]


def test_every_chart_is_there(charts):
    once = {"accuracy", "groups", "forgetting", "losses", "rate", "memory"}
    each = {"matrix", "lost", "curves", "age", "age-last", "old", "new", "size", "negatives", "confusion"}
    assert set(charts) == once | {f"{name}-{readout}" for name in each for readout in ("cnn", "nme")}


def test_plotly_accepts_every_chart(charts):
    graph_objects = pytest.importorskip("plotly.graph_objects")
    for name, chart in charts.items():
        assert graph_objects.Figure(concrete(chart)).data, name


def test_every_colour_is_a_variable_of_the_style(charts):
    style = (page._FOLDER / "page.css").read_text()
    for name, chart in charts.items():
        for colour in colours(chart):
            assert re.fullmatch(r"(seq|lost):[01](\.\d+)?", colour) or f"--{colour}:" in style, (name, colour)


def test_accuracy_lines_are_the_summary(run, charts):
    lines = {line["name"]: line["y"] for line in charts["accuracy"]["data"]}
    for readout, summary in run.summaries.items():
        for convention in ("over_tasks", "over_classes", "over_seen_images"):
            expected = summary["per_experience"][f"accuracy/{convention}"]
            assert lines[f"{readout} · {convention.replace('_', ' ')}"] == pytest.approx(expected, abs=0.006)


def test_matrix_is_the_summary(run, charts):
    values = charts["matrix-cnn"]["data"][0]["z"]
    expected = run.summaries["cnn"]["accuracy_matrix"]
    assert values[0][1] is None
    assert values[2] == pytest.approx(expected[2], abs=0.06)


def test_single_read_out_needs_no_name(make_run, tmp_path):
    run = read_run(make_run(tmp_path, sizes=(3, 2), readouts=("cnn",), epochs=1))
    names = {line["name"] for line in page.contents(run)["charts"]["groups"]["data"]}
    assert names <= {"many", "medium", "few"}


def test_single_experience_has_no_matrix_and_no_forgetting(make_run, tmp_path):
    run = read_run(make_run(tmp_path, sizes=(6,), readouts=("cnn",), epochs=1))
    assert set(page.contents(run)["charts"]) == {
        "accuracy", "groups", "losses", "rate", "size-cnn", "negatives-cnn", "memory", "confusion-cnn",
    }  # fmt: skip
    assert page.contents(run)["problems"] == []


def test_very_long_logs_are_thinned(make_run, tmp_path):
    run = read_run(make_run(tmp_path, sizes=(2, 2), readouts=("cnn",), epochs=4000))
    line = page.contents(run)["charts"]["losses"]["data"][0]
    assert len(line["x"]) == len(line["y"]) <= 1500
    assert line["x"][-1] > 7990


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "x", [1]])
def test_broken_loss_values_leave_a_gap(make_run, tmp_path, value):
    folder = make_run(tmp_path, sizes=(2,), readouts=("cnn",), epochs=1)
    with open(folder / "log.jsonl", "a") as file:
        file.write(
            json.dumps({"event": "epoch", "experience": 0, "terms": {"ce": value}, "lr": value}) + "\n"
        )
    contents = page.contents(read_run(folder))
    assert contents["problems"] == []
    assert contents["charts"]["losses"]["data"][0]["y"][-1] is None


@pytest.fixture(scope="module")
def recorded(make_run, tmp_path_factory):
    """A run of three experts whose evaluations were recorded."""
    root = tmp_path_factory.mktemp("recorded")
    return read_run(make_run(root, sizes=(6, 3, 3), epochs=1, readouts=("cnn",), num_experts=3))


EXPERT_CHARTS = {
    "experts",
    "experts-time",
    "experts-curve",
    "disagreement",
    "calibration-cnn",
    "calibration-error",
}


def test_recorded_evaluations_bring_their_charts(recorded, charts):
    found = page.contents(recorded)["charts"]
    assert set(found) >= EXPERT_CHARTS
    assert not EXPERT_CHARTS & set(charts)
    for name in EXPERT_CHARTS:
        for colour in colours(found[name]):
            assert f"--{colour}:" in (page._FOLDER / "page.css").read_text()


def test_experts_stand_beside_all_of_them_together(recorded):
    counts = recorded.evaluations.series("right")[2]
    bars = {bar["name"]: bar for bar in page.contents(recorded)["charts"]["experts"]["data"]}
    rates = 100 * counts / 50  # test images per class
    expected = [*rates[:, 0].mean(axis=0), rates[:, 1, 2].mean()]
    assert bars["over classes"]["y"] == pytest.approx(expected, abs=0.006)
    assert bars["over classes"]["x"] == ["expert 0", "expert 1", "expert 2", "all 3 together"]


def test_curve_over_experts_starts_with_one(recorded):
    curve = page.contents(recorded)["charts"]["experts-curve"]["data"][0]
    assert curve["x"] == [40, 70, 100]
    assert curve["y"][0] == pytest.approx(
        2 * recorded.evaluations.series("right")[2][:, 1, 0].mean(), abs=0.006
    )


def test_reliability_is_as_recorded(recorded):
    """Two bins: 40 % of the images 56.7 % sure, 60 % of them 96.7 % sure, both with 40 % and 60 % of the hits."""
    lines = {line["name"]: line for line in page.contents(recorded)["charts"]["calibration-cnn"]["data"]}
    assert lines["all"]["x"] == pytest.approx([56.67, 96.67], abs=0.01)
    assert lines["all"]["customdata"] == [20 * 12, 30 * 12]
    assert lines["as sure as right"]["x"] == lines["as sure as right"]["y"] == [0, 100]


def test_memory_is_shown_by_group_where_it_was_recorded(recorded, charts):
    bars = page.contents(recorded)["charts"]["memory"]["data"]
    assert [bar["name"] for bar in bars] == ["many", "medium", "few"]
    assert [sum(column) for column in zip(*(bar["y"] for bar in bars), strict=True)] == [120, 180, 240]
    (bar,) = charts["memory"]["data"]  # from the log of an older run
    assert bar["y"] == [17 * 6, 17 * 9, 17 * 12]


def test_evaluations_that_begin_late_are_shown_from_there_on(make_run, tmp_path):
    folder = make_run(tmp_path, sizes=(4, 2, 2), epochs=1, readouts=("cnn",), num_experts=2)
    record = load_evaluations(folder / "evaluations.npz")
    save_evaluations(folder / "evaluations.npz", {2: record.steps[2]}, record.answers)
    contents = page.contents(read_run(folder))
    assert contents["problems"] == []
    assert {line["x"][0] for line in contents["charts"]["disagreement"]["data"]} == {2}


def test_read_outs_are_marked_so_that_the_page_can_choose(charts):
    assert {trace["meta"] for trace in charts["groups"]["data"]} == {"cnn", "nme"}


def test_the_forgetting_matrix_is_the_drop_from_the_best_so_far(run, charts):
    accuracy = run.summaries["cnn"]["accuracy_matrix"]
    found = charts["lost-cnn"]["data"][0]["z"]
    assert found[0] == [None] * 3 and found[1][1:] == [None] * 2 and found[2][2] is None
    assert found[1][0] == pytest.approx(accuracy[0][0] - accuracy[1][0], abs=0.06)
    assert found[2][0] == pytest.approx(max(accuracy[0][0], accuracy[1][0]) - accuracy[2][0], abs=0.06)
    assert found[2][1] == pytest.approx(accuracy[1][1] - accuracy[2][1], abs=0.06)
    names = charts["lost-cnn"]["layout"]["meta"]["columns"]
    assert names == [", ".join(f"class {c}" for c in own) for own in (range(6), range(6, 9), range(9, 12))]


def test_very_many_experiences_are_bands_and_not_lines(make_run, tmp_path):
    run = read_run(make_run(tmp_path, sizes=(2,) * 24, readouts=("cnn",), epochs=1))
    chart = page.contents(run)["charts"]["curves-cnn"]
    lines = {trace["name"]: trace["y"] for trace in chart["data"]}
    assert set(lines) == {
        "",
        "four fifths of the experiences",
        "half of the experiences",
        "median experience",
    }
    matrix = run.summaries["cnn"]["accuracy_matrix"]
    at_age = sorted(matrix[j + 21][j] for j in range(3))
    assert lines["median experience"][21] == pytest.approx(at_age[1], abs=0.006)
    assert lines["median experience"][23] == pytest.approx(matrix[23][0], abs=0.006)


def test_a_notebook_gets_the_charts_of_the_page(run, charts):
    pytest.importorskip("plotly.graph_objects")
    found = figures(run.folder)
    assert set(found) == set(charts)
    lines = {line.name: list(line.y) for line in found["forgetting"].data}
    expected = run.summaries["cnn"]["per_experience"]["forgetting/chaudhry_over_tasks"]
    assert lines["cnn · over tasks"][1:] == pytest.approx(expected[1:], abs=0.006)
    assert found["forgetting"].data[0].line.color == "#1a2030"  # ink on white
    heat = found["lost-cnn"].data[0]
    assert heat.colorscale[0][1] == "rgb(251,241,236)" and heat.text[2][1] == "class 6, class 7, class 8"
    assert "@" not in json.dumps({name: one.to_plotly_json() for name, one in found.items()}, default=str)


def looks(trace):
    """What tells a trace from others but for its colour: dash and mark of a line, pattern of a bar, its number."""
    marker = trace.get("marker", {})
    symbol, pattern = marker.get("symbol"), marker.get("pattern", {}).get("shape")
    width = trace.get("line", {}).get("width")
    return trace["type"], trace.get("line", {}).get("dash"), symbol, pattern, width, str(trace.get("text"))


def test_traces_are_told_apart_without_their_colours(recorded, charts):
    for found in (charts, page.contents(recorded)["charts"]):
        for name, chart in found.items():
            named = [trace for trace in chart["data"] if trace.get("name") and trace["type"] != "heatmap"]
            for one in {trace.get("meta") for trace in named}:
                own = [looks(trace) for trace in named if trace.get("meta") == one]
                assert len(set(own)) == len(own), (name, own)


DEUTERANOPIA = [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
]
"""Machado, Oliveira and Fernandes, 2009, severity 1, of linear RGB."""
XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]


def seen(colour, by_deuteranope=True):
    """Return a colour in CIELAB, whose distances are about those that are seen."""
    rgb = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    if by_deuteranope:
        linear = np.clip(np.array(DEUTERANOPIA) @ linear, 0, 1)
    x, y, z = np.cbrt(np.array(XYZ) @ linear / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_told_apart_by_a_deuteranope_and_groups_in_grey(theme):
    style = (page._FOLDER / "page.css").read_text()
    blocks = style.split("@media screen and (prefers-color-scheme: dark)")
    found = dict(re.findall(r"--([a-z-]+):\s*(#[0-9a-f]{6})", blocks[theme == "dark"]))
    for one, other in combinations(("ink", "teal", "violet", "few", "medium", "many"), 2):
        assert np.linalg.norm(seen(found[one]) - seen(found[other])) > 9, (one, other)
    for one, other in combinations(("few", "medium", "many"), 2):
        assert np.linalg.norm(seen(found[one]) - seen(found[other])) > 30, (one, other)
        lightness = seen(found[one], False)[0] - seen(found[other], False)[0]
        assert abs(lightness) > 8, (one, other)  # many and few had one grey


def test_what_is_one_point_is_a_number(make_run, tmp_path):
    folder = make_run(tmp_path, sizes=(6,), readouts=("cnn",), epochs=1)
    run = read_run(folder)
    numbers = run.summaries["cnn"]["per_experience"]
    text = page.write(folder).read_text()
    assert 'data-figure="chart-accuracy"' not in text and 'data-figure="chart-size-cnn"' in text
    figure = re.search(r'<figure class="chart" id="chart-accuracy">(.*?)</figure>', text, re.DOTALL)[1]
    assert re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", figure) == [
        (name.replace("_", " "), f"{numbers[f'accuracy/{name}'][0]:.2f}")
        for name in ("over_tasks", "over_classes", "over_seen_images")
    ]


def test_what_is_counted_has_whole_numbers(charts, recorded):
    found = {**charts, **page.contents(recorded)["charts"]}
    for name in (
        "accuracy",
        "groups",
        "forgetting",
        "losses",
        "rate",
        "memory",
        "matrix-cnn",
        "experts-time",
    ):
        axis = found[name]["layout"]["xaxis"]
        assert axis.get("dtick") == 1 or axis.get("tickformat") == ",d", name
    assert found["memory"]["layout"]["yaxis"]["tickformat"] == ",d"


def test_the_first_matrix_of_classes_is_the_most_forgotten_experience_beside_what_took_it(run, charts):
    for readout, record in run.records.items():
        counts, arrived = record.confusions[-1], record.experience_of_class
        tasks = [row for row in page.contents(run)["tasks"][readout] if (row["drop"] or 0) > 0]
        worst = max(tasks, key=lambda row: row["drop"])
        took = [place for place, _ in worst["to_experiences"] if place != worst["experience"]][:2]
        rows = [c for c in range(12) if arrived[c] == worst["experience"]]
        columns = [c for c in range(12) if arrived[c] in (worst["experience"], *took)]
        wrong, right = (np.array(one["z"], dtype=float) for one in charts[f"confusion-{readout}"]["data"])
        expected = 100 * counts[np.ix_(rows, columns)] / counts[rows].sum(axis=1, keepdims=True)
        np.testing.assert_allclose(
            np.where(np.isnan(right), np.nan_to_num(wrong), right), expected, atol=0.051
        )
        meta = charts[f"confusion-{readout}"]["layout"]["meta"]
        assert (meta["rows"], meta["columns"]) == (
            [f"class {c}" for c in rows],
            [f"class {c}" for c in columns],
        )


def test_the_style_for_papers_has_the_colours_of_the_page(tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot")
    light = (page._FOLDER / "page.css").read_text().split("}")[0]
    colours = [
        re.search(rf"--{name}: #(\w+)", light)[1]
        for name in ("ink", "teal", "violet", "few", "medium", "many")
    ]
    with plt.style.context("incrlt.report.paper"):
        cycle = list(plt.rcParams["axes.prop_cycle"])
        assert [one["color"].removeprefix("#") for one in cycle] == colours
        assert (
            len({(one["marker"], one["linestyle"]) for one in cycle})
            == len({one["marker"] for one in cycle})
            == 6
        )
        figure, axes = plt.subplots()
        axes.plot([0, 1], [1, 2], label="LUCIR")
        figure.savefig(tmp_path / "a.png")
        plt.close(figure)
    width, height = plt.imread(tmp_path / "a.png").shape[1::-1]
    assert width > 900 and height > 600  # 300 dots per inch
