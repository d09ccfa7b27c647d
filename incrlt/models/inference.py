"""Answers with as few experts as an image needs: later branches run only for images that are sent on.

RIDE's code computes on masked batches and reports arithmetic saved; here the images that stop leave the batch, so
that time is saved as well. The order of experts is fixed, hence what an image gets is the combined answer of the
first k: ``combine(expert_logits[:k])``, their mean unless the expert method says otherwise.

Nothing here knows a network class: :class:`Routable` says which parts are looked at.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from incrlt.errors import UserError
from incrlt.losses.routing import running_means
from incrlt.models.precision import at_least_float
from incrlt.models.router import Router
from incrlt.types import Combine, ModelOutput

Shared = Tensor | tuple[Tensor, ...]
"""What the stem gives to branches: a map, or the maps of several stages."""

SMALLEST_GATHER = 2
"""Batches below this many images stay whole; see ``smallest_gather`` of :func:`predict`. On a CPU copying the images
left pays from two on (0.8 to 0.9 of the time, perf/bench_routing.py); on a GPU this is unmeasured."""

Rule = Callable[[int, Tensor, Tensor], Tensor]
"""``rule(k, scores, active)``: which of the images ``[n]`` go on after expert k; inactive ones never do."""


class Routable(Protocol):
    """What routed inference looks at: an :class:`~incrlt.models.ExpertNetwork`, or anything with these parts."""

    training: bool
    class_ids: list[int]
    combination: Combine | None
    router: Router | None

    @property
    def branches(self) -> Any:
        """K modules: what the stem gives to features ``[B, D]``."""

    def shared(self, x: Tensor) -> Shared:
        """Map images to what branches take."""

    def answer(self, k: int, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits ``[B, C]`` of expert k as evaluation reads them, and its cosines."""

    def forward_all(self, x: Tensor, *, rebalanced: bool | None = None) -> ModelOutput:
        """Run everything."""

    def to_labels(self, logits: Tensor) -> Tensor:
        """Move columns from arrival order to label ids."""


@dataclass(frozen=True)
class Prediction:
    """An answer to B images.

    Attributes:
        class_ids: Label id of the predicted class ``[B]``.
        confidence: Softmax probability of that class ``[B]``.
        experts_used: Experts whose logits the answer combines ``[B]``, 1 to K.
        logits: That answer ``[B, L]``; columns are label ids, as in the network's forward pass.
    """

    class_ids: Tensor
    confidence: Tensor
    experts_used: Tensor
    logits: Tensor


@torch.no_grad()
def predict(
    network: Routable,
    x: Tensor,
    budget: float | Tensor | None = None,
    threshold: float | Tensor | None = None,
    *,
    smallest_gather: int = SMALLEST_GATHER,
) -> Prediction:
    """Classify images, running each expert only on the images that the router sends to it.

    Without options an image goes on while its score lies above the router's own threshold (0 unless its stage says
    otherwise: a probability of one half). All experts run where the network has no router.

    Args:
        network: In evaluation mode. Stem, first expert and router run on every image.
        x: Images ``[B, c, H, W]``.
        budget: Experts per image on average, 1 to K. The threshold is looked up in what the router recorded at the
            end of its training, or on images given to :func:`calibrate`: it holds on average over images like those.
            Training images are easy for the experts, so that test images spend more unless :func:`calibrate` saw
            held-out ones. Where nothing was recorded the batch itself is shared out: each decision sends on about
            the same share of the images that reached it, those with the highest scores. Then the budget holds in
            each batch, and what an image gets depends on the images beside it.
        threshold: Score above which an image goes on, in place of the router's, one for all decisions; infinite ones
            are allowed.
        smallest_gather: A batch with fewer images left is not cut down: as long as one of them goes on, the next
            expert runs on all. That helps where a small batch takes as long as a part of it. Answers are the same.

    Returns:
        Prediction, on the device of ``x``. Equal to all experts run and the unwanted ones left out, up to rounding.

    Raises:
        UserError: Options that contradict each other or a network that cannot answer.
    """
    budget, threshold = _number("budget", budget), _number("threshold", threshold)
    router = _checked(network, budget, threshold)
    if not x.is_floating_point() or x.dim() != 4:
        raise UserError(
            f"images are {x.dtype} of shape {tuple(x.shape)}; give floats [B, c, H, W], normalised as in training: "
            "network.prepare(images)."
        )
    shared = network.shared(x)
    rule = None if router is None else _rule(router, len(x), budget, threshold)
    logits, used = _run(network, shared, rule, smallest_gather)
    best = logits.argmax(-1, keepdim=True)
    ids = torch.tensor(network.class_ids, device=logits.device)
    confidence = logits.softmax(-1).gather(-1, best).squeeze(-1)
    return Prediction(ids[best.squeeze(-1)], confidence, used, network.to_labels(logits))


