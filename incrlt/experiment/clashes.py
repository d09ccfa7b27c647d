"""What does not go together in an experiment whose fields are each fine, one sentence each.

What a method cannot do without, and what it does not go together with, its class tells
(``incrlt.experiment.declared``); here are the rules of the sections, and the questions to the methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, get_args

from incrlt.errors import UserError
from incrlt.experiment.declared import NEEDS, Declared
from incrlt.experiment.explain import show
from incrlt.experiment.fields import Model
from incrlt.experiment.methods import Entry, Kind, external
from incrlt.experiment.sections import Benchmark, Experiment, Training
from incrlt.experiment.sizes import too_large

NARROWEST_CHANNELS_LAST: Final = 8
"""Channels below which channels-last convolutions on a CPU corrupt memory (torch 2.14: widths 2 to 6 abort within
sixteen steps under glibc's checks, 7 and more do not)."""


class Answers(dict[str, Any]):
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
        *_held_out(experiment),
        *_model(experiment.model.name),
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
            "benchmark needs a protocol, such as lfh-shuffled-10, or both base_classes and increment; "
            f"got {', '.join(free) or 'none of them'}."
        ]
    return []


def _images(b: Benchmark) -> list[str]:
    found = []
    if b.dataset != "folder" and b.image_size is not None:
        found.append(
            f"benchmark.image_size is for dataset 'folder'; {b.dataset} has its own. Set benchmark.image_size: null."
        )
    if b.dataset != "folder" and b.imbalance_ratio is None:
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


def _model(name: str) -> list[str]:
    """Look for the file and the class of a backbone of the user's own, without importing it."""
    try:
        if ":" in name:
            external("model", name, get_args(Model))
    except UserError as error:
        return [str(error)]
    return []


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


def _seen(experiment: Experiment, methods: Mapping[Kind, tuple[Declared, Entry]]) -> dict[str, Any]:
    """Return the experiment as conditions see it: sections by name, methods with their traits."""
    values = experiment.model_dump()
    seen: dict[str, Any] = {
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


def _needs(declared: Declared, need: str, because: Mapping[str, Any], lacks: str) -> str:
    settings = " and ".join(f"{key} {_value(value)}" for key, value in because.items())
    off = [(key, value) for key, value in because.items() if isinstance(value, (bool, int, float))]
    other = ", or " + ", ".join(f"{declared.kind}.{key}: {_off(value)}" for key, value in off) if off else ""
    return f"{declared.place}{' with ' if settings else ''}{settings} needs {NEEDS[need]}; {lacks}{other}."


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else show(value)


def _off(value: Any) -> str:
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
