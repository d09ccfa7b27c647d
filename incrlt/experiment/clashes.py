"""What does not go together in an experiment whose fields are each fine, one sentence each.

What a method cannot do without, and what it does not go together with, its class tells
(``incrlt.experiment.declared``); here are the rules of the sections, and the questions to the methods.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Final, get_args

from incrlt import weights
from incrlt.errors import UserError
from incrlt.experiment.declared import NEEDS, Declared
from incrlt.experiment.explain import show
from incrlt.experiment.fields import Model
from incrlt.experiment.methods import Entry, Kind, external
from incrlt.experiment.sections import (
    FROM_FILES,
    OWN_TAIL,
    Benchmark,
    Data,
    Experiment,
    ModelSection,
    Training,
)
from incrlt.experiment.sizes import too_large
from incrlt.families import FAMILIES, PREFIX, Family, family_named, family_of
from incrlt.files import Plain

NARROWEST_CHANNELS_LAST: Final = 8
"""Channels below which strided 1x1 convolutions, the shortcuts of a resnet, overwrite memory in channels-last order on
a CPU (torch 2.14, under glibc's checks: 3 to 7 abort within twenty steps, 8 do not)."""


class Answers(Plain):
    """A section as conditions see it: what it does not have is nothing."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> None:
        return None


def clashes(experiment: Experiment, with_data: bool = True) -> list[str]:
    """Return all that does not go together, in the order of the sections."""
    problems = [
        *_split(experiment.benchmark),
        *_images(experiment.benchmark),
        *_files(experiment),
        *_held_out(experiment),
        *_model(experiment.model),
        *_pretrained(experiment, with_data),
        *_standing(experiment),
        *_methods(experiment),
        *_memory(experiment),
        *_length(experiment.training),
        *computation(experiment.training, experiment.device, experiment.model.width),
        *too_large(experiment),
    ]
    if not problems and with_data:
        try:
            experiment.protocol()
        except UserError as error:
            problems.append(f"benchmark: {error}")
    return problems


def _split(b: Benchmark) -> list[str]:
    free = [key for key in ("base_classes", "increment", "order") if getattr(b, key) is not None]
    if b.protocol is not None and free:
        return [
            f"benchmark.protocol '{b.protocol}' already decides the split; "
            f"remove benchmark.{', benchmark.'.join(free)}, or remove benchmark.protocol."
        ]
    if b.protocol is None and (b.base_classes is None or b.increment is None):
        return [
            "benchmark needs a protocol, such as lfh-shuffled-10, or base_classes and increment, or experiences, such "
            f"as [5, 3] for five classes and then three; got {', '.join(free) or 'none of them'}."
        ]
    return []


def _files(experiment: Experiment) -> list[str]:
    """Find words on pictures from files where there are none, and on broken ones where nobody looks for them."""
    b, data, usual = experiment.benchmark, experiment.data, Data()
    given = [
        key
        for key in ("hold", "workers", "cache", "cache_gigabytes", "skip_broken")
        if getattr(data, key) != getattr(usual, key)
    ]
    if given and b.dataset not in FROM_FILES:
        return [
            f"data.{', data.'.join(given)} is for pictures from files, such as dataset 'folder', and would do nothing "
            f"with {b.dataset}. Leave it out."
        ]
    if data.skip_broken and b.dataset != "folder":
        return [
            f"data.skip_broken (--skip-broken) is for datasets 'folder' and 'list'; {b.dataset} is a published set, "
            "whose pictures are all there or have to be got again. Leave it out."
        ]
    return []


def _images(b: Benchmark) -> list[str]:
    found = []
    if b.dataset not in FROM_FILES and b.image_size is not None:
        found.append(
            f"benchmark.image_size is for pictures from files, such as dataset 'folder'; "
            f"{b.dataset} has its own. Set benchmark.image_size: null."
        )
    if b.dataset not in OWN_TAIL and b.imbalance_ratio is None:
        found.append(
            f"benchmark.imbalance_ratio null keeps a folder as it is; {b.dataset} is balanced. "
            "Set benchmark.imbalance_ratio: 1, or a larger one."
        )
    if b.imbalance_ratio is None and b.profile != "exponential":
        found.append(
            f"benchmark.imbalance_ratio null cuts no tail, so benchmark.profile '{b.profile}' would do nothing. "
            "Leave the profile out, or give a ratio."
        )
    return found


def _held_out(experiment: Experiment) -> list[str]:
    if experiment.output.validation and experiment.benchmark.holdout == "none":
        return [
            "output.validation scores held-out training images, and benchmark.holdout 'none' holds out none. Set "
            "benchmark.holdout: long-tailed-cil, or output.validation: false."
        ]
    return []


def _model(model: ModelSection) -> list[str]:
    """Look for the family of a network of timm, or the file and the class of one of the user's own; import neither."""
    try:
        if model.name.startswith(PREFIX):
            return _large(model, FAMILIES[family_of(model.name)])
        if ":" in model.name:
            external("model", model.name, get_args(Model))
    except UserError as error:
        return [str(error)]
    return []


def _large(model: ModelSection, family: Family) -> list[str]:
    """Return what was asked of a network of timm and would do nothing."""
    found = []
    if "width" in model.model_fields_set and model.width != ModelSection.model_fields["width"].default:
        found.append(
            f"model.width is {model.width}, and the width of {model.name} is decided by its name. Leave it out."
        )
    if model.last_relu is not None and not family.last_activation:
        found.append(
            f"model.last_relu is {show(model.last_relu)}, but no activation ends the features of a {family.title}. "
            "Leave model.last_relu out."
        )
    return found


def _pretrained(experiment: Experiment, with_data: bool) -> list[str]:
    """Look for pretrained weights, unless a checkpoint brings all there is, and for what they do not go with."""
    model, found = experiment.model, []
    if model.pretrained is None:
        return []
    try:
        if with_data:
            weights.located(model.pretrained)
    except UserError as error:
        found.append(str(error))
    if not model.name.startswith(PREFIX):
        found.append(
            f"model.pretrained is for networks of timm; model.name is {show(model.name)}. Set model.name to one, such "
            "as timm:tf_efficientnet_lite0, or leave model.pretrained out."
        )
    factor = experiment.experts.hyper_parameters.get("width_factor", 1.0)
    if factor != 1:
        found.append(
            f"model.pretrained does not fit into branches of {factor:g} times the width: their convolutions have other "
            "sizes. Set experts.width_factor: 1, or leave model.pretrained out."
        )
    if experiment.benchmark.dataset == "folder" and experiment.benchmark.image_size is None:
        found.append(
            "model.pretrained has seen large pictures, and benchmark.image_size null brings them to 32 pixels. Set "
            "benchmark.image_size, such as 224, or 160 to be quicker."
        )
    return found


def _standing(experiment: Experiment) -> list[str]:
    """Return what is wrong with what trains, and with features that are kept."""
    model, found = experiment.model, []
    still = [
        f"model.{key}: {value}"
        for key, value, usual in (("train", model.train, "all"), ("norm", model.norm, "train"))
        if value != usual
    ]
    if still and model.pretrained is None:
        found.append(
            f"{' and '.join(still)} keeps parts as they are, and without model.pretrained they are random. Give "
            "model.pretrained, or leave that out."
        )
    if model.train == "heads" and experiment.experts.hyper_parameters.get("fusion"):
        found.append(
            "model.train 'heads' leaves experts their heads alone, and experts.fusion is a part of their own that has "
            "to be trained. Set experts.fusion: false, or model.train: branches."
        )
    found += _parts(model)
    training = experiment.training
    for key, idle in (("lr_stem", model.train != "all"), ("lr_branches", model.train == "heads")):
        if idle and getattr(training, key) is not None:
            found.append(
                f"training.{key} would do nothing: with model.train '{model.train}' that part stands. Leave it out."
            )
    return found + _kept(experiment)


def _parts(model: ModelSection) -> list[str]:
    """Return what is asked of parts that the network does not have, or that stand anyhow."""
    found = []
    family = FAMILIES.get(family_named(model.name))
    still = "everything but heads stands" if model.train == "heads" else ""
    if family is not None and not family.batch_norm:
        still = f"{family.title} has no batch norm"
    if model.norm == "frozen" and still:
        found.append(f"model.norm 'frozen' would do nothing: {still}. Leave it out.")
    if model.train == "adapters" and family is not None and not family.adapters:
        known = ", ".join(one.title for one in FAMILIES.values() if one.adapters)
        found.append(
            f"model.train 'adapters' is for networks of the family {known}; {model.name} is of {family.title}. Set "
            "model.train: branches or heads."
        )
    if model.train == "adapters" and importlib.util.find_spec("peft") is None:
        found.append(
            "model.train 'adapters' needs peft, which is not installed: pip install 'incrlt[adapters]'."
        )
    if model.adapter_rank != ModelSection.model_fields["adapter_rank"].default and model.train != "adapters":
        found.append(f"model.adapter_rank would do nothing with model.train '{model.train}'. Leave it out.")
    return found


def _kept(experiment: Experiment) -> list[str]:
    if experiment.data.feature_cache is None:
        return []
    found, chosen = [], experiment.benchmark
    if experiment.model.train == "all":
        found.append(
            "data.feature_cache keeps what a standing part gives, and with model.train 'all' everything moves. Set "
            "model.train: heads (or branches), or leave data.feature_cache out."
        )
    if chosen.augmentation != "none":
        found.append(
            "data.feature_cache computes features once per picture, and random augmentation shows another picture each "
            "time. Set benchmark.augmentation: none, or leave data.feature_cache out."
        )
    if experiment.training.step in ("compile", "graph"):
        found.append(
            f"data.feature_cache does not go with training.step '{experiment.training.step}'. Set training.step: auto."
        )
    return found


def _methods(experiment: Experiment) -> list[str]:
    """Ask every method what it needs and what it does not go together with."""
    methods = experiment.chosen
    try:
        return [*_told(experiment, methods), *_router(methods)]
    except UserError as error:  # a class that tells what cannot be understood
        return [str(error)]


def _told(experiment: Experiment, methods: Mapping[Kind, tuple[Declared, Entry]]) -> list[str]:
    seen = _seen(experiment, methods)
    found = []
    for declared, entry in methods.values():
        declared.check(entry.hyper_parameters)
        found += _unmet(declared, entry, experiment)
        found += declared.clashes(seen | entry.hyper_parameters)
    return found


def _router(methods: Mapping[Kind, tuple[Declared, Entry]]) -> list[str]:
    experts, entry = methods["experts"]
    if "router" not in methods or experts.count("num_experts", entry.hyper_parameters) != 1:
        return []
    return [
        f"a router chooses between experts, but {experts.place} has one. Set experts.num_experts: 3, or router: null."
    ]


def _unmet(declared: Declared, entry: Entry, experiment: Experiment) -> list[str]:
    """Return one sentence per need that the experiment does not meet."""
    needs = declared.needs(entry.hyper_parameters)
    lacking = {need: lacks for need in needs if (lacks := _lacks(need, experiment))}
    return [_needs(declared, need, needs[need], lacks) for need, lacks in lacking.items()]


def _seen(experiment: Experiment, methods: Mapping[Kind, tuple[Declared, Entry]]) -> Plain:
    """Return the experiment as conditions see it: sections by name, methods with their traits."""
    values = experiment.model_dump()
    seen: Plain = {
        key: Answers(value or {}) if value is None or isinstance(value, dict) else value
        for key, value in values.items()
    }
    for kind, (declared, entry) in methods.items():
        seen[kind] |= declared.traits(entry.hyper_parameters)
    return seen


def _lacks(need: str, experiment: Experiment) -> str | None:
    """Return what is given instead of a need and what to set; None where the need is met."""
    head = experiment.model.head
    missing = {
        "cosine": None
        if head in ("cosine", "proxies")
        else f"model.head is '{head}'. Set model.head: cosine",
        "memory": None if experiment.memory else "memory is null. Set memory: {per_class: 20}",
        "tensors": None if experiment.data.on_device else "data.on_device is false. Set data.on_device: true",
    }
    return missing[need]


def _needs(declared: Declared, need: str, because: Mapping[str, object], lacks: str) -> str:
    settings = " and ".join(f"{key} {_value(value)}" for key, value in because.items())
    off = [(key, value) for key, value in because.items() if isinstance(value, (bool, int, float))]
    other = ", or " + ", ".join(f"{declared.kind}.{key}: {_off(value)}" for key, value in off) if off else ""
    return f"{declared.place}{' with ' if settings else ''}{settings} needs {NEEDS[need]}; {lacks}{other}."


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else show(value)


def _off(value: object) -> str:
    return "false" if isinstance(value, bool) else "0"


def _memory(experiment: Experiment) -> list[str]:
    memory = experiment.memory
    if memory is None or (memory.per_class is None) != (memory.total is None):
        return []
    given = "both" if memory.total else "neither"
    return [f"memory takes exactly one of per_class and total; got {given}. Write {{per_class: 20}}."]


def _length(t: Training) -> list[str]:
    found = []
    if list(t.milestones) != sorted(set(t.milestones)):
        found.append(
            f"training.milestones must rise; got {list(t.milestones)}. Sort them and remove doubles."
        )
    shortest = min(t.epochs, t.base_epochs or t.epochs)
    if t.warmup_epochs >= shortest and t.warmup_epochs:
        found.append(
            f"training.warmup_epochs is {t.warmup_epochs}, but an experience has only {shortest} epochs. "
            "Warm up for fewer."
        )
    return found


def computation(training: Training, device: str, width: int) -> list[str]:
    """Return what a device cannot compute, and what of the computation does not go together.

    Args:
        training: The section.
        device: Its kind where it is known, ``cpu`` or ``cuda``; ``auto`` where it is not yet.
        width: Channels of the network's first stage.
    """
    t, on_cpu, found = training, device == "cpu", []
    if t.nesterov and not t.momentum:
        found.append(
            "training.nesterov needs momentum; got 0. Set training.momentum: 0.9, or nesterov: false."
        )
    if t.precision == "fp16" and on_cpu:
        found.append(
            "training.precision 'fp16' needs a GPU; device is 'cpu'. Set training.precision: bf16 or fp32."
        )
    if t.channels_last is True and on_cpu and width < NARROWEST_CHANNELS_LAST:
        found.append(
            f"training.channels_last on a CPU takes a model.width of {NARROWEST_CHANNELS_LAST} or more; got {width}, "
            "with which PyTorch's convolutions write beyond their memory. Set training.channels_last: false, or a "
            "larger width."
        )
    if t.step == "graph" and on_cpu:
        found.append(
            "training.step 'graph' needs a CUDA device; device is 'cpu'. Set training.step: auto or eager."
        )
    if t.step == "graph" and t.precision == "fp16":
        found.append(
            "training.step 'graph' does not go with training.precision 'fp16', which scales the loss by a number that "
            "changes. Set training.precision: bf16, or training.step: auto."
        )
    return found
