"""Run the CPU measurements and write ``perf/data/<date>_cpu.json``: ``python -m perf.run_cpu``."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perf import (
    bench_compile,
    bench_epoch,
    bench_experts,
    bench_frozen,
    bench_herding,
    bench_kernels_cpu,
    bench_memory,
    bench_routing,
)
from perf.machine import machine

DATA = Path(__file__).resolve().parent / "data"


def main(arguments: list[str] | None = None) -> None:
    """Measure the parts asked for; parts already in the file of today are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help="herding, epoch, memory, experts, routing, kernels, compile, frozen; default: all",
    )
    parser.add_argument("--images", type=int, default=640, help="images per turn")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each competitor")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no round after this time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="what else the machine was doing")
    options = parser.parse_args(arguments)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "herding": lambda: bench_herding.measure(threads=options.threads),
        "epoch": lambda: bench_epoch.measure(
            options.images, options.rounds, options.seconds, options.threads
        ),
        "memory": lambda: bench_memory.measure(threads=options.threads),
        "experts": lambda: bench_experts.measure(
            rounds=options.rounds, seconds=options.seconds, threads=options.threads
        ),
        "routing": lambda: bench_routing.measure(
            rounds=options.rounds, seconds=options.seconds, threads=options.threads
        ),
        "compile": lambda: bench_compile.measure(
            rounds=options.rounds, seconds=options.seconds, threads=options.threads
        ),
        "frozen": lambda: bench_frozen.measure(
            rounds=options.rounds, seconds=options.seconds, threads=options.threads
        ),
        "kernels": lambda: bench_kernels_cpu.measure(rounds=options.rounds, threads=options.threads),
    }
    unknown = set(options.parts) - set(parts)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    path = DATA / f"{datetime.date.today().isoformat()}_cpu.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    DATA.mkdir(exist_ok=True)
    for name in options.parts or parts:
        facts = machine() | {"note": options.note, "threads": options.threads}
        results[name] = {"machine": facts, "figures": parts[name]()}
        path.write_text(json.dumps(results, indent=1) + "\n")
        sys.stdout.write(f"{name}: {path}\n")


if __name__ == "__main__":
    main()
