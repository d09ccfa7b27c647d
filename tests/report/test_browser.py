"""Open the page as a person would, in headless Chromium; skipped where there is none."""

from __future__ import annotations

import json
import re
from html import unescape

import numpy as np
import pytest
from chromium import open_page

from incrlt import report
from incrlt.report.__main__ import main
from incrlt.report.thumbnails import save_thumbnails

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


@pytest.mark.slow
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
    assert probe["hover"] == f"after experience 1, classes of 0{matrix[1][0]:.1f} %" + ", ".join(
        f"class {c}" for c in range(6)
    )
    assert probe["first"] == ["over tasks", "over classes", "over seen images"]  # of the main read-out
    assert (probe["shown"], probe["all"], probe["everyName"]) == (["nme"], ["cnn", "nme"], 6)
    assert probe["dangling"] == []
    assert [name for name, _, _ in probe["curves"]] == [name for name, _ in probe["read"]]
    for (_, x, y), (_, last) in zip(probe["curves"], probe["read"], strict=True):
        assert x == [0, 1, 2]
        assert y[-1] == pytest.approx(last, abs=0.5)
    assert probe["emptied"]
    assert probe["plots"] == probe["drawn"] == 32
    assert probe["paper"] == "rgb(245, 246, 249)"  # printed light whatever the screen
    assert probe["wide"] <= 0, "the page scrolls sideways"


THUMBNAILS_PROBE = """<script>
[...document.querySelectorAll("#class-table th")].find((th) => th.textContent === "images").click(); // sorted anew
const windows = [...document.querySelectorAll("#class-table .thumbnails")], sheet = new Image();
const numbers = (text) => text.split(" ").map(parseFloat);
sheet.onload = () => {
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d", { willReadFrequently: true });
  canvas.width = sheet.naturalWidth; canvas.height = sheet.naturalHeight; pen.drawImage(sheet, 0, 0);
  document.body.dataset.probe = JSON.stringify(windows.map((one) => {
    const style = getComputedStyle(one), scale = sheet.naturalWidth / numbers(style.backgroundSize)[0];
    const [left, top] = numbers(style.backgroundPosition), side = one.clientHeight, n = one.clientWidth / side;
    const seen = [...Array(n).keys()].map((place) =>
      [...pen.getImageData((side * (place + 0.5) - left) * scale, (side / 2 - top) * scale, 1, 1).data.slice(0, 3)]);
    return [one.closest("tr").cells[0].textContent, seen];
  }));
};
sheet.src = getComputedStyle(windows[0]).backgroundImage.slice(5, -2);
</script>"""


@pytest.mark.parametrize("side", [8, 32])
def test_each_row_shows_the_images_of_its_class(browser, make_run, tmp_path, side):
    """Images of one colour each: what lies behind the window of a row is what was saved for its class."""
    folder = make_run(tmp_path, sizes=(6, 3, 3), epochs=1)
    generator = np.random.default_rng(0)
    colours = [generator.integers(0, 256, (1 + index % 4, 3)) for index in range(12)]
    images = [own[:, :, None, None].repeat(side, 2).repeat(side, 3).astype(np.uint8) for own in colours]
    save_thumbnails(folder / "thumbnails.npz", images)
    path = report.write(folder)
    path.write_text(path.read_text().replace("</html>", "") + THUMBNAILS_PROBE)
    dom, console = open_page(browser, path, tmp_path / "profile", 1200)
    assert console == []
    shown = dict(json.loads(re.search(r'data-probe="([^"]+)"', dom)[1].replace("&quot;", '"')))
    assert len(shown) == 12
    for index, own in enumerate(colours):
        np.testing.assert_allclose(
            shown[f"class {index}"], own, atol=24
        )  # JPEG keeps colours at half the pixels


