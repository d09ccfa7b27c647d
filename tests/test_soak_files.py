"""Damaged files of a run folder are noticed or repaired; mutated ones end in a sentence: report, load, resume.

``make soak`` runs them; ``--share 0.1`` runs a tenth.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import shutil
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_config_fuzz import TREES, mutant
from test_manifest import TINY

import incrlt.models
from incrlt import manifest
from incrlt.checkpoint import _digest
from incrlt.errors import UserError
from incrlt.experiment import schema
from incrlt.experiment.plan import plan
from incrlt.report.__main__ import main as report
from incrlt.report.reading import read_run
from incrlt.run import main

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

DAMAGED, MUTATED, EXPERIMENTS = 60, 500, 500
SECONDS = 60
"""A guard against hanging on a busy machine, not a measurement."""
WRITTEN_AGAIN = ("report.html", "DONE")
"""Files that hold nothing of a run: whoever likes writes the page again, and of the other its name is all."""
RICH = (
    TINY.replace("finetune", "replay")
    + """\
experts: {name: ride, num_experts: 2}
rebalance: {name: lws, epochs: 1}
router: {name: expert_assignment, epochs: 1}
memory: {per_class: 3}
"""
)
"""A run that writes every kind of file."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a finished run with every kind of file."""
    out = tmp_path_factory.mktemp("soak-files")
    (out / "tiny.yaml").write_text(RICH)
    assert run(out) == 0
    (found,) = (out / "runs" / "tiny").iterdir()
    return found


def run(out: Path) -> int:
    return main([str(out / "tiny.yaml"), "--out", str(out / "runs")])


def copied(trained: Path, out: Path) -> Path:
    """A copy of the run in a place of its own, from which the same command goes on."""
    shutil.rmtree(out, ignore_errors=True)
    target = out / "runs" / "tiny" / trained.name
    shutil.copytree(trained, target)
    (out / "tiny.yaml").write_text(RICH)
    return target


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"still busy after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def said_by(call: Callable[[], Any]) -> tuple[str, str]:
    """Return how a call ended ("done", "sentence" or the traceback of a fault) and what it said."""
    out = io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
        warnings.catch_warnings(record=True) as warned,
    ):
        warnings.simplefilter("always")
        try:
            with within(SECONDS):
                code = call()
            ending = "sentence" if code == 2 else "done"
        except UserError as error:
            ending = "sentence"
            out.write(str(error))
        except BaseException:
            return traceback.format_exc(), out.getvalue()
    text = out.getvalue() + " ".join(str(warning.message) for warning in warned)
    if "Traceback" in text:
        ending = text
    if ending == "sentence" and not (text.strip() and len(text) < 20_000):
        ending = f"no sentence but {len(text)} letters"
    return ending, " ".join(text.split())


# ------------------------------------------------------------------------------------ damaged


def files_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")


def damage(path: Path, others: list[Path], rng: random.Random) -> str:
    """Damage a file as disks, programs and people do; return how."""
    content = path.read_bytes()
    how = rng.choice(["flip", "cut", "empty", "zeros", "gone", "folder", "longer", "other", "link"])
    if how in ("gone", "folder", "link"):
        path.unlink()
    if how == "folder":
        path.mkdir()
    if how == "link":
        path.symlink_to("nowhere")
    changed = {
        "flip": lambda: flipped(content, rng),
        "cut": lambda: content[: rng.randrange(len(content))],
        "empty": lambda: b"",
        "zeros": lambda: bytes(len(content)),
        "longer": lambda: content + bytes(rng.randrange(256) for _ in range(20)),
        "other": lambda: rng.choice(others).read_bytes(),
    }
    if how in changed:
        path.write_bytes(changed[how]())
    return how


def flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def numbers(folder: Path) -> dict[str, bytes]:
    names = (
        "results.csv",
        "per_class.csv",
        "classes.json",
        "protocol.json",
        "evaluations.npz",
        "thumbnails.npz",
    )
    return {name: (folder / name).read_bytes() for name in names}


