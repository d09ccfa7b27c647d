"""A run folder is one thing: what is in it is what the run wrote, and a run goes on only with what is its own."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from tensorboard.summary.writer.record_writer import RecordWriter

import incrlt.models
from incrlt import manifest
from incrlt.checkpoint import CheckpointFolder
from incrlt.errors import UserError
from incrlt.files import write_atomic
from incrlt.manifest import Keeper
from incrlt.report.reading import read_run
from incrlt.run import main
from incrlt.runner import board, resume
from incrlt.runner.folder import RunFolder
from incrlt.runner.run import Run


def filled(folder: Path) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "tensorboard").mkdir()
    (folder / "config.yaml").write_text("a: 1\n")
    (folder / "protocol.json").write_text('{"hash": "p"}')
    (folder / "log.jsonl").write_text('{"event": "start"}\n')
    (folder / "tensorboard" / "events.1").write_bytes(b"e" * 100)
    (folder / "checkpoints" / "00000000-ab.pt").write_bytes(b"c" * 100)
    for name in (".lock", "DONE", "report.html", ".x.tmp"):
        (folder / name).write_text("not in it")
    return folder


def keeper(folder: Path) -> Keeper:
    return Keeper(folder, "config hash", "protocol hash", lambda: 5.0)


def differences(folder: Path) -> list[str]:
    return manifest.read(folder).differences(folder)


def test_it_names_every_file_with_its_size_and_hash(tmp_path):
    folder = filled(tmp_path / "run")
    keeper(folder).renew(session=3)
    found = manifest.read(folder)
    assert set(found.files) == {
        "config.yaml", "protocol.json", "log.jsonl", "tensorboard/events.1", "checkpoints/00000000-ab.pt",
    }  # fmt: skip
    # printf 'a: 1\n' | sha256sum
    entry = found.files["config.yaml"]
    expected = subprocess.run(["sha256sum", folder / "config.yaml"], capture_output=True, text=True).stdout
    assert (entry.size, entry.sha256) == (5, expected.split()[0])
    assert (found.config, found.protocol, found.finished) == ("config hash", "protocol hash", False)
    assert found.commit == {"number": 1, "time": 5.0, "session": 3}
    assert differences(folder) == []


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("config.yaml", lambda p: p.write_text("a: 2\n"), "its content is not what was written"),
        ("protocol.json", lambda p: p.write_text("{}"), "it has 2 bytes, 13 were written"),
        ("log.jsonl", lambda p: os.truncate(p, 10), "it has 10 bytes, 19 were written"),
        ("tensorboard/events.1", lambda p: p.unlink(), "it is missing"),
        ("config.yaml", lambda p: (p.unlink(), p.mkdir()), "it is no file"),
        ("config.yaml", lambda p: (p.unlink(), p.symlink_to("nowhere")), "it is missing"),
    ],
)
def test_what_changed_is_named(tmp_path, name, change, reason):
    folder = filled(tmp_path / "run")
    keeper(folder).renew()
    change(folder / name)
    assert differences(folder) == [f"{name} differs from its manifest: {reason}"]


def test_what_grows_may_be_longer_until_the_run_is_finished(tmp_path):
    folder = filled(tmp_path / "run")
    kept = keeper(folder)
    kept.renew()
    with open(folder / "log.jsonl", "a") as file:
        file.write("more\n")
    assert differences(folder) == []
    kept.renew(finished=True)
    assert differences(folder) == []
    with open(folder / "log.jsonl", "a") as file:
        file.write("more\n")
    assert differences(folder) == ["log.jsonl differs from its manifest: it has 29 bytes, 24 were written"]


def test_damage_between_two_commits_is_not_taken_for_what_was_written(tmp_path):
    """A flipped bit changes no time: the file is not read again, and its first hash stays."""
    folder = filled(tmp_path / "run")
    kept = keeper(folder)
    kept.renew()
    for name in ("protocol.json", "log.jsonl"):
        path, before = folder / name, (folder / name).stat()
        content = bytearray(path.read_bytes())
        content[3] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with open(folder / "log.jsonl", "a") as file:
        file.write("more\n")
    kept.renew()
    wrong = "differs from its manifest: its content is not what was written"
    assert differences(folder) == [f"log.jsonl {wrong}", f"protocol.json {wrong}"]


def test_a_run_that_goes_on_keeps_what_it_noticed_and_what_it_did_not_write(tmp_path):
    folder = filled(tmp_path / "run")
    keeper(folder).renew()
    (folder / "protocol.json").write_text('{"hash": "q"}')
    again = keeper(folder)
    found, noticed = resume.look_at(folder)
    again.take_over(found)
    again.notice(noticed)
    (folder / "config.yaml").write_text("a: 3\n")  # written by the run
    again.renew()
    wrong = "protocol.json differs from its manifest: its content is not what was written"
    assert differences(folder) == [wrong]
    assert manifest.read(folder).noticed == (wrong,)
    assert manifest.read(folder).commit["number"] == 2


def test_old_checkpoints_leave_it_and_files_of_the_run_do_not(tmp_path):
    folder = filled(tmp_path / "run")
    kept = keeper(folder)
    kept.renew()
    (folder / "checkpoints" / "00000000-ab.pt").unlink()
    (folder / "config.yaml").unlink()
    kept.renew()
    assert differences(folder) == ["config.yaml differs from its manifest: it is missing"]


def test_folders_of_older_versions_have_none_and_nothing_is_said(tmp_path):
    folder = filled(tmp_path / "run")
    assert manifest.read(folder) is None
    assert resume.look_at(folder) == (None, [])


def test_every_flipped_bit_of_the_manifest_is_noticed(tmp_path):
    folder = filled(tmp_path / "run")
    keeper(folder).renew()
    whole = (folder / manifest.FILE).read_bytes()
    chance = random.Random(0)
    for _ in range(300):
        content = bytearray(whole)
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        (folder / manifest.FILE).write_bytes(content)
        try:
            found = manifest.read(folder)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 400
        else:  # white space, or a letter that JSON writes in two ways
            assert found.differences(folder) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"null", b"\xff", b"[" * 100_000, b'{"format": 1}', b'{"format": 7}', b'{"format": 1e999}'],
)  # fmt: skip
def test_a_damaged_manifest_is_one_sentence(tmp_path, content):
    folder = filled(tmp_path / "run")
    (folder / manifest.FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"^manifest.json is damaged \(.*\): nothing says"):
        manifest.read(folder)


def test_a_manifest_cannot_send_its_reader_elsewhere(tmp_path):
    folder = filled(tmp_path / "run")
    keeper(folder).renew()
    content = json.loads((folder / manifest.FILE).read_text())
    content.pop("sha256")
    for name in ("../other", "/dev/zero", "a/../../b"):
        content["files"] = {name: [10**12, "0"]}
        sealed = {**content, "sha256": manifest._seal(content)}
        (folder / manifest.FILE).write_text(json.dumps(sealed))
        with pytest.raises(UserError, match="names a file outside the folder"):
            manifest.read(folder)


# ------------------------------------------------------------------------------------ a run of its own

TINY = """\
benchmark: {dataset: digits, base_classes: 5, increment: 5, order: shuffled, imbalance_ratio: 20}
model: {name: resnet8, width: 4}
strategy: {name: finetune}
training: {epochs: 1, batch_size: 128, precision: fp32}
device: cpu
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a finished run of two experiences, made in this process."""
    out = tmp_path_factory.mktemp("manifest")
    (out / "tiny.yaml").write_text(TINY)
    assert run(out) == 0
    (found,) = (out / "runs" / "tiny").iterdir()
    return found


def run(out: Path, *words: str) -> int:
    return main([str(out / "tiny.yaml"), "--out", str(out / "runs"), *words])


@pytest.fixture
def unfinished(trained, tmp_path) -> Path:
    """A copy of the run that lacks its end, so that it goes on; all but the report is there."""
    target = tmp_path / "runs" / "tiny" / trained.name
    shutil.copytree(trained, target)
    (target / "DONE").unlink()
    (tmp_path / "tiny.yaml").write_text(TINY)
    return target


def text_of(capsys) -> str:
    out, err = capsys.readouterr()
    return " ".join((out + err).split())


def test_a_finished_run_agrees_with_its_manifest(trained):
    found = manifest.read(trained)
    assert found.finished and found.noticed == ()
    assert found.differences(trained) == []
    on_disk = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    assert on_disk - set(found.files) == {"DONE", "manifest.json", "report.html", ".lock"}


def test_the_environment_tells_every_process_of_the_run(unfinished, tmp_path, capsys):
    assert run(tmp_path) == 0, text_of(capsys)
    machine = json.loads((unfinished / "environment.json").read_text())
    assert [session["from"] for session in machine["sessions"]] == ["the beginning", "after experience 1"]
    for session in machine["sessions"]:
        assert session["torch"] == torch.__version__.split("+")[0] and "incrlt.run" in session["command"]
        assert session["begun"].endswith("+00:00") and session["threads"] == machine["threads"]
    assert manifest.read(unfinished).commit["session"] == 2
    assert manifest.read(unfinished).differences(unfinished) == []


@pytest.mark.parametrize("name", ["protocol.json", "config.yaml", "thumbnails.npz"])
def test_a_flipped_bit_is_named_and_mended_when_the_run_goes_on(unfinished, tmp_path, capsys, name):
    path = unfinished / name
    whole = path.read_bytes()
    content = bytearray(whole)
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert run(tmp_path) == 0
    assert f"{name} differs from its manifest: its content is not what was written" in text_of(capsys)
    if name == "config.yaml":  # its folders are those of now
        assert resume.yaml.safe_load(path.read_text())["training"]["epochs"] == 1
    else:
        assert path.read_bytes() == whole
    found = manifest.read(unfinished)
    assert found.differences(unfinished) == []
    assert any(sentence.startswith(name) for sentence in found.noticed)


def test_a_damaged_sweep_of_a_router_is_named_when_nothing_is_left_to_train(unfinished, tmp_path, capsys):
    """It is written after an evaluation alone. Before: it stayed as it was, and nobody said so but the report."""
    sweep = unfinished / "routing_sweep.csv"
    sweep.write_text("threshold\n1.0\n")
    found = manifest.read(unfinished)
    kept = Keeper(unfinished, found.config, found.protocol)
    kept.take_over(found)
    kept.renew()
    sweep.write_text("thresh")
    assert run(tmp_path) == 0
    assert "routing_sweep.csv differs from its manifest: it has 6 bytes" in text_of(capsys)


def test_a_damaged_account_of_the_time_is_written_anew_when_nothing_is_left_to_train(unfinished, tmp_path):
    """It follows from the log. Before: it stayed damaged in a finished run, and nobody said so."""
    cost, found = unfinished / "cost.json", manifest.read(unfinished)
    right = cost.read_bytes()
    cost.write_bytes(right + b"x")
    assert found.differences(unfinished, ["cost.json"])
    assert run(tmp_path) == 0
    assert cost.read_bytes() == right and manifest.read(unfinished).differences(unfinished) == []


def test_a_log_that_lost_its_end_is_named(unfinished, tmp_path, capsys):
    os.truncate(unfinished / "log.jsonl", 100)
    assert run(tmp_path) == 0
    assert "log.jsonl differs from its manifest: it has 100 bytes" in text_of(capsys)


def test_a_checkpoint_of_another_learning_rate_is_refused(trained, unfinished, tmp_path, capsys):
    assert run(tmp_path, "training.lr=0.05", "seeds.all=3") == 0
    (other,) = (folder for folder in unfinished.parent.iterdir() if folder.name != unfinished.name)
    newest = sorted((other / "checkpoints").glob("*.pt"))[-1]
    (unfinished / "checkpoints" / newest.name.replace("0000000", "0000009")).write_bytes(newest.read_bytes())
    before = {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}
    assert run(tmp_path) == 2
    text = text_of(capsys)
    assert "is of another run: " in text
    assert "seeds.all is 3 there and 0 here" in text and "training.lr is 0.05 there and 0.1 here" in text
    assert {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()} == before


def test_report_names_what_differs(unfinished):
    assert not any("manifest" in problem for problem in read_run(unfinished).problems)
    content = json.loads((unfinished / "protocol.json").read_text())
    (unfinished / "protocol.json").write_text(json.dumps({**content, "seed": 5}))
    problems = read_run(unfinished).problems
    assert any(problem.startswith("protocol.json differs from its manifest: it has") for problem in problems)
    (unfinished / "manifest.json").unlink()
    assert not any("manifest" in problem for problem in read_run(unfinished).problems)


def test_load_reads_and_changes_nothing(unfinished, recwarn):
    whole = incrlt.models.load(unfinished)
    assert not recwarn.list
    newest = sorted((unfinished / "checkpoints").glob("*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    (unfinished / "classes.json").write_text("{}")
    before = {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}
    with pytest.warns(UserWarning) as caught:
        found = incrlt.models.load(unfinished)
    said = [str(warning.message) for warning in caught]
    assert any(newest.name in text and "passed over" in text for text in said)
    assert any("classes.json differs from its manifest" in text for text in said)
    assert {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()} == before
    assert whole.num_classes == found.num_classes == 10


HOSTILE = {
    "no strategy": lambda s: s.pop("strategy"),
    "no tensors": lambda s: s["strategy"]["model"].pop("tensors"),
    "a list": lambda s: s["strategy"].update(model=[1, 2]),
    "wide": lambda s: s["strategy"]["model"]["architecture"].update(width=10**9),
    "rather wide": lambda s: s["strategy"]["model"]["architecture"].update(width=4096),
    "many experts": lambda s: s["strategy"]["model"]["architecture"]["layout"].update(num_experts=10**9),
    "not finite": lambda s: s["strategy"]["model"]["architecture"]["layout"].update(scale=float("inf")),
    "a name": lambda s: s["strategy"]["model"]["architecture"].update(name="resnet" + "9" * 500),
    "classes": lambda s: s["strategy"]["model"].update(class_ids=list(range(300))),
    "router": lambda s: s["strategy"]["model"].update(
        router={
            "num_experts": 2,
            "num_features": 6000,
            "top": 6000,
            "hidden": 6000,
            "shared": True,
            "normalise": True,
        }
    ),
    "shape": lambda s: s["strategy"]["model"]["tensors"].update({"heads.0.weight": torch.ones(3, 3)}),
    "words": lambda s: s["strategy"]["model"].update(tensors={"a": "b"}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_checkpoint_of_another_structure_is_one_sentence_before_a_network_is_made(
    trained, tmp_path, case, monkeypatch
):
    state = CheckpointFolder(trained / "checkpoints").newest()
    HOSTILE[case](state)
    CheckpointFolder(tmp_path / "checkpoints").save(state)
    monkeypatch.setattr("incrlt.models.saved._built", lambda saved: pytest.fail("a network was made"))
    with pytest.raises(UserError) as caught:
        incrlt.models.load(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


# ------------------------------------------------------------------------------------ errors while handling errors


def test_a_disk_that_becomes_read_only_is_one_sentence(tmp_path, monkeypatch):
    """Writing fails, and so does cleaning up after it."""

    def fails(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", fails)
    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(UserError, match=r"cannot write .*: Read-only file system"):
        write_atomic(tmp_path / "x", "1")


def test_names_may_be_as_long_as_the_disk_allows(tmp_path):
    for name in ("n" * 255, "é" * 127, "😀" * 63):
        assert write_atomic(tmp_path / name, "1").read_text() == "1"
    with pytest.raises(UserError, match="File name too long"):
        write_atomic(tmp_path / ("n" * 256), "1")
    assert len(list(tmp_path.iterdir())) == 3


def from_the(number: int, real, failure: OSError):
    """Return a call that fails from its n-th time on."""
    count = 0

    def call(*arguments, **options):
        nonlocal count
        count += 1
        if count >= number:
            raise failure
        return real(*arguments, **options)

    return call


@pytest.mark.parametrize(
    "where", ["first write", "tenth write", "log", "tensorboard", "tensorboard's thread"]
)
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(tmp_path, monkeypatch, capsys, where):
    """Full still when the run is cleaned up, and at the next start."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        if where == "log":
            patch.setattr("incrlt.runner.folder.open", from_the(2, open, full), raising=False)
        elif where == "tensorboard":
            patch.setattr(
                board.SummaryWriter, "add_scalar", from_the(3, board.SummaryWriter.add_scalar, full)
            )
            patch.setattr(board.SummaryWriter, "close", from_the(1, None, full))
        elif where == "tensorboard's thread":  # before, its traceback stood above the sentence
            patch.setattr(RecordWriter, "write", from_the(3, RecordWriter.write, full))
        else:
            patch.setattr(os, "fsync", from_the(1 if where == "first write" else 12, os.fsync, full))
        assert run(tmp_path) == 2
        said = text_of(capsys)
        assert "No space left on device" in said and "Traceback" not in said
        if "write" in where:
            assert run(tmp_path) == 2
            assert "No space left on device" in text_of(capsys)
    assert run(tmp_path) == 0, text_of(capsys)
    (folder,) = (tmp_path / "runs" / "tiny").iterdir()
    assert manifest.read(folder).differences(folder) == []


