"""How a command ends: the exit codes of all verbs, and errors as one sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

from incrlt.errors import UserError
from incrlt.run import BAD_INPUT, DONE, STOPPED, TERMINATED, Terminated, ended_by_sigterm

REJECTED: Final = 3
"""``incrlt update``: the new version was made and did not pass its gate; answers come from the one before."""


def ended(work: Callable[[], int]) -> int:
    """Run a command and return its exit code.

    0: done. 2: bad input, one sentence on standard error. 3: a version was rejected. 130: Ctrl-C. 143: SIGTERM.

    Args:
        work: The command; returns 0 or a code of its own.
    """
    from incrlt.console import Console

    try:
        with ended_by_sigterm():
            return work()
    except UserError as error:
        if os.environ.get("INCRLT_DEBUG") == "1":
            raise
        Console().error(str(error))
        return BAD_INPUT
    except KeyboardInterrupt:
        Console().error("stopped; run the same command again to go on where it was.")
        return STOPPED
    except Terminated:
        Console().error("stopped by SIGTERM; what was saved stays. Run the same command again to go on.")
        return TERMINATED
    except BrokenPipeError:  # the reader of our output (head, less) has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
