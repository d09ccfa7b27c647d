"""A random walk over combinations of options: what the dry run accepts can be built, and nothing fails later."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import incrlt._compat  # noqa: F401  (before avalanche)

import torch

from incrlt.errors import UserError
from incrlt.experiment import methods, schema
from incrlt.experiment.plan import plan
from incrlt.runner.run import build_strategy

QUICKSTART = Path(__file__).resolve().parent.parent / "experiments" / "quickstart.yaml"
WALKS = 120

CHOICES = {
    "memory": ["null", "{per_class: 3}", "{total: 30, redistribute: true, selection: random}"],
    "model.head": ["cosine", "linear"],
    "model.last_relu": ["true", "false", "null"],
    "data.on_device": ["true", "false"],
    "training.step": ["auto", "eager", "compile", "graph"],
    "training.kernels": ["auto", "reference", "closed_form", "triton"],
    "training.precision": ["auto", "fp32", "bf16", "fp16"],
    "training.schedule": ["multistep", "cosine"],
    "training.nesterov": ["true", "false"],
    "training.warmup_epochs": ["0", "1", "3"],
    "training.grad_clip": ["null", "1"],
    "training.channels_last": ["true", "false", "auto"],
    "training.base_epochs": ["null", "2"],
}
NUMBERS: dict[type, list[Any]] = {int: [0, 1, 2, 3], float: [0, 0.5, 0.75, 1, 2], bool: ["true", "false"]}


def value(kind: Any, default: Any, rng: random.Random) -> Any:
    if get_origin(kind) is Literal:
        return rng.choice(get_args(kind))
    return rng.choice(NUMBERS.get(type(default), ["null"]))


def method(kind: Any, rng: random.Random) -> str:
    required = kind in ("strategy", "experts")
    name = rng.choice([*methods.names(kind), *([] if required else [None])])
    if name is None:
        return f"{kind}=null"
    parameters = methods.find(kind, name).parameters.items()
    chosen = [f"{key}: {value(*pair, rng)}" for key, pair in parameters if rng.random() < 0.15]
    return f"{kind}={{{', '.join([f'name: {name}', *chosen])}}}"


def walk(rng: random.Random) -> list[str]:
    words = ["model.width=4", "device=cpu", *(method(kind, rng) for kind in methods.KINDS)]
    return words + [f"{key}={rng.choice(values)}" for key, values in CHOICES.items() if rng.random() < 0.25]


def test_what_is_accepted_can_be_built():
    outcomes = []
    for number in range(WALKS):
        words = walk(random.Random(number))
        try:
            experiment = schema.load(QUICKSTART, words)
        except UserError:
            outcomes.append("refused")
            continue
        plan(experiment)
        build_strategy(experiment, 1, torch.device("cpu"), [])  # raises where the dry run was too kind
        outcomes.append("built")
    assert outcomes.count("built") > 15 and outcomes.count("refused") > 15, "the walk must see both"
