"""What an experiment file may say: every field, its default, its range and its meaning, once.

``incrlt.experiment.schema`` reads files and refuses what does not go together. Importing this module loads neither
torch nor Avalanche; ``python -m incrlt.experiment`` writes the JSON schema for editors.

Hyper-parameters of ``strategy``, ``experts``, ``rebalance`` and ``router`` stand in the classes of those names
(``incrlt.experiment.methods``); YAML chooses, Python has the defaults and their documentation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    SerializeAsAny,
    model_validator,
)

from incrlt import weights
from incrlt.errors import UserError
from incrlt.experiment import explain, methods, yamltext
from incrlt.experiment.declared import Declared
from incrlt.experiment.fields import Count, Fraction, Index, Model, NonNegative, PathText, Positive, Size
from incrlt.experiment.methods import Entry, Kind
from incrlt.files import Plain

if TYPE_CHECKING:
    from incrlt.benchmarks.folder import ImageFolder
    from incrlt.benchmarks.protocols import Protocol

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""What NumPy's legacy generator takes."""

Dataset = Literal[
    "digits", "cifar10", "cifar100", "imagenet-lt", "inaturalist2018", "places-lt", "imagenet-subset-lt", "food101-lt",
    "tiny-imagenet", "folder",
]  # fmt: skip
OWN_TAIL: Final = frozenset({"folder", "imagenet-lt", "inaturalist2018", "places-lt"})
"""Data sets that keep every picture unless a ratio is given."""
FROM_FILES: Final = OWN_TAIL | {"imagenet-subset-lt", "food101-lt", "tiny-imagenet"}
"""Data sets that are brought to one size."""
TimmModel = Annotated[str, Field(pattern=r"^timm:[a-z0-9_]+(\.[a-z0-9_]+)?$", title="timm:NAME")]
OwnModel = Annotated[str, Field(pattern=f"^{methods.EXTERNAL.pattern}$", title="my_pkg.my_mod:MyNet")]
Augmentation = Literal[
    "none",
    "crop-flip",
    "resized-crop-flip",
    "shift",
    "crop-rotate-flip",
    "autoaugment-cutout",
    "simclr",
    "imagenet",
    "imagenet-jitter",
    "imagenet-randaugment",
    "imagenet-autoaugment-cutout",
    "places",
]

ADDED_LATER: Final[dict[str, Plain]] = {
    "model": {"pretrained": None, "train": "all", "adapter_rank": 8, "norm": "train"},
    "experts": {"fusion": True},
    "training": {"later_lr": None, "lr_stem": None, "lr_branches": None},
}
"""Section to the fields that were added with a default that changes nothing: at that default the content hash passes
over them, so that runs of before keep their folders."""

DOES_NOT_CHANGE_RESULTS: Final[dict[str, frozenset[str] | None]] = {
    "output": None,
    "device": None,
    "data": frozenset(
        {"root", "download", "hold", "workers", "cache", "cache_gigabytes", "feature_cache", "skip_broken"}
    ),
    "training": frozenset({"threads"}),
}
"""Section to the keys that the content hash passes over; None stands for the whole section."""


