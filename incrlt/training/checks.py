"""Settings that cannot work together, said before any work starts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from incrlt.data.avalanche import class_aware_loader
from incrlt.data.tensors import TensorBatches
from incrlt.errors import UserError
from incrlt.experts.base import ExpertMethod
from incrlt.kernels.backends import BACKENDS
from incrlt.training.optim import held_by, stage_optimizer
from incrlt.types import Stage

if TYPE_CHECKING:
    from incrlt.training.template import IncrTemplate

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names that ``precision`` may take, and the autocast type of each."""


USUAL = {"rebalance": "LWS(epochs=30)", "router": "ExpertAssignment()"}


def check_settings(strategy: IncrTemplate) -> None:
    """Refuse settings of a strategy that contradict each other.

    Raises:
        UserError: What was given, what is allowed, what to do.
    """
    _check_parts(strategy)
    _check_tensors(strategy)
    _check_computation(strategy)
    _check_model(strategy)
    if strategy.needs_memory and strategy.memory is None:
        raise UserError(f"strategy '{strategy.name}' needs exemplars; set memory: {{per_class: 20}}.")
    _check_optimizer(strategy)
    _check_stage_optimizer(strategy)


def _check_optimizer(strategy: IncrTemplate) -> None:
    """Refuse an optimizer that holds nothing of the model: a part of it, and more than it, are fine."""
    own = {id(parameter) for parameter in strategy.model.parameters()}
    if own and own.isdisjoint(map(id, held_by(strategy.optimizer))):
        raise UserError(
            "the optimizer holds no parameter of the model, so that nothing would train; build it from the parameters "
            "of the same object: optimizer=torch.optim.SGD(model.parameters(), lr=0.1)."
        )


def _check_stage_optimizer(strategy: IncrTemplate) -> None:
    """Later stages build an optimizer like the strategy's; one that does not let itself be built is refused here."""
    if strategy.is_expert_network and (strategy.rebalance or strategy.router or strategy.experts.stages()):
        stage_optimizer(strategy.optimizer, Stage("second", 1, lr=1.0), strategy.model)


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


def _check_tensors(strategy: IncrTemplate) -> None:
    for name in ("experts", "rebalance", "router"):
        if getattr(getattr(strategy, name), "cache_features", False) and not strategy.fast_data:
            raise UserError(
                f"{name}.cache_features needs images as tensors on the device, and fast_data is off; set fast_data: "
                "true (data.on_device in YAML), or cache_features: false."
            )
    if strategy.experts.layout.contrast is not None and not strategy.fast_data:
        raise no_second_view(strategy)


def check_batches(strategy: IncrTemplate, batches: Any) -> None:
    """Refuse, before the first epoch, what needs images as tensors on the device where they cannot be.

    Args:
        strategy: In an experience, its model grown.
        batches: The loader of the stream.

    Raises:
        UserError: A stage is to store features, or the experts want second views.
    """
    if not strategy.is_expert_network:
        return
    if strategy.experts.layout.contrast is not None:
        _check_second_view(strategy, batches)
    if isinstance(batches, TensorBatches):
        return
    for stage in strategy.stages(strategy.experience):
        if stage.cache_features and stage.epochs > 0 and not _stands_as_tensors(strategy, stage):
            raise no_stored_features(strategy, stage)


def _stands_as_tensors(strategy: IncrTemplate, stage: Stage) -> bool:
    """Say whether a stage has tensors although the stream's loader has none: it builds a loader of its own."""
    if strategy.on_stream_loader(stage):
        return False
    found = class_aware_loader(
        strategy.stream_dataset,
        batch_size=strategy.train_mb_size,
        device=strategy.device,
        fast=strategy.fast_data,
        cache=strategy.tensor_cache,
    )
    return isinstance(found, TensorBatches)


def no_stored_features(strategy: IncrTemplate, stage: Stage) -> UserError:
    """Return the error of a stage that cannot store features."""
    return UserError(
        f"stage '{stage.name}' is to store features (cache_features), but its batches come from a "
        f"loader ({strategy.fallback_reason or 'fast_data is off'}). Set cache_features: false."
    )


def _check_second_view(strategy: IncrTemplate, batches: Any) -> None:
    if not isinstance(batches, TensorBatches):
        raise no_second_view(strategy)
    if batches.augmentation is None:
        raise no_second_view(
            strategy, "its images are finished: they are not normalised by a known mean and std"
        )


def no_second_view(strategy: IncrTemplate, reason: str | None = None) -> UserError:
    """Return the error of experts that want a second view where there is none."""
    return UserError(
        f"experts '{strategy.experts.name}' want a second view of each image, but batches come from a loader "
        f"that gives one ({reason or strategy.fallback_reason or 'fast_data is off'}). Give uint8 images, or switch "
        "the contrastive term off (contrastive: 0)."
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
    ldam = getattr(experts, "objective", None) == "ldam"  # its margins are cosines
    if (experts.needs_cosine or ldam) and not model.has_cosine_heads:
        which = f"'{experts.name}'{' with objective ldam' if ldam else ''}"
        raise UserError(f"experts {which} need cosine heads; set model.head: cosine.")
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
