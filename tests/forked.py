"""What the two programs that fork runs share: what is slow made once, a child's output and end, orders line by line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import plotly.graph_objects  # noqa: F401  (so that a fork need not)
import sklearn.datasets  # noqa: F401
import torch
from tensorboard.summary.writer.record_writer import RecordWriter  # noqa: F401

import incrlt.runner.run  # noqa: F401
from incrlt.run import main

FIRST = """\
benchmark: {dataset: digits, base_classes: 5, increment: 5, imbalance_ratio: 100}
model: {name: resnet8, width: 2, head: cosine}
strategy: {name: lucir}
memory: {per_class: 1}
rebalance: {name: lws, epochs: 1}
training: {epochs: 1, precision: fp32, threads: 1}
device: cpu
"""


def warm_up() -> None:
    """Make a run here: templates compiled and operators imported once take a first run longer than training.

    A run sets its own random state, so that a fork's has the bits of the command's; a test of the kills says so.
    """
    torch.set_num_threads(1)
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said):
        path = os.path.join(folder, "first.yaml")
        with open(path, "w") as file:
            file.write(FIRST)
        assert main([path, "--out", folder]) == 0, said.getvalue()


def end_after(work: Callable[[], int], output: str) -> NoReturn:
    """Do a child's work with its output in a file, and end the process with the code that it returns."""
    code = 1
    try:
        with open(output, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve(answer: Callable[[Any], dict[str, Any]]) -> None:
    """Answer one JSON object per line of stdin."""
    torch.set_num_threads(1)  # a fork must not inherit a pool of threads
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()
