"""``incrlt update``: versions, the gate, going back, and a process that is killed."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import CLASSES, YAML, write
from PIL import Image

import incrlt.__main__
from incrlt.experiment import schema
from incrlt.lifecycle import comparing, gate, learned, update, versions

NEW = ["training.epochs=8"]


def incrlt_(*words: object) -> int:
    return incrlt.__main__.main([str(word) for word in words])


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file of a run but its versions."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "versions" not in path.relative_to(folder).parts
    }


def test_the_five_commands_after_the_data_are_gone(run, monday, tmp_path, capsys):
    before = contents(run)
    photos = write(tmp_path / "photos", {"teal": 4, "swan": 4}, first=400)
    assert incrlt_("predict", run, photos, "-o", tmp_path / "one.csv") == 0
    assert incrlt_("update", run, monday, *NEW, "--accept", "none") == 0
    said = capsys.readouterr().out
    assert "25 pictures; 5 of 25 pictures were split off for testing (seed 0)" in said
    assert (
        "version 2, from version 1: 20 pictures to learn, 5 to test, 16 exemplars; new classes: teal" in said
    )
    assert "version 2 is accepted and answers from now on" in said
    assert incrlt_("predict", run, photos, "-o", tmp_path / "two.csv") == 0
    assert contents(run) == before
    texts = ((tmp_path / name).read_text().splitlines() for name in ("one.csv", "two.csv"))
    one, two = (list(csv.DictReader(text)) for text in texts)
    assert {row["version"] for row in one} == {"1"} and {row["version"] for row in two} == {"2"}
    assert "teal" not in {row["class"] for row in one}
    answered = [row["class"] for row in two if row["file"].startswith("teal")]
    assert answered == ["teal"] * 4
    page = (tmp_path / "two.html").read_text()
    assert page.count('class="own"') == 8 and "teal/400.png" in page


NEAR = re.compile(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)" title="([^"]+)">')


def shown_near(page: str) -> list[list[tuple[str, torch.Tensor]]]:
    """Return, for each answer of a page, class and pixels [C, H, W] of the exemplars beside it."""
    found = []
    for card in page.split('<div class="answer">')[1:]:
        images = [
            (name, alt, Image.open(io.BytesIO(base64.b64decode(png))))
            for png, alt, name in NEAR.findall(card)
        ]
        assert all(name == alt for name, alt, _ in images)
        found.append(
            [(name, torch.from_numpy(np.array(i.convert("RGB"))).permute(2, 0, 1)) for name, _, i in images]
        )
    return found


def test_the_page_shows_the_kept_pictures_most_like_each(run, tmp_path):
    """A kept picture that is asked about is most like itself; what is shown are kept pictures of the class named."""
    model = learned.read(run)
    kept, names = model.exemplars, model.class_names
    asked = tmp_path / "asked"
    asked.mkdir()
    for row, image in enumerate(kept.images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(asked / f"{row:03}.png")
    assert incrlt_("predict", run, asked, "-o", tmp_path / "asked.csv") == 0
    cards = shown_near((tmp_path / "asked.html").read_text())
    assert len(cards) == len(kept) > 4
    known = {
        (names[int(y)], image.numpy().tobytes()) for image, y in zip(kept.images, kept.labels, strict=True)
    }
    for own, label, near in zip(kept.images, kept.labels, cards, strict=True):
        told = [(name, pixels.numpy().tobytes()) for name, pixels in near]
        assert told[0] == (names[int(label)], own.numpy().tobytes())
        assert len(told) == len(set(told)) == 4 and set(told) <= known


def test_what_a_version_says_of_itself(run, monday):
    incrlt_("update", run, monday, *NEW, "--accept", "none")
    version = versions.find(run, 2)
    parent, now = learned.read(run), learned.read(versions.path_of(run, 2))
    assert (version.parent, version.parent_stream) == (1, parent.facts.stream)
    assert version.stream == now.facts.stream != parent.facts.stream
    assert now.class_names == (*parent.class_names, "teal")
    seen = dict(zip(now.class_names, now.facts.seen, strict=True))
    assert seen == {"heron": 20 + 8, "swan": 12, "coot": 8, "wren": 6, "teal": 12}
    assert len(now.tests) == 20 + 5 and len(now.exemplars) == 5 * 4
    assert not now.strategy["optimizer"]["state"], "an experience begins without momentum"
    assert version.measures["old"] is not None and version.measures["new"] is not None
    assert now.records()["cnn"].num_experiences == 3


def test_an_update_is_compared_with_training_anew(run, monday, capsys, monkeypatch):
    """The comparison changes nothing of the version, and its pictures are the exemplars and what arrived."""
    trained = []
    whole = comparing.Lesson
    monkeypatch.setattr(
        comparing, "Lesson", lambda before, batch: trained.append(batch) or whole(before, batch)
    )
    assert incrlt_("update", run, monday, *NEW, "--accept", "none", "--compare", "joint") == 0
    said = capsys.readouterr().out
    version = versions.find(run, 2)
    assert Counter(trained[0].names) == {"teal": 12, "heron": 8 + 4, "swan": 4, "coot": 4, "wren": 4}
    assert version.trained_on == version.joint["pictures"] == 36
    assert version.joint["old_before"] == version.measures["old_before"]
    assert version.joint["seconds"] > 0 and version.joint["all"] is not None
    saved = version.joint["all"] - version.measures["all"]
    told = f"Updating {'cost' if saved > 0 else 'gained'} {abs(saved):.1f} points over all classes and "
    page = versions.report_of(run, 2).read_text()
    assert f"| before | {version.measures['old_before']:.1f} |  |  |" in page, (
        "no class has a hundred pictures"
    )
    assert f" | {version.measures['few_before']:.1f} |" in page
    for text in (said, page):
        assert told in text and "| all anew | " in text and "| this update | " in text
    capsys.readouterr()


def test_nothing_is_compared_where_pictures_are_missing(run, monday, capsys, monkeypatch):
    parent = learned.read(run)
    none = parent.exemplars.only(parent.exemplars.labels != parent.class_names.index("swan"))
    monkeypatch.setattr(learned, "read", lambda *words, **named: dataclasses.replace(parent, exemplars=none))
    assert incrlt_("update", run, monday, "--compare", "joint") == 2
    assert "of swan no picture is kept" in capsys.readouterr().err
    assert versions.all_of(run) == []


def test_settings_of_the_optimizer_are_those_of_the_update(run, monday):
    """The state of the run brings its own learning rate, which was taken in place of the one asked for."""
    asked = [
        "training.lr=0.0123",
        "training.momentum=0.5",
        "training.weight_decay=0.001",
        "training.epochs=2",
    ]
    assert incrlt_("update", run, monday, *asked, "--accept", "none") == 0
    lines = (versions.path_of(run, 2) / "log.jsonl").read_text().splitlines()
    rates = [json.loads(line)["lr"] for line in lines if "lr" in json.loads(line)]
    assert rates[0] == pytest.approx(0.0123)
    (group,) = learned.read(versions.path_of(run, 2)).strategy["optimizer"]["param_groups"]
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.001)


def test_the_same_classes_again_and_a_version_of_a_version(run, monday, tmp_path, capsys):
    incrlt_("update", run, monday, "--accept", "none")
    tuesday = write(tmp_path / "tuesday", {"wren": 7}, first=300)
    assert incrlt_("update", run, tuesday, "--accept", "none") == 0
    assert (versions.find(run, 3).parent, versions.current(run)) == (2, 3)
    capsys.readouterr()
    for folder, number in ((monday, 2), (tuesday, 3)):
        assert incrlt_("update", run, folder) == 2
        assert (
            f"version {number} has learned {folder} already, and version 3 answers" in capsys.readouterr().err
        )


def test_a_rejected_version_stays_and_does_not_answer(run, monday, capsys):
    assert incrlt_("update", run, monday, "--accept", "old_drop<=-100") == 3
    assert "version 2 is rejected; version 1 answers" in capsys.readouterr().out
    assert (versions.find(run, 2).state, versions.current(run)) == ("rejected", 1)
    made = contents(versions.path_of(run, 2))
    assert incrlt_("update", run, monday, "--accept", "none") == 0, "the same version, judged by another rule"
    assert [version.number for version in versions.all_of(run)] == [2]
    assert versions.current(run) == 2 and contents(versions.path_of(run, 2)) == made


@pytest.mark.parametrize(
    ("strategy", "experts", "memory", "told"),
    [
        ({"name": "lucir"}, {"name": "single"}, {"per_class": 4}, True),
        ({"name": "lucir", "class_balanced_finetune": 5}, {"name": "single"}, {"per_class": 4}, False),
        (
            {"name": "lucir", "less_forget": 0},
            {"name": "shike", "classifier_epochs": 2},
            {"per_class": 4},
            False,
        ),
        ({"name": "lucir"}, {"name": "single"}, None, False),
        ({"name": "replay"}, {"name": "single"}, {"per_class": 4}, False),
    ],
)
def test_what_may_help_after_a_rejection_is_what_the_run_could_do(tmp_path, strategy, experts, memory, told):
    """The setting is told only where an update would take it."""
    values = YAML | {"strategy": strategy, "experts": experts, "memory": memory}
    values["model"] = {"name": "resnet20", "head": "cosine"}
    asked = schema.parse(values, with_data=False)
    (tmp_path / "config.yaml").write_text(asked.resolved_yaml())
    assert ("strategy.class_balanced_finetune=20" in "".join(update.advice(tmp_path))) is told
    if told:
        schema.load(tmp_path / "config.yaml", ["strategy.class_balanced_finetune=20"], with_data=False)


def test_rollback_and_forward(run, monday, tmp_path, capsys):
    incrlt_("update", run, monday, "--accept", "none")
    assert incrlt_("rollback", run) == 0
    said = capsys.readouterr().out
    assert "version 1 answers, before it was 2" in said and "* 1  the run itself" in said
    assert versions.current(run) == 1
    assert incrlt_("rollback", run) == 2, "nothing is older"
    tuesday = write(tmp_path / "tuesday", {"rail": 7}, first=300)
    assert incrlt_("update", run, tuesday, "--accept", "none") == 0
    assert (versions.find(run, 3).parent, versions.current(run)) == (1, 3)
    assert incrlt_("rollback", run, 2) == 0 and versions.current(run) == 2
    assert incrlt_("rollback", run, 7) == 2
    assert "has no version 7; it has 1, 2, 3" in capsys.readouterr().err
    incrlt_("rollback", run, 1)
    assert incrlt_("update", run, monday, "--accept", "none") == 0, "made before: it answers again"
    assert versions.current(run) == 2


def test_pictures_that_are_kept_for_testing_are_not_learned(run, tmp_path, capsys):
    again = write(tmp_path / "again", {"swan": 5}, first=100)
    assert incrlt_("update", run, again) == 2
    assert "nothing in" in (said := capsys.readouterr().err) and "5 known to this run already" in said
    assert "left out (first: swan/100.png)" in said


def test_a_golden_set_judges(run, monday, tmp_path):
    golden = write(tmp_path / "golden", {"teal": 3, "heron": 3}, first=500)
    incrlt_("update", run, monday, *NEW, "--accept", "none", "--golden", golden)
    measures = versions.find(run, 2).measures
    assert measures["new"] in (0.0, pytest.approx(100 / 3), pytest.approx(200 / 3), 100.0)
    made = contents(versions.path_of(run, 2))
    incrlt_("rollback", run)
    incrlt_("update", run, monday, *NEW, "--accept", "none")
    assert versions.find(run, 2).measures != measures and contents(versions.path_of(run, 2)) == made


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--accept", "old_dorp<=2"], "'old_dorp' in --accept is not known.*Did you mean 'old_drop'"),
        (["--accept", "old_drop 2"], "is no condition"),
        (["model.width=8"], "an update cannot change model"),
        (["training.epochs=0"], "training.epochs"),
    ],
)
def test_wrong_words_are_one_sentence(run, monday, capsys, words, said):
    import re

    assert incrlt_("update", run, monday, *words) == 2
    err = capsys.readouterr().err
    assert re.search(said, err) and err.count("\n") == 1
    assert not list((run / "versions").glob("0*"))


def test_a_class_that_is_spelled_otherwise_is_refused(run, tmp_path, capsys):
    write(tmp_path / "new", {"swan": 3}, first=700)
    (tmp_path / "new" / "swan").rename(tmp_path / "new" / "Swan")
    assert incrlt_("update", run, tmp_path / "new") == 2
    assert "the class 'Swan' arrives, and this run knows 'swan'" in capsys.readouterr().err


def test_an_unfinished_version_is_told_and_can_be_given_up(run, monday, tmp_path, capsys, monkeypatch):
    from incrlt.lifecycle import update

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(update, "_event", stop)
        assert incrlt_("update", run, monday) == 130
    assert versions.find(run, 2).state == "unfinished" and versions.current(run) == 1
    tuesday = write(tmp_path / "tuesday", {"rail": 7}, first=300)
    assert incrlt_("update", run, tuesday) == 2
    assert "version 2 is unfinished: it was learning" in capsys.readouterr().err
    assert incrlt_("update", run, tuesday, "--restart", "--accept", "none") == 0
    assert versions.find(run, 2).source == str(tuesday)


def test_one_update_at_a_time(run, monday, capsys):
    with versions.locked(run):
        assert incrlt_("update", run, monday) == 2
    assert "another process is updating" in capsys.readouterr().err


def test_a_run_with_versions_is_not_run_anew(run, monday, capsys):
    from incrlt.errors import UserError
    from incrlt.runner import resume

    resume.check_no_versions(run)
    incrlt_("update", run, monday, "--accept", "none")
    with pytest.raises(UserError, match=r"has been updated .1 version in versions/.*Choose another folder"):
        resume.check_no_versions(run)


def test_measures_are_those_worked_out_by_hand():
    before = [[8, 2], [5, 5]]  # 80 and 50 percent
    after = [[7, 1, 2], [0, 9, 1], [0, 1, 3]]  # 70, 90, 75
    found = gate.measures(before, after, [150, 10, 30])
    assert (found["old_before"], found["old"], found["new"]) == (65.0, 80.0, 75.0)
    assert found["all"] == pytest.approx((70 + 90 + 75) / 3, abs=1e-5)
    assert (found["many_drop"], found["few_drop"], found["medium_drop"]) == (10.0, -40.0, None)
    assert (found["many_before"], found["few_before"], found["medium_before"]) == (80.0, 50.0, None)
    accepted, said = gate.judge(gate.rule(gate.DEFAULT), found)
    assert not accepted and said[0] == "many_drop is 10.0, and must be <= 5"
    assert "medium_drop<=5 could not be judged" in said[1]
    assert gate.judge(gate.rule("old_drop<=2, few>=30"), found) == (True, ())


# ------------------------------------------------------------------------------------------------- kill -9

PLACES = [
    ("incrlt.lifecycle.update._event", 2),  # an epoch is saved
    ("incrlt.lifecycle.update.RunFolder", 1),  # nothing is trained
    ("incrlt.lifecycle.learned.kept.write", 1),  # trained, nothing written
    ("incrlt.lifecycle.update.measure", 1),  # written, not judged
    ("incrlt.lifecycle.update.gate.judge", 1),
]


@pytest.mark.parametrize(("where", "count"), PLACES, ids=[place for place, _ in PLACES])
def test_a_killed_update_leaves_the_parent_and_resumes_to_the_same_bits(run, monday, tmp_path, where, count):
    straight = Path(shutil.copytree(run, tmp_path / "straight"))
    before = contents(run)
    pid = os.fork()
    if pid == 0:  # a fork has everything imported
        try:
            _die_at(where, count)
            incrlt_("update", run, monday, "--accept", "none")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert contents(run) == before and versions.current(run) == 1
    assert incrlt_("update", run, monday, "--accept", "none") == 0
    assert incrlt_("update", straight, monday, "--accept", "none") == 0
    assert contents(run) == before
    assert_same(versions.path_of(run, 2), versions.path_of(straight, 2))


def _die_at(where: str, count: int) -> None:
    parts = where.split(".")
    place = __import__("incrlt.lifecycle." + parts[2], fromlist=["x"])
    for name in parts[3:-1]:
        place = getattr(place, name)
    whole, calls = getattr(place, parts[-1]), []

    def dying(*arguments, **options):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments, **options)

    setattr(place, parts[-1], dying)


def assert_same(one: Path, other: Path) -> None:
    """Two versions are the same to the bit, but for the time they took."""
    first, second = contents(one), contents(other)
    for name in (
        "kept.json",
        "kept/exemplars.zip",
        "kept/tests.zip",
        "confusions.npz",
        "config.yaml",
        "classes.json",
    ):
        assert first[name] == second[name], name
    tensors = [
        {name: value.tolist() for name, value in learned.read(place).strategy["model"]["tensors"].items()}
        for place in (one, other)
    ]
    assert tensors[0] == tensors[1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("most", [4, pytest.param(12, marks=pytest.mark.soak)])
def test_killed_at_random_moments_until_it_ends(run, monday, tmp_path, figure, most):
    """Kills without warning; wherever the update ends, it has the straight one's bits, and it begins anew."""
    straight = Path(shutil.copytree(run, tmp_path / "straight"))
    before, chance, kills, ends = contents(run), random.Random(0), 0, 0
    begun = time.monotonic()
    assert incrlt_("update", straight, monday, *NEW, "--accept", "none") == 0
    whole = time.monotonic() - begun
    while kills < most:
        pid = os.fork()
        if pid == 0:  # a fork has everything imported
            try:
                incrlt_("update", run, monday, *NEW, "--accept", "none")
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0, 0.8) * whole)
        os.kill(pid, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        assert contents(run) == before
        if (run / "versions" / "0002.json").exists() and versions.find(run, 2).accepted:
            assert_same(versions.path_of(run, 2), versions.path_of(straight, 2))
            shutil.rmtree(run / "versions")
            ends += 1
    assert incrlt_("update", run, monday, *NEW, "--accept", "none") == 0
    assert contents(run) == before
    assert_same(versions.path_of(run, 2), versions.path_of(straight, 2))
    figure(
        f"{kills} kills of an update, {ends + 1} ends, each the straight one's to the bit, its parent untouched"
    )


def test_files_of_a_version_are_plain_json(run, monday):
    incrlt_("update", run, monday, "--accept", "none")
    content = json.loads((run / "versions" / "0002.json").read_text())
    assert content["accepted"] is True and len(content["data"]) == 64
    assert content["source"] == str(monday) and set(CLASSES) >= {"teal"}
