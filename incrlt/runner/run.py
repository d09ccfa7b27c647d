"""From a validated experiment to a finished run folder, over exactly the calls a user's script would make."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import incrlt._compat

import torch

import incrlt.models
from incrlt import report
from incrlt.benchmarks import datasets, protocols, streams
from incrlt.checkpoint import CheckpointFolder
from incrlt.console import Console
from incrlt.errors import UserError
from incrlt.experiment.methods import Kind, load_class
from incrlt.experiment.plan import plan
from incrlt.experiment.schema import Experiment
from incrlt.metrics import experience_rows, published, summarise
from incrlt.models import cost
from incrlt.plugins.evaluation import EvaluationRecorder
from incrlt.plugins.memory import ExemplarMemory
from incrlt.plugins.routing import RoutingRecorder
from incrlt.report.tables import counted
from incrlt.report.thumbnails import THUMBNAILS_FILE, room, save_thumbnails
from incrlt.runner.board import Board
from incrlt.runner.folder import RunFolder, environment
from incrlt.schedules import cosine, multistep_with_warmup
from incrlt.training.randomness import seed_everything

if TYPE_CHECKING:
    from incrlt.run import RunOptions
    from incrlt.training.template import IncrTemplate


WRITTEN_LATER = (
    "DONE",
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
)
"""Files of a run folder that a run begun anew must not find from the run before."""


def execute(experiment: Experiment, options: RunOptions) -> int:
    """Run an experiment to its report; return the exit code.

    An unfinished run of the same experiment goes on from its newest whole checkpoint; a finished one is not
    run again unless ``options.resume`` is ``restart``.

    Raises:
        UserError: Bad data, an unwritable folder, a non-finite loss.
    """
    console = Console()
    device = choose_device(experiment.device)
    data = load_data(experiment)
    resolved = protocols.resolve(experiment.protocol(), data.train_labels.numpy())
    folder = RunFolder(experiment.run_folder(resolved.hash))
    try:
        if folder.is_done and options.resume != "restart":
            _say_done(console, folder)
        else:
            Run(experiment, options, device, data, resolved, folder, console).run()
    finally:
        folder.close()
        console.close()
    return 0


def load_data(experiment: Experiment) -> datasets.ImageData:
    """Read the images of an experiment.

    Raises:
        UserError: They are missing or damaged.
    """
    chosen, where = experiment.benchmark, experiment.data
    if chosen.dataset == "folder":
        return datasets.load_folder(where.root, chosen.image_size)
    return datasets.load(chosen.dataset, where.root, where.download)


def _say_done(console: Console, folder: RunFolder) -> None:
    page = folder.path / "report.html"
    console.plain("this run is finished; --restart runs it again")
    if not page.exists():  # killed between its last result and its report
        page = report.write(folder.path)
    console.finished(folder.path, page, f"python -m incrlt.report {folder.path}", None)


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is the first GPU if there is one.

    Raises:
        UserError: A GPU is asked for that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(
            f"device {name!r} is not here: torch sees {count} CUDA devices. Use device: auto or cpu."
        )
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Return the precision of a name; ``auto`` is bf16 where the hardware multiplies in it, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def build_strategy(
    experiment: Experiment, in_channels: int, device: torch.device, recorders: Sequence[Any]
) -> IncrTemplate:
    """Build model, optimizer and strategy of an experiment; weights are drawn from ``seeds.init``."""
    training, seeds = experiment.training, experiment.seeds.filled()
    seed_everything(seeds["init"])
    from incrlt.training.template import quiet_evaluator

    experts = load_class("experts", experiment.experts.name)(**experiment.experts.hyper_parameters)
    model = incrlt.models.build(
        experiment.model.name,
        layout=experts.layout,
        head=experiment.model.head,
        in_channels=in_channels,
        width=experiment.model.width,
        last_relu=experiment.model.last_relu,
    )
    precision = choose_precision(training.precision, device)
    channels_last = precision != "fp32" if training.channels_last == "auto" else training.channels_last
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.nesterov,
    )
    return load_class("strategy", experiment.strategy.name)(
        model=model,
        optimizer=optimizer,
        experts=experts,
        memory=_memory(experiment),
        rebalance=_entry("rebalance", experiment.rebalance),
        router=_entry("router", experiment.router),
        schedule=_schedule(training),
        train_mb_size=training.batch_size,
        train_epochs=training.epochs,
        base_epochs=training.base_epochs,
        eval_mb_size=training.eval_batch_size,
        device=device,
        plugins=recorders,
        evaluator=quiet_evaluator(),
        precision=precision,
        kernels=training.kernels,
        step=training.step,
        channels_last=channels_last,
        grad_clip=training.grad_clip,
        fast_data=experiment.data.on_device,
        batch_seed=seeds["batches"],
        augmentation_seed=seeds["augmentation"],
        **experiment.strategy.hyper_parameters,
    )


def _memory(experiment: Experiment) -> ExemplarMemory | None:
    if experiment.memory is None:
        return None
    return ExemplarMemory(**experiment.memory.model_dump(), seed=experiment.seeds.filled()["batches"])


def _entry(kind: Kind, entry: Any) -> Any:
    return None if entry is None else load_class(kind, entry.name)(**entry.hyper_parameters)


def _schedule(training: Any) -> Any:
    if training.schedule == "cosine":
        return cosine(training.warmup_epochs)
    return multistep_with_warmup(training.milestones, training.gamma, training.warmup_epochs)


def method_name(experiment: Experiment) -> str:
    """Return the name a paper's table would use, e.g. ``LUCIR+LWS``."""
    names = {
        "icarl": "iCaRL",
        **{name: name.upper() for name in ("lucir", "eeil", "dgr", "ride", "ncl", "shike", "tcl")},
    }
    strategy = experiment.strategy.name
    parts = [names.get(strategy, strategy.capitalize()), *_experts_name(experiment.experts, names)]
    parts += [] if experiment.rebalance is None else [experiment.rebalance.name.upper()]
    parts += [] if experiment.router is None else ["router"]
    return "+".join(parts)


