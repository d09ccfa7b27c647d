from __future__ import annotations

import json
import random
import re
import time

import numpy as np
import pytest
import yaml
from draws import seeds

from incrlt import report
from incrlt.metrics import save_confusions
from incrlt.metrics.evaluation import load_evaluations, save_evaluations
from incrlt.report import page, read_run
from incrlt.report.thumbnails import load_thumbnails, save_thumbnails


def without_plotly(text: str) -> str:
    return text.replace(str(page.get_plotlyjs()), "")


@pytest.fixture(scope="module")
def written(make_run, tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs"), sizes=(6, 3, 3), epochs=2)
    return folder, report.write(folder)


def test_page_lies_in_the_run_folder_and_is_small(written):
    folder, path = written
    assert path == folder / "report.html"
    assert path.stat().st_size < 8e6


def test_page_needs_no_network(written):
    own = without_plotly(written[1].read_text())
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*\"", own)
    assert "http" not in own
    assert "@import" not in own
    assert written[1].read_text().count(page.get_plotlyjs()) == 1


def test_page_names_no_path_of_the_machine(written):
    folder, path = written
    assert str(folder.parent.parent) not in path.read_text()


def test_numbers_stand_on_the_page_with_their_conventions(written):
    folder, path = written
    own = without_plotly(path.read_text()).replace("<wbr>", "")
    numbers = report.read_run(folder).summaries["cnn"]["numbers"]
    assert f"{numbers['average_incremental_accuracy/over_tasks']:.2f}" in own
    for convention in ("over_tasks", "over_classes", "over_seen_images", "chaudhry_over_tasks"):
        assert convention in own
    for heading in (
        "Accuracy",
        "Forgetting",
        "Long tail",
        "Taken for what",
        "Classes",
        "Training",
        "All numbers",
    ):
        assert f"<h2>{heading}</h2>" in own
    assert "LUCIR+LWS on lfh-shuffled-10, ours - published" in own


def test_every_chart_has_its_figure(written):
    own = without_plotly(written[1].read_text())
    wanted = re.findall(r'data-figure="([^"]+)"', own)
    assert len(wanted) == len(set(wanted)) == 26
    for name in wanted:
        body = re.search(rf'<script type="application/json" id="{name}-data">(.*?)</script>', own, re.DOTALL)[
            1
        ]
        assert json.loads(body)["data"]


def test_same_files_give_the_same_page(written):
    folder, path = written
    first = path.read_bytes()
    assert report.write(folder).read_bytes() == first


def test_names_are_escaped(make_run, tmp_path):
    folder = make_run(tmp_path, sizes=(2, 1), epochs=1, method="<script>alert(1)</script>")
    classes = json.loads((folder / "classes.json").read_text())
    classes["class_names"] = ["</script><b>", "<i>", "&"]
    (folder / "classes.json").write_text(json.dumps(classes))
    own = without_plotly(report.write(folder).read_text())
    assert "<script>alert(1)" not in own
    assert "</script><b>" not in own
    assert "<i>" not in own


def test_unfinished_run_is_marked(make_run, tmp_path):
    own = report.write(make_run(tmp_path, sizes=(4, 2, 2), done=2, epochs=1)).read_text()
    assert "unfinished" in own
    assert "2 of 3 experiences are evaluated" in own


def test_run_that_has_only_started_gives_a_page(make_run, tmp_path):
    folder = make_run(tmp_path, sizes=(4, 2), done=0, epochs=1)
    (folder / "confusions.npz").unlink()
    own = without_plotly(report.write(folder).read_text())
    assert "no accuracies to show" in own
    assert "<h2>The run</h2>" in own


def mutated(text: str, generator: random.Random) -> str:
    """Cut, drop, double or overwrite a piece of a file."""
    start = generator.randrange(len(text) + 1)
    end = min(len(text), start + generator.randrange(1, 40))
    middle = generator.choice(
        ["", text[start:end] * 2, "null", "-1", '"x"', "[]", "{}", "1e999", "\x00", "NaN"]
    )
    return text[:start] + middle + ("" if generator.random() < 0.15 else text[end:])


