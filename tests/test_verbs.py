"""``incrlt VERB``: every verb is there, says what it takes, and an unknown one is told; nothing heavy is loaded."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import incrlt
from incrlt import __main__ as command


@pytest.mark.parametrize("verb", command.VERBS)
def test_every_verb_has_a_main_and_a_help(verb, capsys):
    assert callable(importlib.import_module(command.VERBS[verb][0]).main)
    with pytest.raises(SystemExit) as stop:
        command.main([verb, "--help"])
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_help_version_and_what_is_no_verb(capsys):
    assert command.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {verb} " in said for verb in command.VERBS)
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"incrlt {incrlt.__version__}\n"
    assert command.main(["updte"]) == 2
    assert (
        "'updte' is no verb of incrlt" in (said := capsys.readouterr().err)
        and "Did you mean 'update'" in said
    )
    assert command.main([]) == 2


def test_verbs_say_what_they_take_without_torch():
    code = (
        "import sys, contextlib, io\nfrom incrlt.__main__ import main\n"
        "for verb in ('predict', 'update', 'rollback', 'export'):\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main([verb, '--help'])\n"
        "print(*({'torch', 'avalanche', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "", done.stdout