def _experts_name(experts: Any, names: dict[str, str]) -> list[str]:
    if experts.name != "single":
        return [names.get(experts.name, experts.name)]
    chosen, found = experts.hyper_parameters, []
    if chosen["objective"] != "cross_entropy":
        found.append(chosen["objective"].replace("_", " "))
    if chosen["num_experts"] > 1:
        found.append(f"{chosen['num_experts']} branches")
    return found


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
        data: Any,
        resolved: Any,
        folder: RunFolder,
        console: Console,
    ) -> None:
        self.experiment, self.options, self.device = experiment, options, device
        self.resolved, self.folder, self.console = resolved, folder, console
        if experiment.training.threads:
            torch.set_num_threads(experiment.training.threads)
        self.checkpoints = CheckpointFolder(folder.path / "checkpoints")
        self.board = Board(folder.path / "tensorboard")
        self.benchmark = streams.build(data, resolved)
        self.recorder = EvaluationRecorder()
        self.routing = RoutingRecorder()
        self.image_shape = tuple(data.train_images.shape[1:])
        self.thumbnails = _first_images(data, resolved)
        recorders = [self.recorder, self.routing]
        self.strategy = build_strategy(experiment, self.image_shape[0], device, recorders)
        self.strategy.on_epoch_end = self._epoch_end
        self.strategy.model.normalisation = {"mean": list(data.mean), "std": list(data.std)}
        self.method = method_name(experiment)
        self._begun = time.perf_counter()
        self._seconds_before = 0.0
        self._steps = 0

    def run(self) -> None:
        """Train and evaluate every experience that is left, then write the report."""
        try:
            self._train_and_evaluate()
            self._finish()
        finally:
            self.board.close()

    def _train_and_evaluate(self) -> None:
        first = self._resume() if self.options.resume == "auto" else self._begin_anew()
        if not (self.folder.path / THUMBNAILS_FILE).exists():
            save_thumbnails(self.folder.path / THUMBNAILS_FILE, self.thumbnails)
        self._banner(first)
        stream, tests = self.benchmark.train_stream, self.benchmark.test_stream
        for t in range(first, len(stream)):
            begun = time.perf_counter()
            self.strategy.train(stream[t])
            trained = time.perf_counter()
            self.strategy.eval(tests[: t + 1])
            self._experience_end(t, trained - begun, time.perf_counter() - trained)

    # ------------------------------------------------------------------ beginning

    def _begin_anew(self) -> int:
        self.checkpoints.clear()
        for name in WRITTEN_LATER:
            (self.folder.path / name).unlink(missing_ok=True)
        self.board.cut({})
        self._describe()
        return 0

    def _describe(self) -> None:
        self.folder.write_text("config.yaml", self.experiment.resolved_yaml())
        self.folder.write_json("protocol.json", self.resolved.describe())
        machine = environment(self.device, self.options.command)
        chosen = {"precision": self.strategy.precision}  # what "auto" became
        self.folder.write_json("environment.json", machine | chosen)
        self.folder.log({"event": "start", "method": self.method, "protocol_hash": self.resolved.hash})

    def _resume(self) -> int:
        self.checkpoints.tidy()
        state = self.checkpoints.newest()
        instead = "starting anew" if state is None else "going on from the one before it"
        for name in self.checkpoints.damaged:
            self.console.warning(f"checkpoint {name} is damaged; {instead}")
        if state is None:
            return self._begin_anew()
        self.folder.cut_log(state["log_size"])
        if "board" in state:  # older versions did not note it
            self.board.cut(state["board"])
        self._seconds_before, self._steps = state["seconds"], state["steps"]
        self.recorder.load_state_dict(state["recorder"])
        self.routing.load_state_dict(state["routing"])
        self.strategy.load_state_dict(state["strategy"], self.benchmark.train_stream)
        progress = state["strategy"]["progress"]
        where = f"experience {progress['experience'] + (not progress['trained'])}"
        epoch = (
            ""
            if progress["trained"]
            else f", after epoch {progress['epoch']} of its stage {progress['stage'] + 1}"
        )
        self.console.plain(f"resuming {'after ' if progress['trained'] else 'in '}{where}{epoch}")
        return int(progress["experience"])

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
            "run folder": self.folder.path,
        }
        self.console.banner(facts, plan(self.experiment))

    def _step(self) -> str:
        stepper = self.strategy.stepper
        return f"eager, since {stepper.reason}" if stepper.reason else stepper.name

    # ------------------------------------------------------------------ along the way

    def _epoch_end(self, strategy: IncrTemplate) -> None:
        seconds = max(strategy.epoch_seconds, 1e-9)
        event = {
            "event": "epoch",
            "experience": strategy.experience_index,
            "stage": strategy.stage.name,
            "epoch": strategy.stage_epoch + 1,
            "epochs": strategy.stage.epochs,
            "lr": strategy.epoch_lr,
            "loss": sum(strategy.epoch_terms.values()),
            "terms": strategy.epoch_terms,
            "images_per_second": strategy.epoch_images / seconds,
            "seconds": seconds,
        }
        self._steps += 1
        self.folder.log(event)
        self.board.epoch(self._steps, event)
        self._save(trained=False)
        self.console.epoch(event)

    def _save(self, trained: bool) -> None:
        state = {
            "strategy": self.strategy.state_dict(trained),
            "recorder": self.recorder.state_dict(),
            "routing": self.routing.state_dict(),
            "log_size": self.folder.log_size,
            "board": self.board.sizes(),
            "steps": self._steps,
            "seconds": self._seconds,
        }
        self.checkpoints.save(state)

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._begun

    def _experience_end(self, t: int, train_seconds: float, eval_seconds: float) -> None:
        memory = self.strategy.memory
        event = {
            "event": "experience",
            "experience": t,
            "train_seconds": train_seconds,
            "eval_seconds": eval_seconds,
            "classes_seen": len(self.recorder.class_ids),
            "memory_images": 0 if memory is None else len(memory),
        }
        self.folder.log(event)
        records = self._write_counts()
        self._show(event, records)
        self._save(trained=True)  # last: what comes before it is done again when the process is killed
        rows = {readout: experience_rows(record)[t] for readout, record in records.items()}
        self.console.experience(event, rows)
        line = self.routing.line()
        if line is not None:
            self.console.plain(line)

    def _write_counts(self) -> dict[str, Any]:
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
        self.results = self.folder.write_counts(records, labels, extra)
        self.first_record = next(iter(records.values()))
        record = self.first_record
        self.recorder.write(self.folder.path)
        self.routing.write(self.folder.path, record.experience_of_class, record.images_of_class)
        return records

    def _show(self, event: dict[str, Any], records: dict[str, Any]) -> None:
        t, images = event["experience"], self.first_record.images_of_class
        self.board.experience(event, self.results["readouts"])
        for readout, record in records.items():
            self.board.classes(t, readout, record)
        self.board.evaluation(t, self.recorder.evaluations.get(t, {}), self.first_record)
        self.board.heads(t, self.strategy.model.final_heads, images)
        for row in self.routing.rows(self.first_record.experience_of_class, images)[t:]:
            self.board.routing(t, row)

    # ------------------------------------------------------------------ the end

    def _finish(self) -> None:
        if not hasattr(self, "first_record"):
            self._write_counts()
        self.folder.log({"event": "end", "seconds": self._seconds})
        settings = {"method": self.method, "protocol_hash": self.resolved.hash, **self.experiment.resolved()}
        self.board.finish(settings, self.results)
        line = self._distance()
        if line is not None:
            self.folder.write_text("published.txt", line + "\n")
        self.folder.write_text("DONE", "")
        page = report.write(self.folder.path)
        others = f"python -m incrlt.report {Path(self.folder.path).parent}/* -o reports"
        self.console.finished(self.folder.path, page, others, line)

    def _distance(self) -> str | None:
        """Return how far the run is from its published row and what differs, or None without a row."""
        name, length = self.resolved.protocol.name, self.experiment.training
        row_name = published.row_name(name, self.method, self.experiment.experts.hyper_parameters)
        line = published.distance(name, row_name, summarise(self.first_record))
        training = {"epochs": length.epochs, "base_epochs": length.base_epochs}
        differs = published.what_differs(self.resolved.describe(), row_name, training)
        return f"{line}; this run has {', '.join(differs)}" if line and differs else line


def _first_images(data: Any, resolved: Any) -> list[Any]:
    """Return the first training images of each class, in arrival order, that a sheet of thumbnails has room for."""
    per_class, _ = room(len(resolved.counts))
    chosen = resolved.first_images(data.train_labels.numpy(), per_class)
    return [data.train_images[own].numpy() for own in chosen]
