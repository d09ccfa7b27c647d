"""GVAlign: align all rows of the classifier to features drawn around class means with one shared covariance.

Kalla and Biswas, Robust Feature Learning and Global Variance-Driven Classifier Alignment for Long-Tail Class
Incremental Learning, WACV 2024; official code JAYATEJAK/GVAlign, held to stored arrays. Mathematics in
:mod:`incrlt.losses.virtual`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incrlt.errors import UserError
from incrlt.experiment.fields import Count, Fraction, NonNegative, Positive
from incrlt.experiment.ranges import check_fields
from incrlt.losses.virtual import class_means, covariance_of, factor_of, majority_class, virtual_features
from incrlt.models.network import ExpertNetwork
from incrlt.plugins.features import features_of
from incrlt.stages._measured import measured
from incrlt.training.hooks import Hooks
from incrlt.types import Stage

FACTORS = "gvalign_factors"
"""Under this name the network keeps the factor of each expert's shared covariance ``[K, D, D]``."""


@dataclass(frozen=True)
class GVAlign:
    r"""Train all head rows, old ones too, and the scale on one virtual feature per class and step.

    .. math:: L = \frac{1}{C} \sum_c L_{ce}(z(\mu_c + A \epsilon_c), c), \qquad A A^\top = \Sigma, \quad
        \epsilon_c \sim N(0, I)

    :math:`\mu_c` is the mean feature of class c on the unit sphere, :math:`\Sigma` the covariance of the largest class.

    A class with two exemplars does not tell its spread: means are each class's own, of the experience's images and the
    exemplars, and the covariance is that of the class with most images in the first experience, kept from then on.
    Balanced by construction; no sampler and no prior.

    Counts: the images per class in the stream, once, to find the largest.

    Raises:
        UserError: Heads that are not cosine heads: features lie on the unit sphere.

    Deviations: features are of images without random augmentation. The official first stage adds mixup and trains 500
    epochs on CIFAR-100; here it is the strategy's own. Shrinkage keeps a covariance of few images positive. A class
    without images is left out. Each expert has means, a covariance and steps of its own.
    """

    name = "gvalign"
    kind = "rebalance"
    title = "GVAlign"
    needs_cosine = True
    later_stages = (("gvalign", 1, "stream"),)

    steps: Count = 100
    """Steps of one virtual feature per class; the official code calls them epochs."""
    lr: Positive = 0.1
    """Learning rate, constant as on CIFAR-100."""
    momentum: Fraction = 0.9
    """Momentum of the steps."""
    weight_decay: NonNegative = 5e-4
    """Weight decay of the steps; 1e-4 on ImageNet."""
    shrinkage: NonNegative = 0.01
    """Share of the mean variance added to each variance; 0 in the official code, which stops where the largest class
    has no more images than there are features."""

    def __post_init__(self) -> None:
        check_fields(self)

    def stages(self, strategy: Hooks, first: Stage) -> Sequence[Stage]:
        """Return the strategy's first stage and this one."""
        if not strategy.model.has_cosine_heads:
            raise UserError(
                "rebalance 'gvalign' draws features on the unit sphere, where linear heads see another length; set "
                "model.head: cosine."
            )
        return first, measured("gvalign", functools.partial(self._align, strategy))

    def _align(self, strategy: Hooks, network: ExpertNetwork, num_old: int) -> None:
        features, labels = features_of(strategy, strategy.stream_dataset)
        labels = network.positions(labels)
        features_KND = features.unflatten(1, (network.num_experts, -1)).transpose(0, 1)
        factors = network.recall(FACTORS)
        if factors is None:
            factors = self.factors(features_KND, labels)
            network.remember(FACTORS, factors)
        known = torch.bincount(labels, minlength=network.num_classes).nonzero().squeeze(1)
        means = torch.stack([class_means(x, labels, network.num_classes)[known] for x in features_KND])
        noise = (torch.randn(means.shape).to(factors) for _ in range(self.steps))
        self.train(network.final_heads, means.to(factors), factors, noise, known.to(factors.device))

    def factors(self, features_KND: Tensor, labels_N: Tensor) -> Tensor:
        """Return the lower factor of each expert's covariance ``[K, D, D]``, of the class with most images.

        Args:
            features_KND: ``[K, N, D]``.
            labels_N: Class positions ``[N]``.

        Raises:
            UserError: That class has too few images for the shrinkage that is set.
        """
        largest = labels_N == majority_class(labels_N)
        found = [factor_of(covariance_of(x[largest].double(), self.shrinkage)) for x in features_KND]
        return torch.stack(found).to(features_KND)

    @torch.enable_grad()
    def train(
        self,
        heads: Iterable[nn.Module],
        means_KCD: Tensor,
        factors_KDD: Tensor,
        noise: Iterable[Tensor],
        known: Tensor,
    ) -> list[float]:
        """Take one step per draw of noise.

        Args:
            heads: K cosine heads, all of which train, scales too.
            means_KCD: Class means ``[K, C, D]``.
            factors_KDD: Lower factors of the covariances ``[K, D, D]``.
            noise: Standard normal ``[K, C, D]`` each.
            known: Position of each class in the heads ``[C]``.

        Returns:
            Cross entropy before each step, averaged over classes and experts.
        """
        heads = list(heads)
        moving = [p for head in heads for name, p in head.named_parameters() if name in ("weight", "scale")]
        sgd = torch.optim.SGD(moving, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        labels, losses = torch.arange(len(known), device=known.device), []
        for draw in noise:
            drawn = map(virtual_features, means_KCD, factors_KDD, draw)
            each = [
                F.cross_entropy(head(x)[0][:, known], labels) for head, x in zip(heads, drawn, strict=True)
            ]
            sgd.zero_grad()
            torch.stack(each).sum().backward()  # an expert's rows move by its own loss alone
            sgd.step()
            losses.append(torch.stack(each).detach().mean())
        sgd.zero_grad()
        return torch.stack(losses).tolist()
