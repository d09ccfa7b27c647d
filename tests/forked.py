"""What the two programs that fork runs share: slow imports made once, a child's output and end, orders line by line."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import plotly.graph_objects  # noqa: F401  (so that a fork need not)
import sklearn.datasets  # noqa: F401
import torch
from tensorboard.summary.writer.record_writer import RecordWriter  # noqa: F401

import incrlt.runner.run  # noqa: F401


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
