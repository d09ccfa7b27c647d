"""Settings that cannot work together, said before any work starts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from incrlt.errors import UserError
from incrlt.experts.base import ExpertMethod
from incrlt.kernels.backends import BACKENDS

if TYPE_CHECKING:
    from incrlt.strategies.template import IncrTemplate

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names that ``precision`` may take, and the autocast type of each."""


USUAL = {"rebalance": "LWS(epochs=30)", "router": "ExpertAssignment()"}


def check_settings(strategy: IncrTemplate) -> None:
    """Refuse settings of a strategy that contradict each other.

    Raises:
        UserError: What was given, what is allowed, what to do.
    """
    _check_parts(strategy)
    _check_stored_features(strategy)
    _check_computation(strategy)
    _check_model(strategy)
    if strategy.needs_memory and strategy.memory is None:
        raise UserError(f"strategy '{strategy.name}' needs exemplars; set memory: {{per_class: 20}}.")


def _check_parts(strategy: IncrTemplate) -> None:
    if strategy.memory is not None and not hasattr(strategy.memory, "update"):
        raise UserError(
            f"memory is {strategy.memory!r}; give an object with a method update, such as "
            "ExemplarMemory(per_class=20)."
        )
    if not isinstance(strategy.experts, ExpertMethod):
        raise UserError(
            f"experts is {strategy.experts!r}; give an object of a subclass of incrlt.experts.ExpertMethod, such as "
            "RIDE(num_experts=3)."
        )
    for name, method in (("rebalance", "stages"), ("router", "stage")):
        part = getattr(strategy, name)
        if part is not None and not hasattr(part, method):
            raise UserError(
                f"{name} is {part!r}; give an object with a method {method}, such as {USUAL[name]}."
            )


def _check_stored_features(strategy: IncrTemplate) -> None:
    for name in ("experts", "rebalance", "router"):
        if getattr(getattr(strategy, name), "cache_features", False) and not strategy.fast_data:
            raise UserError(
                f"{name}.cache_features needs images as tensors on the device, and fast_data is off; set fast_data: "
                "true (data.on_device in YAML), or cache_features: false."
            )


def _check_layout(strategy: IncrTemplate) -> None:
    wanted, found = asdict(strategy.experts.layout), strategy.model.architecture.get("layout")
    if found is None:  # put together by hand
        return
    names = [name for name, value in wanted.items() if found[name] != value]
    if names:
        differ = ", ".join(f"{name} {found[name]!r} for {wanted[name]!r}" for name in names)
        raise UserError(
            f"the model was not built for experts '{strategy.experts.name}': it has {differ}. "
            "Build it with incrlt.models.build(..., layout=experts.layout)."
        )


def _check_computation(strategy: IncrTemplate) -> None:
    if strategy.precision not in PRECISIONS:
        raise UserError(f"precision {strategy.precision!r} is not known; allowed: {', '.join(PRECISIONS)}.")
    if strategy.kernels not in BACKENDS:
        raise UserError(f"kernels {strategy.kernels!r} is not known; allowed: {', '.join(BACKENDS)}.")
    if strategy.precision == "fp16" and strategy.device.type != "cuda":
        raise UserError("precision fp16 needs a CUDA device; use bf16 or fp32 on the CPU.")


def _check_model(strategy: IncrTemplate) -> None:
    experts, model = strategy.experts, strategy.model
    if not strategy.is_expert_network:
        wanted = strategy.needs_network or strategy.rebalance is not None or strategy.router is not None
        if wanted or experts.layout.num_experts > 1:
            raise UserError(
                f"strategy '{strategy.name}' with these settings needs features and a growing head; build the "
                f"model with incrlt.models.build(...), got {type(model).__name__}."
            )
        return
    if strategy.needs_cosine and not model.has_cosine_heads:
        raise UserError(f"strategy '{strategy.name}' needs a cosine head; set model.head: cosine.")
    if experts.needs_cosine and not model.has_cosine_heads:
        raise UserError(f"experts '{experts.name}' need cosine heads; set model.head: cosine.")
    wanted_experts = experts.layout.num_experts
    if model.num_experts != wanted_experts:
        raise UserError(
            f"experts '{experts.name}' wants {wanted_experts} branches, the model has {model.num_experts}; "
            f"build it with incrlt.models.build(..., layout=experts.layout)."
        )
    _check_layout(strategy)
    if strategy.router is not None and model.num_experts < 2:
        raise UserError(
            f"a router chooses between experts, and experts '{experts.name}' has only one; "
            "set experts: {name: ride} or leave the router out."
        )
