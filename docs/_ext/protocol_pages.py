"""What the pages of protocols and datasets show, worked out from the package: ``{protocol} ID``, ``{dataset} NAME``.

The hash of a protocol covers the kept images, so it needs the labels of the dataset in file order. A build needs no
data: the hashes stand in ``docs/protocols/hashes.json``, by the hash of the rule, written by
``python docs/_ext/protocol_pages.py DATA`` and held to the data by a test.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import links
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from incrlt.benchmarks import facts, large, longtail
from incrlt.benchmarks.protocols import NAMES, Protocol, resolve
from incrlt.metrics import published

DOCS = Path(__file__).resolve().parent.parent
HASHES = DOCS / "protocols" / "hashes.json"
DATASET = "cifar100"
RATIOS = (10, 50, 100)


@cache
def experiments() -> tuple[tuple[str, Protocol], ...]:
    """Return the protocol of every experiment file on CIFAR-100, by file name."""
    return tuple((name, links.experiments()[name].protocol()) for name in links.dataset_files(DATASET))


def rules(name: str) -> dict[str, tuple[Protocol, list[str]]]:
    """Return the rules under which a named protocol is run, by rule hash, with the experiments of each.

    A protocol without an experiment has the rule that its name alone gives.
    """
    found: dict[str, tuple[Protocol, list[str]]] = {}
    for file, rule in experiments():
        if rule.name == name:
            found.setdefault(rule.rule_hash, (rule, []))[1].append(file)
    plain = Protocol.named(name, DATASET)
    return found or {plain.rule_hash: (plain, [])}


def make_hashes(data: Path) -> dict[str, str]:
    """Return rule hash -> protocol hash of every protocol on these pages; reads CIFAR-100 in ``data``."""
    from incrlt.benchmarks import datasets

    labels = datasets.load(DATASET, data).train_labels.numpy()
    return {key: resolve(rule, labels).hash for name in NAMES for key, (rule, _) in rules(name).items()}


def hash_of(rule_hash: str) -> str:
    """Return the protocol hash of a rule.

    Raises:
        ExtensionError: It has not been worked out.
    """
    known = json.loads(HASHES.read_text("utf-8"))
    if rule_hash not in known:
        raise ExtensionError(f"no hash of rule {rule_hash}: run python docs/_ext/protocol_pages.py DATA")
    return known[rule_hash]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return a Markdown table, numbers to the right."""
    right = [bool(rows) and isinstance(cell, int | float) for cell in (rows[0] if rows else head)]
    lines = [head, ["--:" if one else "---" for one in right], *rows]
    return ["", *(f"| {' | '.join(map(str, line))} |" for line in lines), ""]


def protocol_lines(name: str) -> Iterator[str]:
    """Yield the Markdown of a protocol's page below its opening words."""
    found = rules(name)
    rule = next(iter(found.values()))[0]
    yield "## What arrives"
    yield from _experiences(rule)
    yield from _order(rule)
    yield "## Hash"
    yield from _hashes(found)
    yield "## Runs"
    yield from links.protocol_run_lines(name)
    yield "## Published"
    yield from _published(name)


def _experiences(rule: Protocol) -> Iterator[str]:
    plan = Protocol.named(rule.name, DATASET).plan()
    groups = longtail.GROUPS
    rows = [
        [
            row["experience"], len(row["classes"]), row["images"],
            *(row["classes_by_group"][name] for name in groups), *(row["images_by_group"][name] for name in groups),
        ]
        for row in plan
    ]  # fmt: skip
    total = [sum(row[at] for row in rows) for at in range(1, len(rows[0]))]
    head = [
        "experience",
        "classes",
        "images",
        *(f"{g} classes" for g in groups),
        *(f"{g} images" for g in groups),
    ]
    yield from table(head, [*rows, ["all", *total]])
    yield "CIFAR-100-LT, imbalance ratio 100, before a hold-out. Groups by images of a class in the full training set:"
    yield f"many more than {longtail.MANY_ABOVE}, few less than {longtail.FEW_BELOW}."
    yield ""


def _order(rule: Protocol) -> Iterator[str]:
    yield "Classes by arrival (id 0 is the most frequent):"
    yield from links.order_lines(rule.classes, DATASET)


def _hashes(found: dict[str, tuple[Protocol, list[str]]]) -> Iterator[str]:
    rows = [
        [
            f"`{hash_of(key)}`", rule.holdout, rule.augmentation, _words(rule.memory),
            rule.image_choice, ", ".join(links.file_link(file, "../") for file in files) or "none",
        ]
        for key, (rule, files) in found.items()
    ]  # fmt: skip
    head = ["hash", "hold-out", "augmentation", "memory", "kept images", "files of `experiments/`"]
    yield from table(head, rows)


