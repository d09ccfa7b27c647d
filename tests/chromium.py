"""Open a page as a person would, in headless Chromium."""

from __future__ import annotations

import re
import subprocess
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
        [*command, "--dump-dom", path.as_uri() + search], capture_output=True, text=True, timeout=90, check=False
    )
    return result.stdout, re.findall(r".*:CONSOLE.*", result.stderr)
