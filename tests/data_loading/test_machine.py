"""Limits of memory from the system and from containers, and the package without what only POSIX has."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from incrlt.data import machine
from incrlt.data.machine import memory_bytes

PACKAGE = Path(machine.__file__).parents[1]


def system(root, cgroup, limits):
    """A file system with what a container shows of itself."""
    for name, text in {"proc/self/cgroup": cgroup, **limits}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "limits", "expected"),
    [
        ("0::/\n", {"sys/fs/cgroup/memory.max": "1000\n"}, 1000),
        ("0::/\n", {"sys/fs/cgroup/memory.max": "max\n"}, 5000),
        ("0::/a/b\n", {"sys/fs/cgroup/a/memory.max": "700\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}, 700),
        ("0::/a/b\n", {"sys/fs/cgroup/a/memory.max": "700\n", "sys/fs/cgroup/a/b/memory.max": "300\n"}, 300),
        ("0::/../outside\n", {"sys/fs/cgroup/memory.max": "800\n"}, 800),
        ("4:cpu,memory:/x\n", {"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "600\n"}, 600),
        ("4:memory:/x\n", {"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9223372036854771712\n"}, 5000),
        ("4:memory:/gone\n", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "650\n"}, 650),
        ("0::/\n", {"sys/fs/cgroup/memory.max": "9000\n"}, 5000),
        ("nonsense\n::\n", {"sys/fs/cgroup/memory.max": "what\n"}, 5000),
    ],
)
def test_the_smallest_limit_counts(tmp_path, monkeypatch, cgroup, limits, expected):
    monkeypatch.setattr(machine, "_physical", lambda: 5000)
    assert memory_bytes(system(tmp_path, cgroup, limits)) == expected


def test_a_system_that_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert memory_bytes(tmp_path) is None
    monkeypatch.setattr(os, "sysconf", lambda name: int(""), raising=False)
    assert memory_bytes(tmp_path) is None


MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
"""Modules that Windows does not have."""

NAMES = {
    "os": (
        "O_CLOEXEC", "O_DIRECTORY", "O_DSYNC", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC", "chown", "confstr",
        "fchdir", "fchmod", "fchown", "fork", "forkpty", "fstatvfs", "get_blocking", "geteuid", "getgid", "getloadavg",
        "getpgid", "getpriority", "getuid", "initgroups", "killpg", "lchown", "lockf", "mkfifo", "mknod", "nice",
        "pathconf", "posix_fadvise", "posix_fallocate", "posix_spawn", "pread", "preadv", "pwrite", "pwritev",
        "register_at_fork", "sched_getaffinity", "sched_setaffinity", "sendfile", "setpriority", "setsid", "setuid",
        "statvfs", "sync", "sysconf", "uname", "wait", "wait3", "wait4", "waitid",
    ),
    "signal": (
        "SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGSTOP", "SIGTSTP", "SIGUSR1", "SIGUSR2", "alarm",
        "pause", "pthread_kill", "pthread_sigmask", "setitimer", "sigpending", "sigwait",
    ),
    "time": ("clock_getres", "clock_gettime", "clock_settime", "pthread_getcpuclockid", "tzset"),
    "select": ("epoll", "kqueue", "poll"),
}  # fmt: skip
"""What these modules have on POSIX alone (the documentation's "Availability: Unix")."""


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_only_posix_has_is_asked_for_first(path):
    """Each use stands in a file that asks ``hasattr`` for it, or in a try that expects an AttributeError; modules are
    imported inside of a function or a try."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    asked = {
        (node.args[0].id, node.args[1].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr")
        and isinstance(node.args[0], ast.Name) and isinstance(node.args[1], ast.Constant)
    }  # fmt: skip
    tried = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try)
        and any("AttributeError" in ast.dump(handler) for handler in node.handlers)
        for line in node.body
        for inner in ast.walk(line)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and id(node) not in tried:
            name = (node.value.id, node.attr)
            assert name[1] not in NAMES.get(name[0], ()) or name in asked, (
                f"line {node.lineno}: {'.'.join(name)}"
            )
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not imported & set(MODULES), f"line {node.lineno}: {imported}"


WITHOUT = """
import importlib, os, pkgutil, signal, sys, time, select, tempfile
from pathlib import Path
import incrlt._compat, torch, avalanche.training, sklearn.datasets, torchvision.datasets, filelock
filelock.FileLock = filelock.SoftFileLock  # on Windows these are others, too
import collections, shutil
shutil.disk_usage = lambda path: collections.namedtuple("usage", "total used free")(1 << 40, 0, 1 << 40)
import numpy as np
for module in {modules}:
    sys.modules[module] = None
for module, names in {names}.items():
    for name in names:
        vars(sys.modules[module]).pop(name, None)
import incrlt
for found in pkgutil.walk_packages(incrlt.__path__, "incrlt."):
    if "_triton" not in found.name and "triton_backend" not in found.name and not found.name.endswith("__main__"):
        importlib.import_module(found.name)
from incrlt.files import write_atomic
from incrlt.benchmarks import folder_lt
from PIL import Image
folder = Path(tempfile.mkdtemp())
write_atomic(folder / "note.txt", "text")
for part in ("train", "test"):
    for label in "abcd":
        (folder / part / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / part / label / (str(number) + ".png"))
assert len(folder_lt(folder, "lfh-shuffled-2", image_size=8).train_stream) == 3
from incrlt.run import main
(folder / "tiny.yaml").write_text('''
benchmark: {{dataset: digits, base_classes: 5, increment: 5, order: shuffled, imbalance_ratio: 20}}
model: {{name: resnet8, width: 4}}
strategy: {{name: replay}}
memory: {{per_class: 2}}
training: {{epochs: 1, batch_size: 128, precision: fp32}}
device: cpu
''')
words = [str(folder / "tiny.yaml"), "--out", str(folder / "runs")]
assert main(words) == 0
(run,) = folder.glob("runs/tiny/*")
(run / "DONE").unlink()
assert main(words) == 0 and (run / "DONE").is_file() and (run / "report.html").is_file()
print("done", (folder / "note.txt").read_text())
"""


@pytest.mark.slow
def test_a_run_ends_and_goes_on_without_what_only_posix_has():
    """As on Windows: everything is taken away before the first module of ours is imported.

    Modules load, pictures are read, a run trains with a memory to its report, and the same command goes on.
    """
    script = WITHOUT.format(modules=MODULES, names=NAMES)
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent, check=False
    )
    assert found.stdout.strip().endswith("done text"), found.stderr[-2000:]
