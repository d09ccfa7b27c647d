"""The built site: every link inside it leads somewhere, pages open in a browser without errors, nothing is fetched."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from chromium import DARK, open_page, serious

REPOSITORY = Path(__file__).resolve().parent.parent
RUNS = REPOSITORY / "docs" / "gallery" / "runs"
OPENED = (
    "index.html", "gallery/index.html", "methods/lucir.html", "protocols/lfh-shuffled-10.html", "metrics.html",
    "datasets/cifar100.html", "tutorials/new_strategy.html", "_api/incrlt.losses.html",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(
            importlib.util.find_spec(name) is None
            for name in ("sphinx", "myst_parser", "furo", "latex2mathml")
        ),
        reason='the site is not installed for: pip install -e ".[docs]"',
    ),
]


class Page(HTMLParser):
    """What a page links to, loads, and can be linked at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {value for value in (found.get("id"), found.get("name")) if value}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag in ("script", "img", "iframe", "source") and found.get("src"):
            self.loaded.append(found["src"])
        elif tag == "link" and found.get("rel") != "canonical" and found.get("href"):
            self.loaded.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as ``make docs`` does: a warning is an error."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(out)]
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    result = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=1200, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return out


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {
        path.resolve(): Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts
    }


def problem(page: Path, link: str, pages: dict[Path, Page]) -> str | None:
    """Say what is wrong with a link of a page, or None."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.is_file():
        return f"{page.name} -> {link}: no such file"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].anchors:
        return f"{page.name} -> {link}: no such place on the page"
    return None


def test_every_link_inside_the_site_resolves(pages):
    assert len(pages) > 40
    found = {
        problem(path, link, pages) for path, page in pages.items() for link in (*page.links, *page.loaded)
    }
    assert not found - {None}


def test_the_link_check_notices_what_is_broken(site, pages):
    index = (site / "index.html").resolve()
    assert problem(index, "nowhere.html", pages)
    assert problem(index, "metrics.html#nowhere", pages)
    assert problem(index, "metrics.html#the-list", pages) is None


def test_nothing_is_fetched(site, pages):
    outside = {link for page in pages.values() for link in page.loaded if urlsplit(link).netloc}
    assert not outside
    styles = "".join(path.read_text("utf-8") for path in site.rglob("*.css"))
    assert not re.findall(r"(?:@import|url\()\s*[\"']?https?:", styles)


def test_every_method_protocol_dataset_and_package_has_its_page(site):
    from incrlt.benchmarks import facts
    from incrlt.benchmarks.protocols import NAMES

    for name in NAMES:
        assert (site / "protocols" / f"{name}.html").is_file()
    for name in facts.names():
        assert (site / "datasets" / f"{name}.html").is_file()
    api = "".join(path.read_text("utf-8") for path in (site / "_api").glob("*.html"))
    for path in (REPOSITORY / "incrlt").glob("*/[a-z]*.py"):
        assert f'id="module-incrlt.{path.parent.name}.{path.stem}"' in api, path


def test_the_gallery_shows_the_numbers_of_the_run_files(site):
    shown = (site / "gallery" / "index.html").read_text("utf-8")
    for results in RUNS.glob("*/*/results.json"):
        content = json.loads(results.read_text())
        numbers = [readout["numbers"] for readout in content["readouts"].values()]
        name = "average_incremental_accuracy/over_tasks"
        assert any(f">{one[name]:.2f}<" in shown for one in numbers), results
        assert f'gallery/reports/{results.parent.parent.name}-{results.parent.name}.html"' in shown
        command = json.loads((results.parent / "environment.json").read_text())["command"]
        assert command in shown, "every figure says how it was made"


def test_reports_share_one_script(site):
    reports = site / "gallery" / "reports"
    assert (reports / "plotly.min.js").stat().st_size > 1e6
    assert max(path.stat().st_size for path in reports.glob("*.html")) < 1e6


def test_no_page_names_a_path_of_the_machine(site):
    for path in site.rglob("*.html"):
        assert str(REPOSITORY) not in path.read_text("utf-8"), path


PROBE = """<script>addEventListener("load", () => setTimeout(() => {
const out = [...document.querySelectorAll("body *")].filter((one) => one.getBoundingClientRect().right > innerWidth + 1
  && !one.closest(".sidebar-drawer, .toc-drawer, .table-wrapper, .results, .formula, .highlight, pre, svg"));
document.body.dataset.probe = JSON.stringify({
  wide: document.documentElement.scrollWidth - innerWidth,
  out: out.slice(0, 5).map((one) => one.outerHTML.slice(0, 80)),
  heading: document.querySelector("h1").getBoundingClientRect().height,
}); }, 300));</script>"""


@pytest.mark.parametrize("page", OPENED)
@pytest.mark.parametrize(
    ("width", "flags"), [(1400, ()), (500, ("--blink-settings=preferredColorScheme=0",))]
)
def test_pages_open_in_a_browser(browser, site, tmp_path, page, width, flags):
    """500 is as narrow as headless Chromium opens a window."""
    source = site / page
    probed = source.with_name(f"probe-{width}-{source.name}")
    probed.write_text(source.read_text("utf-8").replace("</body>", PROBE + "</body>"), "utf-8")
    try:
        dom, console = open_page(browser, probed, tmp_path / "profile", width, *flags)
    finally:
        probed.unlink()
    assert console == []
    probe = json.loads(re.search(r'data-probe="([^"]+)"', dom)[1].replace("&quot;", '"'))
    assert probe["heading"] > 0
    assert probe["wide"] <= 0, f"the page scrolls sideways: {probe['out']}"


@pytest.mark.parametrize("page", ["index.html", "gallery/index.html", "gallery/reports/index.html"])
@pytest.mark.parametrize(("width", "flags"), [(1400, ()), (500, DARK)])
def test_nothing_serious_about_accessibility(browser, axe, site, tmp_path, page, width, flags):
    assert serious(browser, axe, site / page, tmp_path / "profile", *flags, width=width) == []
