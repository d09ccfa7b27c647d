"""``incrlt predict``: pictures in, a table and a page of answers out."""

from __future__ import annotations

from pathlib import Path

import torch

from incrlt.benchmarks import listing, reading
from incrlt.benchmarks.looking import Progress
from incrlt.errors import UserError
from incrlt.files import write_atomic
from incrlt.lifecycle import answers, learned, versions
from incrlt.lifecycle.answers import Answerer, Row
from incrlt.lifecycle.learned import Learned
from incrlt.report.answers import MOST, embedded, write_answers
from incrlt.runner.kept import encoded

NEAREST = 4
"""Exemplars shown beside an answer."""


def predict(
    run: Path,
    source: Path,
    table: Path,
    *,
    version: int | None = None,
    budget: float | None = None,
    progress: Progress | None = None,
) -> tuple[list[Row], str, Path]:
    """Answer pictures and write the answers.

    Args:
        run: Run folder.
        source: A picture, a folder, or a list of pictures.
        table: CSV file to write; the page goes beside it.
        version: Of the run; None: the one that answers.
        budget: Experts per picture on average.
        progress: Called while pictures are read.

    Returns:
        A line for every file, answered or not; how many there were; the page.

    Raises:
        UserError: No finished run, no pictures, or the answers cannot be written.
    """
    number = versions.current(run) if version is None else version
    versions.find(run, number)
    model = learned.read(versions.path_of(run, number), tests=False)
    found = listing.pictures_in(source)
    if not found.entries:
        found.check(skip_broken=True)
    pictures = reading.read(
        found, model.facts.preparation.shape, skip_broken=True, progress=progress, twice=True
    )
    answerer = Answerer(model, budget=budget)
    names = [entry.name for entry in pictures.listing.entries]
    lines = answers.rows(names, answerer(pictures.images), model.class_names)
    lost = answers.unanswered(pictures.listing.left_out)
    if table.is_dir():
        raise UserError(f"{table} is a folder; give a file for the answers: -o {table / 'answers.csv'}.")
    write_atomic(table, answers.as_csv([*lines, *lost], number))
    page = _page(table, run, number, pictures, answerer, lines, lost)
    return [*lines, *lost], pictures.listing.account, page


def _page(
    table: Path,
    run: Path,
    number: int,
    pictures: reading.ReadPictures,
    answerer: Answerer,
    lines: list[Row],
    lost: list[Row],
) -> Path:
    model, shown = answerer.learned, pictures.images[:MOST]
    near = answerer.nearest(shown, model.exemplars, NEAREST).tolist()
    cards = [
        {"row": row, "picture": _embedded(image), "near": [_exemplar(model, place) for place in places]}
        for row, image, places in zip(lines, shown, near, strict=False)
    ]
    facts = {
        "run": run.name,
        "number": number,
        "account": pictures.listing.account,
        "experts": answerer.network.num_experts,
        "nearest": bool(len(model.exemplars)),
        "problems": lost,
        "hidden": max(0, len(lines) - MOST),
    }
    return write_answers(answers.page_path(table), facts, cards)


def _exemplar(model: Learned, place: int) -> dict[str, str]:
    label = int(model.exemplars.labels[place])
    return {"picture": _embedded(model.exemplars.images[place]), "name": model.class_names[label]}


def _embedded(image: torch.Tensor) -> str:
    suffix, content = encoded(image)
    return embedded(content) if suffix == ".png" else "data:,"
