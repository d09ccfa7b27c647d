"""What TensorBoard shows of a run while it trains: the figures of the report as curves, histograms and pictures.

``<run folder>/tensorboard`` has loss terms over epochs and everything else over experiences;
``<run folder>/tensorboard/final`` has the configuration and the numbers of a finished run, for the HPARAMS tab.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from tensorboard.summary.writer import event_file_writer
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from incrlt.errors import UserError
from incrlt.experiment.yamlfile import leaves
from incrlt.metrics import StreamRecord, class_accuracy
from incrlt.metrics.calibration import reliability_by_group
from incrlt.metrics.experts import disagreement, expert_accuracy, over_groups
from incrlt.metrics.groups import GROUPS, class_groups
from incrlt.metrics.numbers import Floats
from incrlt.runner.events import EpochEvent, ExperienceEvent

Scalars = Mapping[str, float | None]

LOW, HIGH, UNKNOWN = (234, 240, 251), (18, 63, 148), (255, 255, 255)
"""Colours of 0 %, of 100 % and of a cell without value."""
QUEUE = 1000
"""Values that may wait for the writing thread: those of an experience, so that training does not wait for it."""
READABLE = 20
"""An accuracy matrix of at most so many experiences has its values written into the cells."""


class Board:
    """Writes the event files of one run.

    Nothing is made on disk before the first value. A run that goes on after a kill first cuts the files back to what
    they were at its checkpoint (:meth:`cut`), so that no value stands twice.

    Args:
        folder: Where the event files go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: SummaryWriter | None = None
        _keep_writing_threads_quiet()

    @property
    def writer(self) -> SummaryWriter:
        """The writer of this process; it begins a file of its own."""
        if self._writer is None:
            self._writer = SummaryWriter(str(self.folder), max_queue=QUEUE)
        return self._writer

    # ------------------------------------------------------------------ what is shown

    def epoch(self, epochs: int, event: EpochEvent) -> None:
        """Show an epoch.

        Args:
            epochs: Epochs of the run so far, the x axis.
            event: As in ``log.jsonl``: loss terms, learning rate, speed.
        """
        self._scalars({f"loss/{name}": value for name, value in event["terms"].items()}, epochs)
        shown = {
            "training/loss": event["loss"],
            "training/learning_rate": event["lr"],
            "training/images_per_second": event["images_per_second"],
        }
        self._scalars(shown, epochs)

    def experience(self, event: ExperienceEvent, summary_of: Mapping[str, Mapping[str, Any]]) -> None:
        """Show the metrics of an experience: accuracies, forgetting, groups, the accuracy matrix.

        Args:
            event: As in ``log.jsonl``: the experience, its seconds, the images in memory.
            summary_of: Per read-out what :func:`incrlt.metrics.summarise` returns.
        """
        t = event["experience"]
        shown = {
            "training/classes_seen": event["classes_seen"],
            "training/memory_images": event["memory_images"],
            "training/train_seconds": event["train_seconds"],
            "training/eval_seconds": event["eval_seconds"],
        }
        self._scalars(shown, t)
        for readout, summary in summary_of.items():
            self._scalars({f"{readout}/{name}": value for name, value in last_values(summary).items()}, t)
            picture = matrix_picture(summary["accuracy_matrix"])
            with self._writing():
                self.writer.add_image(f"{readout}/accuracy_matrix", picture, t, dataformats="HWC")

    def classes(self, t: int, readout: str, record: StreamRecord) -> None:
        """Show how the accuracies of the seen classes are spread, of all and by group."""
        accuracy = class_accuracy(record)[-1, : record.num_seen]
        groups = class_groups(record.images_of_class[: record.num_seen])
        self._histogram(f"{readout}/class_accuracy/all", accuracy, t)
        for group in GROUPS:
            self._histogram(f"{readout}/class_accuracy/{group}", accuracy[groups == group], t)

    def evaluation(self, t: int, values: Mapping[str, Tensor], record: StreamRecord) -> None:
        """Show calibration and experts.

        Args:
            t: The experience.
            values: What :mod:`incrlt.metrics.evaluation` lists, of this experience.
            record: The counts of the main read-out.
        """
        found = {name: value.numpy() for name, value in values.items()}
        self._scalars(calibration_values(found, record), t)
        self._scalars(expert_values(found, record), t)

    def routing(self, t: int, row: Scalars) -> None:
        """Show a row of ``routing.csv``."""
        self._scalars({f"routing/{name}": value for name, value in row.items() if name != "experience"}, t)

    def heads(self, t: int, heads: Iterable[Any], images_of_class: npt.ArrayLike) -> None:
        """Show how long the rows of the classifier are and what a second stage multiplied them by, by group.

        Args:
            t: The experience.
            heads: The K heads that evaluation reads.
            images_of_class: Training images of the class in the full training set [at least C_t].
        """
        heads = list(heads)
        for name, values_KC in head_values(heads).items():
            self._histogram(f"head/{name}", values_KC.reshape(-1), t)
            means = over_groups(values_KC.mean(axis=0), images_of_class)
            self._scalars({f"head/{name}/{group}": value for group, value in means.items()}, t)
        scales = {k: head.scale.item() for k, head in enumerate(heads) if hasattr(head, "scale")}
        self._scalars({f"head/scale/expert_{k}": value for k, value in scales.items()}, t)

    def finish(self, settings: Mapping[str, object], results: Mapping[str, Any]) -> None:
        """Write configuration and numbers of a finished run for TensorBoard's comparison of runs.

        Args:
            settings: Nested plain data.
            results: The content of ``results.json``.
        """
        final = self.folder / "final"
        with self._writing():
            _remove(_event_files(final))
        numbers = final_values(results)
        # Without torch's description of the experiment: of several runs TensorBoard would read the first one's only
        # and hide every setting that run does not have.
        _, start, end = hparams(flattened(settings), dict(numbers))
        with self._writing(), SummaryWriter(str(final)) as writer:
            for summary in (start, end):
                writer.file_writer.add_summary(summary)
            for name, value in numbers.items():
                writer.add_scalar(name, value)

    def _scalars(self, values: Scalars, step: int) -> None:
        with self._writing():
            for name, value in values.items():
                if value is not None:
                    self.writer.add_scalar(name, value, step)

    def _histogram(self, name: str, values: Floats, step: int) -> None:
        values = values[~np.isnan(values)]
        if values.size:
            with self._writing():
                self.writer.add_histogram(name, values, step)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Make one sentence of what TensorBoard's writing thread met on the disk; it tells with the next value."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write TensorBoard's files in {self.folder}: {error.strerror or error}. Free some space, "
                "then run the same command again."
            ) from error

    # ------------------------------------------------------------------ files

    def sizes(self) -> dict[str, int]:
        """Write what is still held, and return the bytes of each event file, which a checkpoint remembers."""
        with self._writing():
            if self._writer is not None:
                self._writer.flush()
            return {path.name: path.stat().st_size for path in _event_files(self.folder)}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Drop what was written after a checkpoint whose :meth:`sizes` are given; {} drops everything."""
        with self._writing():
            for path in _event_files(self.folder):
                if path.name not in sizes:
                    path.unlink()
                elif path.stat().st_size > sizes[path.name]:
                    os.truncate(path, sizes[path.name])
            _remove(_event_files(self.folder / "final"))

    def close(self) -> None:
        """Write what is still held and close the file; where that fails, the run has stopped with the reason."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()


