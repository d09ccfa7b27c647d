"""Open a page as a person would, in headless Chromium, and have it checked by axe-core."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync "
    "--disable-component-update --disable-dev-shm-usage --enable-logging=stderr --virtual-time-budget=8000"
)


def open_page(
    browser: str, path: Path, profile: Path, width: int, *flags: str, search: str = ""
) -> tuple[str, list[str]]:
    """Return the DOM after scripts ran, and what the console said; ``search`` is added to the address."""
    command = [browser, *FLAGS.split(), f"--user-data-dir={profile}", f"--window-size={width},900", *flags]
    result = subprocess.run(
        [*command, "--dump-dom", path.as_uri() + search],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    return result.stdout, re.findall(r".*:CONSOLE.*", result.stderr)


AXE = "node_modules/axe-core/axe.min.js"
DARK = ("--blink-settings=preferredColorScheme=0",)
# Charts are pictures with a name, a caption and a table of their data. Style sheets are not fetched twice.
AXE_PROBE = """<script src="axe.min.js"></script><script>addEventListener("load", () =>
axe.run({ exclude: [[".plot"]] }, { preload: false, resultTypes: ["violations"] }).then(({ violations }) =>
  document.body.dataset.probe = JSON.stringify(violations.map(({ id, impact, nodes }) =>
    [impact, id, nodes.slice(0, 3).map((node) => node.html.slice(0, 200))]))));
</script>"""


def find_axe() -> Path | None:
    """Return the script of npm's axe-core: in the repository, or in the folder that INCRLT_AXE names."""
    repository = Path(__file__).resolve().parent.parent
    folders = [Path(folder) for folder in (os.environ.get("INCRLT_AXE"), repository) if folder]
    return next((folder / AXE for folder in folders if (folder / AXE).is_file()), None)


def serious(browser: str, axe: Path, path: Path, profile: Path, *flags: str, width: int = 1400) -> list:
    """Return what axe calls serious or critical of a page, and what the console said."""
    copy, script = path.with_name(f"probe-{path.name}"), path.with_name("axe.min.js")
    shutil.copyfile(axe, script)
    head, end, tail = path.read_text("utf-8").rpartition("</body>")
    copy.write_text(head + AXE_PROBE + end + tail, "utf-8")
    try:
        dom, console = open_page(browser, copy, profile, width, *flags)
    finally:
        copy.unlink()
        script.unlink()
    found = json.loads(unescape(re.search(r'data-probe="([^"]*)"', dom)[1]))
    return [one for one in found if one[0] in ("serious", "critical")] + console