@pytest.mark.parametrize("seed", seeds(15, 60))
def test_damaged_files_never_stop_the_page(make_run, tmp_path, monkeypatch, seed):
    """Mutate files at random: always a page, never an exception."""
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "")
    generator = random.Random(seed)
    folder = make_run(tmp_path, sizes=(4, 2, 2), epochs=1, num_experts=2)
    for name in (
        "config.yaml",
        "protocol.json",
        "environment.json",
        "log.jsonl",
        "classes.json",
        "results.json",
    ):
        if generator.random() < 0.6:
            (folder / name).write_text(mutated((folder / name).read_text(), generator))
    if generator.random() < 0.5:
        (folder / "confusions.npz").write_bytes(generator.randbytes(200))
    whole = (folder / "evaluations.npz").read_bytes()
    damage = generator.choice([whole[: len(whole) // 2], generator.randbytes(200), b"", whole])
    (folder / "evaluations.npz").write_bytes(damage)
    assert "<h1 " in report.write(folder).read_text()


@pytest.mark.parametrize("seed", seeds(15, 60))
def test_fields_of_another_type_never_stop_the_page(make_run, spoil, tmp_path, monkeypatch, seed):
    """Files that parse but whose fields mean something else, as another version may write them."""
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "")
    generator = random.Random(seed)
    folder = make_run(tmp_path, sizes=(4, 2, 2), epochs=1)
    if generator.random() < 0.5:
        (folder / "confusions.npz").unlink()  # then the page is made of results.json

    spoil(folder, generator, ("protocol.json", "environment.json", "classes.json", "results.json"))
    assert "<h1 " in report.write(folder).read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "seconds"), [(500, 5), pytest.param(1000, 10, marks=pytest.mark.soak)])
def test_large_run_is_fast_and_stays_small(make_run, tmp_path, classes, seconds):
    """100 tasks and three experts; making up the counts of 1000 classes takes four times as long as those of 500."""
    sizes = (classes // 100,) * 100
    folder = make_run(tmp_path, sizes=sizes, epochs=160, readouts=("cnn", "nme"), num_experts=3)
    with_thumbnails(folder, classes, per_class=2, side=32)
    begun = time.process_time()  # seconds of this process: another one may keep the machine busy
    path = report.write(folder)
    assert time.process_time() - begun < seconds
    assert path.stat().st_size < 8e6


SHAPES = [(), (3,), (1, 1), (4, 3, 15), (8, 2), (8, 3, 2), (8, 2, 1), (8, 1, 1), (12, 3, 15)]


@pytest.mark.parametrize("seed", seeds(10, 40))
def test_evaluations_of_another_shape_never_stop_the_page(make_run, tmp_path, monkeypatch, seed):
    """Sums that parse but do not belong to these classes, as another version may write them."""
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "")
    generator = random.Random(seed)
    folder = make_run(tmp_path, sizes=(4, 2, 2), epochs=1, num_experts=2)
    record = load_evaluations(folder / "evaluations.npz")
    steps = {
        generator.choice([t, t, t + 5]): {
            name: generator.choice([values, np.ones(generator.choice(SHAPES), dtype=int)])
            for name, values in step.items()
        }
        for t, step in record.steps.items()
    }
    save_evaluations(folder / "evaluations.npz", steps, {"labels": np.ones(3, dtype=int)})
    assert "<h1 " in report.write(folder).read_text()


def test_damaged_evaluations_are_said(make_run, tmp_path):
    folder = make_run(tmp_path, sizes=(4, 2), epochs=1, num_experts=2)
    (folder / "evaluations.npz").write_bytes(b"PK")
    text = without_plotly(report.write(folder).read_text())
    assert "cannot read the evaluations in evaluations.npz" in text
    assert "calibration, experts and what the memory holds are not shown" in text
    assert '<section id="experts">' not in text and '<section id="accuracy">' in text


