"""Pages that explain runs: ``python -m incrlt.report RUN [RUN ...] -o FOLDER``, or :func:`write`.

:func:`figures` gives the charts of a page to a notebook.

A report is a pure function of run folders. It imports neither torch nor Avalanche, opens without network, and
shows what is there when a run is unfinished, damaged or older, saying what is missing.
"""

from __future__ import annotations

from incrlt.report.compare import write_index
from incrlt.report.interactive import figures
from incrlt.report.page import write
from incrlt.report.reading import Run, read_run

__all__ = ["Run", "figures", "read_run", "write", "write_index"]
