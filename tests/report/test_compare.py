from __future__ import annotations

import random
import re

import pytest

from incrlt.report import compare, page, read_run
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
    assert text.count("<table") == 4  # every run, and means over seeds, of two protocols
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
    older = [make_run(tmp_path / "older", seed=seed, **SMALL) for seed in range(2)]
    newer = [make_run(tmp_path / "newer", seed=seed, num_experts=2, **SMALL) for seed in range(2)]
    texts = []
    for name, runs in (("a", older), ("b", newer)):
        main([*map(str, runs), "-o", str(tmp_path / name)])
        texts.append((tmp_path / name / "index.html").read_text())
    assert ['<section id="bias">' in text for text in texts] == [False, True]


@pytest.mark.parametrize("seed", range(30))
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