def test_table_of_classes_names_the_hardest_negative(make_run, tmp_path):
    folder = make_run(tmp_path, sizes=(2, 1), epochs=1, readouts=("cnn",))
    steps = [np.array([[9, 1], [5, 5]]), np.array([[9, 1, 0], [0, 5, 5], [0, 0, 10]])]
    save_confusions(folder / "confusions.npz", {"cnn": steps})
    rows = page.contents(read_run(folder))["classes"]
    found = [[(one["name"], one["rate"]) for one in row["negatives"]] for row in rows]
    assert found == [[("class 1", 10)], [("class 2", 50)], []]
    assert [row["points"] for row in rows] == [
        "after 0: 90, after 1: 90",
        "after 0: 50, after 1: 50",
        "after 1: 100",
    ]


GROUP_COLUMNS = ",".join(f"experts/{name}_over_classes" for name in ("many", "medium", "few"))
ROUTING = f"""experience,mean_experts,mean_mmacs,macs_saved,{GROUP_COLUMNS}
0,1.5,60.25,40.0,1.25,1.75,
1,2.0,70.5,30.0,1.5,2.5,2.75
"""
SWEEP = """threshold,accuracy/over_images,accuracy/over_classes,accuracy/many_over_classes,mean_mmacs
2.0,40.0,41.5,50.0,49.0
-2.0,44.0,45.25,52.0,100.5
"""


def test_a_routed_run_shows_experts_and_the_curve(make_run, tmp_path):
    folder = make_run(tmp_path)
    (folder / "routing.csv").write_text(ROUTING)
    (folder / "routing_sweep.csv").write_text(SWEEP)
    text = report.write(folder).read_text()
    assert '<section id="routing">' in text
    assert "<td>1.50</td><td>60.25</td><td>40.00</td><td>1.25</td><td>1.75</td><td>–</td>" in text
    assert '"x":[49.0,100.5]' in text and '"y":[41.5,45.25]' in text


BESIDE = """experience,mean_experts,routed/over_classes,routed/many_over_classes,all_experts/over_classes,\
best_weights_ceiling/over_classes,best_weights_ceiling/few_over_classes,best_weights_ceiling/weight_of_expert_0,\
best_weights_ceiling/weight_of_expert_1,oracle_ceiling/over_classes
0,1.5,91.0,92.0,93.0,94.0,95.0,0.9,0.1,96.0
1,2.0,41.25,52.5,41.94,42.3,20.0,0.4,0.6,55.0
"""


def test_a_page_shows_what_stands_beside_the_router_and_calls_ceilings_so(make_run, tmp_path):
    folder = make_run(tmp_path, sizes=(4, 2), epochs=1)
    (folder / "routing.csv").write_text(BESIDE)
    found = {row["name"]: row for row in page.contents(read_run(folder))["yardsticks"]}
    assert found["the router"]["values"] == [41.25, 52.5, None, None], "those of the last experience"
    assert found["best fixed weights"]["weights"] == [0.4, 0.6]
    assert [name for name, row in found.items() if row["ceiling"]] == [
        "best fixed weights", "best stop", "any expert",
    ]  # fmt: skip
    text = without_plotly(report.write(folder).read_text())
    table = text.split('<h3 id="yardsticks">')[1].split("</table>")[0]
    rows = [re.sub(r"(\s*<[^>]+>\s*)+", "|", row) for row in re.findall(r"<tr>(.*?)</tr>", table)[1:]]
    assert len(rows) == 7
    assert rows[0] == "|the router|41.2|52.5|–|–|"
    assert rows[1].startswith("|all experts|41.9|")
    assert rows[4] == "|best fixed weights|(ceiling, in hindsight; weights 0.40, 0.60)|42.3|–|–|20.0|"
    assert rows[6].startswith("|any expert|(ceiling, in hindsight)|55.0|")


def test_an_older_routed_run_has_no_table_beside_the_router(make_run, tmp_path):
    folder = make_run(tmp_path, sizes=(4, 2), epochs=1)
    (folder / "routing.csv").write_text(ROUTING)
    text = without_plotly(report.write(folder).read_text())
    assert '<section id="routing">' in text and 'id="yardsticks"' not in text
    assert read_run(folder).problems == ()


