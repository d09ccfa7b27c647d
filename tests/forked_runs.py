"""Runs experiments one after the other, each in a fork of this process, and kills them where it is told to.

Importing torch and Avalanche takes seconds, a tiny run less; here they are imported once. Reads one JSON object per
line from stdin: ``args`` (words of ``python -m incrlt.run``), ``output`` (file for what the run prints) and ``kill``:
null, ``{"after": "module:Class.method", "calls": n}`` (SIGKILL when the n-th call returns), ``{"before": ...}``
likewise, ``{"half_written": n}`` (SIGKILL with half of the n-th checkpoint on disk; of another module's n-th file with
``"module"``), ``{"half_event": n}`` (half of TensorBoard's n-th record) or ``{"seconds": s}`` (SIGKILL from outside).
Two more are optional: ``limits``, a mapping of names of ``resource`` without ``RLIMIT_`` to numbers (a negative one: so
many bytes more than the process has), and ``patience``, seconds after which SIGALRM ends the run. Answers one JSON
object per line: ``code`` (negative: the signal that ended the run), ``seconds``.
"""

from __future__ import annotations

import functools
import importlib
import os
import resource
import signal
import time
from pathlib import Path

from forked import end_after, serve, warm_up
from tensorboard.summary.writer.record_writer import RecordWriter

from incrlt.run import main


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(where: str, calls: int, after: bool) -> None:
    module, _, name = where.partition(":")
    owner_name, _, method = name.rpartition(".")
    owner = importlib.import_module(module)
    owner = getattr(owner, owner_name) if owner_name else owner
    original, count = getattr(owner, method), 0

    @functools.wraps(original)
    def counted(*args, **kwargs):
        nonlocal count
        count += 1
        mine = count == calls
        if mine and not after:
            die()
        result = original(*args, **kwargs)
        if mine:
            die()
        return result

    setattr(owner, method, counted)


def die_in_event(number: int) -> None:
    original, count = RecordWriter.write, 0

    def half_written(self, data):
        nonlocal count
        count += 1
        if count < number:
            return original(self, data)
        self._writer.write(data[: len(data) // 2])
        self._writer.flush()
        return die()

    RecordWriter.write = half_written


def die_in_write(number: int, module: str = "incrlt.checkpoint") -> None:
    writer = importlib.import_module(module)
    original, count = writer.write_atomic, 0

    def half_written(path, content):
        nonlocal count
        count += 1
        if count < number:
            return original(path, content)
        beside = path.with_name(f".{path.name}.{os.getpid()}-00000000.tmp")
        data = content.encode() if isinstance(content, str) else content
        beside.write_bytes(data[: len(data) // 2])
        return die()

    writer.write_atomic = half_written


def prepare(kill: dict) -> None:
    for when in ("after", "before"):
        if when in kill:
            die_at(kill[when], kill["calls"], when == "after")
    if "half_written" in kill:
        die_in_write(kill["half_written"], kill.get("module", "incrlt.checkpoint"))
    if "half_event" in kill:
        die_in_event(kill["half_event"])


def size_of_process() -> int:
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


def child(args: list[str], kill: dict | None, limits: dict | None = None, patience=0) -> int:
    prepare(kill or {})
    for name, most in (limits or {}).items():
        most = most if most > 0 else size_of_process() - most
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    signal.alarm(patience)
    return main(args)


def run(order: dict) -> dict:
    begun = time.perf_counter()
    output = order.pop("output")
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid == 0:
        end_after(functools.partial(child, **order), output)
    if order["kill"] and "seconds" in order["kill"]:
        time.sleep(order["kill"]["seconds"])
        os.kill(pid, signal.SIGKILL)  # harmless when the run has ended: it has not been waited for
    _, status = os.waitpid(pid, 0)
    return {"code": os.waitstatus_to_exitcode(status), "seconds": time.perf_counter() - begun}


if __name__ == "__main__":
    warm_up()
    serve(run)