COMPARE_PROBE = """<script>
const table = document.querySelector("table"), cells = (at) => [...table.tBodies[0].rows].map((row) => row.cells[at]);
table.tHead.rows[0].cells[3].click(); const means = cells(3).map((cell) => parseFloat(cell.textContent));
const shown = () => [...document.querySelectorAll("table:first-of-type tbody tr")].filter((row) => !row.hidden)
  .map((row) => row.dataset.readout);
const own = [...new Set(shown())], nme = document.querySelector('[data-choose="nme"]');
nme.click(); const chosen = [...new Set(shown())];
const traces = document.querySelector('[data-figure="chart-1"]').data.map((trace) => trace.meta);
const legend = [...document.querySelectorAll("[data-legend] tbody tr")].filter((row) => !row.hidden);
legend[1].querySelector("button").click();
const opacity = document.querySelector('[data-figure="chart-1"]').data.map((trace) => trace.opacity);
document.body.dataset.probe = JSON.stringify({ means, own, chosen, traces, opacity,
  legend: legend.map((row) => [row.dataset.line, row.querySelector("button").textContent]),
  links: [...document.querySelectorAll('a[href]:not([href^="#"])')].map((link) => link.getAttribute("href")),
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
    assert (probe["own"], probe["chosen"], probe["traces"]) == (["cnn own"], ["nme"], ["nme", "nme"])
    assert probe["legend"] == [["2", "LUCIR+LWS, weak · nme"], ["4", "LUCIR+LWS, strong · nme"]]
    assert probe["opacity"] == [0.15, 1]  # the second row's curve is in front
    assert probe["drawn"] == 5  # curves, and four numbers with a dot per seed
    assert probe["wide"] <= 0, "the page scrolls sideways"


NAMES_PROBE = """<script>
for (const row of [...document.querySelectorAll("#class-table tbody tr")].slice(0, 2)) row.click();
const box = document.getElementById("class-curves"), legend = [...box.querySelectorAll(".legendtext")];
document.body.dataset.probe = JSON.stringify({ names: legend.map((one) => one.textContent),
  colours: box.firstElementChild.data.map((trace) => trace.line.color) });
