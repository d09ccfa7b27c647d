"""What is printed: the same facts on a terminal and in a file, few lines where nobody watches."""

from __future__ import annotations

import io

import pytest

from incrlt import console as module
from incrlt import endings
from incrlt.console import Clock, Console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def files() -> tuple[io.StringIO, io.StringIO, Console]:
    out, err = io.StringIO(), io.StringIO()
    return out, err, Console(out, err)


PLAN = [
    {
        "experience": t,
        "classes": list(range(4)),
        "classes_seen": 4 * (t + 1),
        "images": 100,
        "held_out": 0,
        "exemplars": 0,
        "epochs": 160,
        "later_epochs": 30,
        "work": 19_000,
        "classes_by_group": {"many": 1, "medium": 2, "few": 1},
        "images_by_group": {"many": 60, "medium": 30, "few": 10},
    }
    for t in range(3)
]


def event(experience: int, stage: str, epoch: int, epochs: int, **more: object) -> dict[str, object]:
    terms = {"cross_entropy": 0.91, "less_forget": 0.32}
    usual = {"lr": 0.1, "terms": terms, "loss": 1.23, "images_per_second": 3100.0, "seconds": 100 / 3100}
    place = {"experience": experience, "stage": stage, "epoch": epoch, "epochs": epochs}
    return {"event": "epoch", **place, **usual, **more}


def test_a_file_gets_at_most_ten_lines_per_experience_and_always_the_last(files):
    out, _, console = files
    console.banner({"experiment": "x"}, PLAN)
    out.truncate(0)
    for stage, epochs in (("train", 160), ("lws", 30)):
        for epoch in range(1, epochs + 1):
            console.epoch(event(0, stage, epoch, epochs))
    lines = out.getvalue().strip("\x00").splitlines()
    assert 4 <= len(lines) <= 10
    assert any("train epoch 160/160" in line for line in lines)
    assert "lws epoch 30/30" in lines[-1]


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 6, 7, 11, 99, 160, 1000])
def test_lines_per_stage(epochs):
    due = [epoch for epoch in range(1, epochs + 1) if module._is_due(epoch, epochs)]
    assert due[-1] == epochs
    assert len(due) <= module.LINES_PER_STAGE


def test_line_names_every_fact(files):
    out, _, console = files
    console.banner({}, PLAN)
    console.epoch(event(2, "train", 1, 1))
    line = out.getvalue().splitlines()[-1]
    assert line.startswith(
        "exp 2 (3/3) 12 cls | train epoch 1/1 | loss 1.23 (cross_entropy 0.91 less_forget 0.32) | lr 0.1 | 3.1k"
    )


def test_banner_leaves_out_what_is_not_known_and_prints_brackets_as_they_are(files):
    out, _, console = files
    console.banner({"experiment": "[red]x[/red]", "resumed": None, "changed": ""}, PLAN)
    text = out.getvalue()
    assert "[red]x[/red]" in text and "resumed" not in text and "changed" not in text
    assert "many 3 (180 images), medium 6 (90 images), few 3 (30 images)" in text


def test_experience_table_has_every_convention_and_says_none(files):
    out, _, console = files
    console.banner({}, PLAN)
    row = {
        "experience": 0,
        "classes_seen": 4,
        "memory_images": 7,
        "train_seconds": 372.0,
        "eval_seconds": 0.5,
    }
    values = dict.fromkeys(module.COLUMNS, 12.345) | {"forgetting/chaudhry_over_tasks": None}
    console.experience(row, {"cnn": values, "nme": {}})
    text = out.getvalue()
    assert "after experience 0 (1/3) | 4 classes | 7 exemplars | trained in 6:12 | evaluated in 0.5 s" in text
    assert all(word in text for head in module.COLUMNS.values() for word in head.split())
    assert "12.35" in text or "12.34" in text
    assert "–" in text and "nan" not in text.lower()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_fit_the_window_and_keep_every_digit(files, width):
    """The largest numbers there are: ImageNet-LT's images, three read-outs."""
    out, _, console = files
    console._out.width = width
    groups = {"many": 391, "medium": 473, "few": 136}
    plan = [
        PLAN[0]
        | {
            "experience": t,
            "images": 1_281_167,
            "exemplars": 20_000,
            "classes_by_group": groups,
            "work": 1.2e9,
        }
        for t in (0, 99)
    ]
    console._out.print(module._plan_table(plan, width))
    console.experience(
        {"experience": 9}, {name: dict.fromkeys(module.COLUMNS, -100.0) for name in ("cnn", "nme", "routed")}
    )
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    assert text.count("1281167") == 2 and text.count("2562334") == 1 and text.count("-100.00") == 3 * 8
    assert all(word in text for word in ("20000", "391", "946", "1.2G", "forgetting", "routed"))


