"""One more experience, over the calls of an Avalanche script: the exemplars and the new pictures are its whole world.

The strategy is built as for a run and takes the state it had after its last experience. Its memory is told where the
exemplars are now: in the first data set of a small benchmark, whose second is what is new. So an update ends where a
run over all experiences would have ended, to the bit, as long as pictures and settings are the same.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from incrlt.benchmarks import facts, streams
from incrlt.benchmarks.identity import contents
from incrlt.data.tensors import ImageTensors
from incrlt.errors import UserError
from incrlt.experiment.sections import Experiment
from incrlt.files import Plain
from incrlt.lifecycle.learned import Learned, labels_of
from incrlt.metrics import main_readout
from incrlt.plugins import saved_exemplars
from incrlt.plugins.confusion import ConfusionRecorder
from incrlt.roles import Dataset, State
from incrlt.runner.build import build_strategy, choose_device
from incrlt.runner.kept import Facts, Pictures, exemplars_of
from incrlt.training.randomness import global_state, set_global_state
from incrlt.training.template import IncrTemplate

USUAL_AUGMENTATION = "crop-flip"
"""Of a folder of pictures."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What arrives at once; its classes have names.

    Args:
        images: uint8 ``[N, C, H, W]``, to be trained on.
        names: Class of each.
        test_images: uint8 ``[M, C, H, W]``, to be tested on.
        test_names: Class of each.
        order: Classes in the order in which new ones are to be appended; others come after, as they first appear.
    """

    images: torch.Tensor
    names: tuple[str, ...]
    test_images: torch.Tensor
    test_names: tuple[str, ...]
    order: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Hash of pictures and classes in their order, 64 hex characters; names of files are no part of it."""
        digest = hashlib.sha256()
        for part, images, names in (
            ("train", self.images, self.names),
            ("test", self.test_images, self.test_names),
        ):
            digest.update(f"{part}\0{len(names)}\0{list(images.shape[1:])}\n".encode())
            for image, name in zip(images, names, strict=True):
                digest.update(f"{name}\0".encode("utf-8", "surrogateescape"))
                digest.update(hashlib.sha256(image.contiguous().numpy().tobytes()).digest())
        return digest.hexdigest()


