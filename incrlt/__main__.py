"""``incrlt VERB ...``: one word before what ``python -m incrlt.VERB ...`` does."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Final

from incrlt.errors import did_you_mean

VERBS: Final = {
    "prepare": ("incrlt.prepare", "fetch data sets, or pack them for a machine without network"),
    "run": ("incrlt.run", "train one experiment from start to report"),
    "predict": ("incrlt.predict", "classify pictures with a finished run"),
    "update": ("incrlt.update", "let a finished run learn new pictures and classes"),
    "rollback": ("incrlt.rollback", "let answers come from an earlier version again"),
    "export": ("incrlt.export", "write a run as ONNX, to answer without incrlt and torch"),
    "sweep": ("incrlt.sweep.__main__", "run a grid or a search of experiments and compare them"),
    "report": ("incrlt.report.__main__", "write the pages of runs"),
    "doctor": ("incrlt.doctor", "look at this machine"),
}
"""Word to the module whose ``main`` it calls, and what it does."""

BAD_INPUT: Final = 2


def usage() -> str:
    """Return what ``incrlt --help`` says."""
    lines = [f"  {verb:<9} {what}" for verb, (_, what) in VERBS.items()]
    return "\n".join(["usage: incrlt VERB [...]", "", *lines, "", "incrlt VERB --help says more of each."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; only the module of the verb is loaded.

    Args:
        arguments: Words after the program's name; those of the process by default.

    Returns:
        The verb's exit code; 2 for an unknown one.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        (sys.stdout if words else sys.stderr).write(usage() + "\n")
        return 0 if words else BAD_INPUT
    if words[0] == "--version":
        import incrlt

        sys.stdout.write(f"incrlt {incrlt.__version__}\n")
        return 0
    verb = words[0]
    if verb not in VERBS:
        hint = did_you_mean(verb, VERBS)
        sys.stderr.write(f"error: {verb!r} is no verb of incrlt; allowed: {', '.join(VERBS)}.{hint}\n")
        return BAD_INPUT
    code: int = importlib.import_module(VERBS[verb][0]).main(words[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