class Section(BaseModel):
    """Base of all sections: frozen, nothing unknown, no silent conversion, only finite numbers."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def _shorthands(schema: Plain) -> None:
    """Add what a file may write and :meth:`Benchmark._as_meant` reads to the JSON schema."""
    schema["properties"]["dataset"]["enum"].append("list")
    schema["properties"]["experiences"] = {
        "description": "In place of order, base_classes and increment: the class names of each experience, such as "
        "[[cat, dog], [heron]], or how many classes each has, such as [5, 3, 1].",
        "anyOf": [
            {
                "type": "array",
                "minItems": 1,
                "items": {"type": "array", "minItems": 1, "items": {"type": "string"}},
            },
            {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 1}},
        ],
    }


class Benchmark(Section):
    """What arrives, and in which order."""

    model_config = ConfigDict(json_schema_extra=_shorthands)

    dataset: Dataset
    """Images: ``digits`` (in scikit-learn, no download), ``cifar10``, ``cifar100``, or ``folder``: your own, in
    ``train/CLASS`` and ``test/CLASS`` below ``data.root``; ``list`` is the same of a list file. The large ones, such as
    ``imagenet-lt``, are read from the files of their official archives below ``data.root``."""
    protocol: Annotated[str, Field(pattern=r"^[!-~]{1,100}$")] | None = None
    """Named split of the classes, such as ``lfh-shuffled-10``; or leave it out and give the next three."""
    base_classes: Index | None = None
    """Classes of the first experience; 0 starts with an ordinary increment."""
    increment: Count | Annotated[list[Count], Field(max_length=50_000)] | None = None
    """Classes of every later experience; a list has a number for each, such as ``[5, 3, 1]``."""
    order: (
        Literal["shuffled", "ordered", "reverse"]
        | Annotated[list[Index], Field(max_length=50_000)]
        | Annotated[list[str], Field(max_length=50_000)]
        | None
    ) = None
    """``shuffled`` (by ``seeds.class_order``), ``ordered`` (head to tail), ``reverse``, or all ids or names. In place
    of ``base_classes`` and ``increment``, ``experiences`` may list the names of each, ``[[cat, dog], [heron]]``, or
    how many each has, ``[5, 3, 1]``."""
    imbalance_ratio: Annotated[float, Field(ge=1, le=1_000_000)] | None = 100.0
    """Images of the head class over those of the rarest; 1 is balanced, the literature has 100. A ``folder`` keeps
    every picture unless one is given: its tail is its own (null)."""
    profile: Literal["exponential", "step", "pareto"] = "exponential"
    """Shape of the long tail that is cut."""
    image_choice: Literal["shuffled", "file-order"] = "shuffled"
    """Which images the tail keeps: ``shuffled`` by ``seeds.images``, or the first of each class (SHIKE's code)."""
    holdout: Literal["none", "long-tailed-cil"] = "none"
    """``long-tailed-cil`` removes the 10 % of images that the published numbers do without."""
    augmentation: Augmentation | None = None
    """Training augmentation; by default the dataset's own."""
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = None
    """Side in pixels to which pictures from files are brought; null: 32 for a ``folder``, 256 for the large data sets
    (64 for ``tiny-imagenet``). Their crops take 7/8 of it. Other datasets have a size."""

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, values: object) -> object:
        """Give a folder its own tail, read ``list`` as one, and write ``experiences`` as order and sizes."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if values.get("dataset") == "list":
            values["dataset"] = "folder"
        if values.get("dataset") in OWN_TAIL:
            values.setdefault("imbalance_ratio", None)
        if "experiences" in values:
            values |= _experiences(values, values.pop("experiences"))
        return values


def _experiences(values: Plain, given: Any) -> Plain:
    """Return ``[[cat, dog], [heron]]`` as order and sizes, ``[5, 3, 1]`` as sizes.

    Raises:
        UserError: It is no list of lists of names or of sizes, or something else divides the classes too.
    """
    sized = isinstance(given, list) and bool(given) and all(type(own) is int and own > 0 for own in given)
    other = ("protocol", "base_classes", "increment", *(() if sized else ("order",)))
    if clashing := [key for key in other if values.get(key) is not None]:
        raise UserError(f"experiences already decides the split; remove {', '.join(clashing)}")
    if sized:
        return {"base_classes": 0, "increment": given}
    fits = isinstance(given, list) and given and all(isinstance(own, list) and own for own in given)
    if not fits or not all(isinstance(name, str) for own in given for name in own):
        raise UserError(
            "experiences must list the class names of each, such as [[cat, dog], [heron]], or how many classes each "
            f"has, such as [5, 3, 1]; got {explain.show(given)}"
        )
    return {
        "order": [name for own in given for name in own],
        "base_classes": 0,
        "increment": [len(own) for own in given],
    }


class ModelSection(Section):
    """The network."""

    name: Model | TimmModel | OwnModel = "resnet32"
    """Backbone for small images; ``timm:NAME`` for a larger one, such as ``timm:resnet50``; or ``my_pkg.my_mod:MyNet``
    for one of your own."""
    head: Literal["cosine", "linear", "proxies"] = "cosine"
    """Classification layer; LUCIR needs ``cosine``, or ``proxies``: ten cosine rows per class, as PODNet has."""
    last_relu: bool | None = None
    """Keep the ReLU before pooling; null: only for linear heads, since cosine ones want signed features."""
    pretrained: PathText | None = None
    """Weights that a network of timm begins with: a file in timm's names (.safetensors, .pth), ``package:NAME`` for an
    installed package that ships some, or ``timm`` for those that timm has fetched before. Pictures are then normalised
    as the weights want it; null draws them at random."""
    train: Literal["all", "branches", "heads", "adapters"] = "all"
    """What trains, of a pretrained network: ``all``; ``branches``, the experts' own parts and heads; ``heads``, which
    then are all that experts own; or ``adapters`` (LoRA, of vision transformers), a set for each expert, and heads."""
    adapter_rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Rank of the adapters."""
    norm: Literal["train", "frozen"] = "train"
    """``frozen`` leaves the batch norms of a pretrained network as they are: for small batches and few pictures."""
    width: Annotated[int, Field(ge=1, le=1024)] = 16
    """Channels of the first stage; features have four times as many. Networks of timm have their own."""


