"""How a command ends: the exit codes of all verbs, and errors as one sentence."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final

from incrlt.errors import UserError

DONE, SOME_FAILED, BAD_INPUT, REJECTED, STOPPED, TERMINATED = 0, 1, 2, 3, 130, 143
"""Exit codes; 1 is of ``incrlt sweep``, a run of which failed, and of ``incrlt prepare``, where something must still
be got by hand, 3 of ``incrlt update``: the new version was made and did not pass its gate, answers come from the one
before."""

GO_ON: Final = "stopped; run the same command again to go on where it was."


class Terminated(BaseException):
    """SIGTERM came; not an error, so that nothing on the way takes it for one."""


def ended(
    work: Callable[[], int],
    *,
    stopped: str = GO_ON,
    terminated: str = "stopped by SIGTERM; what was saved stays. Run the same command again to go on.",
) -> int:
    """Run a command and return its exit code; whatever ends it is one sentence on standard error.

    Args:
        work: The command; returns 0 or a code of its own.
        stopped: What Ctrl-C says.
        terminated: What SIGTERM says.
    """
    try:
        with ended_by_sigterm():
            return work()
    except UserError as error:
        if os.environ.get("INCRLT_DEBUG") == "1":
            raise
        return _said(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        return _said(stopped, STOPPED)
    except Terminated:
        return _said(terminated, TERMINATED)
    except MemoryError:  # a run that has its folder says more
        return _said("there is not enough memory. End other programs, then run it again.", BAD_INPUT)
    except BrokenPipeError:  # the reader of our output (head, less) has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _said(text: str, code: int) -> int:
    rank = os.environ.get("RANK", "0")  # of several processes, set by torchrun
    text = text if rank == "0" else f"process {rank}: {text}"
    try:
        from incrlt.console import Console

        Console().error(text)
    except MemoryError:  # colours are not worth a second error; this takes next to nothing
        os.write(sys.stderr.fileno(), f"error: {text}\n".encode("utf-8", "replace"))
    return code


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the run as Ctrl-C does: files closed, the folder free, the reason said.

    Nothing more is saved, since the signal may come in the middle of a step. A second one ends the process at once.
    """
    if threading.current_thread() is not threading.main_thread():  # there Python allows no handler
        yield
        return

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