def test_table_columns_are_metrics_that_exist():
    np = pytest.importorskip("numpy")
    from incrlt.metrics import StreamRecord, experience_rows

    confusions = (np.eye(2, dtype=np.int64), np.eye(3, dtype=np.int64))
    record = StreamRecord(confusions, np.array([0, 0, 1]), np.array([200, 50, 5]))
    assert set(module.COLUMNS) <= set(experience_rows(record)[0])


def test_errors_and_warnings_go_to_stderr_unwrapped(files):
    out, err, console = files
    console.warning("careful " * 40)
    console.error("wrong [b] " * 40)
    assert out.getvalue() == ""
    assert err.getvalue() == f"warning: {'careful ' * 40}\nerror: {'wrong [b] ' * 40}\n"


def test_finished_says_where_and_what_next(files):
    out, _, console = files
    numbers = {"average_incremental_accuracy/over_tasks": 93.084, "last_accuracy/over_tasks": 87.2}
    said = module.headline("nme", numbers)
    console.finished("runs/a", None, "python -m incrlt.report runs/a", "0.3 below LUCIR", said)
    assert out.getvalue().splitlines() == [
        "result      93.08 / 87.20 % (average over tasks / last, nme)",
        "published   0.3 below LUCIR",
        "run folder  runs/a",
        "next        python -m incrlt.report runs/a",
    ]


def test_terminal_shows_one_live_line_that_goes_away(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    console = Console(out, io.StringIO())
    console.banner({}, PLAN)
    for epoch in range(1, 161):
        console.epoch(event(0, "train", epoch, 160))
    console.warning("careful")
    console.experience({"experience": 0}, {"cnn": {}})
    console.finished("runs/a", "runs/a/report.html", "next", None)
    text = out.getvalue()
    assert "\x1b[2K" in text.rpartition("epoch 160/160")[2], "the last live line is wiped"
    assert "runs/a/report.html" in text
    console.close()


def test_time_left_is_proportional_to_the_images_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    clock = Clock([1000, 3000])
    step = {"images_per_second": 10.0, "seconds": 10.0, "epochs": 10, "stage": "train"}
    assert clock.advance({**step, "experience": 0, "epoch": 1}) is None
    now[0] = 10.0
    assert clock.advance({**step, "experience": 0, "epoch": 2}) == pytest.approx((4000 - 200) / 10)
    now[0] = 100.0
    left = clock.advance({**step, "experience": 1, "epoch": 1})
    assert left == pytest.approx((4000 - 1100) / (1000 / 100))
    now[0] = 110.0
    assert clock.advance({**step, "experience": 1, "epoch": 1, "stage": "lws"}) == pytest.approx(
        (4000 - 1200) / 10
    )


def test_clock_survives_a_plan_that_was_wrong():
    clock = Clock([10])
    for epoch in range(1, 50):
        left = clock.advance({"experience": 0, "epoch": epoch, "images_per_second": 100, "seconds": 1})
        assert left is None or left >= 0
    assert Clock([]).advance({"experience": 3, "epoch": 1}) is None


def test_what_looks_like_an_emoji_stays_text(files):
    """Paths and names are printed as they are. Before: ``data/:bird:`` became a picture of a bird."""
    out, err, console = files
    console.plain("root: data/:bird:")
    console.error("data/:bird: is not there")
    assert out.getvalue() == "root: data/:bird:\n" and err.getvalue() == "error: data/:bird: is not there\n"


def test_an_error_is_said_without_memory_for_colours(monkeypatch, capfd):
    """Before: a second MemoryError, from what colours the first, was a traceback."""

    def fails(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Console, "error", fails)
    assert endings.ended(fails) == endings.BAD_INPUT
    assert capfd.readouterr().err.startswith("error: there is not enough memory.")
