"""Which classes arrive when, with which images: named protocols, free ones, and their content hash.

A :class:`Protocol` is a rule and needs no data. :func:`resolve` applies it to the labels of a dataset and
gives a :class:`ResolvedProtocol`: indices, counts and a hash. Runs whose hashes differ are not comparable.
NumPy only, so that ``--dry-run`` and reports start at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from incrlt.benchmarks import facts, holdout, longtail, splits
from incrlt.errors import UserError, did_you_mean
from incrlt.files import Plain

NAMES = (
    "lfh-shuffled-5",
    "lfh-shuffled-10",
    "lfh-ordered-5",
    "lfh-ordered-10",
    "lfs-10",
    "lfs-20",
    "lfs-ordered-10",
    "lfs-ordered-20",
    "offline",
)
"""Protocols with published numbers; ``offline`` is all classes at once, the long-tailed papers' own setting.

Other task counts and ``reverse`` follow the same pattern.
"""

_PATTERN = re.compile(
    r"lf(?:h-(?P<half>shuffled|ordered|reverse)|s(?:-(?P<scratch>ordered|reverse))?)-(?P<n>[0-9]{1,6})"
)

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Protocol:
    """A long-tailed class-incremental benchmark as a rule, without data.

    Make one with :meth:`named` or :meth:`free` rather than by hand.

    Args:
        name: Protocol id, such as ``lfh-shuffled-10``.
        dataset: Name of the dataset.
        num_classes: Number of classes C.
        max_images: Training images of the head class, all that the dataset has by default.
        classes_per_experience: Number of classes of each experience; they sum to C.
        class_order: Class ids by arrival. Class id 0 is the head of the long tail whatever the order.
        profile: ``exponential``, ``step``, ``pareto``, or ``natural``: the tail that the dataset has by itself.
        imbalance_ratio: Images of the head class over those of the rarest, >= 1.
        image_seed: Seed of the choice of the kept images.
        image_choice: ``shuffled`` (LDAM and everyone after it) or ``file-order`` (SHIKE).
        holdout: ``none``, or ``long-tailed-cil`` for the 10 % that published numbers do without.
        holdout_seed: Seed of the hold-out.
        memory: Rule of the exemplar memory as plain data, such as ``{"per_class": 20}``.
        augmentation: Name of the training augmentation.
        natural_counts: Images of each class, head first, with the profile ``natural``; empty with any other.

    Raises:
        UserError: Any of these is impossible; the message says what is allowed.
    """

    name: str
    dataset: str
    num_classes: int
    max_images: int
    classes_per_experience: tuple[int, ...]
    class_order: tuple[int, ...]
    profile: str = "exponential"
    imbalance_ratio: float = 100.0
    image_seed: int = 0
    image_choice: str = "shuffled"
    holdout: str = "none"
    holdout_seed: int = 0
    memory: Mapping[str, object] = field(default_factory=lambda: {"per_class": 20}, hash=False)
    augmentation: str = "crop-flip"
    natural_counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the dataclass is frozen; only here are its values made canonical
        set_field(self, "memory", _plain(self.memory))
        set_field(self, "natural_counts", tuple(int(n) for n in self.natural_counts))
        self.class_sizes()
        splits.check_member("image_choice", self.image_choice, longtail.IMAGE_CHOICES)
        splits.check_member("holdout", self.holdout, holdout.RULES)
        splits.check_seed("image_seed", self.image_seed)
        splits.check_seed("holdout_seed", self.holdout_seed)
        splits.check_order(self.class_order, self.num_classes)
        splits.check_split(self.classes_per_experience, self.num_classes)
        set_field(self, "classes_per_experience", tuple(int(n) for n in self.classes_per_experience))
        set_field(self, "class_order", tuple(int(c) for c in self.class_order))
        set_field(self, "imbalance_ratio", float(self.imbalance_ratio))
        for seed in ("image_seed", "holdout_seed"):
            set_field(self, seed, int(getattr(self, seed)))

    @classmethod
    def named(
        cls,
        protocol_name: str,
        dataset: str,
        num_classes: int | None = None,
        *,
        order_seed: int = splits.LITERATURE_ORDER_SEED,
        **rule: Any,
    ) -> Protocol:
        """Return the protocol of this id.

        ``lfh-<order>-N``: learn from half; half of the classes (rounded up), then N equal experiences.
        ``lfs-N``, ``lfs-ordered-N``: learn from scratch; N equal experiences. On 100 classes these are the
        published splits; on another class count the same rule is applied. ``offline`` is one experience.

        Args:
            protocol_name: One of :data:`NAMES`, or the same pattern with another N or ``reverse``.
            dataset: Name of the dataset; one that :mod:`~incrlt.benchmarks.facts` does not know needs
                ``num_classes`` and ``max_images``.
            num_classes: Number of classes; by default that of the dataset.
            order_seed: Seed of a shuffled class order; 1993 is the literature's.
            **rule: Other fields of :class:`Protocol`, such as ``imbalance_ratio``, ``holdout``, ``memory``.

        Raises:
            UserError: Unknown id, or the classes cannot be divided so.
        """
        if protocol_name == "offline":
            rule = _with_facts(dataset, num_classes, rule)
            rule["class_order"] = splits.class_order("ordered", rule["num_classes"], order_seed)
            rule["classes_per_experience"] = (rule["num_classes"],)
            return cls(name="offline", dataset=dataset, **rule)
        match = _PATTERN.fullmatch(str(protocol_name))
        if match is None:
            raise UserError(
                f"the protocol {protocol_name!r} is unknown; choose one of {', '.join(NAMES)}, or give "
                f"base_classes and increment.{did_you_mean(protocol_name, NAMES)}"
            )
        rule = _with_facts(dataset, num_classes, rule)
        classes, parts = rule["num_classes"], int(match["n"])
        sizes = splits.equal_parts(protocol_name, classes, parts, from_half=match["half"] is not None)
        order = match["half"] or match["scratch"] or "shuffled"
        rule["class_order"] = splits.class_order(order, classes, order_seed)
        return cls(name=protocol_name, dataset=dataset, classes_per_experience=sizes, **rule)

    @classmethod
    def free(
        cls,
        dataset: str,
        base_classes: int,
        increment: int | Sequence[int],
        order: splits.OrderSpec = "shuffled",
        num_classes: int | None = None,
        *,
        order_seed: int = splits.LITERATURE_ORDER_SEED,
        **rule: Any,
    ) -> Protocol:
        """Return a protocol of ``base_classes`` and then ``increment`` classes at a time.

        Args:
            dataset: As in :meth:`named`.
            base_classes: Classes of the first experience; 0 starts with an ordinary increment ("B0").
            increment: Classes of every later experience, or of each of them.
            order: ``shuffled``, ``ordered`` (head to tail), ``reverse``, or all class ids by arrival.
            num_classes: As in :meth:`named`.
            order_seed: Seed of a shuffled order.
            **rule: Other fields of :class:`Protocol`; ``name`` replaces the one made of the numbers.

        Raises:
            UserError: The classes cannot be divided so, or the order is not one of all class ids.
        """
        rule = _with_facts(dataset, num_classes, rule)
        sizes = splits.base_and_increments(rule["num_classes"], base_classes, increment)
        rule["class_order"] = splits.class_order(order, rule["num_classes"], order_seed)
        label = order if isinstance(order, str) else "explicit"
        told = increment if isinstance(increment, int) else ".".join(map(str, increment))
        rule.setdefault("name", f"base{base_classes}-inc{told}-{label}")
        return cls(dataset=dataset, classes_per_experience=sizes, **rule)

    @property
    def num_experiences(self) -> int:
        """Number of experiences."""
        return len(self.classes_per_experience)

    @property
    def ranges(self) -> tuple[range, ...]:
        """Arrival positions of the classes of each experience."""
        ends = np.cumsum(self.classes_per_experience).tolist()
        return tuple(range(e - n, e) for n, e in zip(self.classes_per_experience, ends, strict=True))

    @property
    def classes(self) -> tuple[tuple[int, ...], ...]:
        """Class ids of each experience, by arrival."""
        return tuple(tuple(self.class_order[p] for p in own) for own in self.ranges)

    def class_sizes(self) -> npt.NDArray[np.int64]:
        """Return the training images of each class before a hold-out ``[C]``, by class id, head first.

        Raises:
            UserError: The profile, its ratio or the natural counts are impossible.
        """
        if self.profile == longtail.NATURAL or self.natural_counts:
            longtail.check_natural(self.profile, self.natural_counts, self.num_classes, self.max_images)
            return np.array(self.natural_counts, dtype=np.int64)
        return longtail.class_counts(self.profile, self.num_classes, self.max_images, self.imbalance_ratio)

    def rule(self) -> dict[str, object]:
        """Return all fields as plain data for JSON; natural counts only where there are some."""
        values = asdict(self)
        for name in ("classes_per_experience", "class_order", "natural_counts"):
            values[name] = list(values[name])
        if not self.natural_counts:
            del values["natural_counts"]
        return values

    @property
    def rule_hash(self) -> str:
        """Twelve hex characters over the rule alone: tells two protocols apart before any data are read.

        Two rules may keep the same images; :attr:`ResolvedProtocol.hash` is what decides comparability.
        """
        return hashlib.sha256(_canonical(self.rule())).hexdigest()[:12]

    def plan(self) -> list[Plain]:
        """Return what each experience brings, without data: see :meth:`ResolvedProtocol.plan`.

        The counts are those of the real run (the hold-out included), if every class of the dataset has at
        least ``max_images`` images, which :func:`resolve` checks.
        """
        labels = np.repeat(np.arange(self.num_classes), self.max_images)
        return resolve(self, labels).plan()


@dataclass(frozen=True, eq=False)
class ResolvedProtocol:
    """A protocol applied to a dataset: which image is used when.

    Args:
        protocol: The rule.
        train_indices: Per experience, indices into the dataset's training images, in the literature's list
            order (class ids ascending, within a class as drawn).
        holdout_indices: Per experience, indices that are held out and never used.
        counts: ``[C]`` training images per class in arrival order, after the hold-out.
        counts_before_holdout: ``[C]`` the same before it; the many/medium/few groups are those of this
            vector, so that they do not depend on the hold-out.
    """

    protocol: Protocol
    train_indices: tuple[Indices, ...]
    holdout_indices: tuple[Indices, ...]
    counts: npt.NDArray[np.int64]
    counts_before_holdout: npt.NDArray[np.int64]

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hex characters) over everything that makes two runs comparable.

        Class order and split, kept and held-out images (as sets per experience), hold-out rule, memory rule
        and augmentation. It hashes content in a canonical form: neither names, objects, paths nor the
        platform enter.
        """
        rule = self.protocol
        header = {
            "format": 1,
            "dataset": rule.dataset,
            "class_order": list(rule.class_order),
            "classes_per_experience": list(rule.classes_per_experience),
            "holdout": rule.holdout,
            "memory": rule.memory,
            "augmentation": rule.augmentation,
        }
        digest = hashlib.sha256(_canonical(header))
        for indices in (*self.train_indices, *self.holdout_indices):
            digest.update(len(indices).to_bytes(8, "little"))
            digest.update(np.sort(indices).astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def hash(self) -> str:
        """The first 12 characters of :attr:`digest`, as shown in tables."""
        return self.digest[:12]

    @property
    def groups(self) -> list[str]:
        """``many``, ``medium`` or ``few`` of each class, in arrival order."""
        return longtail.groups(self.counts_before_holdout)

    @property
    def experience_of_class(self) -> npt.NDArray[np.int64]:
        """``[C]`` the experience in which each class arrives, in arrival order."""
        sizes = self.protocol.classes_per_experience
        return np.repeat(np.arange(len(sizes)), sizes)

    def first_images(self, labels: npt.ArrayLike, at_most: int) -> list[Indices]:
        """Return, per class in arrival order, indices of the first images that the run trains on.

        Args:
            labels: ``[N]`` class ids of all training images, as given to :func:`resolve`.
            at_most: Indices per class; a rarer class has fewer.
        """
        labels = np.asarray(labels)
        return [
            own[labels[own] == label][:at_most]
            for own, classes in zip(self.train_indices, self.protocol.classes, strict=True)
            for label in classes
        ]

    def plan(self) -> list[dict[str, object]]:
        """Return one dict of plain data per experience.

        Keys: ``experience``, ``classes`` (class ids by arrival), ``images`` (trained on), ``held_out``,
        ``classes_by_group`` and ``images_by_group`` (keys ``many``, ``medium``, ``few``).
        """
        groups = self.groups
        return [self._plan_of(t, own, groups) for t, own in enumerate(self.protocol.ranges)]

    def _plan_of(self, experience: int, own: range, groups: list[str]) -> dict[str, object]:
        members = {name: [p for p in own if groups[p] == name] for name in longtail.GROUPS}
        return {
            "experience": experience,
            "classes": [self.protocol.class_order[p] for p in own],
            "images": int(self.counts[own].sum()),
            "held_out": len(self.holdout_indices[experience]),
            "classes_by_group": {name: len(places) for name, places in members.items()},
            "images_by_group": {name: int(self.counts[places].sum()) for name, places in members.items()},
        }

    def describe(self) -> dict[str, object]:
        """Return plain data for ``protocol.json``: the rule, the hash, the counts and the plan."""
        return {
            **self.protocol.rule(),
            "hash": self.hash,
            "digest": self.digest,
            "rule_hash": self.protocol.rule_hash,
            "experience_of_class": self.experience_of_class.tolist(),
            "counts": self.counts.tolist(),
            "counts_before_holdout": self.counts_before_holdout.tolist(),
            "groups": self.groups,
            "experiences": self.plan(),
        }


def resolve(protocol: Protocol, labels: npt.ArrayLike) -> ResolvedProtocol:
    """Apply a protocol to the training labels of its dataset.

    Args:
        protocol: The rule.
        labels: ``[N]`` class ids 0..C-1 of all training images, in file order.

    Returns:
        Indices, counts and hash. Every class keeps at least one image.

    Raises:
        UserError: The labels do not fit the protocol.
    """
    labels = np.asarray(labels)
    counts = protocol.class_sizes()
    kept = longtail.choose_images(labels, counts, protocol.image_seed, protocol.image_choice)
    position_of = np.argsort(protocol.class_order)  # the inverse permutation: class id -> arrival position
    positions = position_of[labels[kept]]
    members = [np.flatnonzero((positions >= own.start) & (positions < own.stop)) for own in protocol.ranges]
    lists = [kept[m] for m in members]
    splits = holdout.split_off(
        protocol.holdout, [positions[m] for m in members], protocol.ranges, protocol.holdout_seed
    )
    train = tuple(own[keep] for own, (keep, _) in zip(lists, splits, strict=True))
    held = tuple(own[out] for own, (_, out) in zip(lists, splits, strict=True))
    left = np.bincount(position_of[labels[np.concatenate(train)]], minlength=protocol.num_classes)
    before = counts[list(protocol.class_order)]
    return ResolvedProtocol(protocol, train, held, left.astype(np.int64), before)


def _with_facts(dataset: str, num_classes: int | None, rule: Plain) -> Plain:
    """Fill in what the dataset decides, unless the caller has decided it."""
    rule = {key: value for key, value in rule.items() if value is not None}
    if num_classes is not None:
        rule["num_classes"] = num_classes
    if not {"num_classes", "max_images"} <= rule.keys() or dataset in facts.names():
        known = facts.info(dataset)
        rule.setdefault("num_classes", known.num_classes)
        rule.setdefault("max_images", known.max_images)
        rule.setdefault("augmentation", known.augmentation)
        _check_against_facts(known, rule["num_classes"], rule["max_images"])
    return rule


def _check_against_facts(known: facts.DatasetInfo, num_classes: int, max_images: int) -> None:
    if num_classes != known.num_classes:
        raise UserError(
            f"{known.name} has {known.num_classes} classes, not {num_classes}; leave num_classes out."
        )
    if max_images > known.max_images:
        raise UserError(
            f"{known.name} has {known.max_images} training images per class; "
            f"max_images {max_images} is too many."
        )


def _plain(rule: Mapping[str, object]) -> dict[str, object]:
    """Return a copy that JSON can hold, without the difference between 20 and 20.0."""
    try:
        return json.loads(json.dumps(dict(rule), allow_nan=False), parse_float=_number)
    except (TypeError, ValueError) as error:
        raise UserError(f"the memory rule {rule!r} must be a mapping of plain values ({error}).") from error


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() else value


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