def _keep_writing_threads_quiet() -> None:
    """Let no traceback of TensorBoard's writing thread be printed: what it met is raised with the next value."""
    before = threading.excepthook
    if getattr(before, "is_quiet", False):
        return

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if type(arguments.thread).__module__ != event_file_writer.__name__:
            before(arguments)

    hook.is_quiet = True  # type: ignore[attr-defined]
    threading.excepthook = hook


def _event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.*"))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()


def last_values(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the last value of everything that a read-out has one of per experience, and its averages so far.

    Args:
        summary: Of one read-out, as :func:`incrlt.metrics.summarise` returns it.
    """
    averages = "average_incremental_accuracy/"
    row = summary["accuracy_matrix"][-1]
    return {
        **{name: values[-1] for name, values in summary["per_experience"].items()},
        **{name: value for name, value in summary["numbers"].items() if name.startswith(averages)},
        **{f"accuracy_of_experience/{j:02d}": value for j, value in enumerate(row)},
    }


def calibration_values(
    values: Mapping[str, npt.NDArray[np.int64]], record: StreamRecord
) -> dict[str, float | None]:
    """Return the expected calibration error of each read-out that has a confidence, of all classes and by group."""
    prefix = "confidence_"
    return {
        f"{name.removeprefix(prefix)}/calibration_error/{group}": diagram.error
        for name, counted in values.items()
        if name.startswith(prefix)
        for group, diagram in reliability_by_group(counted, record.images_of_class).items()
    }


def expert_values(
    values: Mapping[str, npt.NDArray[np.int64]], record: StreamRecord
) -> dict[str, float | None]:
    """Return accuracies of each expert alone and of the first k together, and how often experts disagree."""
    if "right" not in values:
        return {}
    images, tested = record.images_of_class, record.tested_after(-1)
    alone, together = expert_accuracy(values["right"], tested, images)
    return {
        **{f"experts/expert_{k}/{name}": v for k, row in enumerate(alone) for name, v in row.items()},
        **{f"experts/first_{k + 1}/{name}": v for k, row in enumerate(together) for name, v in row.items()},
        **{
            f"experts/disagreement/{name}": v
            for name, v in disagreement(values["disagree"], tested, images).items()
        },
    }


def head_values(heads: Iterable[Any]) -> dict[str, Floats]:
    """Return per expert and class the length of the classifier's row and its learnable factor [K, C].

    The factor is left out while it is 1 everywhere, as it is without a second stage.
    """
    rows = [(head.weight[: head.num_classes], head.class_scale[: head.num_classes]) for head in heads]
    norms = np.array([weight.detach().norm(dim=1).tolist() for weight, _ in rows])
    factors = np.array([scale.detach().tolist() for _, scale in rows])
    return {"weight_norm": norms} | ({} if (factors == 1).all() else {"class_scale": factors})


def final_values(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of ``results.json`` that are defined, ``<read-out>/<number>``, and what the network costs."""
    numbers = {
        f"{readout}/{name}": value
        for readout, summary in results["readouts"].items()
        for name, value in summary["numbers"].items()
    }
    costs = {f"cost/{name}": results.get(name) for name in ("parameters", "mega_macs", "seconds")}
    return {name: float(value) for name, value in {**numbers, **costs}.items() if value is not None}


def flattened(settings: Mapping[str, object]) -> dict[str, float | str]:
    """Return nested settings as ``section.key`` -> number or text.

    Example:
        >>> flattened({"training": {"lr": 0.1, "step": [3, 5]}, "memory": None, "nesterov": True})
        {'training.lr': 0.1, 'training.step': '3, 5', 'memory': 'none', 'nesterov': 'true'}
    """
    return {name: value if type(value) in (int, float) else _words(value) for name, value in leaves(settings)}


def _words(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(inner) for inner in value)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def matrix_picture(matrix: list[list[float | None]]) -> npt.NDArray[np.uint8]:
    """Draw an accuracy matrix: a row after each experience, a column for the classes of each.

    Args:
        matrix: [T, T] in percent, None where undefined.

    Returns:
        uint8 [T * cell, T * cell, 3]; the colour runs from :data:`LOW` to :data:`HIGH`.
    """
    values = np.array(matrix, dtype=np.float64)  # None becomes NaN
    size = len(values)
    cell = 32 if size <= READABLE else 12
    share = np.nan_to_num(values / 100)[:, :, None]
    colours = np.round(np.array(LOW) * (1 - share) + np.array(HIGH) * share)
    colours[np.isnan(values)] = UNKNOWN
    picture = Image.fromarray(colours.astype(np.uint8).repeat(cell, axis=0).repeat(cell, axis=1))
    if size <= READABLE:
        pen = ImageDraw.Draw(picture)
        for t, j in np.argwhere(~np.isnan(values)):
            ink = UNKNOWN if values[t, j] > 50 else HIGH
            middle = (j * cell + cell / 2, t * cell + cell / 2)
            pen.text(middle, f"{values[t, j]:.0f}", fill=ink, anchor="mm")
    return np.asarray(picture)
