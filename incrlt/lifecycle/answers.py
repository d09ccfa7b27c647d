"""What a model says of pictures: class, confidence, how many experts it took, and the exemplars most like each."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from incrlt.benchmarks.listing import LeftOut
from incrlt.lifecycle.learned import Learned
from incrlt.lifecycle.lesson import answering
from incrlt.metrics.results import cell
from incrlt.runner.build import choose_device
from incrlt.runner.kept import Pictures
from incrlt.training.class_means import normalised
from incrlt.types import ModelOutput

BATCH = 256
"""Pictures answered at a time."""
BY_HEAD = "cnn"
"""Name of the read-out of the heads."""
NEAREST_SCALE = 16.0
"""Factor that makes a confidence of cosines to class means: ours, about what a cosine head learns. The order of classes
is that of the cosines; the confidence of such a read-out is no calibrated probability."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers to N pictures.

    Args:
        probabilities: ``[N, C]``, classes in arrival order; each row sums to one.
        experts_used: ``[N]``.
    """

    probabilities: Tensor
    experts_used: Tensor

    @property
    def classes(self) -> Tensor:
        """Arrival position of the most probable class ``[N]``."""
        return self.probabilities.argmax(1)


class Answerer:
    """Answers as the evaluation of the run does: by the main read-out, with as few experts as the router asks for.

    Args:
        learned: The model.
        device: Where; None asks the experiment.
        budget: Experts per picture on average; None: as the router was taught.

    Attributes:
        by_head: The main read-out is that of the heads; otherwise it is the nearest mean of exemplars.
    """

    def __init__(
        self, learned: Learned, device: torch.device | None = None, budget: float | None = None
    ) -> None:
        self.learned, self.budget = learned, budget
        self.device = choose_device(learned.experiment.device) if device is None else device
        self.strategy = answering(learned, self.device)
        self.network: Any = self.strategy.model.eval()
        blank = torch.zeros(2, *learned.facts.preparation.shape, dtype=torch.uint8)
        first = next(iter(self.strategy.readouts(self._run(blank))))
        self.by_head = first == BY_HEAD or self.network.router is not None

    @torch.no_grad()
    def _run(self, images: Tensor) -> Any:
        x = self.network.prepare(images.to(self.device))
        return self.strategy.compute.run(self.network, x, rebalanced=True)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Answers:
        """Return the answers to uint8 pictures ``[N, C, H, W]``, on the CPU."""
        classes = len(self.learned.class_names)
        probabilities = torch.empty(len(images), classes)
        used = torch.empty(len(images), dtype=torch.int64)
        for rows in _chunks(len(images)):
            probabilities[rows], used[rows] = self._answer(images[rows])
        return Answers(probabilities, used)

    def _answer(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if not self.by_head:
            output = self._run(images)
            scores = self.main_scores(output)
            used = torch.full((len(images),), self.network.num_experts)
            return (NEAREST_SCALE * scores.float()).softmax(1).cpu(), used
        options = {} if self.budget is None else {"budget": self.budget}
        found = self.network.predict(self.network.prepare(images.to(self.device)), **options)
        return found.logits.float().softmax(1).cpu(), found.experts_used.cpu()

    def main_scores(self, output: ModelOutput) -> Tensor:
        """Return the scores ``[B, C]`` of the main read-out."""
        return next(iter(self.strategy.readouts(output).values()))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return unit vectors ``[N, K * D]`` whose products are mean cosines of the experts."""
        parts = [
            normalised(self._run(images[rows]).known_features.float()).cpu() for rows in _chunks(len(images))
        ]
        return torch.cat(parts) if parts else torch.empty(0, 0)

    def nearest(self, images: Tensor, exemplars: Pictures, number: int) -> Tensor:
        """Return the rows of the exemplars that are most like each picture ``[N, number]``, the nearest first."""
        number = min(number, len(exemplars))
        if not number or not len(images):
            return torch.empty(len(images), 0, dtype=torch.int64)
        cosines = self.features(images) @ self.features(exemplars.images).T
        return cosines.topk(number, dim=1).indices


def _chunks(number: int) -> Iterator[slice]:
    for first in range(0, number, BATCH):
        yield slice(first, first + BATCH)


@dataclass(frozen=True)
class Row:
    """One line of the answers.

    Args:
        file: The picture's name.
        class_name: The answer; empty where there is none.
        confidence: Its probability, in 0 to 1.
        experts_used: Experts that it took.
        second: The next class.
        second_confidence: Its probability.
        problem: Why there is no answer.
    """

    file: str
    class_name: str = ""
    confidence: float | None = None
    experts_used: int | None = None
    second: str = ""
    second_confidence: float | None = None
    problem: str = ""


HEAD = ("file", "class", "confidence", "experts_used", "second", "second_confidence", "version", "problem")


def rows(names: Sequence[str], answers: Answers, class_names: Sequence[str]) -> list[Row]:
    """Return a line for each picture."""
    best = answers.probabilities.topk(min(2, len(class_names)), dim=1)
    found = []
    for name, values, places, used in zip(
        names, best.values.tolist(), best.indices.tolist(), answers.experts_used.tolist(), strict=True
    ):
        second = (class_names[places[1]], values[1]) if len(places) > 1 else ("", None)
        found.append(Row(name, class_names[places[0]], values[0], used, *second))
    return found


def unanswered(left_out: Sequence[LeftOut]) -> list[Row]:
    """Return a line for each file that was left out."""
    return [Row(item.name, problem=item.reason or item.kind) for item in left_out]


def as_csv(lines: Sequence[Row], version: int) -> str:
    """Return the table of the answers as CSV with a head."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEAD)
    for row in lines:
        numbers = ["" if v is None else f"{v:.6f}" for v in (row.confidence, row.second_confidence)]
        writer.writerow(
            [_path(row.file), cell(row.class_name), numbers[0],
             "" if row.experts_used is None else row.experts_used, cell(row.second), numbers[1], version,
             cell(row.problem)]
        )  # fmt: skip
    return text.getvalue()


def _path(name: str) -> str:
    """Return a path that no spreadsheet runs as a formula, and that still is the file's."""
    return name if cell(name) == name else f"./{name}"


def page_path(table: Path) -> Path:
    """Return where the page beside a table goes."""
    return (
        table.with_suffix(".html")
        if table.suffix.lower() != ".html"
        else table.with_name(f"{table.stem}_page.html")
    )
