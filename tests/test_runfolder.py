"""The run folder belongs to one process at a time, and what a process left behind is cleared."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch

from incrlt.errors import UserError
from incrlt.runner.folder import RunFolder
from incrlt.training.randomness import global_state, set_global_state


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_ends(tmp_path):
    first = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match="another process is running in"):
        RunFolder(tmp_path / "run")
    first.close()
    RunFolder(tmp_path / "run").close()


def test_a_killed_process_holds_no_folder(tmp_path):
    code = (
        "import os, signal, pathlib; from incrlt.runner.folder import RunFolder; "
        f"RunFolder(pathlib.Path({str(tmp_path / 'run')!r})); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    RunFolder(tmp_path / "run").close()


def test_a_folder_in_which_nothing_was_written_goes_away(tmp_path):
    RunFolder(tmp_path / "empty").close()
    assert not (tmp_path / "empty").exists()
    kept = RunFolder(tmp_path / "kept")
    kept.write_text("config.yaml", "a: 1")
    kept.close()
    assert (tmp_path / "kept" / "config.yaml").exists()


def test_leftovers_of_a_killed_write_are_cleared(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".results.json.1-0123abcd.tmp").write_text("half")
    (tmp_path / "run" / "config.yaml").write_text("a: 1")
    RunFolder(tmp_path / "run").close()
    assert [file.name for file in (tmp_path / "run").iterdir() if file.suffix == ".tmp"] == []


def test_the_second_number_of_a_gaussian_pair_is_remembered():
    """Python draws normal numbers in pairs and keeps one back."""
    random.seed(3)
    random.gauss()
    state = global_state(torch.device("cpu"))
    expected = [random.gauss() for _ in range(3)]
    set_global_state(state, torch.device("cpu"))
    assert [random.gauss() for _ in range(3)] == expected
