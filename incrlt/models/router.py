"""The router of RIDE: decides after each expert whether an image needs the next one.

Wang et al., ICLR 2021, section 3.3; official code frank-xwang/RIDE-LongTailRecognition. Its loss is
:mod:`incrlt.losses.routing`; :mod:`incrlt.models.inference` acts on what it says.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incrlt.errors import UserError
from incrlt.files import Plain
from incrlt.losses.routing import running_means
from incrlt.models.facts import Facts
from incrlt.roles import State
from incrlt.types import Combine

TABLE_SIZE = 4096
"""Decisions that the calibration remembers; with three experts those on 2,048 images."""


MEASURE_RATE = 0.1
"""Share of a new batch in the average square of logits, as batch norm has it."""


SETTINGS = ("num_experts", "num_features", "top", "hidden", "shared", "normalise")
"""Attributes of a router, and arguments that build it anew when a checkpoint is loaded."""


class Router(Facts):
    """K - 1 small decisions, each from the answer so far, its largest logits, and the feature of the last expert run.

    Args:
        num_experts: Number K of experts, at least two.
        num_features: Width D of an expert's feature.
        top: Largest logits that are looked at; RIDE: 30 on CIFAR, 50 for its larger networks.
        hidden: Width to which a feature is brought.
        shared: One last layer for all decisions, as published; otherwise one for each.
        normalise: Divide logits by their root mean square, averaged over training. Without it (as published) thirty
            logits of scale 30 make a step of the published learning rate overshoot: the loss grows.

    Attributes:
        threshold: Score above which an image goes on ``[]``; 0 is a probability of one half.
        calibration: Scores that decide how many experts run, NaN where none was recorded ``[4096]``.
        recorded: How many were recorded ``[]``.
        mean_square: Average square of the logits looked at ``[]``; 0 before the first batch.

    The router reads experts and never trains them: no gradient passes to logits or features.

    Deviations from the official code: with fewer classes than ``top`` the smallest logit fills up, so that the
    input keeps its width while classes arrive; an all-zero feature stays zero instead of becoming NaN.

    Raises:
        UserError: Fewer than two experts.
    """

    threshold: Tensor
    calibration: Tensor
    recorded: Tensor
    mean_square: Tensor

    def __init__(
        self,
        num_experts: int,
        num_features: int,
        top: int = 30,
        hidden: int = 16,
        shared: bool = True,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        if num_experts < 2:
            raise UserError(f"a router chooses between experts; {num_experts} leaves nothing to choose.")
        self.num_experts, self.num_features = num_experts, num_features
        self.top, self.hidden, self.shared, self.normalise = top, hidden, shared, normalise
        self.reduce = nn.ModuleList(nn.Linear(num_features, hidden) for _ in range(num_experts - 1))
        self.decide = nn.ModuleList(
            nn.Linear(top + hidden, 1) for _ in range(1 if shared else num_experts - 1)
        )
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("calibration", torch.full((TABLE_SIZE,), torch.nan))
        self.register_buffer("recorded", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean_square", torch.zeros(()))

    @property
    def settings(self) -> Plain:
        """Arguments that build a router like this one."""
        return {name: getattr(self, name) for name in SETTINGS}

    def facts(self) -> Plain:
        """The settings: not all of them show in the shape of a tensor."""
        return self.settings

    def take_facts(self, facts: Plain, state: State, prefix: str) -> None:
        """Refuse the state of a router that decides in another way."""
        for name, value in self.settings.items():
            if facts.get(name) != value:
                raise UserError(
                    f"the router of this state has {name} {facts.get(name)!r}, this one has {value!r}; build it with "
                    f"Router(..., {name}={facts.get(name)!r})."
                )

    def forward(self, expert_logits: Tensor, features: Tensor, combine: Combine | None = None) -> Tensor:
        """Score every decision.

        Args:
            expert_logits: ``[K, B, C]``.
            features: Input of the heads ``[K, B, D]``; the last expert's is not looked at.
            combine: Makes one answer of the first experts' logits; None takes their mean.

        Returns:
            ``[K - 1, B]``, before the sigmoid: the larger, the more an image needs the next expert.
        """
        means = running_means(expert_logits, combine)
        if self.normalise and self.training:
            self._measure(means[:-1])
        return torch.stack([self.score(k, means[k], features[k]) for k in range(self.num_experts - 1)])

    def score(self, k: int, mean_logits: Tensor, features: Tensor) -> Tensor:
        """Score the decision after expert ``k`` (from 0), as far as the answers are known by then.

        Args:
            k: Number of the decision.
            mean_logits: Answer of experts 0 .. k, their mean unless a method combines otherwise ``[B, C]``.
            features: Feature of expert k ``[B, D]``.

        Returns:
            ``[B]``, before the sigmoid.
        """
        reduced = F.relu(self.reduce[k](F.normalize(features.detach(), dim=-1)))
        logits = self._largest(mean_logits.detach())
        if self.normalise:
            logits = logits / self.mean_square.clamp(min=1e-12).sqrt()
        seen = torch.cat([logits, reduced], dim=-1)
        return self.decide[0 if self.shared else k](seen).squeeze(-1)

    @torch.no_grad()
    def _measure(self, means: Tensor) -> None:
        """Follow the mean square of the largest logits; the first batch sets it. No host sync."""
        square = self._largest(means.flatten(0, 1)).square().mean()
        followed = torch.lerp(self.mean_square, square, MEASURE_RATE)
        self.mean_square.copy_(torch.where(self.mean_square == 0, square, followed))

    def _largest(self, logits: Tensor) -> Tensor:
        """Return the largest logits in descending order ``[B, top]``, filled up with the smallest."""
        values = logits.topk(min(self.top, logits.shape[-1]), dim=-1).values
        missing = self.top - values.shape[-1]
        return torch.cat([values, values[:, -1:].expand(-1, missing)], dim=-1) if missing else values

    # ------------------------------------------------------------------ how much computation a threshold costs

    @torch.no_grad()
    def record(self, scores: Tensor) -> None:
        """Remember the scores of some images for :meth:`threshold_for`; the oldest ones give way. No host sync.

        Args:
            scores: ``[K - 1, B]``; of more than the table holds, the last images stay.
        """
        deciding = _deciding(scores).T.flatten()[-TABLE_SIZE:]
        places = torch.arange(deciding.numel(), device=deciding.device) + self.recorded
        self.calibration.index_copy_(0, places % TABLE_SIZE, deciding.to(self.calibration))
        self.recorded.add_(deciding.numel())

    @torch.no_grad()
    def calibrate(self, scores: Tensor) -> None:
        """Forget what was recorded and remember these scores; of many, quantiles that never let a budget be overspent.

        Args:
            scores: ``[K - 1, N]`` of images like those to come, best ones that nothing was trained on.
        """
        self.forget()
        deciding = _deciding(scores).flatten().sort(descending=True).values
        kept = min(TABLE_SIZE, deciding.numel())
        # of j / kept of the scores at most that share lies above the j-th kept one: rounded down, not to the nearest
        places = torch.arange(kept, device=deciding.device) * deciding.numel() // max(kept, 1)
        self.calibration[:kept] = deciding[places].flip(0)
        self.recorded.fill_(kept)

    @torch.no_grad()
    def forget(self) -> None:
        """Empty the calibration: experts or router are about to change."""
        self.calibration.fill_(torch.nan)
        self.recorded.zero_()

    def threshold_for(self, budget: float) -> Tensor | None:
        """Return the threshold that spends a budget on the recorded images, and no more.

        Args:
            budget: Experts per image on average, 1 to K.

        Returns:
            A score ``[]``; None where nothing was recorded. The ends need no record: infinite, so that one expert
            or all of them run whatever the image.

        Raises:
            UserError: A budget outside 1 to K.
        """
        if not 1 <= budget <= self.num_experts:
            raise UserError(
                f"budget is {budget}; it counts experts per image, from 1 to {self.num_experts} on average."
            )
        if budget in (1, self.num_experts):
            return self.threshold.new_full((), torch.inf if budget == 1 else -torch.inf)
        known = self.calibration[~self.calibration.isnan()].sort(descending=True).values
        if not known.numel():
            return None
        # each known score above the threshold is one more run of an expert
        allowed = int((budget - 1) / (self.num_experts - 1) * known.numel() + 1e-9)
        return known[min(allowed, known.numel() - 1)]


def _deciding(scores: Tensor) -> Tensor:
    """Return the smallest score so far ``[K - 1, B]``: expert k + 1 runs where row k lies above the threshold."""
    return scores.detach().cummin(0).values