def test_damaged_files_are_noticed_or_repaired(trained, tmp_path, cases, figure):
    """A finished run: report, load or the same command says so. One that goes on: it says so, or repairs it."""
    right, counts, missed = numbers(trained), Counter(), []
    for number in cases(DAMAGED):
        rng = random.Random(number)
        folder, finished = copied(trained, tmp_path / "run"), number % 2 == 0
        choice = [path for path in files_of(folder) if path.name not in WRITTEN_AGAIN]
        path = rng.choice(choice)
        name, before = path.relative_to(folder).as_posix(), path.read_bytes()
        how = damage(path, [other for other in choice if other != path], rng)
        if path.is_file() and path.read_bytes() == before:  # other file, same content
            continue
        if finished:
            outcome = noticed_in_finished(folder, tmp_path / "run", name)
        else:
            (folder / "DONE").unlink()
            ending, text = said_by(lambda: run(tmp_path / "run"))
            outcome = "noticed" if ending == "sentence" else ending
            if ending == "done":
                outcome = outcome_of(folder, name, text, numbers(folder) == right)
        counts[outcome if outcome in ("noticed", "repaired") else "missed"] += 1
        if outcome not in ("noticed", "repaired"):
            missed.append((number, name, how, "finished" if finished else "goes on", outcome))
    figure(f"damaged files: {dict(counts)}")
    assert not missed, missed


def outcome_of(folder: Path, name: str, said: str, same: bool) -> str:
    """Tell what became of a damaged file in a run that went on; of an older checkpoint its name tells the digest."""
    last = name.split("/")[-1]
    differs = [sentence.split()[0] for sentence in manifest.read(folder).differences(folder)]
    if last in said or (name in differs and name.startswith("checkpoints/")):
        return "noticed"
    return "repaired" if same and not differs else f"numbers the same: {same}; differs: {differs}"


def noticed_in_finished(folder: Path, out: Path, name: str) -> str:
    """Tell whether report, load or the same command names the file; else what went wrong."""
    found = [
        said_by(lambda: incrlt.models.load(folder) and 0),
        said_by(lambda: run(out)),
        said_by(lambda: sys.stdout.write(" ".join(read_run(folder).problems)) and 0),
    ]
    fault = next((ending for ending, _ in found if ending not in ("done", "sentence")), None)
    named = any(name.split("/")[-1] in text for _, text in found)
    return fault or ("noticed" if named else "nobody said so")


# ------------------------------------------------------------------------------------ mutated


def mutated_tree(value: Any, rng: random.Random) -> Any:
    """Return plain data with one part replaced, removed or moved, at a random depth."""
    value = copy.deepcopy(value)
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        deed = rng.randrange(6)
        if deed == 0:
            del value[key]
        elif deed == 1:
            value[rng.choice(["x", "", "\0", f"{key}\n", "é" * 50])] = value.pop(key)
        else:
            value[key] = mutated_tree(value[key], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        if rng.random() < 0.3:
            return value[:place]
        value[place] = mutated_tree(value[place], rng)
        return value
    return rng.choice([*TREES, [value], {"a": value}, [value] * 40, str(value)])


def mutated_text(content: bytes, rng: random.Random) -> bytes:
    deed = rng.randrange(5)
    if deed == 0:
        return flipped(content, rng)
    if deed == 1:
        return content[: rng.randrange(len(content))]
    if deed == 2:
        at = rng.randrange(len(content))
        return content[:at] + bytes(rng.randrange(256) for _ in range(rng.randint(1, 60))) + content[at:]
    if deed == 3:
        deep = rng.choice([b"[", b"{a: ", b'{"a":', b"- "]) * rng.choice([50, 3000])
        return rng.choice([deep, content + deep])
    lines = content.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines)


def worth_mutating(folder: Path, rng: random.Random) -> Path:
    """Choose the newest checkpoint in one of four cases, else any file that is read."""
    files = [path for path in files_of(folder) if path.name not in WRITTEN_AGAIN]
    newest = max(path for path in files if path.suffix == ".pt")
    others = [path for path in files if "tensorboard" not in path.parts and path != newest]
    return newest if rng.random() < 0.25 else rng.choice(others)


