"""Accessibility by axe-core: nothing serious on a report and on a comparison.

The checker is npm's: ``npm install axe-core`` in the repository or in a folder that INCRLT_AXE names; skipped without.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
from chromium import open_page

from incrlt import report
from incrlt.report import page
from incrlt.report.__main__ import main

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SCRIPT = "node_modules/axe-core/axe.min.js"
DARK = ("--blink-settings=preferredColorScheme=0",)
# Charts are pictures with a name, a caption and a table of their data. Style sheets are not fetched: the page has one.
PROBE = """<script src="axe.min.js"></script><script>
axe.run({ exclude: [[".plot"]] }, { preload: false, resultTypes: ["violations"] }).then(({ violations }) =>
  document.body.dataset.probe = JSON.stringify(violations.map(({ id, impact, nodes }) =>
    [impact, id, nodes.slice(0, 3).map((node) => node.html.slice(0, 200))])));
</script>"""


@pytest.fixture(autouse=True)
def no_charts(monkeypatch):
    """Without plotly a page opens in a second; what it draws is left out of the check anyway."""
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "")


@pytest.fixture(scope="session")
def axe() -> Path:
    """Path of axe-core; skips where it is not installed."""
    folders = [Path(folder) for folder in (os.environ.get("INCRLT_AXE"), REPOSITORY) if folder]
    found = next((folder / SCRIPT for folder in folders if (folder / SCRIPT).is_file()), None)
    return found or pytest.skip(
        "axe-core is not installed: npm install axe-core, or set INCRLT_AXE to its folder"
    )


def serious(browser: str, axe: Path, path: Path, profile: Path, *flags: str) -> list:
    """Return what axe calls serious or critical, and what the console said."""
    shutil.copyfile(axe, path.with_name("axe.min.js"))
    path.write_text(path.read_text().replace("</html>", "") + PROBE)
    dom, console = open_page(browser, path, profile, 1400, *flags)
    found = json.loads(unescape(re.search(r'data-probe="([^"]*)"', dom)[1]))
    return [one for one in found if one[0] in ("serious", "critical")] + console


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


def test_the_checker_notices_pale_print(browser, axe, make_run, tmp_path):
    path = report.write(make_run(tmp_path, sizes=(4, 2), epochs=1))
    path.write_text(path.read_text().replace("--soft: #5c667a", "--soft: #c0c6d0"))
    found = serious(browser, axe, path, tmp_path / "profile")
    assert any(name == "color-contrast" for _, name, _ in found)