def test_a_run_without_a_router_has_no_such_section(make_run, tmp_path):
    assert '<section id="routing">' not in report.write(make_run(tmp_path)).read_text()


def test_a_damaged_routing_file_is_said_and_left_out(make_run, tmp_path):
    folder = make_run(tmp_path)
    (folder / "routing.csv").write_text("experience,mean_experts\n0,many\n")
    text = report.write(folder).read_text()
    assert "routing.csv is damaged" in text and '<section id="routing">' not in text


def test_the_size_of_the_network_stands_in_the_head(make_run, tmp_path):

    folder = make_run(tmp_path)
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**results, "parameters": 783856, "mega_macs": 100.36}))
    assert "0.78 M parameters, 100.4 M multiply-adds an image" in report.write(folder).read_text()


def with_thumbnails(folder, classes, per_class=4, side=8):
    """Leave images of noise behind, as a run does at its start; the first class has a single one."""
    generator = np.random.default_rng(0)
    counts = [1, *[per_class] * (classes - 1)]
    images = [generator.integers(0, 256, (count, 3, side, side), dtype=np.uint8) for count in counts]
    return save_thumbnails(folder / "thumbnails.npz", images)


def test_every_class_shows_its_images(make_run, tmp_path):
    folder = make_run(tmp_path, sizes=(4, 2, 2), done=2, epochs=1)  # two classes are yet to come
    sheet = load_thumbnails(with_thumbnails(folder, 8))
    own = without_plotly(report.write(folder).read_text())
    shown = re.findall(
        r'aria-label="(\d) training images? of ([^"]+)" style="--n:(\d);--x:(\d+);--y:(\d+)"', own
    )
    places = [
        (str(sheet.counts[c]), f"class {c}", str(sheet.counts[c]), *map(str, sheet.place(c)))
        for c in range(6)
    ]
    assert shown == places
    assert own.count("data:image/jpeg;base64,") == 1
    assert "No pictures of the classes" not in own


def test_a_run_without_thumbnails_says_so_once(make_run, tmp_path):
    folder = make_run(tmp_path, sizes=(4, 2), epochs=1)
    own = without_plotly(report.write(folder).read_text())
    assert own.count("No pictures of the classes") == 1
    assert 'class="thumbnails' not in own
    assert read_run(folder).problems == ()


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "other run"])
def test_damaged_thumbnails_cost_the_pictures_alone(make_run, tmp_path, damage):
    folder = make_run(tmp_path, sizes=(4, 2, 2), epochs=1)
    path = with_thumbnails(folder, 7 if damage == "other run" else 8)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-40], "empty": b"", "noise": b"\x00" * 300, "other run": whole}[damage])
    own = without_plotly(report.write(folder).read_text())
    (problem,) = read_run(folder).problems
    assert problem.endswith("pictures of the classes are not shown.") and "thumbnails.npz" in problem
    assert str(folder) not in problem
    assert (
        'class="thumbnails' not in own and own.split('id="class-table"')[1].count("<svg") == 6
    )  # curves of all but the newest classes


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", ""])
@pytest.mark.parametrize("column", [0, 1, 3, 4])
def test_values_that_are_no_numbers_never_stop_a_routed_page(make_run, tmp_path, monkeypatch, value, column):
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "")
    folder = make_run(tmp_path, sizes=(4, 2), epochs=1)
    for name, table in (("routing.csv", ROUTING), ("routing_sweep.csv", SWEEP)):
        head, row, *rest = table.splitlines()
        cells = [value if at == column else cell for at, cell in enumerate(row.split(","))]
        (folder / name).write_text("\n".join([head, ",".join(cells), *rest]))
    assert '<section id="accuracy">' in report.write(folder).read_text()


