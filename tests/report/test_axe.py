"""Accessibility by axe-core: nothing serious on a report, a comparison and a page of answers.

The checker is npm's: ``npm install axe-core`` in the repository or in a folder that INCRLT_AXE names; skipped without.
The site's pages are checked in ``tests/test_site.py``.
"""

from __future__ import annotations

import pytest
from chromium import DARK, serious

from incrlt import report
from incrlt.report import page
from incrlt.report.__main__ import main
from incrlt.report.answers import write_answers


@pytest.fixture(autouse=True)
def no_charts(monkeypatch):
    """Without plotly a page opens in a second; what it draws is left out of the check anyway."""
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "")


@pytest.mark.parametrize("flags", [(), DARK], ids=["light", "dark"])
def test_a_report_has_nothing_serious(browser, axe, make_run, tmp_path, flags):
    path = report.write(make_run(tmp_path, sizes=(6, 3, 3), epochs=2, num_experts=2))
    assert serious(browser, axe, path, tmp_path / "profile", *flags) == []


@pytest.mark.parametrize("flags", [(), DARK], ids=["light", "dark"])
def test_a_comparison_has_nothing_serious(browser, axe, make_run, tmp_path, flags):
    runs = [
        make_run(tmp_path, name, seed=seed, sizes=(4, 2, 2), epochs=1)
        for name in ("weak", "strong")
        for seed in range(2)
    ]
    assert main([*map(str, runs), "-o", str(tmp_path / "out")]) == 0
    assert serious(browser, axe, tmp_path / "out" / "index.html", tmp_path / "profile", *flags) == []


@pytest.mark.parametrize("flags", [(), DARK], ids=["light", "dark"])
def test_a_page_of_answers_has_nothing_serious(browser, axe, tmp_path, flags):
    row = {
        "file": "a/bird.png",
        "class_name": "wren",
        "confidence": 0.8,
        "second": "finch",
        "second_confidence": 0.1,
    }
    picture = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
    near = [{"picture": picture, "name": "a kept wren"}]
    cards = [{"row": {**row, "experts_used": 2}, "picture": picture, "near": near}] * 2
    facts = {
        "run": "birds",
        "number": 0,
        "account": "2 of 3 pictures are answered",
        "experts": 3,
        "nearest": True,
    }
    problems = [{"file": "broken.png", "problem": "is no picture"}]
    path = write_answers(tmp_path / "answers.html", {**facts, "problems": problems, "hidden": 1}, cards)
    assert serious(browser, axe, path, tmp_path / "profile", *flags) == []
    assert "<main>" in path.read_text()


def test_the_checker_notices_pale_print(browser, axe, make_run, tmp_path):
    path = report.write(make_run(tmp_path, sizes=(4, 2), epochs=1))
    path.write_text(path.read_text().replace("--soft: #5c667a", "--soft: #c0c6d0"))
    found = serious(browser, axe, path, tmp_path / "profile")
    assert any(name == "color-contrast" for _, name, _ in found)
