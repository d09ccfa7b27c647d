"""The comparison as files for a paper: CSV with every digit, Markdown and LaTeX with mean ± standard error."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from incrlt.files import write_atomic
from incrlt.metrics.results import cell
from incrlt.report.seeds import Estimate, Line, reference_of
from incrlt.written import written

PAPER = {
    "average_incremental_accuracy/over_tasks": "avg.",
    "last_accuracy/over_tasks": "last",
    "last_accuracy/over_classes": "last, classes",
    "last_accuracy/many_over_classes": "many",
    "last_accuracy/medium_over_classes": "medium",
    "last_accuracy/few_over_classes": "few",
    "forgetting/chaudhry_over_tasks": "forgetting",
}
"""Columns of a paper's table; CSV has all."""

LONGEST_STEM = 100
"""Letters; file systems take 255 bytes, with what is added to the name."""

LOWER_IS_BETTER = ("forgetting/", "confusion/")


def write_tables(folder: Path, protocol: str, digest: str | None, lines: Sequence[Line]) -> dict[str, str]:
    """Write the table of one protocol three times; returns format -> file name, none for an empty table.

    Args:
        folder: Where to write.
        protocol: The protocol's name.
        digest: Its hash, part of the files' names: two protocols never share a file.
        lines: Of :func:`incrlt.report.seeds.lines`.
    """
    if not lines:
        return {}
    stem = file_stem(f"{protocol}-{digest or 'unknown'}")
    texts = {
        "CSV": (f"{stem}.csv", as_csv(protocol, digest, lines)),
        "Markdown": (f"{stem}.md", as_markdown(lines)),
        "LaTeX": (f"{stem}.tex", as_latex(f"{protocol}, protocol hash {digest or 'unknown'}", lines)),
    }
    for name, text in texts.values():
        write_atomic(folder / name, text)
    return {kind: name for kind, (name, _) in texts.items()}


def file_stem(name: str) -> str:
    """Return a name as part of a file's name: plain signs, and a long one cut, with a hash of the whole.

    Example:
        >>> file_stem("LUCIR + LWS/seed 0"), len(file_stem("x" * 1000))
        ('LUCIR-LWS-seed-0', 100)
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    if len(plain) <= LONGEST_STEM:
        return plain
    return f"{plain[: LONGEST_STEM - 9]}-{sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"


def as_csv(protocol: str, digest: str | None, lines: Sequence[Line]) -> str:
    """Return one row per line and number: mean, standard error, n, and the paired difference to the first line."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["protocol", "protocol_hash", "method", "experiment", "readout", "seeds", "number", "n", "mean",
         "standard_error", "difference_to", "paired_n", "difference", "difference_standard_error"]
    )  # fmt: skip
    labels = distinct_labels(lines)
    for label, line in zip(labels, lines, strict=True):
        reference = reference_of(line, lines)
        versus = labels[lines.index(reference)] if reference else ""
        for name in line.values:
            found = line.estimate(name)
            gap = line.minus(reference, name) if reference else Estimate(None, None, 0)
            writer.writerow(
                map(cell, [protocol, digest, label, line.experiment, line.readout, "; ".join(line.seeds), name,
                 found.n, found.mean, found.error, versus, gap.n, gap.mean, gap.error])
            )  # fmt: skip
    return buffer.getvalue()


@dataclass(frozen=True)
class Gap:
    """What a line is ahead of the first line with the same read-out, seed by seed."""

    label: str
    readout: str
    n: int
    """Seeds that both have."""
    differences: Sequence[Estimate]
    """One per number of :data:`PAPER`."""


def gaps(lines: Sequence[Line]) -> list[Gap]:
    """Return the paired differences of the lines that share seeds with the first of their read-out."""
    labels, found = distinct_labels(lines), []
    for label, line in zip(labels, lines, strict=True):
        reference = reference_of(line, lines)
        common = set(line.seeds) & set(reference.seeds) if reference else set()
        if reference and common:
            name = f"{label} − {labels[lines.index(reference)]}"
            found.append(Gap(name, line.readout, len(common), [line.minus(reference, key) for key in PAPER]))
    return found


def as_markdown(lines: Sequence[Line]) -> str:
    """Return a Markdown table; below the means the differences, paired by seed."""
    head = ["method", "read-out", "n", *PAPER.values()]
    rows = [
        [_markdown(label), _markdown(line.readout), str(len(line.seeds))]
        + [words(line.estimate(name), " ± ") for name in PAPER]
        for label, line in zip(distinct_labels(lines), lines, strict=True)
    ]
    rows += [
        [_markdown(gap.label), _markdown(gap.readout), str(gap.n)]
        + [words(found, " ± ", "+") for found in gap.differences]
        for gap in gaps(lines)
    ]
    rule = ["---", "---", *["---:"] * (len(head) - 2)]
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, rule, *rows])