@pytest.mark.parametrize("key", ["memory_images", "experience", "train_seconds"])
@pytest.mark.parametrize("value", [float("nan"), 10**400])
def test_values_that_are_no_numbers_never_stop_an_older_page(make_run, tmp_path, monkeypatch, key, value):
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "")
    folder = make_run(tmp_path, sizes=(4, 2), epochs=1)
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    lines = [json.dumps(event | ({key: value} if event["event"] == "experience" else {})) for event in events]
    (folder / "log.jsonl").write_text("\n".join(lines))
    assert '<section id="accuracy">' in report.write(folder).read_text()


def test_a_chart_that_cannot_be_written_is_a_problem(make_run, tmp_path, monkeypatch):
    broken = {"data": [{"y": [float("nan")]}], "layout": {"height": 1}}
    monkeypatch.setattr(page.charts, "losses", lambda run: broken)
    found = page.contents(read_run(make_run(tmp_path, sizes=(4, 2), epochs=1)))
    assert "losses" not in found["charts"]
    assert any(problem.startswith("The loss curves could not be made") for problem in found["problems"])


def test_text_that_no_file_can_hold_never_stops_the_page(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "")
    folder = make_run(tmp_path, sizes=(2, 1), epochs=1, method="caf\udce9")
    classes = json.loads((folder / "classes.json").read_text()) | {"class_names": ["\udce9", "b", "c"]}
    (folder / "classes.json").write_text(json.dumps(classes))
    assert "caf?" in report.write(folder).read_text()


def change_config(folder, **strategy):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["strategy"] |= strategy
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("readouts", "chosen", "own"),
    [
        (("cnn", "nme"), "nme", "nme"),
        (("cnn", "nme"), "cnn", "cnn"),
        (("cnn", "nme"), None, "cnn"),
        (("cnn", "nme", "routed"), "nme", "routed"),
    ],
)
@pytest.mark.parametrize("counts", [True, False])
def test_a_page_is_headed_by_the_read_out_of_the_run(make_run, tmp_path, readouts, chosen, own, counts):
    folder = make_run(tmp_path, sizes=(4, 2), epochs=1, readouts=readouts)
    change_config(folder, readout=chosen)
    if not counts:
        (folder / "confusions.npz").unlink()
    run = read_run(folder)
    assert run.readout == own and set(run.summaries) == set(readouts)
    found = page.contents(run)
    assert all(tile.values[0][0] == own for tile in found["tiles"])
    assert found["readouts"][0] == own
    average = run.summaries[own]["numbers"]["average_incremental_accuracy/over_tasks"]
    assert f"{average:.2f} - 39.00" in found["distance"]
    assert (
        found["experiences"][1]["over_tasks"]
        == run.summaries[own]["per_experience"]["accuracy/over_tasks"][1]
    )


def test_an_unfinished_run_is_never_set_against_a_published_number(make_run, tmp_path):
    folder = make_run(tmp_path, sizes=(4, 2, 2), done=2, epochs=1)
    found = page.contents(read_run(folder))
    assert found["distance"].startswith("2 of 3 experiences: not compared with the published row of LUCIR,")
    assert found["published"]
    for row in found["published"]:
        assert all(value is None for one in row["differences"] for value in one.values())
    assert any("2 of 3 experiences" in remark for remark in found["remarks"])
    assert all(tile.convention.endswith(", 2 of 3 experiences") for tile in found["tiles"])


def test_a_finished_run_with_a_gap_is_not_compared_either(make_run, tmp_path):
    folder = make_run(tmp_path, sizes=(4, 2, 2), epochs=1)
    (folder / "confusions.npz").unlink()
    run = read_run(folder)
    assert run.complete and "39.00" in page.distance(run)
    results = json.loads((folder / "results.json").read_text())
    protocol = json.loads((folder / "protocol.json").read_text())
    protocol["classes_per_experience"] += [2]
    (folder / "protocol.json").write_text(json.dumps(protocol))
    assert results and "39.00" not in page.distance(read_run(folder))


def test_there_is_one_sign_for_what_is_undefined_and_no_negative_zero():
    assert [page.shown(value) for value in (None, -0.04, 0.04, -0.06)] == ["–", "0.0", "0.0", "−0.1"]
    assert [page.signed(value) for value in (None, -0.004, -0.006)] == ["–", "+0.00", "−0.01"]
