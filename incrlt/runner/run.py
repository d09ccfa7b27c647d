"""From a validated experiment to a finished run folder, over exactly the calls a user's script would make."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from incrlt import report
from incrlt.benchmarks import protocols, streams
from incrlt.benchmarks.datasets import ImageData
from incrlt.benchmarks.protocols import ResolvedProtocol
from incrlt.checkpoint import CheckpointFolder, NotFiniteError, first_non_finite, one_sentence
from incrlt.console import Console, headline
from incrlt.data.stores import PictureStore
from incrlt.errors import UserError
from incrlt.experiment import rates
from incrlt.experiment.plan import plan
from incrlt.experiment.sections import Experiment
from incrlt.manifest import Keeper
from incrlt.metrics import StreamRecord, experience_rows, main_readout, published, spent, summarise
from incrlt.models import cost
from incrlt.plugins.evaluation import EvaluationRecorder
from incrlt.plugins.routing import RoutingRecorder
from incrlt.processes import joined, world
from incrlt.report.thumbnails import THUMBNAILS_FILE, room, save_thumbnails
from incrlt.roles import State
from incrlt.runner import kept, resume
from incrlt.runner.board import Board
from incrlt.runner.build import Images, build_strategy, check_device, choose_device
from incrlt.runner.events import Cost, EpochEvent, ExperienceEvent, Validated
from incrlt.runner.folder import RunFolder, environment, epoch_event, session
from incrlt.runner.follow import follow
from incrlt.runner.memory import lack_of_memory_told, peak_memory
from incrlt.runner.options import RunOptions
from incrlt.runner.threads import Threads, choose_threads, cores
from incrlt.runner.validation import Validation
from incrlt.training.template import IncrTemplate
from incrlt.words import counted

WRITTEN_LATER = (
    "DONE",
    "manifest.json",
    "log.jsonl",
    "confusions.npz",
    "evaluations.npz",
    "classes.json",
    THUMBNAILS_FILE,
    "results.json",
    "results.csv",
    "per_class.csv",
    "routing.csv",
    "routing_sweep.csv",
    "published.txt",
    "report.html",
    spent.FILE,
    *kept.FILES,
)
"""Files of a run folder that a run begun anew must not find from the run before."""


def execute(experiment: Experiment, options: RunOptions) -> int:
    """Run an experiment to its report; return the exit code.

    An unfinished run of the same experiment goes on from its newest whole checkpoint; a finished one is not
    run again unless ``options.resume`` is ``restart``.

    Raises:
        UserError: Bad data, an unwritable folder, a non-finite loss, too little memory.
    """
    with lack_of_memory_told(), joined(options.batch_norm) as processes:
        device = choose_device(experiment.device)
        check_device(experiment, device)
        images = Images(experiment)
        resolved = protocols.resolve(experiment.protocol(), images.labels.numpy())
        if processes.is_first:
            return _lead(experiment, options, device, images, resolved)
        return follow(experiment, device, images, resolved, processes)


def _lead(
    experiment: Experiment,
    options: RunOptions,
    device: torch.device,
    images: Images,
    resolved: ResolvedProtocol,
) -> int:
    """Run the experiment in the process that writes."""
    console = Console()
    folder = RunFolder(experiment.run_folder(resolved.hash))
    try:
        done = folder.is_done and options.resume != "restart"
        if world().tell(done):
            _say_done(console, folder)
        else:
            Run(experiment, options, device, images.take(console.reading), resolved, folder, console).run()
    except BrokenPipeError:  # the reader of our output has left; the command line knows
        raise
    except OSError as error:
        raise UserError(
            f"the run stopped, since the system says: {error}. What is saved in {folder.path} stays; see that disk and "
            "data are there, then run the same command again."
        ) from error
    finally:
        folder.close()
        console.close()
    return 0


def _say_done(console: Console, folder: RunFolder) -> None:
    page = folder.path / "report.html"
    console.plain("this run is finished; --restart runs it again")
    for sentence in resume.look_at(folder.path)[1]:
        console.warning(sentence)
    if not page.exists():  # killed between its last result and its report
        page = report.write(folder.path)
    console.finished(folder.path, page, f"python -m incrlt.report {folder.path}", None)


@dataclass(frozen=True, eq=False)
class Counts:
    """What was counted up to an experience, as it stands in the folder."""

    records: dict[str, StreamRecord]
    """Per read-out."""
    results: dict[str, Any]
    """The content of ``results.json``."""

    @property
    def main(self) -> StreamRecord:
        """The counts of the main read-out."""
        return self.records[main_readout(self.records)]


class Run:
    """One run in progress.

    Args:
        experiment: What to run.
        options: How.
        device: Where.
        data: The dataset.
        resolved: The protocol on these data.
        folder: Where results go.
        console: Where progress is shown.
    """

    def __init__(
        self,
        experiment: Experiment,
        options: RunOptions,
        device: torch.device,
        data: ImageData,
        resolved: ResolvedProtocol,
        folder: RunFolder,
        console: Console,
    ) -> None:
        self.experiment, self.options, self.device = experiment, options, device
        self.resolved, self.folder, self.console = resolved, folder, console
        if experiment.training.threads:
            torch.set_num_threads(experiment.training.threads)
        self.own = resume.binding(experiment, resolved.hash)
        self.manifest = Keeper(folder.path, self.own["config"], resolved.hash)
        self.checkpoints = CheckpointFolder(folder.path / "checkpoints")
        self.board = Board(folder.path / "tensorboard")
        self.benchmark = streams.build(data, resolved)
        self.recorder = EvaluationRecorder()
        self.routing = RoutingRecorder()
        self.image_shape = tuple(data.train_images.shape[1:])
        self.thumbnails = _first_images(data, resolved)
        self.pictures = "; ".join(text for text in (data.account, data.where) if text)
        self._protocol = resolved.describe() | ({"split": data.split} if data.split else {})
        self._keep = kept.of_data(data, resolved)
        self.validation = _validation(experiment, data, resolved)
        recorders = [self.recorder, self.routing]
        self.strategy = build_strategy(experiment, self.image_shape[0], device, recorders)
        self.strategy.on_epoch_end = self._epoch_end
        self.strategy.model.normalisation = {"mean": list(data.mean), "std": list(data.std)}
        self.threads = self._choose_threads()
        self.method = experiment.method
        self._sessions = 1
        self._counts: Counts | None = None
        self._begun = time.perf_counter()
        self._seconds_before = 0.0
        self._epochs = 0
        self._in_epochs = 0.0

    def run(self) -> None:
        """Train and evaluate every experience that is left, then write the report."""
        try:
            self._train_and_evaluate()
            self._finish()
        finally:
            self.board.close()

    def _choose_threads(self) -> Threads:
        asked, known = self.experiment.training.threads, torch.get_num_threads()
        if asked:
            return Threads(asked, "training.threads")
        work = 0.0
        if self.device.type == "cpu":
            batch = self.experiment.training.batch_size
            work = batch * cost.macs(self.strategy.model, self.image_shape)
        restart = self.options.resume == "restart"
        before = (
            None if restart else resume.read_mapping(self.folder.path / "environment.json").get("threads")
        )
        chosen = choose_threads(None, work, known, cores(), before)
        torch.set_num_threads(chosen.number)
        return chosen

    def _train_and_evaluate(self) -> None:
        state = world().tell(None if self.options.resume == "restart" else self._found())
        first = self._begin_anew() if state is None else self._go_on(state)
        if not (self.folder.path / THUMBNAILS_FILE).exists():
            save_thumbnails(self.folder.path / THUMBNAILS_FILE, self.thumbnails())
        self.manifest.renew(session=self._sessions)
        self._banner(first)
        stream, tests = self.benchmark.train_stream, self.benchmark.test_stream
        for t in range(first, len(stream)):
            begun, self._in_epochs = time.perf_counter(), 0.0
            self.strategy.train(stream[t])
            trained = time.perf_counter()
            self.strategy.eval(tests[: t + 1])
            self._experience_end(t, trained - begun, time.perf_counter() - trained)

    # ------------------------------------------------------------------ beginning

    def _begin_anew(self) -> int:
        resume.check_no_versions(self.folder.path)
        self.checkpoints.clear()
        self.folder.remove(WRITTEN_LATER)
        self.board.cut({})
        self._write_config()
        self._write_protocol()
        machine = self._machine()
        first = session(machine, "the beginning", [])
        self.folder.write_json("environment.json", {**machine, "sessions": [first]})
        self.folder.log({"event": "start", "method": self.method, "protocol_hash": self.resolved.hash})
        return 0

    def _write_config(self) -> None:
        self.folder.write_text("config.yaml", self.experiment.resolved_yaml())

    def _write_protocol(self) -> None:
        self.folder.write_json("protocol.json", self._protocol)

    def _machine(self) -> dict[str, object]:
        """Return the environment and what "auto" became on it."""
        chosen = {"precision": self.strategy.precision, "threads_because": self.threads.reason}
        if self.strategy.model.pretrained is not None:
            chosen["weights"] = self.strategy.model.pretrained
        if self.pictures:
            chosen["pictures"] = self.pictures
        if world().size > 1:
            chosen |= {"processes": str(world().size), "batch_norm": world().batch_norm}
        return environment(self.device, self.options.command) | chosen

    def _found(self) -> State | None:
        """Return the newest checkpoint that can be read and is of this run; None: begin anew."""
        self.checkpoints.tidy()
        state = self.checkpoints.newest(put_aside=True)
        instead = "starting anew" if state is None else "going on from the one before it"
        for name, reason in self.checkpoints.damaged.items():
            self.console.warning(f"checkpoint {name} is damaged; {instead} ({reason})")
        if state is not None and self.checkpoints.chosen is not None:
            resume.check_same_run(state, self.own, self.checkpoints.chosen)
        elif not self.checkpoints.damaged and resume.names_checkpoints(self.folder.path):
            self.console.warning("the manifest names checkpoints and none is left; starting anew")
        return state

    def _go_on(self, state: State) -> int:
        """Restore a checkpoint and put in order what differs; return the experience to train."""
        manifest, noticed = resume.look_at(self.folder.path)
        if manifest is not None:
            self.manifest.take_over(
                manifest
            )  # before this process writes: what it writes is then hashed anew
        with one_sentence(f"checkpoint {self.checkpoints.chosen}", "Start the run anew with --restart."):
            where = self._restore(state)
        to_train = int(state["strategy"]["progress"]["experience"])
        if to_train == len(self.benchmark.train_stream):
            noticed += resume.sweep_differs(self.folder.path, manifest)
        noticed += self._put_in_order(noticed)
        for sentence in noticed:
            self.console.warning(sentence)
        self.manifest.notice(noticed)
        self._note_session(where, noticed)
        self.console.plain(f"resuming {where}")
        return to_train

    def _restore(self, state: State) -> str:
        """Load a checkpoint, cut what came after it, and return where in the run it stands."""
        self._seconds_before, self._epochs = float(state["seconds"]), int(state["steps"])
        self.recorder.load_state_dict(state["recorder"])
        self.routing.load_state_dict(state["routing"])
        self.strategy.load_state_dict(state["strategy"], self.benchmark.train_stream)
        progress = state["strategy"]["progress"]
        self.folder.cut_log(int(state["log_size"]))
        if "board" in state:  # older versions did not note it
            self.board.cut(state["board"])
        where = f"experience {progress['experience'] - bool(progress['trained'])}"
        if progress["trained"]:
            return f"after {where}"
        return f"in {where}, after epoch {progress['epoch']} of its stage {progress['stage'] + 1}"

    def _put_in_order(self, noticed: list[str]) -> list[str]:
        """Write anew what this run knows and the folder has otherwise; return what was not noticed before."""
        folder, found = self.folder.path, []
        damaged = {sentence.split()[0] for sentence in noticed}
        other = {
            "config.yaml": not resume.is_own_config(folder, self.experiment),
            "protocol.json": not resume.is_own_protocol(folder, self._protocol),
        }
        for name, write in (("config.yaml", self._write_config), ("protocol.json", self._write_protocol)):
            if name in damaged or other[name]:
                write()
            if name not in damaged and other[name]:
                found.append(f"{name} was not that of this run; it is written anew")
        if THUMBNAILS_FILE in damaged:
            self.folder.remove([THUMBNAILS_FILE])
        return found

    def _note_session(self, where: str, noticed: list[str]) -> None:
        """Say in ``environment.json`` that this process took over, and warn where that may change rounding."""
        known = resume.read_mapping(self.folder.path / "environment.json")
        machine = self._machine()
        sessions = known.get("sessions")
        earlier = sessions if isinstance(sessions, list) else []
        other = resume.other_machine(known, machine)
        if other is not None:
            self.console.warning(
                f"the run goes on elsewhere: {other}. Its last digits may differ from a run in one go"
            )
        now = session(machine, where, noticed)
        self.folder.write_json("environment.json", {**(known or machine), "sessions": [*earlier, now]})
        self._sessions = len(earlier) + 1

    def _banner(self, first: int) -> None:
        body = (self.strategy.model.stem, self.strategy.model.branches)
        parameters = sum(p.numel() for part in body for p in part.parameters())
        threads = counted(torch.get_num_threads(), "thread")
        facts = {
            "experiment": self.experiment.name,
            "method": self.method,
            "protocol": f"{self.resolved.protocol.name}, hash {self.resolved.hash}",
            "changed": " ".join(self.experiment.overrides),
            "network": f"{self.experiment.model.name}, {parameters:,} parameters before the head",
            "device": f"{self.device}, {self.strategy.precision}, {threads}",
            "step": self._step(),
            "pictures": self.pictures,
            "run folder": self.folder.path,
        }
        self.console.banner(facts, plan(self.experiment))

    def _step(self) -> str:
        stepper = self.strategy.stepper
        return f"eager, since {stepper.reason}" if stepper.reason else stepper.name

    # ------------------------------------------------------------------ along the way

    def _epoch_end(self, strategy: IncrTemplate) -> None:
        self._refuse_non_finite({"model": strategy.model.state_dict()})
        event: EpochEvent = {**epoch_event(strategy, strategy.experience_index), **self._validated()}
        self._epochs += 1
        self._in_epochs += event["seconds"]
        self.folder.log(event)
        self.board.epoch(self._epochs, event)
        self._save(trained=False)
        self.console.epoch(event)

    def _validated(self) -> Validated:
        """Return what the log says of the held-out images, nothing where the run is not asked to look at them."""
        return {} if self.validation is None else {"validation": self.validation.score(self.strategy)}

    def _refuse_non_finite(self, state: Mapping[str, object]) -> None:
        """Stop a run that has diverged before anything of it is evaluated, shown or saved."""
        name = first_non_finite(state)
        if name is not None:
            raise self._diverged(name)

    def _diverged(self, name: str) -> UserError:
        strategy = self.strategy
        return UserError(
            f"the run diverged: {name} is not finite in experience {strategy.experience_index}, stage "
            f"'{strategy.stage.name}', after epoch {strategy.stage_epoch + 1}, step "
            f"{strategy.clock.train_exp_iterations} of the experience. Nothing of it was saved, the last good "
            "checkpoint stays. Lower training.lr, set training.grad_clip, or use training.precision: fp32."
        )

    def _save(self, trained: bool) -> None:
        """Commit: what was appended, the checkpoint, then the manifest; each is on the disk before the next."""
        self.manifest.sync()
        state = {
            "run": self.own,
            "strategy": self.strategy.state_dict(trained),
            "recorder": self.recorder.state_dict(),
            "routing": self.routing.state_dict(),
            "log_size": self.folder.log_size,
            "board": self.board.sizes(),
            "steps": self._epochs,
            "seconds": self._seconds,
        }
        try:
            self.checkpoints.save(state)
        except NotFiniteError as error:  # what the network does not show: momentum, the teacher
            raise self._diverged(error.tensor) from error
        self.manifest.renew(session=self._sessions)
        self.checkpoints.drop_old()

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._begun

    def _experience_end(self, t: int, train_seconds: float, eval_seconds: float) -> None:
        self._refuse_non_finite({"model": self.strategy.model.state_dict()})
        memory = self.strategy.memory
        event: ExperienceEvent = {
            "event": "experience",
            "experience": t,
            "train_seconds": train_seconds,
            "eval_seconds": eval_seconds,
            **self._cost(t, train_seconds),
            "classes_seen": len(self.recorder.class_ids),
            "memory_images": 0 if memory is None else len(memory),
            **self._validated(),
        }
        self.folder.log(event)
        self.folder.write_cost()
        counts = self._write_counts()
        self._show(event, counts)
        self.manifest.renew(session=self._sessions)  # a reader of a killed run finds its results whole
        self._save(trained=True)  # last: what comes before it is done again when the process is killed
        rows = {readout: experience_rows(record)[t] for readout, record in counts.records.items()}
        self.console.experience(event, rows)
        line = self.routing.line()
        if line is not None:
            self.console.plain(line)

    def _cost(self, t: int, train_seconds: float) -> Cost:
        """Return what :func:`incrlt.metrics.spent.spent` asks of an experience beside its epochs."""
        return {
            "between_seconds": max(
                0.0, train_seconds - self._in_epochs
            ),  # of this process alone, as its epochs
            "test_images": sum(len(test.dataset) for test in self.benchmark.test_stream[: t + 1]),
            "macs": cost.macs(self.strategy.model, self.image_shape),
            "head_macs": cost.head_macs(self.strategy.model),
            "processes": world().size,
            "peak_bytes": peak_memory(self.device),
        }

    def _write_counts(self) -> Counts:
        records = self.recorder.records(self.resolved.counts_before_holdout, None)
        size = len(self.recorder.class_ids)
        records = {
            name: type(record)(
                record.confusions,
                record.experience_of_class,
                record.images_of_class,
                self.benchmark.class_names[:size],
            )
            for name, record in records.items()
        }
        labels = [int(label) for label in self.resolved.protocol.class_order[:size]]
        extra = {
            "method": self.method,
            "protocol": self.resolved.protocol.name,
            "protocol_hash": self.resolved.hash,
            "seconds": self._seconds,
            "parameters": cost.parameters(self.strategy.model),
            "mega_macs": cost.macs(self.strategy.model, self.image_shape) / 1e6,
        }
        counts = Counts(records, self.folder.write_counts(records, labels, extra))
        self.recorder.write(self.folder.path)
        record = counts.main
        self.routing.write(self.folder.path, record.experience_of_class, record.images_of_class)
        self._counts = counts
        return counts

    def _show(self, event: ExperienceEvent, counts: Counts) -> None:
        t, main = event["experience"], counts.main
        self.board.experience(event, counts.results["readouts"])
        for readout, record in counts.records.items():
            self.board.classes(t, readout, record)
        self.board.evaluation(t, self.recorder.evaluations.get(t, {}), main)
        self.board.heads(t, self.strategy.model.final_heads, main.images_of_class)
        for row in self.routing.rows(main.experience_of_class, main.images_of_class)[t:]:
            self.board.routing(t, row)

    # ------------------------------------------------------------------ the end

    def _finish(self) -> None:
        if self._counts is None:
            # Nothing was left to train, and what the last experience wrote may be damaged.
            self.folder.write_cost()
        counts = self._counts or self._write_counts()
        self.folder.log({"event": "end", "seconds": self._seconds})
        settings = {"method": self.method, "protocol_hash": self.resolved.hash, **self.experiment.resolved()}
        self.board.finish(settings, counts.results)
        line = self._distance(counts)
        if line is not None:
            self.folder.write_text("published.txt", line + "\n")
        self.board.close()
        self._keep(self.folder.path, self.strategy)
        self.manifest.sync()
        self.manifest.renew(finished=True, session=self._sessions)
        self.folder.write_text("DONE", "")
        if world().size == 1:
            rates.note(self.experiment, self._hardware(), self.folder.stages())
        page = report.write(self.folder.path)
        others = f"python -m incrlt.report {Path(self.folder.path).parent}/* -o reports"
        own = self._own_readout(counts)
        said = headline(own, counts.results["readouts"][own]["numbers"])
        self.console.finished(self.folder.path, page, others, line, said)

    def _hardware(self) -> str:
        """Return what trained, for people."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{self.device}, {counted(torch.get_num_threads(), 'thread')}"

    def _own_readout(self, counts: Counts) -> str:
        """Return the read-out that the run answers with, by which its page is headed."""
        return main_readout(counts.records, self.experiment.strategy.hyper_parameters.get("readout"))

    def _distance(self, counts: Counts) -> str | None:
        """Return how far the run is from its published row and what differs, or None without a row."""
        name, length = self.resolved.protocol.name, self.experiment.training
        row_name = published.row_name(name, self.method, self.experiment.experts.hyper_parameters)
        table = published.table_of(self.resolved.describe())
        line = published.distance(table, row_name, summarise(counts.records[self._own_readout(counts)]))
        training = {"epochs": length.epochs, "base_epochs": length.base_epochs}
        differs = published.what_differs(self.resolved.describe(), row_name, training)
        return f"{line}; this run has {', '.join(differs)}" if line and differs else line


def _validation(experiment: Experiment, data: ImageData, resolved: ResolvedProtocol) -> Validation | None:
    """Return what scores the held-out images, if ``output.validation`` asks for it.

    Raises:
        UserError: Several processes: only the first would score.
    """
    if experiment.output.validation and world().size > 1:
        raise UserError(
            "output.validation scores in one process. Set output.validation: false, or start one."
        )
    return (
        Validation(data, resolved, experiment.training.eval_batch_size)
        if experiment.output.validation
        else None
    )


def _first_images(data: ImageData, resolved: ResolvedProtocol) -> Callable[[], list[npt.NDArray[np.uint8]]]:
    """Return what gives the first training images of each class that a sheet of thumbnails has room for.

    Classes are in arrival order. Pictures that are read from files are read when they are asked for.
    """
    per_class, _ = room(len(resolved.counts))
    chosen, images = resolved.first_images(data.train_labels.numpy(), per_class), data.train_images
    if isinstance(images, PictureStore):
        return lambda: [images[own].numpy() for own in chosen]
    found = [images[own].numpy() for own in chosen]
    return lambda: found