def as_latex(caption: str, lines: Sequence[Line]) -> str:
    """Return a LaTeX table for booktabs, the best mean of each column in bold; below it the paired differences."""
    best = {name: _best(name, lines) for name in PAPER}
    rows = [
        [_latex(label), _latex(line.readout), str(len(line.seeds))]
        + [_cell(line.estimate(name), best[name]) for name in PAPER]
        for label, line in zip(distinct_labels(lines), lines, strict=True)
    ]
    head = ["method", "read-out", "$n$", *PAPER.values()]
    below = [
        [_latex(gap.label).replace("−", "$-$"), _latex(gap.readout), str(gap.n)]
        + [_cell(found, None, "+") for found in gap.differences]
        for gap in gaps(lines)
    ]
    parts = ["".join(f"{' & '.join(row)} \\\\\n" for row in part) for part in (rows, below) if part]
    body = "\\midrule\n".join(parts)
    return (
        f"% {one_line(caption)}; mean $\\pm$ standard error over seeds, in \\%; needs \\usepackage{{booktabs}}\n"
        f"\\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}\n\\toprule\n{' & '.join(head)} \\\\\n\\midrule\n"
        f"{body}\\bottomrule\n\\end{{tabular}}\n"
    )


def distinct_labels(lines: Sequence[Line]) -> list[str]:
    """Return a name per line: the method; where several share it also the experiment; then what differs."""
    labels = [line.label for line in lines]
    experiments = _told_apart(lines, labels, [line.experiment for line in lines])
    return _told_apart(lines, experiments, [_difference(line, lines, experiments) for line in lines])


def _told_apart(lines: Sequence[Line], labels: Sequence[str], additions: Sequence[str]) -> list[str]:
    """Return the labels, those that several lines of one read-out share with an addition that tells them apart."""
    shared: dict[tuple[str, str], set[str]] = {}
    keys = [(label, line.readout) for label, line in zip(labels, lines, strict=True)]
    for key, addition in zip(keys, additions, strict=True):
        shared.setdefault(key, set()).add(addition)
    return [
        f"{label}, {addition}" if addition and len(shared[key]) > 1 else label
        for label, addition, key in zip(labels, additions, keys, strict=True)
    ]


def _difference(line: Line, lines: Sequence[Line], labels: Sequence[str]) -> str:
    """Return the configuration's values that tell a line from those of the same label, at most three."""
    own = labels[lines.index(line)]
    rivals = [other for other, label in zip(lines, labels, strict=True) if label == own]
    names = [
        name
        for name, value in line.options.items()
        if any(other.options.get(name, value) != value for other in rivals)
    ]
    return ", ".join(f"{name} {line.options[name]}" for name in names[:3])


def words(found: Estimate, plus_minus: str, sign: str = "") -> str:
    """Return "41.2 ± 0.3", "41.2" where there is one value, and an en dash where there is none.

    Args:
        found: What to write.
        plus_minus: What stands before the error.
        sign: "+" for a difference, which shows its sign always.
    """
    error = "" if found.mean is None or found.error is None else f"{plus_minus}{written(found.error)}"
    return f"{written(found.mean, sign=sign)}{error}"


def _best(name: str, lines: Sequence[Line]) -> float | None:
    means = [mean for line in lines if (mean := line.estimate(name).mean) is not None]
    if len(means) < 2:
        return None
    return min(means) if name.startswith(LOWER_IS_BETTER) else max(means)


def _cell(found: Estimate, best: float | None, sign: str = "") -> str:
    if found.mean is None:
        return "--"
    text = words(Estimate(found.mean, None, found.n), "", sign)
    text = f"\\mathbf{{{text}}}" if best is not None and found.mean == best else text
    error = "" if found.error is None else f" \\pm {found.error:.2f}"
    return f"${text}{error}$"


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, f"\\{sign}" if sign in "&%$#_{}" else sign) for sign in one_line(text))


_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}  # Markdown hands tags on to the page as they are


def _markdown(text: str) -> str:
    return "".join(_HTML.get(sign, f"\\{sign}" if sign in r"|\`*_[]" else sign) for sign in one_line(text))


def one_line(text: str) -> str:
    """Return a text on one line: it ends no comment and no row of a table. Other signs without a picture go too."""
    return "".join(sign if sign.isprintable() else " " for sign in text)