class Memory(Section):
    """Exemplars that are kept of old classes; exactly one of ``per_class`` and ``total``."""

    per_class: Count | None = None
    """Exemplars of each class; the memory grows with the classes. The literature keeps 20."""
    total: Count | None = None
    """Exemplars of all classes together, shared equally among those seen."""
    selection: Literal["herding", "random"] = "herding"
    """``herding`` keeps the images whose running mean of features follows the class mean (iCaRL)."""
    redistribute: bool = False
    """Hand the quota that small classes cannot fill to the others."""


class Training(Section):
    """Optimisation of each experience, and how it is computed."""

    epochs: Count = 160
    """Epochs of every experience (LUCIR: 160)."""
    base_epochs: Count | None = None
    """Epochs of the first experience when they differ."""
    batch_size: Size = 128
    """Images per step."""
    lr: Positive = 0.1
    """Learning rate of SGD at the start of every experience."""
    later_lr: Positive | None = None
    """The same in every experience after the first; null: as in the first."""
    lr_stem: Positive | None = None
    """Learning rate of the part that experts share; null: ``lr``."""
    lr_branches: Positive | None = None
    """Learning rate of the experts' own parts without their heads; null: ``lr``."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov's momentum (RIDE, NCL)."""
    weight_decay: NonNegative = 5e-4
    """L2 penalty (LUCIR: 5e-4)."""
    schedule: Literal["multistep", "cosine"] = "multistep"
    """Fresh in every experience: ``multistep`` multiplies the rate by ``gamma`` at the ``milestones``."""
    milestones: Annotated[tuple[Fraction, ...], Field(strict=False, max_length=100)] = (0.5, 0.75)
    """Rising fractions of the epochs (80 and 120 of 160)."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor at each milestone."""
    warmup_epochs: Index = 0
    """Epochs of linear warm-up at the start of every experience."""
    grad_clip: Positive | None = None
    """Largest norm of the gradient; null does not clip."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """``auto``: bf16 where the GPU or the CPU multiplies in it, fp32 elsewhere. fp16 needs a GPU."""
    channels_last: bool | Literal["auto"] = "auto"
    """Memory layout of images; ``auto``: with bf16 and fp16. Does not change results beyond rounding."""
    step: Literal["auto", "eager", "compile", "graph"] = "auto"
    """How a batch is computed: ``graph`` (forward, loss and backward as one CUDA graph), ``compile`` (the backbone by
    ``torch.compile``) or ``eager``; ``auto``: the graph on a GPU where nothing speaks against it. The same numbers, up
    to rounding."""
    kernels: Literal["auto", "reference", "closed_form", "triton"] = "auto"
    """What computes the experts' losses: ``triton`` (CUDA kernels), ``closed_form`` (PyTorch with gradients of its own)
    or ``reference`` (the readable formulas); ``auto`` takes the fastest. The same numbers, up to rounding."""
    eval_batch_size: Size = 512
    """Images per step of evaluation."""
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    """CPU threads of torch; null chooses by the size of a step and the cores that are free."""


class Seeds(Section):
    """Random states, each separately settable; null takes ``all``."""

    all: Seed = 0
    """Whatever has no seed of its own."""
    class_order: Seed = 1993
    """Shuffle of the classes; 1993 is the literature's order."""
    images: Seed = 0
    """Choice of the images that the long tail keeps; 0 is the literature's."""
    init: Seed | None = None
    """Initial weights, of the network and of the rows of new classes."""
    batches: Seed | None = None
    """Order of the images."""
    augmentation: Seed | None = None
    """Crops and flips."""

    def filled(self) -> dict[str, int]:
        """Return every seed as a number, with ``all`` in place of null.

        Example:
            >>> Seeds(all=3, batches=7).filled()["init"]
            3
        """
        return {key: self.all if value is None else value for key, value in self.model_dump().items()}