</script>"""


def test_names_that_look_like_colours_or_tags_are_shown_as_they_are(browser, make_run, tmp_path):
    folder = make_run(tmp_path, sizes=(6, 3, 3), epochs=1, readouts=("cnn",))
    classes = json.loads((folder / "classes.json").read_text())
    classes["class_names"][:2] = ["@many", "<b>bold</b> & more"]
    (folder / "classes.json").write_text(json.dumps(classes))
    path = report.write(folder)
    path.write_text(path.read_text().replace("</html>", "") + NAMES_PROBE)
    dom, console = open_page(browser, path, tmp_path / "profile", 1200)
    assert console == []
    probe = json.loads(unescape(re.search(r'data-probe="([^"]+)"', dom)[1]))
    assert probe["names"] == ["@many", "<b>bold</b> & more"]
    assert all(colour.startswith("#") for colour in probe["colours"])


ROOM_PROBE = """<script>
setTimeout(() => document.body.dataset.probe = JSON.stringify({
  plots: [...document.querySelectorAll(".plot .nsewdrag")].map((one) => one.getBoundingClientRect().height),
  right: [...document.querySelectorAll("table")].map((table) => table.scrollWidth - table.parentNode.clientWidth),
}), 1500);
</script>"""


def opened(browser, path, tmp_path, width):
    """Open a page with its probe in a frame of this width: a window cannot be narrower than 500 pixels."""
    path.write_text(path.read_text().replace("</html>", "") + ROOM_PROBE)
    frame = path.with_name("frame.html")
    frame.write_text(
        f'<iframe src="{path.name}" style="width:{width}px;height:900px"></iframe><script>'
        "const wait = setInterval(() => {"
        'const probe = document.querySelector("iframe").contentDocument.body?.dataset.probe;'
        "if (probe) { document.body.dataset.probe = probe; clearInterval(wait); } }, 100)</script>"
    )
    flags = ("--allow-file-access-from-files",)
    dom, _ = open_page(browser, frame, tmp_path / "profile", max(width, 500), *flags)
    return json.loads(unescape(re.search(r'data-probe="([^"]+)"', dom)[1]))


def test_a_long_legend_leaves_the_chart_its_height(browser, make_run, tmp_path):
    runs = [
        make_run(tmp_path, f"a_rather_long_name_of_an_experiment_{name}", sizes=(4, 2, 2), epochs=1)
        for name in ("a", "b", "c", "d")
    ]
    assert main([*map(str, runs), "-o", str(tmp_path / "out")]) == 0
    (height,) = opened(browser, tmp_path / "out" / "index.html", tmp_path, 400)["plots"]
    assert height > 180


def test_long_labels_do_not_push_numbers_out_of_a_wide_page(browser, make_run, tmp_path):
    runs = [
        make_run(tmp_path, f"cifar100lt_10tasks_lucir_lws_experts_{name}", sizes=(4, 2, 2), epochs=1)
        for name in ("recipe", "control")
    ]
    assert main([*map(str, runs), "-o", str(tmp_path / "out")]) == 0
    assert max(opened(browser, tmp_path / "out" / "index.html", tmp_path, 1600)["right"]) <= 0


def test_all_numbers_are_seen_on_a_phone(browser, make_run, tmp_path):
    path = report.write(make_run(tmp_path, sizes=(4, 2, 2), epochs=1))
    text = re.sub(r"(?s)<section id=\"(?!numbers).*?</section>", "", path.read_text())
    path.write_text(text.replace("<table class", "<p hidden><table class"))  # the published rows may scroll
    assert opened(browser, path, tmp_path, 400)["right"][0] <= 0


FIGURE_PROBE = """<script>
const figure = document.getElementById("chart-lost-cnn");
const tool = (name) => [...figure.querySelectorAll(".figtools button")].find((button) => button.textContent === name);
tool("data").click();
const cells = [...figure.querySelectorAll(".data tr")].map((row) => [...row.cells].map((cell) => cell.textContent));
const opened = tool("data").getAttribute("aria-expanded");
tool("data").click(); const closed = !figure.querySelector(".data");
let saved = null; URL.createObjectURL = (blob) => { saved = blob; return "#"; };
tool("CSV").click();
let picture = null;
Plotly.downloadImage = (made, { filename, scale }) => { picture = [filename, scale, made.layout.paper_bgcolor]; };
tool("PNG").click();
const row = document.querySelector("#class-table tbody tr");
row.dispatchEvent(new KeyboardEvent("keydown", { key: " ", bubbles: true }));
const picked = row.classList.contains("same");
const find = document.querySelector("[data-filter]");
find.value = "experience 1"; find.dispatchEvent(new Event("input"));
const rows = [...document.querySelectorAll("#class-table tbody tr")].filter((one) => !one.hidden);
const left = rows.map((one) => one.cells[1].textContent);
location.hash = "#chart-lost-nme";
const links = [...document.querySelectorAll("#verdict a")].map((link) => link.hash.slice(1));
setTimeout(async () => document.body.dataset.probe = JSON.stringify({ cells, opened, closed, picture, picked, left,
  csv: await saved.text(), shown: !document.getElementById("chart-lost-nme").hidden, search: location.search,
  dangling: links.filter((name) => !document.getElementById(name)), links: links.length }), 1500);
