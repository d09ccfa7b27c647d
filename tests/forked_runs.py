"""Runs experiments one after the other, each in a fork of this process, and kills them where it is told to.

Importing torch and Avalanche takes seconds, a tiny run less; here they are imported once. Reads one JSON object per
line from stdin: ``args`` (words of ``python -m incrlt.run``), ``output`` (file for what the run prints) and ``kill``:
null, ``{"after": "module:Class.method", "calls": n}`` (SIGKILL when the n-th call returns),
``{"half_written": n}`` (SIGKILL with half of the n-th checkpoint on disk) or ``{"seconds": s}`` (SIGKILL from
outside). Answers one JSON object per line: ``code`` (negative: the signal that ended the run), ``seconds``.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import plotly.graph_objects  # noqa: F401  (so that a fork need not)
import sklearn.datasets  # noqa: F401
import torch

import incrlt.checkpoint
import incrlt.runner.run
from incrlt.run import main


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_after(where: str, calls: int) -> None:
    module, _, name = where.partition(":")
    owner_name, _, method = name.partition(".")
    owner = getattr(importlib.import_module(module), owner_name)
    original, count = getattr(owner, method), 0

    @functools.wraps(original)
    def counted(*args, **kwargs):
        nonlocal count
        result = original(*args, **kwargs)
        count += 1
        if count == calls:
            die()
        return result

    setattr(owner, method, counted)


def die_in_write(number: int) -> None:
    original, count = incrlt.checkpoint.write_atomic, 0

    def half_written(path, content):
        nonlocal count
        count += 1
        if count < number:
            return original(path, content)
        beside = path.with_name(f".{path.name}.{os.getpid()}-00000000.tmp")
        beside.write_bytes(content[: len(content) // 2])
        return die()

    incrlt.checkpoint.write_atomic = half_written


def child(args: list[str], output: str, kill: dict | None) -> None:
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if kill and "after" in kill:
        die_after(kill["after"], kill["calls"])
    if kill and "half_written" in kill:
        die_in_write(kill["half_written"])
    code = 1
    try:
        code = main(args)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(order: dict) -> dict:
    begun = time.perf_counter()
    Path(order["output"]).parent.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid == 0:
        child(**order)
    if order["kill"] and "seconds" in order["kill"]:
        time.sleep(order["kill"]["seconds"])
        os.kill(pid, signal.SIGKILL)  # harmless when the run has ended: it has not been waited for
    _, status = os.waitpid(pid, 0)
    return {"code": os.waitstatus_to_exitcode(status), "seconds": time.perf_counter() - begun}


if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork must not inherit a pool of threads
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(json.loads(line))) + "\n")
        sys.stdout.flush()