def test_a_folder_that_is_removed_during_the_run_is_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY)
    real = RunFolder.log

    def removed(self, event):
        if event["event"] == "epoch":
            shutil.rmtree(self.path)
        real(self, event)

    monkeypatch.setattr(RunFolder, "log", removed)
    assert run(tmp_path) == 2
    assert "No such file or directory" in text_of(capsys)
    assert list((tmp_path / "runs" / "tiny").iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("can't start new thread"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_too_little_memory_is_one_sentence_and_other_errors_pass(tmp_path, monkeypatch, capsys, error):
    (tmp_path / "tiny.yaml").write_text(TINY)

    def fails(*_):
        raise error

    monkeypatch.setattr("incrlt.runner.run.Images", fails)
    assert run(tmp_path) == 2
    said = text_of(capsys)
    assert "there is not enough memory. What the run has saved stays: end other programs" in said
    error = RuntimeError("of another kind")
    with pytest.raises(RuntimeError, match="of another kind"):
        run(tmp_path)


def test_sigterm_ends_the_run_with_143_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY)
    handler, real = signal.getsignal(signal.SIGTERM), RunFolder.log
    with monkeypatch.context() as patch:

        def ended(self, event):
            real(self, event)
            if event["event"] == "epoch" and event["experience"] == 1:  # logged, not saved
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(RunFolder, "log", ended)
        assert run(tmp_path) == 143
    assert text_of(capsys).endswith(
        "stopped by SIGTERM; what was saved up to the last finished epoch stays. Run the same command again to go on."
    )
    assert signal.getsignal(signal.SIGTERM) == handler
    assert run(tmp_path) == 0
    assert "resuming after experience 0" in text_of(capsys)


def test_a_run_that_diverges_in_its_last_step_saves_nothing_more(tmp_path, monkeypatch, capsys):
    """Losses are looked at before each step; what the last step did went into evaluation and the only checkpoint."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    real = Run._epoch_end
    with monkeypatch.context() as patch:

        def broken(self, strategy):
            if strategy.experience_index == 1:
                strategy.model.state_dict()["stem.bn.running_var"].fill_(float("inf"))
            real(self, strategy)

        patch.setattr(Run, "_epoch_end", broken)
        assert run(tmp_path) == 2
    said = text_of(capsys)
    assert (
        "the run diverged: model.stem.bn.running_var is not finite in experience 1, stage 'train', " in said
    )
    assert "after epoch 1, step " in said
    (folder,) = (tmp_path / "runs" / "tiny").iterdir()
    assert torch.load(newest(folder), weights_only=True)["strategy"]["progress"]["experience"] == 1
    assert run(tmp_path) == 0
    assert "resuming after experience 0" in text_of(capsys)


def test_momentum_that_is_not_finite_names_the_same_place(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY)
    real = Run._epoch_end

    def broken(self, strategy):
        next(iter(strategy.optimizer.state.values()))["momentum_buffer"][0] = float("nan")
        real(self, strategy)

    monkeypatch.setattr(Run, "_epoch_end", broken)
    assert run(tmp_path) == 2
    said = text_of(capsys)
    assert (
        "the run diverged: strategy.optimizer.state.0.momentum_buffer is not finite in experience 0" in said
    )
    assert list(tmp_path.glob("runs/*/*/checkpoints/*.pt")) == []


def newest(folder: Path) -> Path:
    return sorted((folder / "checkpoints").glob("*.pt"))[-1]
