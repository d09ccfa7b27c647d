"""``incrlt update``: one more experience makes a new version beside the old ones, which are never changed.

A version is in progress (its file has no measures, its folder a checkpoint of every epoch), then made (a run folder
like any other, never changed again), then judged (its file has a verdict). A process that is killed anywhere leaves the
parent as it was, and the same command goes on to the same bits.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from incrlt.benchmarks import listing, reading
from incrlt.benchmarks.testpart import with_tests
from incrlt.checkpoint import CheckpointFolder, NotFiniteError, first_non_finite
from incrlt.console import Console
from incrlt.errors import UserError
from incrlt.experiment import schema
from incrlt.files import write_atomic
from incrlt.lifecycle import comparing, gate, learned, versions
from incrlt.lifecycle.learned import CHECKPOINTS, CONFIG_FILE, Learned, labels_of
from incrlt.lifecycle.lesson import Batch, Lesson, measure
from incrlt.lifecycle.versions import Version
from incrlt.models import cost
from incrlt.runner import resume
from incrlt.runner.build import choose_device
from incrlt.runner.events import EpochEvent
from incrlt.runner.folder import RunFolder, environment, epoch_event
from incrlt.runner.kept import Pictures
from incrlt.runner.threads import choose_threads, cores
from incrlt.training.template import IncrTemplate
from incrlt.words import size

FIXED: Final = frozenset({"benchmark", "model", "data", "output", "experts", "memory"})
"""Sections that a version has from its parent: its network, pictures and memory are theirs."""


@dataclass(frozen=True)
class Asked:
    """What an update is told.

    Args:
        run: Run folder.
        source: Folder with a folder per class, or a list.
        settings: ``section.key=value`` in place of the run's own.
        accept: Rule of the gate.
        golden: Pictures to judge on, in place of the test pictures of all versions.
        skip_broken: Go on without files that cannot be used.
        seed: Of the test part that is split off where the source has none.
        restart: Begin anew where an update is unfinished.
        compare: Train on everything at hand too, and say what updating cost and saved.
    """

    run: Path
    source: Path
    settings: tuple[str, ...] = ()
    accept: str = gate.DEFAULT
    golden: Path | None = None
    skip_broken: bool = False
    seed: int = 0
    restart: bool = False
    compare: bool = False


def update(asked: Asked, console: Console) -> Version:
    """Learn one more experience; return the version that was made, accepted or rejected.

    Raises:
        UserError: No finished run, bad pictures, another update in progress, or the run diverged.
    """
    conditions = gate.rule(asked.accept)
    with versions.locked(asked.run):
        number = versions.current(asked.run)
        parent = _with_settings(
            learned.read(versions.path_of(asked.run, number)), asked, versions.path_of(asked.run, number)
        )
        pictures, split = _read(parent, asked)
        data = _digest(pictures)
        _check_ancestors(asked, number, data)
        batch, account = _arriving(parent, asked, pictures, split)
        console.plain(account)
        if asked.compare:
            comparing.check(parent, batch)
        judged_on, golden = _golden(parent, batch, asked)
        version = _version(asked, parent, number, data, account)
        if not version.measures or version.golden != golden:
            version = _measured(asked, parent, batch, version, judged_on, console)
            version = dataclasses.replace(version, golden=golden, joint={})
        if asked.compare and not version.joint:
            version = _compared(asked, parent, batch, version, judged_on, console)
        accepted, verdict = gate.judge(conditions, version.measures)
        version = dataclasses.replace(version, accept=asked.accept, accepted=accepted, verdict=verdict)
        versions.write(asked.run, version)
        write_atomic(versions.report_of(asked.run, version.number), _report(version))
        if accepted and versions.current(asked.run) != version.number:  # it was gone back from
            newest = max(known.number for known in versions.all_of(asked.run))
            versions.answer_from(asked.run, version.number, newest)
        return version


# --------------------------------------------------------------------------------------------- what arrives


def _with_settings(parent: Learned, asked: Asked, folder: Path) -> Learned:
    """Return the parent with other settings for what is to come."""
    wrong = sorted({text.split(".")[0].split("=")[0] for text in asked.settings} & FIXED)
    if wrong:
        raise UserError(
            f"an update cannot change {', '.join(wrong)}: the version before it decides them. Allowed are settings of "
            "strategy, rebalance, router, training, seeds and device; for another network begin a new run."
        )
    experiment = schema.load(folder / CONFIG_FILE, asked.settings, with_data=False)
    return dataclasses.replace(parent, experiment=experiment)


def _read(parent: Learned, asked: Asked) -> tuple[reading.ReadPictures, str]:
    """Read the source; return its pictures, and what was split off for testing."""
    found = listing.labelled_pictures(asked.source)
    found.check(asked.skip_broken)
    found, split = with_tests(found, asked.seed)
    pictures = reading.read(found, parent.facts.preparation.shape, asked.skip_broken)
    _check_names(parent, [entry.label for entry in pictures.listing.entries])
    return pictures, split


def _digest(pictures: reading.ReadPictures) -> str:
    """Return the hash of everything that a source brings, known to the run or not."""
    return Batch(*pictures.part("train"), *pictures.part("test")).digest


def _arriving(parent: Learned, asked: Asked, pictures: reading.ReadPictures, split: str) -> tuple[Batch, str]:
    """Return what is new to the run, with a sentence on every file."""
    (images, names), (test_images, test_names) = pictures.part("train"), pictures.part("test")
    known = _known(parent)
    keep = [known.get(h, "") != "test" for h in Pictures(images, torch.zeros(len(names))).hashes()]
    keep_test = [known.get(h, "") == "" for h in Pictures(test_images, torch.zeros(len(test_names))).hashes()]
    account = pictures.listing.account
    for sentence in (split, _known_already(pictures, keep, keep_test)):
        account += f"; {sentence}" if sentence else ""
    chosen = [name for name, wanted in zip(names, keep, strict=True) if wanted]
    if not chosen:
        raise UserError(f"nothing in {asked.source} is new to this run: {account}.")
    tested = [name for name, wanted in zip(test_names, keep_test, strict=True) if wanted]
    return Batch(
        images[torch.tensor(keep)], tuple(chosen), test_images[_mask(keep_test)], tuple(tested)
    ), account


def _known_already(pictures: reading.ReadPictures, keep: Sequence[bool], keep_test: Sequence[bool]) -> str:
    """Return what is said of pictures that are not learned or tested again; empty where there are none."""
    wanted = {"train": iter(keep), "test": iter(keep_test)}
    lost = [entry.name for entry in pictures.listing.entries if not next(wanted[entry.part])]
    return f"{len(lost):,} known to this run already, left out (first: {lost[0]})" if lost else ""


def _mask(keep: Sequence[bool]) -> torch.Tensor:
    return torch.tensor(keep, dtype=torch.bool)


def _known(parent: Learned) -> dict[str, str]:
    """Return what is kept by its content: what was tested on is never trained on, and the other way round."""
    train = dict.fromkeys(parent.exemplars.hashes(), "train")
    return train | dict.fromkeys(parent.tests.hashes(), "test")


def _check_names(parent: Learned, names: Sequence[str]) -> None:
    """Refuse a class that is surely meant to be a known one, spelled otherwise."""
    known = {listing.meant(name): name for name in parent.class_names}
    for name in dict.fromkeys(names):
        other = known.get(listing.meant(name))
        if other is not None and other != name and name not in parent.class_names:
            raise UserError(
                f"the class {name!r} arrives, and this run knows {other!r}: classes are told apart by name. Rename one "
                "of them, so that the same class has one name."
            )


def _golden(parent: Learned, batch: Batch, asked: Asked) -> tuple[Pictures | None, str]:
    """Read the pictures to judge on, where some are given; return them with their digest."""
    if asked.golden is None:
        return None, ""
    found = listing.labelled_pictures(asked.golden)
    found.check(asked.skip_broken)
    pictures = reading.read(found, parent.facts.preparation.shape, asked.skip_broken)
    names = tuple(entry.label for entry in pictures.listing.entries)
    places = {n: i for i, n in enumerate(dict.fromkeys([*parent.class_names, *batch.names]))}
    lost = sorted(set(names) - set(places))
    if lost:
        raise UserError(
            f"{asked.golden} has pictures of {', '.join(lost[:5])}, which no version knows; remove them."
        )
    digest = Batch(pictures.images, names, pictures.images[:0], ()).digest
    return Pictures(pictures.images, labels_of(list(names), places)), digest


# ------------------------------------------------------------------------------------------ which version


def _version(asked: Asked, parent: Learned, number: int, data: str, account: str) -> Version:
    """Return the version that this update makes: one in progress, one that was made already, or a new one."""
    known = versions.all_of(asked.run)
    now = Version(
        number=max((version.number for version in known), default=versions.FIRST) + 1,
        parent=number,
        parent_stream=parent.facts.stream,
        data=data,
        settings=asked.settings,
        source=str(asked.source),
        account=account,
    )
    for version in known:
        if version.accepted is None and (asked.restart or version.key == now.key):
            if not asked.restart:
                return version
            versions.discard(asked.run, version)
        elif version.accepted is None:
            raise UserError(
                f"version {version.number} is unfinished: it was learning {version.source}. Run that command again to "
                "finish it, or add --restart to begin this one in its place."
            )
        elif version.key == now.key and not asked.restart:
            return version
    if asked.restart:
        rest = versions.all_of(asked.run)
        now = dataclasses.replace(now, number=max((v.number for v in rest), default=versions.FIRST) + 1)
    return _begun(asked, parent, now)


def _check_ancestors(asked: Asked, number: int, data: str) -> None:
    """Refuse what the version that answers has learned already."""
    known = versions.all_of(asked.run)
    line = {number, *versions.ancestors(asked.run, number)}
    again = [version.number for version in known if version.number in line and version.data == data]
    if again:
        raise UserError(
            f"version {again[0]} has learned {asked.source} already, and version {number} answers. There is nothing to "
            "do; to learn it otherwise, go back first: incrlt rollback."
        )


def _begun(asked: Asked, parent: Learned, version: Version) -> Version:
    """Make the folder of a new version and write that it is in progress."""
    folder = versions.path_of(asked.run, version.number)
    if folder.exists():  # killed before it was a version
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    version = dataclasses.replace(version, threads=_threads(parent))
    versions.write(asked.run, version)
    return version


def _threads(parent: Learned) -> int:
    training = parent.experiment.training
    work = 0.0
    if choose_device(parent.experiment.device).type == "cpu":
        assert parent.strategy is not None
        from incrlt.lifecycle.lesson import answering

        model = answering(parent, torch.device("cpu")).model
        work = training.batch_size * cost.macs(model, parent.facts.preparation.shape)
    return choose_threads(training.threads, work, torch.get_num_threads(), cores()).number


# ------------------------------------------------------------------------------------------------ making it


def _measured(
    asked: Asked,
    parent: Learned,
    batch: Batch,
    version: Version,
    judged_on: Pictures | None,
    console: Console,
) -> Version:
    """Make a version where it is not made yet, and measure it."""
    torch.set_num_threads(version.threads)
    place = versions.path_of(asked.run, version.number)
    if version.measures:
        after = learned.read(place)
    else:
        folder = RunFolder(place)
        try:
            after = _trained(folder, parent, batch, version, console)
        finally:
            folder.close()
    tests = after.tests if judged_on is None else judged_on
    found = gate.measures(measure(parent, tests), measure(after, tests), after.facts.seen)
    return dataclasses.replace(
        version,
        stream=after.facts.stream,
        measures=found,
        seconds=after.seconds - parent.seconds,
        trained_on=len(parent.exemplars) + len(batch.names),
    )


def _compared(
    asked: Asked,
    parent: Learned,
    batch: Batch,
    version: Version,
    judged_on: Pictures | None,
    console: Console,
) -> Version:
    """Train on everything at hand beside a version that is made."""
    console.plain(f"version {version.number} is made; now all anew, to compare it with")
    tests = (
        learned.read(versions.path_of(asked.run, version.number)).tests if judged_on is None else judged_on
    )
    return dataclasses.replace(version, joint=comparing.joint(parent, batch, tests))


def _report(version: Version) -> str:
    """Return the page of a version as Markdown."""
    verdict = "; ".join(version.verdict) or "nothing spoke against it"
    lines = [
        f"# Version {version.number}, from version {version.parent}",
        "",
        f"Arrived: {version.account}. It is {version.state} by the rule `{version.accept}`: {verdict}.",
        "",
        *comparing.table(version, version.trained_on),
    ]
    return "\n".join(lines) + "\n"


def _trained(folder: RunFolder, parent: Learned, batch: Batch, version: Version, console: Console) -> Learned:
    lesson = Lesson(parent, batch)
    checkpoints = CheckpointFolder(folder.path / CHECKPOINTS)
    checkpoints.tidy()
    saved = checkpoints.newest(put_aside=True)
    own = resume.binding(parent.experiment, lesson.facts.stream)
    if saved is not None and checkpoints.chosen is not None:
        resume.check_same_run(saved, own, checkpoints.chosen)
        lesson.resume(saved)
        folder.cut_log(int(saved.get("log_size", folder.log_size)))
        console.plain(f"going on with version {version.number}")
    else:
        console.plain(_begins(parent, batch, version))
        folder.write_json("environment.json", environment(lesson.device, "incrlt update"))

    def epoch(strategy: IncrTemplate) -> None:
        name, event = first_non_finite({"model": strategy.model.state_dict()}), _event(strategy)
        try:
            if name is not None:
                raise NotFiniteError(name)
            folder.log(event | {"experience": strategy.experience_index})
            checkpoints.save({"run": own, "log_size": folder.log_size, **lesson.state()})
        except NotFiniteError as error:
            raise UserError(
                f"the update diverged: {error.tensor} is not finite. The versions before it are as they were. Lower "
                "training.lr, or set training.grad_clip, and add --restart."
            ) from error
        checkpoints.drop_old()
        console.epoch(event)

    after = lesson.learn(epoch)
    console.close()
    extra = {
        "method": parent.experiment.method,
        "protocol": f"version {version.number}",
        "protocol_hash": after.facts.stream[:12],
        "seconds": after.seconds,
        "parameters": cost.parameters(lesson.strategy.model),
        "mega_macs": cost.macs(lesson.strategy.model, after.facts.preparation.shape) / 1e6,
    }
    return learned.write(folder, after, extra)


def _begins(parent: Learned, batch: Batch, version: Version) -> str:
    new = [name for name in dict.fromkeys(batch.names) if name not in set(parent.class_names)]
    told = ", ".join(new[:8]) + (f" and {len(new) - 8} more" if len(new) > 8 else "")
    return (
        f"version {version.number}, from version {version.parent}: {len(batch.names)} pictures to learn, "
        f"{len(batch.test_names)} to test, {len(parent.exemplars)} exemplars; "
        + (f"new classes: {told}" if new else "no new classes")
    )


def _event(strategy: IncrTemplate) -> EpochEvent:
    return epoch_event(strategy, 0)


def told(run: Path, version: Version) -> list[str]:
    """Return what is said of a version at its end, a line each."""
    m = version.measures

    def percent(name: str) -> str:
        value = m.get(name)
        return "none" if value is None else f"{value:.1f}"

    folder = versions.path_of(run, version.number)
    files = [path for path in folder.rglob("*") if path.is_file()]
    lines = [
        f"accuracy over classes, %: known {percent('old_before')} -> {percent('old')}, new {percent('new')}, "
        f"many {percent('many')}, medium {percent('medium')}, few {percent('few')}",
        f"learned in {version.seconds:.1f} s; {folder} has {size(sum(path.stat().st_size for path in files))}",
    ]
    lines += comparing.table(version, version.trained_on) if version.joint else []
    lines.append(f"report   {versions.report_of(run, version.number)}")
    lines += list(version.verdict)
    if version.accepted:
        return [*lines, f"version {version.number} is accepted and answers from now on"]
    back = f"incrlt rollback {run} {version.number}"
    return [
        *lines,
        *advice(folder),
        f"version {version.number} is rejected; version {versions.current(run)} answers ({back} takes it anyway)",
    ]


def advice(version: Path) -> list[str]:
    """Return what may be tried after a version was rejected: what its strategy has and did not use.

    Args:
        version: Folder of the version.
    """
    experiment = schema.load(version / CONFIG_FILE, with_data=False).resolved()
    unused = experiment["strategy"].get("class_balanced_finetune") == 0
    if not unused or experiment["experts"].get("classifier_epochs") or experiment["memory"] is None:
        return []
    return [
        "what may help: the same command with strategy.class_balanced_finetune=20, which trains the head once more at "
        "the end, on as many pictures of each class"
    ]