def early_exit(
    expert_logits: Tensor, scores: Tensor, threshold: float | Tensor = 0.0, combine: Combine | None = None
) -> tuple[Tensor, Tensor]:
    """Return what routed inference would answer, from the logits of all experts.

    Args:
        expert_logits: ``[K, B, C]``.
        scores: The router's decisions ``[K - 1, B]``.
        threshold: Score above which an image goes on.
        combine: Makes one answer of the first experts' logits; None takes their mean.

    Returns:
        Combined logits of the experts used ``[B, C]``, and how many those are ``[B]``. Once stopped, an image stays
        stopped. No host sync.
    """
    used = 1 + (scores > threshold).long().cumprod(0).sum(0)
    index = (used - 1)[None, :, None].expand(1, *expert_logits.shape[1:])
    return running_means(expert_logits, combine).gather(0, index).squeeze(0), used


@torch.no_grad()
def calibrate(network: Routable, batches: Iterable[Tensor]) -> None:
    """Let the router know which scores to expect, so that :func:`predict` can keep a budget.

    Args:
        network: In evaluation mode, with a router.
        batches: Batches of images ``[B, c, H, W]`` like those to come, prepared as for evaluation; a few hundred
            images will do. Best held out: on training images routers stop too early.

    Raises:
        UserError: No router, no image, or a network in training mode.
    """
    router = _checked(network, None, 0.0)
    assert router is not None
    outputs = (network.forward_all(x, rebalanced=True) for x in batches)
    scores = [router(output.expert_logits, output.known_features, output.combine) for output in outputs]
    if not sum(score.shape[1] for score in scores):
        raise UserError("calibration needs images, none were given.")
    router.calibrate(torch.cat(scores, dim=1))


def _number(name: str, value: object) -> float | None:
    """Return an option as a float; True counts as 1 and nan compares as false: both would answer what was not meant."""
    one = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if one is None:
        return None
    if isinstance(one, bool) or not isinstance(one, numbers.Real) or one != one:
        given = f"a tensor of shape {tuple(one.shape)}" if isinstance(one, Tensor) else repr(one)
        raise UserError(f"{name} is {given}; give a number, such as {name}=1.5, or leave it out.")
    return float(one)


def _checked(network: Routable, budget: float | None, threshold: float | None) -> Router | None:
    """Return the router, or None where all experts run."""
    if network.training:
        raise UserError("prediction needs a network in evaluation mode; call network.eval() first.")
    if not network.class_ids:
        raise UserError("the network knows no class yet; train or load it first.")
    if budget is not None and threshold is not None:
        raise UserError("budget and threshold both say when to stop; give one of the two.")
    router = network.router
    if router is None and not (budget is None and threshold is None):
        raise UserError(
            "the network has no router to choose experts; train with router: {name: expert_assignment}."
        )
    return router


def _rule(router: Router, images: int, budget: float | None, threshold: float | None) -> Rule:
    limit: float | Tensor | None = router.threshold if threshold is None else threshold
    if budget is not None:
        limit = router.threshold_for(budget)
        if limit is None:
            return _highest(_shares(images, router.num_experts, budget))
    return lambda k, scores, active: active & (scores > limit)