def _words(memory: Any) -> str:
    return ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in memory.items()) or "none"


def _published(name: str) -> Iterator[str]:
    rows = published.for_protocol(name)
    if not rows:
        yield "No published number is known to us for this protocol; compare with baselines of your own."
        return
    figures = [figure for figure in published.COMPARED_WITH if any(figure in row.figures for row in rows)]
    yield from table(
        ["method", *figures, "status", "remark"],
        [
            [
                row.method,
                *(f"{row.figures[f]:.2f}" if f in row.figures else "–" for f in figures),
                row.status,
                row.note,
            ]
            for row in rows
        ],
    )
    meant = ", ".join(f"*{figure}* is `{published.COMPARED_WITH[figure]}`" for figure in figures)
    yield f"In percent, one seed each where the source says; {meant}. Status *unverified*: a single source, out of line"
    yield "with the others; *rerun*: worked out from the matrices of an independent re-run."


def dataset_lines(name: str) -> Iterator[str]:
    """Yield the Markdown of a dataset's page below its opening words."""
    known = facts.info(name)
    channels, height, width = known.image_shape
    yield "## Facts"  # parsed text that begins outside a section would end up behind the sections
    yield from table(
        ["", ""],
        [
            ["classes", known.num_classes],
            ["training images of the largest class", f"{known.max_images:,}"],
            ["test images", f"{known.test_images:,}"],
            ["image", f"{height} x {width} pixels, {channels} channel{'s' * (channels > 1)}"],
            ["mean, by channel", ", ".join(f"{value:.4f}" for value in known.mean)],
            ["standard deviation", ", ".join(f"{value:.4f}" for value in known.std)],
            ["training augmentation", f"`{known.augmentation}`"],
            ["source", known.source],
        ],
    )
    if name in large.SETS:
        yield "## Where it lies"
        yield _paths_as_code(large.how_to_get(name, Path("DATA", large.SETS[name].folder)))
        yield ""
    files = links.dataset_files(name)
    if files:
        yield "## Experiments"
        yield from table(["file of `experiments/`"], [[links.file_link(file, "../")] for file in files])
    yield "## Long tails"
    if name in large.SETS and large.SETS[name].own_tail:
        yield "Cut by `imbalance_ratio` in place of the data set's own, from as many pictures as are given above:"
    rows = [_tail(known, profile, ratio) for profile in longtail.PROFILES for ratio in RATIOS]
    yield from table(["profile", "ratio", "largest", "smallest", "images", *longtail.GROUPS], rows)
    yield "Images of the largest and the smallest class, of all classes, and classes by group."


def _paths_as_code(text: str) -> str:
    """Return a message with its paths, files, options and settings set as code."""
    return re.sub(
        r"(?<!\S)\{?(?:DATA[\w/.*-]*\w|\w+\.(?:txt|json|root|tar\.gz|zip)|--data|INCRLT_DATA)(?=[\s,.;]|$)",
        r"`\g<0>`",
        text,
    )


def _tail(known: facts.DatasetInfo, profile: str, ratio: int) -> list[object]:
    counts = longtail.class_counts(profile, known.num_classes, known.max_images, ratio)
    groups = longtail.groups(counts)
    sizes = [int(counts[0]), int(counts[-1]), int(counts.sum())]
    return [profile, ratio, *sizes, *(groups.count(name) for name in longtail.GROUPS)]


class _Lines(SphinxDirective):
    """Base: one argument, Markdown worked out from it."""

    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # the package may have changed
        text = "\n".join(self.lines(self.arguments[0]))
        return self.parse_text_to_nodes(text, allow_section_headings=True)

    def lines(self, name: str) -> Iterator[str]:
        """Yield the Markdown."""
        raise NotImplementedError


class ProtocolPage(_Lines):
    """Counts, class order, hashes and published numbers of a protocol."""

    def lines(self, name: str) -> Iterator[str]:
        return protocol_lines(name)


class DatasetPage(_Lines):
    """Facts of a dataset and of its long tails."""

    def lines(self, name: str) -> Iterator[str]:
        return dataset_lines(name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("protocol", ProtocolPage)
    app.add_directive("dataset", DatasetPage)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    HASHES.write_text(json.dumps(make_hashes(Path(sys.argv[1])), indent=1) + "\n", "utf-8")
