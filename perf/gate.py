"""Compare two files of figures and fail on a regression; refuse to compare what is not alike.

``python -m perf.gate OLD.json NEW.json`` ends with 0 where nothing got worse, with 1 and a line per regression, and
with 2 and the reason where the files must not be compared: another GPU or processor, other versions, nothing in common.

What is compared never is a time. Counts (registers, launches, bytes) must not grow at all, memory by no more than 2 %.
Ratios measured in one run (times as fast as the published form, share of a copy's bandwidth, a step's speed over the
eager one) must not fall by more than 15 %, and where quartiles were measured, not below the old ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALIKE = ("gpu", "processor", "torch", "triton", "threads")
"""Facts of the machine that must be the same where both files state them; the processor only without a GPU."""
RATIO, MEMORY = 0.85, 1.02
"""What a ratio may fall to, and memory grow to."""


class NotAlikeError(Exception):
    """The files must not be compared."""


@dataclass(frozen=True)
class Figure:
    """One number that is compared.

    Attributes:
        value: A count or a ratio.
        lower_is_better: A count.
        limit: Factor beyond which a change is a regression.
        quartiles: Of a ratio, where they were measured.
    """

    value: float
    lower_is_better: bool
    limit: float
    quartiles: tuple[float, float] | None = None

    def worse(self, old: Figure) -> bool:
        """Say whether this is a regression from ``old``."""
        if self.lower_is_better:
            return self.value > old.value * self.limit
        fell = self.value < old.value * self.limit
        if self.quartiles is None or old.quartiles is None:
            return fell
        return fell and self.quartiles[1] < old.quartiles[0]


Section = tuple[dict[str, Any], dict[str, Figure]]
"""Facts of the machine, and figures by name."""


# ------------------------------------------------------------------------------------------------- what a file holds


def sections(content: dict[str, Any]) -> dict[str, Section]:
    """Return the comparable parts of a file by name.

    Args:
        content: Of a file that :mod:`perf.counts`, :mod:`perf.bench_kernels`, :mod:`perf.bench_steps` or
            :mod:`perf.run_cpu` wrote.
    """
    if "counts" in content:
        return {name: (content["machine"], _counts(part)) for name, part in content["counts"].items()}
    if "rows" in content:
        return {
            "rows": (content["machine"], {**_kernel_rows(content["rows"]), **_step_rows(content["rows"])})
        }
    parts = {name: part for name, part in content.items() if isinstance(part, dict) and "machine" in part}
    return {name: (part["machine"], dict(_spreads(part["figures"]))) for name, part in parts.items()}


def _counts(part: dict[str, dict[str, float]]) -> dict[str, Figure]:
    return {
        f"{name}: {kind}": Figure(value, True, 1.0)
        for name, counts in part.items()
        for kind, value in counts.items()
    }


def _kernel_rows(rows: list[dict[str, Any]]) -> dict[str, Figure]:
    """Launches, memory, share of the copy, and device time against the published form of the same run."""
    figures: dict[str, Figure] = {}
    rows = [row for row in rows if "kind" in row and "failed" not in row]
    published = {_problem(row): device_time(row) for row in rows if row["kind"] in ("published", "eager")}
    for row in rows:
        name = f"{_problem(row)}, {row['kind']}"
        if "launches" in row:
            figures[f"{name}: launches"] = Figure(row["launches"], True, 1.0)
        if "peak_bytes" in row:
            figures[f"{name}: peak bytes"] = Figure(row["peak_bytes"], True, MEMORY)
        if "share_of_copy" in row:
            figures[f"{name}: share of a copy's bandwidth"] = Figure(row["share_of_copy"], False, RATIO)
        own, other = device_time(row), published.get(_problem(row))
        if own and other and row["kind"] not in ("published", "eager"):
            figures[f"{name}: times as fast as published"] = Figure(other / own, False, RATIO)
    return figures


def _problem(row: dict[str, Any]) -> str:
    return f"{row['terms']} {tuple(row['shape'])} {row['dtype']}"


def device_time(row: dict[str, Any]) -> float | None:
    """Return microseconds on the device: of the graph, or the sum of kernels where no graph could be captured."""
    time: float | None = row["device_us"][1] if "device_us" in row else row.get("kernels_us")
    return time


def _step_rows(rows: list[dict[str, Any]]) -> dict[str, Figure]:
    """Images per second over those of the eager step with the same losses."""
    done = {(r["method"], r["kernels"], r["asked"]): r for r in rows if "images_per_second" in r}
    figures = {}
    for (method, kernels, asked), row in done.items():
        eager = done.get((method, kernels, "eager"))
        if asked != "eager" and eager is not None:
            speed = row["images_per_second"] / eager["images_per_second"]
            figures[f"{method}, {kernels}, {asked}: times as fast as eager"] = Figure(speed, False, RATIO)
    return figures


def _spreads(figures: dict[str, Any], path: str = "", ratio: bool = False) -> Iterator[tuple[str, Figure]]:
    """Find ratios in the files of the CPU: spreads under a key that says ``times_as_fast``, where more is better."""
    for key, value in figures.items():
        name = f"{path}, {key}" if path else key
        ratios = ratio or key.startswith("times_as_fast")
        if not isinstance(value, dict):
            continue
        if ratios and {"median", "quartiles"} <= set(value):
            low, high = value["quartiles"]
            yield name, Figure(value["median"], False, RATIO, (low, high))
        else:
            yield from _spreads(value, name, ratios)


# -------------------------------------------------------------------------------------------------------- comparison


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], int]:
    """Compare the figures that both files hold.

    Returns:
        A line per regression, naming what got worse and by how much; and how many figures were compared.

    Raises:
        NotAlikeError: Machines or versions differ, or there is nothing in common.
    """
    before, after = sections(old), sections(new)
    lines, compared = [], 0
    for part in before.keys() & after.keys():
        (old_machine, old_figures), (new_machine, new_figures) = before[part], after[part]
        check_alike(old_machine, new_machine)
        for name in old_figures.keys() & new_figures.keys():
            compared += 1
            if new_figures[name].worse(old_figures[name]):
                lines.append(_line(f"{part}: {name}", old_figures[name], new_figures[name]))
    if not compared:
        raise NotAlikeError(
            f"the files have no figure in common: the old one has {sorted(before)}, the new one {sorted(after)}"
        )
    return sorted(lines), compared


def check_alike(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise unless two machines are the same in what matters.

    Raises:
        NotAlikeError: Naming the first difference.
    """
    for fact in ALIKE:
        if fact == "processor" and old.get("gpu"):
            continue
        if fact == "triton" and "processor" in old and not old.get("gpu"):
            continue  # a CPU does not run it
        known = fact in old and fact in new
        if known and old[fact] != new[fact]:
            raise NotAlikeError(f"{fact} differs: {old[fact]} in the old file, {new[fact]} in the new one")


def _line(name: str, old: Figure, new: Figure) -> str:
    change = f"{100 * (new.value / old.value - 1):+.1f} %" if old.value else "was 0"
    return f"{name} went from {old.value:.4g} to {new.value:.4g} ({change})"


def main(arguments: list[str] | None = None) -> int:
    """Compare two files; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args(arguments)
    try:
        lines, compared = compare(*(json.loads(path.read_text()) for path in (options.old, options.new)))
    except (NotAlikeError, OSError, json.JSONDecodeError) as reason:
        sys.stderr.write(f"not compared: {reason}\n")
        return 2
    sys.stdout.write("".join(f"regression: {line}\n" for line in lines))
    sys.stdout.write(f"{compared} figures compared, {len(lines)} regressions\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
