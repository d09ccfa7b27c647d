"""The page of answers: each picture with its class, confidence, and the kept pictures most like it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import jinja2
from markupsafe import Markup

import incrlt
from incrlt.files import write_atomic

MOST: Final = 500
"""Answers on a page; a browser shows them at once, and the table has all of them."""
_FOLDER = Path(__file__).parent


def write_answers(path: Path, facts: Mapping[str, object], cards: Sequence[Mapping[str, object]]) -> Path:
    """Write the page, one file that opens offline.

    Args:
        path: The file.
        facts: ``run``, ``number`` of the version, ``account``, ``experts``, ``nearest``, ``problems`` and ``hidden``.
        cards: One per answer shown: ``row``, ``picture`` and ``near``, pictures as :func:`embedded` gives them.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
    )
    style = Markup((_FOLDER / "page.css").read_text(encoding="utf-8"))
    template = environment.get_template("answers.html")
    return write_atomic(path, template.render(style=style, version=incrlt.__version__, cards=cards, **facts))


def embedded(png: bytes) -> str:
    """Return a PNG file as an address that a page can hold."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
