"""A classifier with scikit-learn's conventions that goes on learning: the same calls as ``incrlt update`` makes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError
from torch import Tensor

from incrlt.benchmarks import given, listing, reading
from incrlt.benchmarks.datasets import statistics
from incrlt.errors import UserError
from incrlt.experiment import schema
from incrlt.experiment.sections import Experiment
from incrlt.files import Plain
from incrlt.lifecycle import learned as models
from incrlt.lifecycle import versions
from incrlt.lifecycle.answers import Answerer
from incrlt.lifecycle.learned import Learned
from incrlt.lifecycle.lesson import Batch, Lesson
from incrlt.runner.folder import RunFolder
from incrlt.runner.kept import Preparation

Labels = npt.NDArray[Any]


class LongTailClassifier(ClassifierMixin, BaseEstimator):
    """Learns classes of pictures, rare ones too, and goes on: each ``partial_fit`` is one more experience.

    Pictures are a folder with a folder per class, a list file, paths with ``y``, uint8 arrays ``[N, H, W]``,
    ``[N, H, W, C]`` or ``[N, C, H, W]`` with ``y``, or any torch data set of pictures and labels. The first ones decide
    size, colour and normalisation.

    Args:
        strategy: Time axis: a name, or a mapping with ``name`` and hyper-parameters, as in YAML.
        experts: Tail axis, likewise.
        rebalance: Second stage, likewise; None has none.
        router: Last stage, likewise; None runs all experts.
        memory_per_class: Exemplars kept of each class; None keeps none (``joint`` keeps all pictures).
        model: Backbone.
        epochs: Of each experience.
        batch_size: Pictures per step.
        lr: Learning rate.
        image_size: Side in pixels of pictures from files; None: 32. Arrays keep their size.
        augmentation: Name of the training augmentation; None: ``crop-flip`` for colour, ``shift`` for grey.
        settings: Any other value of an experiment, such as ``{"training.weight_decay": 1e-4}``.
        skip_broken: Go on without files that cannot be used.
        random_state: Seed of everything.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Attributes:
        classes_: Labels, sorted, as they were given.
        n_pictures_seen_: Pictures of each of these classes ever learned.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> digits = load_digits()
        >>> pictures = (digits.images * 15).astype("uint8")
        >>> model = LongTailClassifier(model="resnet8", epochs=1, device="cpu")
        >>> model = model.partial_fit(pictures[:99], digits.target[:99])
        >>> model.predict_proba(pictures[:2]).shape
        (2, 10)
    """

    def __init__(
        self,
        strategy: str | Mapping[str, object] = "lucir",
        experts: str | Mapping[str, object] = "single",
        rebalance: str | Mapping[str, object] | None = None,
        router: str | Mapping[str, object] | None = None,
        memory_per_class: int | None = 20,
        model: str = "resnet32",
        epochs: int = 30,
        batch_size: int = 64,
        lr: float = 0.1,
        image_size: int | None = None,
        augmentation: str | None = None,
        settings: Mapping[str, object] | None = None,
        skip_broken: bool = False,
        random_state: int = 0,
        device: str = "auto",
    ) -> None:
        self.strategy = strategy
        self.experts = experts
        self.rebalance = rebalance
        self.router = router
        self.memory_per_class = memory_per_class
        self.model = model
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.image_size = image_size
        self.augmentation = augmentation
        self.settings = settings
        self.skip_broken = skip_broken
        self.random_state = random_state
        self.device = device

    # ------------------------------------------------------------------ scikit-learn's methods

    def fit(self, X: object, y: object = None) -> Self:
        """Learn from nothing, whatever was learned before.

        Args:
            X: Pictures, see above.
            y: A label for each; None where ``X`` has them.

        Raises:
            UserError: Pictures, labels or parameters that cannot be used.
        """
        for name in ("learned_", "classes_", "_answerer"):
            self.__dict__.pop(name, None)
        return self.partial_fit(X, y)

    def partial_fit(self, X: object, y: object = None, classes: object = None) -> Self:
        """Learn one more experience: new classes are appended, known ones learned further.

        Args:
            X: Pictures, see above.
            y: A label for each; None where ``X`` has them.
            classes: Not needed, since classes may come at any time; here for scikit-learn's sake.

        Raises:
            UserError: Pictures, labels or parameters that cannot be used.
        """
        before = getattr(self, "learned_", None)
        images, labels = self._pictures(X, y, None if before is None else before.facts.preparation.shape)
        if not len(images):
            raise UserError("there are no pictures to learn from; give at least one.")
        if before is None:
            before = self._begun(images)
            self._labels: Plain = {}
        named = _names(labels, self._labels)
        order = tuple(str(label) for label in _sorted(named.values()))
        names = tuple(str(label) for label in labels)
        self.learned_ = Lesson(before, Batch(images, names, images[:0], (), order)).learn()
        self._labels = named
        self.__dict__.pop("_answerer", None)
        self._tell_classes()
        return self

    def predict_proba(self, X: object) -> npt.NDArray[np.float64]:
        """Return the probability of each class ``[N, C]``, columns as ``classes_``.

        Raises:
            NotFittedError: Nothing was learned yet.
            UserError: Pictures that cannot be used.
        """
        answerer = self._fitted()
        images, _ = self._pictures(X, None, answerer.learned.facts.preparation.shape, labelled=False)
        found = answerer(images).probabilities.double().numpy()
        order = [self._place[str(label)] for label in self.classes_.tolist()]
        return found[:, order]

    def predict(self, X: object) -> Labels:
        """Return the label of each picture ``[N]``."""
        chances = self.predict_proba(X)
        best: Labels = self.classes_[chances.argmax(1)]
        return best

    def score(self, X: object, y: object = None, sample_weight: object = None) -> float:
        """Return the share of right answers; labels may come with ``X``."""
        answerer = self._fitted()
        images, labels = self._pictures(X, y, answerer.learned.facts.preparation.shape)
        return float(super().score(images, np.asarray(labels), sample_weight))

    # ------------------------------------------------------------------ beyond scikit-learn

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write a run folder: ``incrlt predict``, ``update`` and ``export`` take it, and :meth:`load` reads it.

        Raises:
            NotFittedError: Nothing was learned yet.
            UserError: The folder holds something already, or cannot be written to.
        """
        self._fitted()
        place = Path(folder)
        if place.is_dir() and any(place.iterdir()):
            raise UserError(f"{place} is not empty; save into a new folder.")
        writer = RunFolder(place)
        try:
            models.write(writer, self.learned_, {"method": self.learned_.experiment.method})
            writer.write_json("estimator.json", {"parameters": self._plain(), "labels": self._labels})
        finally:
            writer.close()
        return place

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote, or the version of any run that answers; class names are then its labels.

        Raises:
            UserError: It is no finished run, or damaged.
        """
        from incrlt.runner.resume import read_mapping

        place = Path(folder)
        own = read_mapping(place / "estimator.json")
        found = cls(**own.get("parameters", {}))
        found.learned_ = models.read(versions.path_of(place, versions.current(place)))
        labels = own.get("labels", {})
        found._labels = {name: labels.get(name, name) for name in found.learned_.class_names}
        found._tell_classes()
        return found

    # ------------------------------------------------------------------ how it is done

    def _fitted(self) -> Answerer:
        if not hasattr(self, "learned_"):
            raise NotFittedError(
                f"this {type(self).__name__} has learned nothing yet; call fit or partial_fit first."
            )
        if "_answerer" not in self.__dict__:
            self._answerer = Answerer(self.learned_)
        return self._answerer

    def _tell_classes(self) -> None:
        names = self.learned_.class_names
        self._place = {name: place for place, name in enumerate(names)}
        self.classes_ = np.asarray(_sorted([self._labels[name] for name in names]))
        seen = [self.learned_.facts.seen[self._place[str(label)]] for label in self.classes_.tolist()]
        self.n_pictures_seen_ = np.asarray(seen)

    def _plain(self) -> Plain:
        return {
            name: dict(v) if isinstance(v, Mapping) else v for name, v in self.get_params(deep=False).items()
        }

    def _begun(self, images: Tensor) -> Learned:
        channels, height, width = images.shape[1:]
        preparation = Preparation(height, width, channels, *statistics(images))
        return models.nothing(self._experiment(channels), preparation)

    def _experiment(self, channels: int) -> Experiment:
        named = {
            "strategy": self.strategy,
            "experts": self.experts,
            "rebalance": self.rebalance,
            "router": self.router,
        }
        values: Plain = {
            name: {"name": entry} if isinstance(entry, str) else None if entry is None else dict(entry)
            for name, entry in named.items()
        }
        usual = "crop-flip" if channels == 3 else "shift"
        values |= {
            "benchmark": {
                "dataset": "folder", "protocol": "offline", "imbalance_ratio": None,
                "augmentation": self.augmentation or usual,
            },
            "model": {"name": self.model},
            "memory": None if self.memory_per_class is None else {"per_class": self.memory_per_class},
            "training": {"epochs": self.epochs, "batch_size": self.batch_size, "lr": float(self.lr)},
            "seeds": {"all": self.random_state},
            "device": self.device,
        }  # fmt: skip
        for key, value in (self.settings or {}).items():
            section, _, name = key.partition(".")
            if not name:
                raise UserError(
                    f"settings has the key {key!r}; write section.key, such as 'training.weight_decay'."
                )
            values[section] = {**(values.get(section) or {}), name: value}
        return schema.parse(values, "LongTailClassifier", with_data=False)

    def _pictures(
        self, X: Any, y: Any, shape: Sequence[int] | None, labelled: bool = True
    ) -> tuple[Tensor, list[object]]:
        """Return pictures and labels of whatever was given."""
        size = self.image_size or given.DEFAULT_SIZE
        wanted = (3, size, size) if shape is None else shape
        if isinstance(X, str | os.PathLike):
            return self._of_files(Path(X), wanted, labelled)
        if _is_array(X):
            images = given.of_array(X, shape)
        elif hasattr(X, "__getitem__") and not isinstance(X, Sequence) and not _is_series(X):
            images, own = given.of_dataset(X, shape, size)
            return images, own if y is None else _of(y, len(images))
        else:
            items = list(X)
            paths = bool(items) and all(isinstance(item, str | os.PathLike) for item in items)
            images = self._of_paths(items, wanted) if paths else given.of_pictures(items, shape, size)
        if not labelled:
            return images, []
        if y is None:
            raise UserError("y is missing: these pictures come without labels; give one for each.")
        return images, _of(y, len(images))

    def _of_files(self, place: Path, shape: Sequence[int], labelled: bool) -> tuple[Tensor, list[object]]:
        found = listing.labelled_pictures(place) if labelled else listing.pictures_in(place)
        found.check(self.skip_broken)
        read = reading.read(found, shape, self.skip_broken, twice=not labelled)
        return read.images, [entry.label for entry in read.listing.entries]

    def _of_paths(self, paths: Sequence[Any], shape: Sequence[int]) -> Tensor:
        entries = tuple(listing.Entry(Path(path), f"{place}: {path}") for place, path in enumerate(paths))
        return reading.read(listing.Listing(Path("paths"), entries), shape, twice=True).images

    def __getstate__(self) -> Plain:
        """Leave out what is made anew when it is asked for."""
        return {name: value for name, value in super().__getstate__().items() if name != "_answerer"}


def _is_array(value: object) -> bool:
    """Tell whether it is an array of pictures; one of paths is no array of numbers."""
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "uifb")


def _is_series(value: object) -> bool:
    """Tell whether it is a column of values: NumPy's or pandas'."""
    return isinstance(value, np.ndarray) or hasattr(value, "to_numpy")


def _of(y: Any, number: int) -> list[object]:
    """Return labels as plain values, one for each picture."""
    labels = y.tolist() if hasattr(y, "tolist") else list(y)
    if len(labels) != number:
        raise UserError(f"there are {number} pictures and {len(labels)} labels; give one label for each.")
    lost = [place for place, label in enumerate(labels) if label is None or label != label]
    if lost:
        raise UserError(
            f"{len(lost)} labels are missing, the first is number {lost[0]}; leave those pictures out."
        )
    wrong = next((label for label in labels if not isinstance(label, str | int | float | bool)), None)
    if wrong is not None:
        raise UserError(f"labels must be text or numbers; got a {type(wrong).__name__}.")
    return labels


def _names(labels: Sequence[object], known: Mapping[str, object]) -> Plain:
    """Return the labels by their names, as classes are told apart."""
    found = dict(known)
    for label in labels:
        name = str(label)
        if found.setdefault(name, label) != label or type(found[name]) is not type(label):
            raise UserError(
                f"the labels {label!r} and {found[name]!r} have one name; give all labels as text, or all as numbers."
            )
    return found


def _sorted(labels: Any) -> list[object]:
    """Return labels in their own order; text and numbers among each other by their names."""
    labels = list(labels)
    try:
        return sorted(labels)
    except TypeError:
        return sorted(labels, key=str)


__all__ = ["LongTailClassifier"]
