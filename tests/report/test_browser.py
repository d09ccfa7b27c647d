"""Open the page as a person would, in headless Chromium; skipped where there is none."""

from __future__ import annotations

import json
import re

import pytest
from chromium import open_page

from incrlt import report
from incrlt.report.__main__ import main

PROBE = """<script>
const heading = [...document.querySelectorAll("#class-table th")].find((th) => th.textContent === "images");
const rows = () => [...document.querySelectorAll("#class-table tbody tr")];
const images = () => rows().map((row) => +row.cells[3].textContent);
heading.click(); const down = images(); heading.click(); const up = images();
const find = document.querySelector("[data-filter]");
find.value = "class 7"; find.dispatchEvent(new Event("input"));
const left = rows().filter((row) => !row.hidden).length;
const oldest = rows().filter((row) => row.cells[1].textContent === "0").slice(0, 2);
for (const row of oldest) row.click();
const box = document.getElementById("class-curves");
const drawn = box.firstElementChild.data.map((trace) => [trace.name, trace.x, trace.y]);
const read = oldest.map((row) => [row.cells[0].textContent, +row.cells[7].textContent]);
for (const row of oldest) row.click();
const emptied = box.hidden;
const matrix = document.querySelector('[data-figure="chart-matrix-cnn"]');
Plotly.Fx.hover(matrix, { xval: 0, yval: 1 }, "xy");
const hover = matrix.querySelector(".hoverlayer").textContent;
const names = () => document.querySelector('[data-figure="chart-accuracy"]').data.map((trace) => trace.name);
const first = names();
const choose = (name) => document.querySelector(`[data-choose="${name}"]`).click();
const figures = () => [...document.querySelectorAll("figure[data-readout]")].filter((one) => !one.hidden);
choose("nme"); const shown = [...new Set(figures().map((one) => one.dataset.readout))];
choose(""); const all = [...new Set(figures().map((one) => one.dataset.readout))], everyName = names().length;
const dangling = [...document.querySelectorAll('a[href^="#"]')].map((link) => link.hash)
  .filter((hash) => !document.getElementById(hash.slice(1)));
dispatchEvent(new Event("beforeprint")); const paper = getComputedStyle(document.body).backgroundColor;
dispatchEvent(new Event("afterprint"));
setTimeout(() => document.body.dataset.probe = JSON.stringify({ down, up, left, paper,
  hover, first, shown, all, everyName, dangling, curves: drawn, read, emptied,
  drawn: document.querySelectorAll(".plot:has(.main-svg)").length,
  plots: document.querySelectorAll(".plot").length,
  wide: document.documentElement.scrollWidth - innerWidth }), 1500); // plotly resizes a moment after it is asked
</script>"""


@pytest.mark.parametrize(
    ("width", "flags"),
    [(1200, ()), (500, ("--blink-settings=preferredColorScheme=0",))],
    ids=["wide", "narrow dark"],
)
def test_page_works_in_a_browser(browser, make_run, tmp_path, width, flags):
    folder = make_run(tmp_path, sizes=(6, 3, 3), epochs=2, num_experts=2)
    path = report.write(folder)
    path.write_text(path.read_text().replace("</html>", "") + PROBE)
    dom, console = open_page(browser, path, tmp_path / "profile", width, *flags)
    assert console == []
    probe = json.loads(re.search(r'data-probe="([^"]+)"', dom)[1].replace("&quot;", '"'))
    assert probe["down"] == sorted(probe["down"], reverse=True)
    assert probe["up"] == sorted(probe["up"])
    assert probe["left"] == 1
    matrix = report.read_run(folder).summaries["cnn"]["accuracy_matrix"]
    assert probe["hover"] == f"after experience 1, classes of 0{matrix[1][0]:.1f} %"
    assert probe["first"] == ["over tasks", "over classes", "over seen images"]  # of the main read-out
    assert (probe["shown"], probe["all"], probe["everyName"]) == (["nme"], ["cnn", "nme"], 6)
    assert probe["dangling"] == []
    assert [name for name, _, _ in probe["curves"]] == [name for name, _ in probe["read"]]
    for (_, x, y), (_, last) in zip(probe["curves"], probe["read"], strict=True):
        assert x == [0, 1, 2]
        assert y[-1] == pytest.approx(last, abs=0.5)
    assert probe["emptied"]
    assert probe["plots"] == probe["drawn"] == 28
    assert probe["paper"] == "rgb(245, 246, 249)"  # printed light whatever the screen
    assert probe["wide"] <= 0, "the page scrolls sideways"


COMPARE_PROBE = """<script>
const table = document.querySelector("table"), cells = (at) => [...table.tBodies[0].rows].map((row) => row.cells[at]);
table.tHead.rows[0].cells[3].click(); const means = cells(3).map((cell) => parseFloat(cell.textContent));
document.body.dataset.probe = JSON.stringify({ means,
  links: [...document.querySelectorAll("a[href]")].map((link) => link.getAttribute("href")),
  drawn: document.querySelectorAll(".plot:has(.main-svg)").length,
  wide: document.documentElement.scrollWidth - innerWidth });
</script>"""


@pytest.mark.parametrize("width", [1400, 500])
def test_comparison_works_in_a_browser(browser, make_run, tmp_path, width):
    runs = [
        make_run(tmp_path, name, seed=seed, sizes=(4, 2, 2), epochs=1, skill=skill, num_experts=2)
        for name, skill in (("weak", 0.4), ("strong", 0.9))
        for seed in range(2)
    ]
    assert main([*map(str, runs), "-o", str(tmp_path / "out")]) == 0
    path = tmp_path / "out" / "index.html"
    path.write_text(path.read_text().replace("</html>", "") + COMPARE_PROBE)
    dom, console = open_page(browser, path, tmp_path / "profile", width)
    assert console == []
    probe = json.loads(re.search(r'data-probe="([^"]+)"', dom)[1].replace("&quot;", '"'))
    assert len(probe["means"]) == 4 and probe["means"] == sorted(probe["means"], reverse=True)
    assert len(probe["links"]) == 3 + 4 * 2  # three formats; each of four runs with two read-outs
    assert all((path.parent / link).is_file() for link in probe["links"])
    assert probe["drawn"] == 1
    assert probe["wide"] <= 0, "the page scrolls sideways"