class Lesson:
    """An experience in progress.

    Args:
        before: The model as it is.
        batch: What arrives.
        device: Where; None asks the experiment.

    Attributes:
        strategy: What trains.
        facts: Classes, counts and digest after the experience.

    Raises:
        UserError: No pictures, a class without training pictures, or pictures of another shape.
    """

    def __init__(self, before: Learned, batch: Batch, device: torch.device | None = None) -> None:
        _check(before, batch)
        self.before, self.batch = before, batch
        self.facts = facts_after(before, batch)
        known = {name: place for place, name in enumerate(self.facts.class_names)}
        new = Pictures(batch.images, labels_of(list(batch.names), known))
        self.tests = before.tests.joined(
            Pictures(batch.test_images, labels_of(list(batch.test_names), known))
        )
        self.device = choose_device(before.experiment.device) if device is None else device
        exemplars = _without(before.exemplars, new)
        parts = [exemplars, new] if len(exemplars) else [new]
        self.benchmark = _benchmark(before, parts, self.tests, self.facts.class_names)
        self.recorder = before.recorded()
        with _own_randomness(self.device):
            self.strategy = build_strategy(
                before.experiment,
                before.facts.preparation.channels,
                self.device,
                [self.recorder],
                pretrained=before.strategy is None,
            )
            self._take_up(exemplars)
            self._random = global_state(self.device)
        self._begun = time.perf_counter()
        self._seconds_before = before.seconds

    @property
    def stream(self) -> list[Any]:
        """The experiences that a state of the strategy is restored with: old ones are all the same, the exemplars."""
        old, new = self.benchmark.train_stream[0], self.benchmark.train_stream[-1]
        return [*[old] * self.before.experiences, new]

    @property
    def seconds(self) -> float:
        """Time spent on learning, earlier experiences included."""
        return self._seconds_before + time.perf_counter() - self._begun

    def _take_up(self, exemplars: Pictures) -> None:
        preparation = self.before.facts.preparation
        normalisation = {"mean": list(preparation.mean), "std": list(preparation.std)}
        self.strategy.model.normalisation = normalisation
        if self.before.strategy is not None:
            state = {**self.before.strategy, "memory_before": None}
            if state["memory"] is not None:
                old = self.benchmark.train_stream[0].dataset if len(exemplars) else None
                state["memory"] = memory_state(state["memory"], exemplars, old, self.facts.class_names)
            asked = [
                {key: value for key, value in group.items() if key != "params"}
                for group in self.strategy.optimizer.param_groups
            ]
            self.strategy.load_state_dict(state, self.stream)
            for group, own in zip(self.strategy.optimizer.param_groups, asked, strict=True):
                group.pop("initial_lr", None)
                group.update(own)  # the state brings the settings of the run, and an update may have others

    def resume(self, state: Plain) -> None:
        """Go on from what :meth:`state` returned in another process."""
        self.recorder.load_state_dict(state["recorder"])
        with _own_randomness(self.device):
            self.strategy.load_state_dict(state["strategy"], self.stream)
            self._random = global_state(self.device)
        self._seconds_before = float(state["seconds"])

    def state(self, trained: bool = False) -> Plain:
        """Return everything a later process needs to go on bit-exactly."""
        return {
            "strategy": self.strategy.state_dict(trained),
            "recorder": self.recorder.state_dict(),
            "seconds": self.seconds,
        }

    @property
    def is_trained(self) -> bool:
        """Whether the experience is over."""
        return self.strategy.experience_index > self.before.experiences

    def learn(self, on_epoch: Callable[[IncrTemplate], None] | None = None) -> Learned:
        """Train and evaluate; return the model after it.

        Args:
            on_epoch: Called after each epoch, as :attr:`IncrTemplate.on_epoch_end`.
        """
        with _own_randomness(self.device, self._random):
            self.strategy.on_epoch_end = on_epoch
            if not self.is_trained:
                self.strategy.train(self.benchmark.train_stream[-1])
            if len(self.tests):
                self._evaluate()
            state = self.state(trained=True)
        return Learned(
            experiment=self.before.experiment,
            facts=self.facts,
            strategy=state["strategy"],
            recorder=state["recorder"],
            exemplars=exemplars_of(self.strategy, self.facts.preparation.shape),
            tests=self.tests,
            seconds=state["seconds"],
        )

    def _evaluate(self) -> None:
        """Count the answers to the test pictures; a model that had none before has no table to go on with."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="EvaluationRecorder drops the evaluation")
            self.strategy.eval(self.benchmark.test_stream)


def _check(before: Learned, batch: Batch) -> None:
    shape = before.facts.preparation.shape
    for images in (batch.images, batch.test_images):
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != shape:
            raise UserError(
                f"pictures are {images.dtype} of shape {list(images.shape[1:])}; this model takes uint8 of shape "
                f"{list(shape)} (channels, height, width)."
            )
    if not len(batch.images):
        raise UserError("there are no pictures to learn from; give at least one.")
    lost = sorted(set(batch.test_names) - set(batch.names) - set(before.class_names))
    if lost:
        raise UserError(
            f"there are test pictures of {', '.join(lost[:5])} and none to learn from; give some, or leave them out."
        )


def facts_after(before: Learned, batch: Batch) -> Facts:
    """Return classes, counts and digest of a model that has learned a batch."""
    arriving = [name for name in batch.order if name in set(batch.names)]
    names = list(dict.fromkeys([*before.class_names, *arriving, *batch.names]))
    seen = [*before.facts.seen, *[0] * (len(names) - len(before.class_names))]
    place = {name: index for index, name in enumerate(names)}
    for name in batch.names:
        seen[place[name]] += 1
    stream = hashlib.sha256(f"{before.facts.stream}\n{batch.digest}".encode()).hexdigest()
    return replace(before.facts, class_names=tuple(names), seen=tuple(seen), stream=stream, notes=())


def _without(exemplars: Pictures, new: Pictures) -> Pictures:
    """Return the exemplars without those that arrive again in their class: there they are chosen from anew."""
    if not len(exemplars):
        return exemplars
    arriving = set(zip(new.hashes(), new.labels.tolist(), strict=True))
    kept = [pair not in arriving for pair in zip(exemplars.hashes(), exemplars.labels.tolist(), strict=True)]
    return exemplars if all(kept) else exemplars.only(torch.tensor(kept))


def _benchmark(before: Learned, parts: Sequence[Pictures], tests: Pictures, names: Sequence[str]) -> Any:
    preparation = before.facts.preparation
    # Avalanche makes no experience of nothing; where there are no test pictures, this one is never looked at.
    shown = tests if len(tests) else parts[-1]
    return streams.of_parts(
        [ImageTensors(part.images, part.labels) for part in parts],
        ImageTensors(shown.images, shown.labels),
        names,
        augmentation_of(before.experiment),
        preparation.mean,
        preparation.std,
    )


def augmentation_of(experiment: Experiment) -> str:
    """Return the name of the training augmentation: the experiment's, else the data set's own."""
    chosen = experiment.benchmark
    own = facts.info(chosen.dataset).augmentation if chosen.dataset in facts.names() else USUAL_AUGMENTATION
    return chosen.augmentation or own


def memory_state(state: State, exemplars: Pictures, dataset: Dataset | None, names: Sequence[str]) -> State:
    """Return the state of a memory whose pictures have moved into one data set.

    Args:
        state: As it was.
        exemplars: What it holds, class by class, best first.
        dataset: The same pictures as an Avalanche data set; None where there are none.
        names: Of classes, by label.
    """
    labels, counts = exemplars.labels.unique_consecutive(return_counts=True)
    rows = torch.arange(len(exemplars))
    held = {} if dataset is None else {0: dataset}
    return {
        "labels": labels,
        "counts": counts,
        "places": torch.stack([torch.zeros_like(rows), rows], dim=1),
        "pictures": torch.empty(0, dtype=torch.int64) if dataset is None else contents(dataset, rows.numpy()),
        "experiences": torch.tensor(list(held), dtype=torch.int64),
        "sources": saved_exemplars.describe(held, {0: 0}),
        "names": {label: names[label] for label in labels.tolist()},
        "random_state": state["random_state"],
    }


def measure(learned: Learned, tests: Pictures, device: torch.device | None = None) -> torch.Tensor:
    """Count the answers of a model to test pictures, as its evaluation would: those that ``incrlt predict`` gives.

    Args:
        learned: The model.
        tests: Pictures of its classes; those of other classes are left out.
        device: Where; None asks the experiment.

    Returns:
        int64 ``[C, C]``, rows are true classes, columns answers, in arrival order; of the main
        read-out, routed where there is a router.
    """
    device = choose_device(learned.experiment.device) if device is None else device
    size = len(learned.class_names)
    tests = tests.only(tests.labels < size)
    if not len(tests):
        return torch.zeros(size, size, dtype=torch.int64)
    recorder = ConfusionRecorder()
    recorder.load_state_dict(
        {
            "class_ids": list(range(size)), "experience_of_class": [0] * size,
            "images_of_class": list(learned.facts.seen), "experience": 0, "confusions": {},
        }
    )  # fmt: skip
    with _own_randomness(device):
        strategy = answering(learned, device, [recorder])
        benchmark = _benchmark(learned, [tests], tests, learned.class_names)
        strategy.eval(benchmark.test_stream)
    return torch.tensor(recorder.confusions[main_readout(recorder.confusions)][0])


def answering(learned: Learned, device: torch.device, recorders: Sequence[object] = ()) -> IncrTemplate:
    """Return the strategy of a model as far as answers need it: without its memory."""
    assert learned.strategy is not None
    strategy = build_strategy(
        learned.experiment, learned.facts.preparation.channels, device, list(recorders), pretrained=False
    )
    state = {**learned.strategy, "memory_before": None}
    if state["memory"] is not None:
        nothing = Pictures.none(learned.facts.preparation.shape)
        state["memory"] = memory_state(state["memory"], nothing, None, learned.class_names)
    strategy.load_state_dict(state, [])
    strategy.model.class_names = dict(enumerate(learned.class_names))
    return strategy


class _own_randomness:  # noqa: N801  (reads as the statement it is)
    """Leave the caller's random states as they were; inside, go on from states of one's own."""

    def __init__(self, device: torch.device, inside: Plain | None = None) -> None:
        self._device, self._inside = device, inside

    def __enter__(self) -> None:
        self._outside = global_state(self._device)
        if self._inside is not None:
            set_global_state(self._inside, self._device)

    def __exit__(self, *error: object) -> None:
        set_global_state(self._outside, self._device)