class Data(Section):
    """Where the images are, and where they are held."""

    root: PathText | None = None
    """Folder with the datasets' files; null takes ``INCRLT_DATA``, else ``data``."""
    download: bool = False
    """Fetch files that are missing."""
    feature_cache: PathText | None = None
    """Folder in which the features that a standing part of the network gives (``model.train`` branches or heads) are
    kept, computed once per picture; null computes them each time. The same numbers, up to rounding."""
    on_device: bool = True
    """Keep images as uint8 on the device and augment them there in batches; false takes an ordinary loader, whose
    random numbers differ."""
    hold: Literal["auto", "memory", "cache", "stream"] = "auto"
    """Where pictures from files are held: ``cache`` (decoded once into a file that is mapped), ``memory`` (decoded at
    each start), ``stream`` (decoded whenever they are used), or ``auto``, by their size. The same numbers."""
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    """Threads that read and decode pictures; null: as many as the cores, at most eight. The same numbers."""
    cache: PathText | None = None
    """Folder of decoded pictures; null: ``INCRLT_CACHE``, else ``~/.cache/incrlt``."""
    cache_gigabytes: Positive | None = None
    """Most that decoded pictures of all runs may take there; null: half of what the disk has free."""
    skip_broken: bool = False
    """Go on without files of a folder or list that cannot be used, and without copies of others; each is named. The
    pictures that are left make another protocol hash."""


class Output(Section):
    """Where results go."""

    folder: PathText = "runs"
    """Folder of all run folders."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")] | None = None
    """Name of the experiment, letters, digits and ``_.-``; null takes the file's name."""
    validation: bool = False
    """Write the accuracy on the held-out training images (``benchmark.holdout``) to the log after every epoch: what
    settings are chosen by. Does not change results."""


def _entry(kind: Kind, *, optional: bool = False, usual: str | None = None) -> PlainValidator:
    """Return the validator of a section whose keys are decided by its ``name``.

    Args:
        kind: The section.
        optional: Null is allowed.
        usual: Name where the section has none.
    """

    def validate(value: Any) -> Entry | None:
        if isinstance(value, Entry) or (value is None and optional):
            return value
        name = value.get("name", usual) if isinstance(value, dict) else None
        if not isinstance(name, str):
            raise UserError(_no_name(kind, value, optional))
        return methods.schema(kind, name).model_validate({**value, "name": name})

    return PlainValidator(validate)


