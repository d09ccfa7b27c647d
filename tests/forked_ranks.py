"""Starts the processes of one run as torchrun would, each a fork of this process, which has imported what is slow.

Reads one JSON object per line from stdin. ``{"words", "environments", "outputs"}`` starts a process for each
environment, with the words of ``python`` (``-m MODULE ...``, ``-c CODE`` or a file), its output to a file, and answers
their numbers. ``{"wait", "seconds"}`` waits for processes by their numbers and answers ``codes`` (negative: the signal
that ended it; null: still running, and killed now).
"""

from __future__ import annotations

import functools
import os
import runpy
import signal
import sys
import time
from pathlib import Path

from forked import end_after, serve

sys.path.insert(0, str(Path(__file__).resolve().parent))  # toy.py, as for a file that is run


def run(words: list[str]) -> None:
    first, *rest = words
    if first == "-m":
        sys.argv = rest
        sys.modules.pop(rest[0], None)  # python -m warns of a module that is there already
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        exec(rest[0], {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(first, run_name="__main__")


def child(words: list[str], environment: dict[str, str]) -> int:
    os.environ.update(environment)
    os.close(0)
    try:
        run(words)
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def start(words: list[str], environments: list[dict[str, str]], outputs: list[str]) -> list[int]:
    pids = []
    for environment, output in zip(environments, outputs, strict=True):
        pids.append(os.fork())
        if pids[-1] == 0:
            end_after(functools.partial(child, words, environment), output)
    return pids


def wait(pid: int, until: float) -> int | None:
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def answer(order: dict) -> dict:
    if "words" in order:
        return {"pids": start(**order)}
    until = time.monotonic() + order["seconds"]
    return {"codes": [wait(pid, until) for pid in order["wait"]]}


if __name__ == "__main__":
    serve(answer)