</script>"""


def test_a_chart_gives_its_data_and_its_picture(browser, make_run, tmp_path):
    folder = make_run(tmp_path, sizes=(6, 3, 3), epochs=1)
    classes = json.loads((folder / "classes.json").read_text())
    classes["class_names"][0] = '=1+1, "x"'
    (folder / "classes.json").write_text(json.dumps(classes))
    path = report.write(folder)
    path.write_text(path.read_text().replace("</html>", "") + FIGURE_PROBE)
    dom, console = open_page(browser, path, tmp_path / "profile", 1200)
    assert console == []
    probe = json.loads(unescape(re.search(r'data-probe="([^"]+)"', dom)[1]))
    accuracy = report.read_run(folder).summaries["cnn"]["accuracy_matrix"]
    head, *rows = probe["cells"]
    assert head == ["after experience", "classes of experience", "value", "classes"]
    assert [row[:2] for row in rows] == [["1", "0"], ["2", "0"], ["2", "1"]]
    assert float(rows[0][2]) == pytest.approx(accuracy[0][0] - accuracy[1][0], abs=0.06)
    first, line, *_ = probe["csv"].splitlines()
    assert first == ",".join(head) and line.startswith("1,0,") and ',"\'=1+1, ""x"",' in line
    assert (probe["opened"], probe["closed"], probe["picked"]) == ("true", True, True)
    assert probe["picture"] == ["LUCIR-LWS-on-lfh-shuffled-10-lost-cnn", 3, "#fff"]
    assert probe["left"] == ["1", "1", "1"]
    assert probe["shown"] and probe["search"] == "?classes=0&find=experience+1&readout=nme"
    assert probe["links"] >= 6 and probe["dangling"] == []


CHOICE_PROBE = """<script>
const type = (side, text) => {
  const input = document.querySelector(`[data-${side}]`);
  input.value = text; input.dispatchEvent(new Event("change"));
};
const plot = document.querySelector('[data-figure="chart-confusion-nme"]');
const state = () => ({
  search: location.search, traces: plot.data.map((trace) => trace.z), rows: plot.layout.yaxis.ticktext,
  picked: [...document.querySelectorAll("#class-table tr.same")].map((row) => row.cells[0].textContent),
  found: [...document.querySelectorAll("#class-table tbody tr")].filter((row) => !row.hidden).length,
  of: document.querySelector("[data-of]").value, invalid: document.querySelector("[data-of]").ariaInvalid });
const before = state();
type("of", "1-2"); type("as", "");
for (const place of [4, 0]) document.getElementById(`class-${place}`).click();
const find = document.querySelector("[data-filter]");
find.value = "experience 1"; find.dispatchEvent(new Event("input"));
const after = state();
type("of", "77"); const wrong = document.querySelector("[data-of]").ariaInvalid; type("of", "1-2");
const bar = document.querySelector("nav"), hidden = [];
document.documentElement.style.scrollBehavior = "auto";
for (const link of document.querySelectorAll('a[href^="#"]')) {
  const target = document.getElementById(link.hash.slice(1));
  if (!target.offsetParent) continue;
  target.scrollIntoView();
  if (target.getBoundingClientRect().top < bar.getBoundingClientRect().bottom) hidden.push(link.hash);
}
document.body.dataset.probe = JSON.stringify({ before, after, wrong, hidden, lines: bar.offsetHeight });
</script>"""


@pytest.mark.parametrize("width", [1200, 600])
def test_classes_of_chosen_experiences_and_every_choice_in_the_address(browser, make_run, tmp_path, width):
    """The matrix is the counts; a page opened by the address shows the same; links land below the bar."""
    folder = make_run(tmp_path, sizes=(6, 3, 3), epochs=1, num_experts=2)
    path = report.write(folder)
    path.write_text(path.read_text().replace("</html>", "") + CHOICE_PROBE)
    probe = probed(browser, path, tmp_path, width)
    counts = np.load(folder / "confusions.npz")["nme_002"].astype(float)
    shares = 100 * counts / counts.sum(axis=1, keepdims=True)
    after = probe["after"]
    wrong, right = (np.array(z, dtype=float) for z in after["traces"])
    assert wrong.shape == right.shape == (6, 12)  # experiences 1 and 2, taken for all
    seen = np.where(np.isnan(right), np.nan_to_num(wrong), right)
    np.testing.assert_allclose(seen, shares[6:12], atol=0.051)
    assert after["rows"] == [f"class {index}" for index in range(6, 12)]
    assert after["search"] == "?readout=nme&of=1-2&as=&classes=4%2C0&find=experience+1"
    assert (after["picked"], after["found"]) == (["class 0", "class 4"], 3)
    assert (after["invalid"], probe["wrong"], probe["hidden"]) == ("false", "true", [])
    again = probed(browser, path, tmp_path, width, after["search"])["before"]
    assert again == {**after, "search": again["search"]}


def probed(browser, path, tmp_path, width, search="?readout=nme"):
    dom, console = open_page(browser, path, tmp_path / "profile", width, search=search)
    assert console == []
    return json.loads(unescape(re.search(r'data-probe="([^"]+)"', dom)[1]))