def _no_name(kind: Kind, value: object, optional: bool) -> str:
    known = methods.names(kind) or ["my_pkg.my_mod:MyClass"]
    given = explain.show(value)
    if isinstance(value, dict):
        given = f"the name {explain.show(value['name'])}" if "name" in value else "no name"
    return (
        f"{kind} must be a mapping with a name, such as {{name: {known[0]}}}"
        f"{', or null' if optional else ''}; got {given}. Names: {', '.join(known)}."
    )


class Experiment(Section):
    """One experiment: everything that decides a run, and nothing else."""

    benchmark: Benchmark
    """What arrives, and in which order."""
    model: ModelSection = ModelSection()
    """The network."""
    experts: Annotated[SerializeAsAny[Entry], _entry("experts", usual="single")] = Field(
        default_factory=lambda: methods.schema("experts", "single")(name="single")
    )
    """The tail axis: how rare classes are served inside one experience."""
    strategy: Annotated[SerializeAsAny[Entry], _entry("strategy")]
    """The time axis: what keeps the old from being forgotten."""
    memory: Memory | None = None
    """Exemplars of old classes; null keeps none."""
    rebalance: Annotated[SerializeAsAny[Entry | None], _entry("rebalance", optional=True)] = None
    """A second stage after each experience that evens out the classes, such as ``lws``; null has none."""
    router: Annotated[SerializeAsAny[Entry | None], _entry("router", optional=True)] = None
    """A last stage that learns how many experts an image needs, such as ``expert_assignment``; null runs all."""
    training: Training = Training()
    """Optimisation of each experience, and how it is computed."""
    seeds: Seeds = Seeds()
    """Random states."""
    data: Data = Data()
    """Where the images are."""
    output: Output = Output()
    """Where results go."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")] = "auto"
    """``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``."""

    _source: Path | None = PrivateAttr(None)
    _overrides: tuple[str, ...] = PrivateAttr(())
    _listed: tuple[object, ImageFolder] | None = PrivateAttr(None)

    @property
    def name(self) -> str:
        """Name of the experiment: ``output.name``, else that of its file."""
        return self.output.name or (self._source.stem if self._source else "experiment")

    @property
    def chosen(self) -> dict[Kind, tuple[Declared, Entry]]:
        """The methods that it names, each with what its class tells."""
        entries = {kind: getattr(self, kind) for kind in methods.KINDS}
        return {kind: (methods.find(kind, e.name), e) for kind, e in entries.items() if e is not None}

    @property
    def method(self) -> str:
        """Name of strategy, experts and stages as a paper's table would have it, e.g. ``LUCIR+LWS``."""
        parts = [declared.title(entry.hyper_parameters) for declared, entry in self.chosen.values()]
        return "+".join(part for part in parts if part)

    @property
    def source(self) -> Path | None:
        """The file it was read from; None for one made in Python."""
        return self._source

    @property
    def overrides(self) -> tuple[str, ...]:
        """What differs from the file: ``section.key=value`` as given on the command line."""
        return self._overrides

    def protocol(self) -> Protocol:
        """Return the rule of the benchmark, without data.

        Raises:
            UserError: The classes cannot be split so.
        """
        from incrlt.benchmarks import facts, splits
        from incrlt.benchmarks.protocols import Protocol  # NumPy is not needed to refuse a typing error

        b = self.benchmark
        rule: Plain = {
            "order_seed": self.seeds.class_order,
            "image_seed": self.seeds.images,
            "profile": b.profile,
            "imbalance_ratio": b.imbalance_ratio,
            "image_choice": b.image_choice,
            "holdout": b.holdout,
            "augmentation": b.augmentation,
            "memory": self.memory_rule(),
        }
        dataset: str = b.dataset
        pictures = self.pictures()
        if pictures is None:
            names: Sequence[str] = facts.class_names(dataset)
        else:
            names, rule = pictures.class_names, rule | pictures.rule(as_it_is=b.imbalance_ratio is None)
            if dataset != "folder":
                rule["augmentation"] = b.augmentation or facts.info(dataset).augmentation
            dataset = pictures.name
        if b.protocol is not None:
            return self._in_its_order(Protocol.named(b.protocol, dataset, **rule))
        assert b.base_classes is not None and b.increment is not None, "checked by clashes()"
        order = splits.ids_of(b.order, names) if isinstance(b.order, list) else b.order or "shuffled"
        made = Protocol.free(dataset, b.base_classes, b.increment, order, **rule)
        return made if isinstance(b.order, list) else self._in_its_order(made)

    def pictures(self) -> ImageFolder | None:
        """List the pictures of a data set that is read from files, once however often it is asked; None of others.

        Raises:
            UserError: Something is not there.
        """
        if self.benchmark.dataset not in FROM_FILES:
            return None
        from incrlt.benchmarks import folder, large

        dataset, size = self.benchmark.dataset, self.benchmark.image_size
        root, skip = folder.data_root(self.data.root), self.data.skip_broken
        own_tail, arrival = self.benchmark.imbalance_ratio is None, self._arrival()
        asked = (dataset, root, size, skip, own_tail, arrival)
        if self._listed is None or self._listed[0] != asked:
            if dataset == "folder":
                found: ImageFolder = folder.scan(root, size, skip)
            else:
                found = large.scan(dataset, root, size, own_tail, arrival)
            self._listed = asked, found
        return self._listed[1]

    def _arrival(self) -> str:
        """Return in which named order classes arrive."""
        words = (self.benchmark.protocol or str(self.benchmark.order)).split("-")
        return next((word for word in ("ordered", "reverse") if word in words), "shuffled")

    def _in_its_order(self, protocol: Protocol) -> Protocol:
        """Give ImageNet-Subset-LT its published shuffle, which is none of NumPy's permutations."""
        from incrlt.benchmarks.large import subset_order

        if self.benchmark.dataset != "imagenet-subset-lt" or self._arrival() != "shuffled":
            return protocol
        if protocol.name == "offline":
            return protocol
        return replace(protocol, class_order=subset_order("shuffled", protocol.num_classes))

    def memory_rule(self) -> Plain:
        """Return the memory's part of the protocol hash: the budget, and what departs from the usual."""
        if self.memory is None:
            return {}
        usual = {"selection": "herding", "redistribute": False}
        values = self.memory.model_dump(exclude_none=True)
        return {key: value for key, value in values.items() if key not in usual or usual[key] != value}

    def resolved(self) -> Plain:
        """Return every field, defaults included, as plain data."""
        return self.model_dump(mode="json")

    def resolved_yaml(self) -> str:
        """Return every field as YAML that ``load`` reads back to the same values."""
        return yamltext.dump(self.resolved())

    def hash(self) -> str:
        """Return 64 hex characters over the content of everything that changes results.

        Paths, device, threads and logging do not; see :data:`DOES_NOT_CHANGE_RESULTS`. Seeds do, a seed left
        to ``all`` counts as that number. It hashes values, so neither the order of keys nor a default spelled
        out makes a difference.
        """
        values = self.resolved()
        values["seeds"] = self.seeds.filled()
        if self.model.pretrained is not None:
            values["model"]["pretrained"] = weights.identity(self.model.pretrained)
        for section, usual in ADDED_LATER.items():
            own = values[section]
            values[section] = {key: own[key] for key in own if key not in usual or own[key] != usual[key]}
        for section, keys in DOES_NOT_CHANGE_RESULTS.items():
            if keys is None:
                del values[section]
            else:
                values[section] = {key: value for key, value in values[section].items() if key not in keys}
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def run_folder(self, protocol_hash: str) -> Path:
        """Return ``<folder>/<name>/<protocol>-<config>-s<seed>``, eight characters of each hash.

        Args:
            protocol_hash: ``ResolvedProtocol.hash``.
        """
        leaf = f"{protocol_hash[:8]}-{self.hash()[:8]}-s{self.seeds.all}"
        return Path(self.output.folder).expanduser() / self.name / leaf