def mutate(path: Path, rng: random.Random) -> None:
    """Rewrite a file with a mutation that its reader may take for sound."""
    content = path.read_bytes()
    with contextlib.suppress(ValueError):
        if path.suffix == ".json" and rng.random() < 0.8:
            path.write_text(json.dumps(mutated_tree(json.loads(content), rng)))
            return
        if path.suffix == ".yaml" and rng.random() < 0.6:
            path.write_text(yaml.safe_dump(mutated_tree(yaml.safe_load(content), rng)))
            return
        if path.suffix == ".jsonl" and rng.random() < 0.8:
            lines = [json.loads(line) for line in content.splitlines()]
            place = rng.randrange(len(lines))
            lines[place] = mutated_tree(lines[place], rng)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            return
    if path.suffix == ".pt" and rng.random() < 0.8:
        state = torch.load(path, weights_only=True)
        buffer = io.BytesIO()
        changed = mutated_state(state, rng)
        if isinstance(state["strategy"], dict) and rng.random() < 0.5:  # where load and resume look first
            part = rng.choice(["model", "progress", "memory"])
            inside = {**state["strategy"], part: mutated_state(state["strategy"].get(part), rng)}
            changed = {**state, "strategy": inside}
        torch.save(changed, buffer)
        path.unlink()
        number = path.name.split("-")[0]
        (path.parent / f"{number}-{_digest(buffer.getvalue())}.pt").write_bytes(buffer.getvalue())
        return
    path.write_bytes(mutated_text(content, rng))


def mutated_state(state: Any, rng: random.Random) -> Any:
    """As :func:`mutated_tree`, of a checkpoint: tensors change their shape, kind or values too."""
    if isinstance(state, dict) and state and rng.random() < 0.95:
        key = rng.choice(list(state))
        if rng.random() < 0.1:
            return {k: v for k, v in state.items() if k != key}
        return {k: mutated_state(v, rng) if k == key else v for k, v in state.items()}
    if isinstance(state, list | tuple) and state and rng.random() < 0.8:
        place = rng.randrange(len(state))
        return [mutated_state(v, rng) if i == place else v for i, v in enumerate(state)]
    if isinstance(state, torch.Tensor):
        other = [state.double(), state[:0] if state.dim() else state, state.flatten(), state.unsqueeze(0)]
        return rng.choice([*other, state.to(torch.bool), torch.full_like(state, 100), None, "text"])
    return rng.choice([t for t in TREES if not (isinstance(t, int) and abs(t) > 2**62)])


def seal(folder: Path, rng: random.Random) -> None:
    """Make the manifest say that all is well, or take it away as in folders of older versions; or leave it."""
    path = folder / manifest.FILE
    deed = rng.randrange(3)
    if deed == 0:
        path.unlink(missing_ok=True)
    if deed == 1 and path.is_file():
        with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
            found = manifest.read(folder)
            kept = manifest.Keeper(folder, found.config, found.protocol)
            kept.renew(finished=True)


def resume(folder: Path, out: Path) -> int:
    (folder / "DONE").unlink()
    return run(out / "run")


READERS: dict[str, Callable[[Path, Path], Any]] = {
    "report": lambda folder, out: report([str(folder), "-o", str(out / "pages")]),
    "load": lambda folder, out: incrlt.models.load(folder) and 0,
    "resume": resume,
}


def test_mutated_run_folders_end_in_a_sentence(trained, tmp_path, cases, figure):
    """Report and load of each, and every fifth goes on."""
    counts, faults = Counter(), []
    for number in cases(MUTATED):
        rng = random.Random(number)
        folder = copied(trained, tmp_path / "run")
        path = worth_mutating(folder, rng)
        mutate(path, rng)
        seal(folder, rng)
        for what in ("report", "load", "resume")[: 3 if number % 5 == 0 else 2]:
            ending, _ = said_by(partial(READERS[what], folder, tmp_path))
            counts[what, ending if ending in ("done", "sentence") else "fault"] += 1
            if ending not in ("done", "sentence"):
                faults.append((number, path.name, what, ending[-1500:]))
    figure(f"mutated run folders: {[f'{what} {how}: {n}' for (what, how), n in sorted(counts.items())]}")
    assert not faults, "\n".join(map(str, faults))


def test_mutated_experiment_files_end_in_a_sentence(tmp_path, cases, figure):
    """Others than those of the ordinary suite."""
    counts, faults = Counter(), []
    folder = tmp_path / "experiments"
    shutil.copytree(Path(__file__).resolve().parent.parent / "experiments", folder)
    for number in cases(EXPERIMENTS):
        (folder / "mutant.yaml").write_bytes(mutant(10_000 + number))
        ending, _ = said_by(lambda: plan(schema.load(folder / "mutant.yaml")) and 0)
        counts[ending if ending in ("done", "sentence") else "fault"] += 1
        if ending not in ("done", "sentence"):
            faults.append((number, ending[-1500:]))
    figure(f"mutated experiment files: {dict(counts)}")
    assert not faults, "\n".join(map(str, faults))
