"""Tables and plots of the speed measurements, drawn when the pages are built, from ``perf/data/*.json`` alone.

The directive ``perf-figures`` shows with ``cpu`` the fused losses on a CPU, with ``gpu`` every file that was measured
on a GPU, and a sentence where there is none. Pictures are inline SVG in the colour of the text: they need neither
network nor script.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive

DATA = Path(__file__).resolve().parents[2] / "perf" / "data"
WIDTH, LABELS, VALUES, LINE = 720, 330, 110, 20
"""Pixels: of the picture, of the text left and right of the bars, of a line."""
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
"""Paul Tol's bright scheme, told apart by the colour-blind."""

Bar = tuple[str, str, float, float, float]
"""Label, group (which colours it), value, and the ends of its whisker."""


class PerfFigures(Directive):
    """``cpu`` or ``gpu``: what was measured there."""

    required_arguments = 1
    KINDS: ClassVar = ("cpu", "gpu")

    def run(self) -> list[nodes.Node]:
        """Read the files and return tables and pictures."""
        (kind,) = self.arguments
        if kind not in self.KINDS:
            raise self.error(f"perf-figures shows {' or '.join(self.KINDS)}; got {kind!r}")
        env = self.state.document.settings.env
        for path in DATA.glob("*.json"):
            env.note_dependency(str(path))
        return of_cpu(DATA) if kind == "cpu" else of_gpu(DATA)


def files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the content of every file by name, the newest first."""
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"), reverse=True)}


# ------------------------------------------------------------------------------------------------------------ the CPU


def of_cpu(folder: Path) -> list[nodes.Node]:
    """Show the fused losses of the newest file that has them."""
    found = [(name, content["kernels"]) for name, content in files(folder).items() if "kernels" in content]
    if not found:
        return [paragraph("No file of a CPU is here yet.")]
    name, part = found[0]
    figures, key = part["figures"], "times_as_fast_as_published"
    problems = {problem: row for problem, row in figures.items() if key in row}
    bars = [
        (f"{problem}, {kind}", kind, spread["median"], *spread["quartiles"])
        for problem, row in problems.items()
        for kind, spread in row[key].items()
    ]
    rows = [
        [
            problem,
            *(
                f"{row['milliseconds'][kind]['median']:.2f}"
                for kind in ("published", "stacked", "closed_form")
            ),
            f"{row[key]['closed_form']['median']:.1f} ({quartiles(row[key]['closed_form'])})",
        ]
        for problem, row in problems.items()
    ]
    head = ["terms (K, B, C)", "published, ms", "stacked, ms", "closed form, ms", "times as fast (quartiles)"]
    return [paragraph(origin(name, part["machine"], figures["settings"])), table(head, rows), *picture(bars)]


def quartiles(spread: dict[str, Any]) -> str:
    """Return the quartiles as text."""
    low, high = spread["quartiles"]
    return f"{low:.1f} to {high:.1f}"


def origin(name: str, machine: dict[str, Any], settings: dict[str, Any]) -> str:
    """Say where figures come from."""
    facts = [
        machine.get("gpu") or machine.get("processor"),
        f"torch {machine['torch']}",
        f"triton {machine['triton']}" if machine.get("gpu") and machine.get("triton") else None,
        f"{settings['threads']} thread(s)" if "threads" in settings else None,
        f"n = {settings['rounds']} rounds in alternation" if "rounds" in settings else None,
        machine.get("note"),
    ]
    return f"perf/data/{name}: {'; '.join(str(fact) for fact in facts if fact)}."


# ------------------------------------------------------------------------------------------------------------ the GPU


def of_gpu(folder: Path) -> list[nodes.Node]:
    """Show every file with rows of a GPU: losses, and whole steps."""
    shown: list[nodes.Node] = []
    for name, content in files(folder).items():
        if "rows" in content and content["machine"].get("gpu"):
            shown.append(paragraph(origin(name, content["machine"], {})))
            losses = [row for row in content["rows"] if "kind" in row]
            steps = [row for row in content["rows"] if "images_per_second" in row]
            shown += _losses(losses) if losses else []
            shown += _steps(steps) if steps else []
            shown += _absent(content)
    return shown or [paragraph("No file of a GPU is here yet: nothing on this page was measured on one.")]


def _losses(rows: list[dict[str, Any]]) -> list[nodes.Node]:
    head = [
        "terms (K, B, C)", "who", "device, µs", "host, µs", "GB/s", "% of a copy", "launches", "peak, MB",
        "first call, s",
    ]  # fmt: skip
    body = [
        [
            problem(row),
            row["kind"],
            middle(row.get("device_us")) or (f"{row['kernels_us']:.1f} (sum)" if "kernels_us" in row else ""),
            middle(row.get("host_us")),
            number(row.get("gigabytes_per_second"), "{:.0f}"),
            number(row.get("share_of_copy"), "{:.0%}"),
            number(row.get("launches"), "{}"),
            number(row.get("peak_bytes"), "{:.1f}", 1e-6),
            row["failed"] if "failed" in row else number(row.get("first_call_seconds"), "{:.2f}"),
        ]
        for row in rows
    ]
    shares = [row for row in rows if "share_of_copy" in row]
    bars = [
        (f"{problem(row)}, {row['kind']}", row["kind"], *(100 * row["share_of_copy"],) * 3) for row in shares
    ]
    return [table(head, body), paragraph("Share of the bandwidth of a copy, in %:"), *picture(bars)]


def _steps(rows: list[dict[str, Any]]) -> list[nodes.Node]:
    bars = [
        (
            f"{row['method']}, {row['kernels']}, {row['step']}",
            row["step"],
            row["images_per_second"],
            *row["quartiles"],
        )
        for row in rows
    ]
    return [paragraph("Images per second of whole training steps:"), *picture(bars)]


def _absent(content: dict[str, Any]) -> list[nodes.Node]:
    lines = [f"{who}: {why}" for who, why in content.get("skipped", {}).items()]
    if content.get("left_out"):
        lines.append(f"not measured, no time left: {len(content['left_out'])} rows")
    return [paragraph("; ".join(lines) + ".")] if lines else []


def problem(row: dict[str, Any]) -> str:
    """Name what a row computes."""
    return f"{row['terms']} {tuple(row['shape'])} {row['dtype']}"


def middle(values: Sequence[float] | None) -> str:
    """Return the median of a row's three numbers."""
    return "" if values is None else f"{values[1]:.1f}"


