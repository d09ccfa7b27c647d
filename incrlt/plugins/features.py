"""Features of a data set under a strategy's model, leaving no trace in the strategy.

Herding, class means and imprinting look at the same thing: evaluation transforms, evaluation mode, no
gradient. Nothing that training depends on may move meanwhile: module modes, random states and the strategy's
batch state are as before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import incrlt._compat  # noqa: F401  (before avalanche)

import torch
from avalanche.models import avalanche_forward
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from incrlt.data.avalanche import tensorise
from incrlt.data.quiet import quiet_random
from incrlt.errors import UserError
from incrlt.models.precision import at_least_float
from incrlt.processes import world
from incrlt.roles import Strategy

Extract = Callable[[Tensor, Tensor | None], Tensor]
"""``extract(images [B, ...], task labels [B] or None)`` returns features ``[K, B, D]``."""


def features_of(strategy: Strategy, dataset: object, *, mirror: bool = False) -> tuple[Tensor, Tensor]:
    """Run a data set through the strategy's feature extractor.

    The features are the first of these that the model offers: ``model.forward_all(x).features``
    ``[K, B, D]``, ``model.get_features(x)`` ``[B, D]``, ``model.feature_extractor(x)`` (Avalanche's iCaRL), or the
    input of the last ``nn.Linear`` that runs in a forward pass.
    Each expert's feature is L2-normalised, then they are concatenated: a row has norm ``sqrt(K)``, and the
    product of two rows is the sum of the experts' cosines. ``row.reshape(K, D)`` gives them back.

    Args:
        strategy: Strategy Avalanche strategy; ``model``, ``device`` and ``eval_mb_size`` are used, and where it
            has them ``autocast()`` (a context manager) and ``tensor_cache`` (decoded images, for speed).
        dataset: An ``AvalancheDataset``; its evaluation transforms are used, whatever group is active.
        mirror: Average the normalised features of each image ``[C, H, W]`` and of its horizontal mirror
            image (LUCIR's class means); the average is not normalised again. Rows of a table ``[D]`` and other data
            that are not images have no mirror image, and are taken as they are.

    Returns:
        Features ``[N, K * D]``, float32 or double as the model is, and labels int64 ``[N]``, on the CPU, in the order
        of the data set.

    Raises:
        UserError: The model has no features to offer.
    """
    parts: list[Tensor] = []
    labels: list[Tensor] = []
    autocast = getattr(strategy, "autocast", nullcontext)
    with (
        quiet_random(strategy.device),
        evaluation(strategy.model),
        feature_extractor(strategy.model) as extract,
        torch.no_grad(),
    ):
        for images, targets, tasks in _batches(strategy, dataset):
            with autocast():
                told = [] if tasks is None else [tasks]
                rows = world().spread(functools.partial(_rows, extract, mirror), images, *told)[0]
            parts.append(rows)
            labels.append(targets)
    if not parts:
        return torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
    return torch.cat(parts).cpu(), torch.cat(labels).long().cpu()


def answers_of(strategy: Strategy, dataset: object) -> Tensor:
    """Return the mean of an expert network's answers to a data set, as evaluation reads them: softmax ``[C]``, float64.

    Args:
        strategy: As for :func:`features_of`, its model an :class:`~incrlt.models.ExpertNetwork`.
        dataset: An ``AvalancheDataset`` with at least one image; its evaluation transforms are used.
    """
    autocast, parts = getattr(strategy, "autocast", nullcontext), []
    with quiet_random(strategy.device), evaluation(strategy.model), torch.no_grad():
        for images, _, _ in _batches(strategy, dataset):
            with autocast():
                logits = strategy.model.forward_all(images).logits
            parts.append(logits.double().softmax(-1))
    return torch.cat(parts).mean(0)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode and give every module its own mode back on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training  # not .train(), which would also set the children


@contextmanager
def feature_extractor(model: nn.Module) -> Iterator[Extract]:
    """Yield a function that gives the model's features ``[K, B, D]``; :func:`features_of` tells which."""
    if hasattr(model, "forward_all"):
        yield lambda images, tasks: _told(model.forward_all(images).features)
    elif hasattr(model, "get_features"):
        yield lambda images, tasks: model.get_features(images).flatten(1)[None]
    elif isinstance(getattr(model, "feature_extractor", None), nn.Module):
        yield lambda images, tasks: model.feature_extractor(images).flatten(1)[None]
    else:
        with _watched_linears(model) as extract:
            yield extract


def _told(features: Tensor | None) -> Tensor:
    if features is None:
        raise UserError("the model's forward_all gives no features; herding and class means need them.")
    return features


@contextmanager
def _watched_linears(model: nn.Module) -> Iterator[Extract]:
    """Yield a function that runs the model and returns what went into the last linear layer."""
    seen: list[Tensor] = []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[:] = inputs[:1]

    def extract(images: Tensor, tasks: Tensor | None) -> Tensor:
        seen.clear()
        model(images) if tasks is None else avalanche_forward(model, images, tasks)
        if not seen:
            raise UserError(
                f"{type(model).__name__} has neither forward_all nor get_features, and no nn.Linear ran in "
                "its forward pass. Give it get_features(x) that returns [batch, features]."
            )
        return seen[0].flatten(1)[None]

    hooks = [
        module.register_forward_pre_hook(watch) for module in model.modules() if isinstance(module, nn.Linear)
    ]
    try:
        yield extract
    finally:
        for hook in hooks:
            hook.remove()


def _rows(extract: Extract, mirror: bool, images: Tensor, tasks: Tensor | None = None) -> Tensor:
    """Normalise each expert's features and lay them side by side: ``[1, B, K * D]``, float32 or more."""
    features = normalize(at_least_float(extract(images, tasks)), dim=-1, eps=1e-12)
    rows = features.transpose(0, 1).flatten(1)[None]
    if mirror and images.ndim >= 4:
        rows = (rows + _rows(extract, False, images.flip(-1), tasks)) / 2
    return rows


def _batches(strategy: Strategy, dataset: object) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Iterate images, labels and task labels (None where there are none) on the strategy's device."""
    for batch in _loader(strategy, dataset):
        images, targets, *rest = (column.to(strategy.device, non_blocking=True) for column in batch)
        yield images, targets, rest[-1] if rest else None


def _loader(strategy: Strategy, dataset: Any) -> Iterable[Sequence[Tensor]]:
    """Return batches in the stored order, from the strategy's decoded images where that is possible."""
    dataset = dataset.eval()
    loader = DataLoader(dataset, batch_size=strategy.eval_mb_size, collate_fn=dataset.collate_fn)
    cache = getattr(strategy, "tensor_cache", None)
    if cache is None or not len(dataset):
        return loader
    return tensorise(loader, strategy.device, cache=cache) or loader
