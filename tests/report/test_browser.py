"""Open the page as a person would, in headless Chromium; skipped where there is none."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from incrlt import report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync "
    "--disable-component-update --disable-dev-shm-usage --enable-logging=stderr --virtual-time-budget=8000"
)

PROBE = """<script>
const heading = [...document.querySelectorAll("#class-table th")].find((th) => th.textContent === "images");
const rows = () => [...document.querySelectorAll("#class-table tbody tr")];
const images = () => rows().map((row) => +row.cells[3].textContent);
heading.click(); const down = images(); heading.click(); const up = images();
const find = document.querySelector("[data-filter]");
find.value = "class 7"; find.dispatchEvent(new Event("input"));
const left = rows().filter((row) => !row.hidden).length;
const wide = document.documentElement.scrollWidth - innerWidth;
dispatchEvent(new Event("beforeprint")); const paper = getComputedStyle(document.body).backgroundColor;
dispatchEvent(new Event("afterprint"));
document.body.dataset.probe = JSON.stringify({ down, up, left, paper,
  drawn: document.querySelectorAll(".plot:has(.main-svg)").length,
  plots: document.querySelectorAll(".plot").length,
  wide });
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    return found or pytest.skip("no Chromium is installed: Debian's package is chromium")


def open_page(browser, path, profile, width, *flags):
    """Return the DOM after scripts ran, and what the console said."""
    command = [browser, *FLAGS.split(), f"--user-data-dir={profile}", f"--window-size={width},900", *flags]
    result = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=90, check=False
    )
    return result.stdout, re.findall(r".*:CONSOLE.*", result.stderr)


@pytest.mark.parametrize(
    ("width", "flags"),
    [(1200, ()), (500, ("--blink-settings=preferredColorScheme=0",))],
    ids=["wide", "narrow dark"],
)
def test_page_works_in_a_browser(browser, make_run, tmp_path, width, flags):
    path = report.write(make_run(tmp_path, sizes=(6, 3, 3), epochs=2))
    path.write_text(path.read_text().replace("</html>", "") + PROBE)
    dom, console = open_page(browser, path, tmp_path / "profile", width, *flags)
    assert console == []
    probe = json.loads(re.search(r'data-probe="([^"]+)"', dom)[1].replace("&quot;", '"'))
    assert probe["down"] == sorted(probe["down"], reverse=True)
    assert probe["up"] == sorted(probe["up"])
    assert probe["left"] == 1
    assert probe["plots"] == 19
    assert probe["drawn"] == 19
    assert probe["paper"] == "rgb(245, 246, 249)"  # printed light whatever the screen
    assert probe["wide"] <= 0, "the page scrolls sideways"
