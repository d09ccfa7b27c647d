"""Runs of the gallery: what is copied, what is taken out, what is refused; the hashes on the protocol pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from incrlt import report
from incrlt.errors import UserError
from incrlt.report.__main__ import main as make_report

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


@pytest.fixture
def add_run(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import add_run

    return add_run


@pytest.fixture
def protocol_pages(monkeypatch):
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    import protocol_pages

    return protocol_pages


@pytest.fixture
def reproduced(monkeypatch):
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    import reproduced

    return reproduced


@pytest.fixture
def run(make_run, tmp_path) -> Path:
    """A finished run that names places of this machine."""
    folder = make_run(tmp_path / "runs", sizes=(4, 2, 2), epochs=3)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config |= {
        "output": {"folder": str(tmp_path), "name": None},
        "data": {"root": "/big/data", "download": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    environment = json.loads((folder / "environment.json").read_text())
    environment["command"] = (
        "python -m incrlt.run /home/me/x/experiments/a.yaml --out /big/runs --seed 1 data.root=/d/e"
    )
    environment["platform"] = "Linux-6.1-somebody-x86_64"
    again = {**environment, "begun": "2026-11-26T19:47:28+00:00", "process": 16639}
    environment["sessions"] = [again, {**again, "command": "python -m incrlt.run perf/../experiments/a.yaml"}]
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "checkpoints").mkdir()
    return folder


def test_a_run_is_copied_without_what_is_the_machines(add_run, run, tmp_path):
    to = add_run.add(run, "lucir", tmp_path / "gallery")
    assert to == tmp_path / "gallery" / "lucir" / run.name
    assert not (to / "checkpoints").exists()
    environment = json.loads((to / "environment.json").read_text())
    assert environment["command"] == "python -m incrlt.run experiments/a.yaml --seed 1"
    first, second = environment[
        "sessions"
    ]  # a run that was cut off and went on names its places more than once
    assert (first["command"], first["platform"]) == (environment["command"], "Linux")
    assert second["command"] == "python -m incrlt.run experiments/a.yaml"
    assert not {"begun", "process"} & first.keys()
    assert environment["platform"] == "Linux"
    config = yaml.safe_load((to / "config.yaml").read_text())
    assert config["output"]["folder"] == "runs" and config["data"]["root"] is None
    assert all("time" not in json.loads(line) for line in (to / "log.jsonl").read_text().splitlines())


def test_the_copy_tells_the_same_numbers(add_run, run, tmp_path):
    copy = report.read_run(add_run.add(run, "lucir", tmp_path / "gallery"))
    original = report.read_run(run)
    assert copy.summaries == original.summaries
    assert copy.problems == original.problems
    losses = [[event["loss"] for event in one.events("epoch")] for one in (copy, original)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_path_that_is_left_is_refused(add_run, run, tmp_path):
    described = json.loads((run / "protocol.json").read_text())
    (run / "protocol.json").write_text(json.dumps(described | {"augmentation": "own at /home/me/augment.py"}))
    with pytest.raises(UserError, match=r"protocol\.json names paths of this machine: /home/me/augment\.py"):
        add_run.add(run, "lucir", tmp_path / "gallery")
    assert not (tmp_path / "gallery").exists()


def test_an_unfinished_run_is_refused(add_run, run, tmp_path, capsys):
    (run / "DONE").unlink()
    assert add_run.main([str(run)]) == 2
    assert "DONE missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see /home/me/x.txt", ["/home/me/x.txt"]),
        ("~/runs/a", ["~/runs/a"]),
        ("many/medium/few, 3/4, a - b / c", []),
        ("last_accuracy/over_tasks", []),
        ("https://example.org/a/b", []),
    ],
)
def test_paths_are_told_from_other_slashes(add_run, text, found):
    assert add_run.paths(text) == found


def test_committed_runs_name_no_place(add_run):
    for path in add_run.RUNS.glob("*/*/*"):
        if path.suffix != ".npz":
            assert not add_run.paths(path.read_text()), path


def test_shared_plotly_lies_beside_the_pages(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert make_report([str(run), "-o", str(out), "--share-plotly"]) == 0
    page = next(out.glob("*.html"))
    assert '<script src="plotly.min.js"></script>' in page.read_text()
    assert page.stat().st_size < 1e6 < (out / "plotly.min.js").stat().st_size
    assert make_report([str(run), "--share-plotly"]) == 2
    assert "add -o FOLDER" in capsys.readouterr().err


def test_hashes_of_the_protocol_pages_are_those_of_the_data(protocol_pages, cifar100_root):
    assert protocol_pages.make_hashes(cifar100_root) == json.loads(protocol_pages.HASHES.read_text())


def test_every_rule_on_the_protocol_pages_has_a_hash(protocol_pages):
    from incrlt.benchmarks.protocols import NAMES

    for name in NAMES:
        text = "\n".join(protocol_pages.protocol_lines(name))
        assert "## Hash" in text and "## Published" in text


def test_hashes_are_those_that_runs_recorded(protocol_pages, add_run):
    for path in add_run.RUNS.glob("*/*/protocol.json"):
        described = json.loads(path.read_text())
        assert protocol_pages.hash_of(described["rule_hash"]) == described["hash"], path


def test_a_torn_last_line_of_the_log_is_dropped(add_run, run, tmp_path):
    whole = len((run / "log.jsonl").read_text().splitlines())
    with open(run / "log.jsonl", "a") as file:
        file.write('{"event": "ep')
    to = add_run.add(run, "lucir", tmp_path / "gallery")
    assert len((to / "log.jsonl").read_text().splitlines()) == whole


def test_a_configuration_without_an_output_is_taken(add_run, run, tmp_path):
    with open(run / "config.yaml", "a") as file:
        file.write("\noutput: null\n")
    to = add_run.add(run, "lucir", tmp_path / "gallery")
    assert yaml.safe_load((to / "config.yaml").read_text())["output"] == {"folder": "runs"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", b"a: [\n"),
        ("config.yaml", b"text\n"),
        ("config.yaml", b"output: [1]\n"),
        ("environment.json", b"{"),
        ("environment.json", b'{"command": "run it\'s.yaml"}'),
        ("log.jsonl", b'{"event"\n{}\n'),
        ("log.jsonl", b"[1]\n{}\n"),
        ("classes.json", b"\xff"),
    ],
)
def test_damaged_files_are_refused_by_name(add_run, run, tmp_path, name, content):
    (run / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is (damaged|not UTF-8).*files are whole"):
        add_run.add(run, "lucir", tmp_path / "gallery")


@pytest.fixture
def gallery(monkeypatch):
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    import gallery

    return gallery


LUCIR = "cifar100lt_10tasks_lucir_experts_recipe/aadac667-e083382e-s0"
SHIKE = "cifar100lt_10tasks_lucir_shike/aadac667-03d0f72a-s0"
ROUTED = "cifar100lt_10tasks_lucir_shike/aadac667-877e632d-s1"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([LUCIR, "cifar100lt_10tasks_finetune/d019fdd4-2007c2e2-s0"], "one protocol hash a picture"),
        ([LUCIR, "cifar100lt_10tasks_lucir_shike/9ee155eb-26b4f5a6-s0"], "one protocol hash a picture"),
        (
            ["cifar100lt_10tasks_replay/c8dcf149-a9e487f0-s0", "cifar100lt_10tasks/c8dcf149-de92edbc-s0"],
            r"one epochs \(base, later\) a picture; these differ: .*replay.*\(10, 10\); .*\(30, 30\)",
        ),
        (["cifar100lt_10tasks_lucir_shike"], "no run 'cifar100lt_10tasks_lucir_shike'; there are: "),
    ],
)
def test_a_picture_refuses_runs_that_do_not_belong_together(gallery, names, reason):
    with pytest.raises(gallery.ExtensionError, match=reason):
        gallery.pictured(names)


def test_pictures_of_the_pages_are_of_one_protocol_and_length(gallery):
    pictures = [
        line.split()[1:]
        for path in DOCS.rglob("*.md")
        for line in path.read_text("utf-8").splitlines()
        if line.startswith("```{gallery-picture}")
    ]
    assert pictures
    for names in pictures:
        assert len(names) == len(gallery.pictured(names))


def test_the_gallery_shows_the_read_out_a_run_answers_with(gallery):
    icarl = gallery.find("cifar100lt_10tasks_icarl/c8dcf149-c7494921-s0")
    assert icarl.readout == "nme"
    assert round(icarl.numbers[gallery.FORGETTING], 1) == 4.2  # of the head it is 20.1
    routed = gallery.find(ROUTED)
    assert routed.readout == "routed"
    assert round(routed.numbers[gallery.AVERAGE], 2) == 37.76  # of all experts it is 39.22


def test_runs_of_one_method_are_told_apart_by_what_differs(gallery):
    for shown in gallery.by_protocol(gallery.runs()).values():
        names = gallery.labels(shown)
        assert len(set(names)) == len(names), names
        assert all(name.split(",")[0] == one.run.method for name, one in zip(names, shown, strict=True))
    alike = [one for one in gallery.runs() if one.run.experiment == "cifar100lt_10tasks_lucir_lws_control"]
    assert gallery.labels(alike) == [
        "LUCIR+LWS, batch size 128, seed 1", "LUCIR+LWS, batch size 64, seed 0", "LUCIR+LWS, batch size 64, seed 1",
    ]  # fmt: skip
    assert gallery.labels(alike[:1]) == ["LUCIR+LWS"]


def test_points_of_the_scatter_are_the_numbers_of_the_runs(gallery):
    shown = [gallery.find(LUCIR), gallery.find(SHIKE)]
    panels = {panel["title"]: panel for panel in gallery.scatter(shown)}
    assert set(panels) == {"all classes", "many classes", "medium classes", "few classes"}
    few = panels["few classes"]
    assert [place for place, *_ in few["points"]] == [1, 2]
    for (_, x, y, accuracy, forgotten), one in zip(few["points"], shown, strict=True):
        numbers = one.numbers
        assert accuracy == numbers["last_accuracy/few_over_classes"]
        assert forgotten == pytest.approx(numbers["forgetting/few_over_classes"])
        assert x * few["right"] / 100 == pytest.approx(accuracy)
        assert few["low"] + y * (few["high"] - few["low"]) / 100 == pytest.approx(forgotten)
    offline = [one for one in gallery.runs() if one.run.protocol_name == "offline"]
    assert gallery.scatter(offline) == []


def test_the_question_of_the_tail_is_answered(gallery):
    (least, best) = gallery.tail(shown := [gallery.find(LUCIR), gallery.find(SHIKE)], ["a", "b"])
    assert least[:3] == ("Forgot least of its few classes", "a", shown[0].page)
    assert least[3] == "lost 6 % of the 9.4 points it had, 8.8 % at the end"
    assert best[:3] == ("Ended best on few classes", "b", shown[1].page)


def test_only_a_run_of_full_length_is_a_reproduction(reproduced):
    """LUCIR: 34.05 / 31.95 beside 34.59 / 32.50; LUCIR+LWS: 38.08 / 35.25 beside 39.00 / 35.50; 160 epochs each.

    PODNet ran for 20 + 5 epochs, and cross entropy's row states no length.
    """
    table = {line.split(" | ")[0].strip("| "): line for line in reproduced.lines("")}
    assert ">reproduced</a>" in table["LUCIR+LWS"]
    assert "-0.92 / -0.25 (n = 1)" in table["LUCIR+LWS"]
    assert ">reproduced</a>" in table["LUCIR"]
    assert "-0.54 / -0.55 (n = 1)" in table["LUCIR"]
    assert ">short run</a> alone" in table["PODNet"]
    assert ">short run</a> alone" in table["CE"]
    assert 'experiments/cifar100lt_5tasks.yaml">not run<' in table["LUCIR"]
    counted = [one for own in reproduced.compared().values() for one in own if not reproduced.sets_apart(one)]
    assert {one.run.protocol["holdout"] for one in counted} == {"long-tailed-cil"}


@pytest.mark.parametrize(
    ("away", "said"),
    [((-0.92, -0.25), "reproduced"), ((-1.2, 0.3), "short by 1.20"), ((0.4, 1.5), "above by 1.50")],
)
def test_what_a_distance_is_called(reproduced, monkeypatch, away, said):
    full = next(own[0] for own in reproduced.compared().values() if not reproduced.sets_apart(own[0]))
    monkeypatch.setattr(reproduced, "distances", lambda _: dict(zip(("average", "last"), away, strict=True)))
    assert reproduced.verdict(full) == said


def test_the_gallery_begins_with_full_length_and_marks_short_runs(reproduced):
    import gallery

    first, second, *others = [one for one in gallery.runs() if one.run.protocol_name == "lfh-shuffled-10"]
    for one, method in ((first, "LUCIR"), (second, "LUCIR+LWS")):
        assert (one.run.method, one.length, one.short) == (method, (160, 160), "")
    assert all("instead of 160" in one.short for one in others)
    assert [one.short for one in gallery.runs() if one.run.name.startswith("cifar100lt_offline_ce")] == [
        "40 epochs per experience instead of 200 to 400"
    ]
    shown = gallery.html("table.html", groups=gallery.by_protocol(gallery.runs()), pages="")
    assert shown.count('title="30 epochs per experience instead of 160">short<') == 2