def _highest(numbers: list[int]) -> Rule:
    """Send on a fixed number of images after each expert, those with the highest scores."""

    def rule(k: int, scores: Tensor, active: Tensor) -> Tensor:
        chosen = scores.masked_fill(~active, -torch.inf).topk(numbers[k]).indices
        return torch.zeros_like(active).index_fill_(0, chosen, True)

    return rule


def _shares(images: int, num_experts: int, budget: float) -> list[int]:
    """Return how many images each decision sends on: a constant share of those before, within the budget."""
    low, high = 0.0, 1.0
    for _ in range(50):  # 1 + q + q^2 + ... grows with q
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**k for k in range(num_experts)) <= budget else (low, middle)
    left, before, numbers = int((budget - 1) * images + 1e-9), images, []
    for k in range(1, num_experts):
        before = min(before, round(images * low**k), left)
        left -= before
        numbers.append(before)
    return numbers


class _Means:
    """Answers that are means, as running sums."""

    def __init__(self, first: Tensor) -> None:
        self._total = first

    def keep(self, going: Tensor) -> None:
        """Nothing is held beside the sums of all images."""

    def add(self, rows: Tensor, active: Tensor, logits: Tensor) -> None:
        self._total.index_add_(0, rows, torch.where(active[:, None], logits, 0.0))

    def so_far(self, rows: Tensor, k: int) -> Tensor:
        return self._total[rows] / k

    def final(self, used: Tensor) -> Tensor:
        return self._total / used[:, None]


class _Combined:
    """Answers that a method combines: the logits of all experts so far are held, of the images left."""

    def __init__(self, first: Tensor, combine: Combine) -> None:
        self._combine, self._so_far = combine, [first]
        self._answers = combine(first[None]).clone()

    def keep(self, going: Tensor) -> None:
        self._so_far = [logits[going] for logits in self._so_far]

    def add(self, rows: Tensor, active: Tensor, logits: Tensor) -> None:
        self._so_far.append(logits)
        combined = self._combine(torch.stack(self._so_far))
        self._answers[rows] = torch.where(active[:, None], combined, self._answers[rows])

    def so_far(self, rows: Tensor, k: int) -> Tensor:
        return self._answers[rows]

    def final(self, used: Tensor) -> Tensor:
        return self._answers


def _run(network: Routable, shared: Shared, rule: Rule | None, smallest_gather: int) -> tuple[Tensor, Tensor]:
    """Run experts one after the other on the images left.

    Returns:
        Combined logits ``[B, C]`` and experts used ``[B]``.
    """
    router, combine = network.router, network.combination
    logits, features = expert_answer(network, 0, shared)
    active = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    rows, used = torch.arange(len(logits), device=logits.device), active.long()  # rows: which images are left
    answers = _Means(logits) if combine is None else _Combined(logits, combine)
    for k in range(1, len(network.branches)):
        if rule is not None and router is not None:
            active = rule(k - 1, router.score(k - 1, answers.so_far(rows, k), features), active)
            going = active.nonzero().squeeze(1)
            if not len(going):
                break
            if smallest_gather <= len(active) and len(going) < len(active):
                rows, active, shared = rows[going], active[going], _take(shared, going)
                answers.keep(going)
        logits, features = expert_answer(network, k, shared)
        answers.add(rows, active, logits)
        used.index_add_(0, rows, active.long())
    return answers.final(used), used


def expert_answer(network: Routable, k: int, shared: Shared) -> tuple[Tensor, Tensor]:
    """Return logits ``[n, C]`` as in evaluation and features ``[n, D]`` of one expert, fp32 under autocast too."""
    features = at_least_float(network.branches[k](shared))
    return network.answer(k, features)[0], features


def _take(shared: Shared, rows: Tensor) -> Shared:
    """Return some images of what branches take; indexing keeps channels-last order."""
    return shared[rows] if isinstance(shared, Tensor) else tuple(part[rows] for part in shared)