def number(value: float | None, form: str, factor: float = 1) -> str:
    """Format a number that may be absent."""
    return "" if value is None else form.format(value if factor == 1 else value * factor)


# ------------------------------------------------------------------------------------------------ tables and pictures


def paragraph(text: str) -> nodes.paragraph:
    """Return a paragraph."""
    return nodes.paragraph(text, text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> nodes.table:
    """Return a table."""
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    group += nodes.thead("", _row(head))
    group += nodes.tbody("", *(_row(row) for row in rows))
    return nodes.table("", group)


def _row(cells: Sequence[str]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", paragraph(cell)) for cell in cells))


def picture(bars: Sequence[Bar]) -> list[nodes.Node]:
    """Return horizontal bars with whiskers."""
    return [nodes.raw("", svg(bars), format="html")] if bars else []


def svg(bars: Sequence[Bar]) -> str:
    """Draw bars from 0, one below the other, the value behind each."""
    longest = max(max(value, high) for _, _, value, _, high in bars) or 1.0
    scale = (WIDTH - LABELS - VALUES) / longest
    groups = list(dict.fromkeys(group for _, group, *_ in bars))
    parts = []
    for place, (label, group, value, low, high) in enumerate(bars):
        y, colour = place * LINE, COLOURS[groups.index(group) % len(COLOURS)]
        middle_y, end = y + LINE / 2, LABELS + value * scale
        parts.append(_text(LABELS - 8, middle_y, label, "end"))
        parts.append(
            f'<rect x="{LABELS}" y="{y + 3}" width="{value * scale:.1f}" height="{LINE - 6}" fill="{colour}"/>'
        )
        ends = [LABELS + low * scale, LABELS + high * scale]
        if high > low:
            parts.append(
                f'<path d="M{ends[0]:.1f} {middle_y}H{ends[1]:.1f}" stroke="currentColor" stroke-width="1.5"/>'
            )
        parts.append(_text(max(end, ends[1]) + 6, middle_y, f"{value:.3g}", "start"))
    height = len(bars) * LINE
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="100%" role="img" aria-label="bars" font-size="11" '
        f'font-family="sans-serif">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" dominant-baseline="central" '
        f'fill="currentColor">{html.escape(text)}</text>'
    )


def setup(app: Any) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("perf-figures", PerfFigures)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
