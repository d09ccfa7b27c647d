"""What a strategy must remember to go on bit-exactly after its process was killed: tensors and plain data."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from incrlt.errors import UserError
from incrlt.training.optim import replace_parameters
from incrlt.training.randomness import global_state, set_global_state

if TYPE_CHECKING:
    from incrlt.training.template import IncrTemplate

FORMAT = 1
"""Raised whenever a checkpoint of before can no longer be read."""

CLOCK = (
    "train_iterations",
    "train_exp_counter",
    "train_exp_epochs",
    "train_exp_iterations",
    "total_iterations",
)
"""Avalanche's counters that a checkpoint keeps."""


def save(strategy: IncrTemplate, trained: bool) -> dict[str, Any]:
    """Return the state; see :meth:`incrlt.training.template.IncrTemplate.state_dict`."""
    if not strategy.is_expert_network:
        raise UserError("only strategies with a network from incrlt.models.build can be saved")
    memory, main = strategy.memory, strategy.main_optimizer
    alone = trained or strategy.optimizer is main
    return {
        "format": FORMAT,
        "strategy": strategy.name,
        "progress": {
            "experience": strategy.experience_index,
            "stage": strategy.stage_index,
            "epoch": strategy.stage_epoch + 1,
            "trained": trained,
        },
        "model": strategy.model.state(),
        "teacher": None if strategy.teacher is None else strategy.teacher.state(),
        "num_old": strategy.num_old,
        "optimizer": strategy.optimizer.state_dict(),
        "main_optimizer": None if alone else main.state_dict(),
        "scaler": strategy.scaler.state_dict(),
        "memory": None if memory is None else memory.state_dict(),
        "memory_before": None if trained else strategy.memory_before,  # what this experience trains on
        "generators": [
            strategy.batch_generator.get_state(),
            strategy.augmentation_generator.get_state(),
            *(generator.get_state() for generator in strategy.aside_generators),
        ],
        "random": global_state(strategy.device),
        "clock": {name: getattr(strategy.clock, name) for name in CLOCK},
        "extra": strategy.extra_state(),
    }


def load(strategy: IncrTemplate, saved: dict[str, Any], train_stream: Any) -> None:
    """Restore model, teacher and memory; the rest waits until training has reached the place."""
    if saved.get("format") != FORMAT or saved["strategy"] != strategy.name:
        raise UserError(
            f"the checkpoint is of strategy {saved.get('strategy')!r}, format {saved.get('format')}; "
            f"this run wants {strategy.name!r}, format {FORMAT}. Start it anew with --restart."
        )
    if strategy.memory is not None and saved["memory"] is None:
        raise UserError(
            "the checkpoint is of a run without exemplars, this run keeps some. Set memory: null, or start it anew "
            "with --restart."
        )
    _load_model(strategy, saved["model"])
    if saved["teacher"] is not None:
        strategy.teacher = copy.deepcopy(strategy.model)
        strategy.teacher.load_state(saved["teacher"])
        strategy.place(strategy.teacher).eval().requires_grad_(False)
    strategy.num_old = saved["num_old"]
    strategy.experience_index = saved["progress"]["experience"]
    if strategy.memory is not None:
        before = saved["memory_before"]
        strategy.memory.load_state_dict(saved["memory"] if before is None else before, train_stream)
    strategy.load_extra_state(saved["extra"])
    strategy.resume_from(saved, train_stream)
    if saved["progress"]["trained"]:
        restore_progress(strategy, saved)


def _load_model(strategy: IncrTemplate, model: dict[str, Any]) -> None:
    old = dict(strategy.model.named_parameters())
    strategy.model.to(strategy.device)
    try:
        strategy.model.load_state(model)
    except RuntimeError as error:  # torch lists every tensor that is missing or has another shape
        differ = _differences(model.get("architecture") or {}, strategy.model.architecture)
        raise UserError(
            f"the checkpoint is of another network: {differ or error}. Build the network it was saved with, or start "
            "the run anew with --restart."
        ) from error
    if strategy.router is not None:
        strategy.router.attach(strategy.model)  # the state may be of a run without one
    after = dict(strategy.model.named_parameters())
    replaced = [(old[k], after[k]) for k in after if k in old and old[k] is not after[k]]
    replace_parameters(strategy.optimizer, replaced)


def _differences(saved: dict[str, Any], built: dict[str, Any]) -> str:
    """Say which settings of the saved network the built one does not have."""
    flat = [{**settings, **(settings.get("layout") or {})} for settings in (saved, built)]
    keys = [key for key in flat[0] if key != "layout" and flat[0][key] != flat[1].get(key)]
    return ", ".join(f"it has {key} {flat[0][key]!r}, this run {flat[1].get(key)!r}" for key in keys)


def restore_progress(strategy: IncrTemplate, saved: dict[str, Any]) -> None:
    """Restore what moves from step to step: optimizers, counters and random states."""
    strategy.optimizer.load_state_dict(saved["optimizer"])
    if saved["main_optimizer"] is not None:
        strategy.main_optimizer.load_state_dict(saved["main_optimizer"])
    strategy.scaler.load_state_dict(saved["scaler"])
    for name, value in saved["clock"].items():
        setattr(strategy.clock, name, value)
    generators = (strategy.batch_generator, strategy.augmentation_generator, *strategy.aside_generators)
    for generator, state in zip(generators, saved["generators"], strict=True):
        generator.set_state(state.cpu())
    set_global_state(saved["random"], strategy.device)
