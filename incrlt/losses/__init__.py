"""Loss functions: pure, readable, the published mathematics; the truth that faster backends are held to.

Axes: K experts, B batch, C seen classes in arrival order. Where official code sums over experts these functions
average, so that a weight means the same for any K; each says the factor to the published sum.
"""

from __future__ import annotations

from incrlt.losses.classification import balanced_softmax, cross_entropy, logit_adjusted
from incrlt.losses.contrastive import momentum_contrast
from incrlt.losses.distillation import (
    adaptive_weight,
    knowledge_distillation,
    less_forget,
    mimic_scores,
    sigmoid_distillation,
)
from incrlt.losses.diversity import class_temperatures, distribution_aware_diversity, ensemble_distillation
from incrlt.losses.flavor import Flavor
from incrlt.losses.margins import class_balanced_weights, ldam, ldam_margins
from incrlt.losses.mutual import (
    hard_category_cross_entropy,
    hard_columns,
    online_distillation,
    pairwise_divergence,
)
from incrlt.losses.ranking import margin_ranking
from incrlt.losses.routing import routing_loss, routing_targets, running_means
from incrlt.losses.transfer import dynamic_knowledge_transfer, mutual_distillation

__all__ = [
    "Flavor",
    "adaptive_weight",
    "balanced_softmax",
    "class_balanced_weights",
    "class_temperatures",
    "cross_entropy",
    "distribution_aware_diversity",
    "dynamic_knowledge_transfer",
    "ensemble_distillation",
    "hard_category_cross_entropy",
    "hard_columns",
    "knowledge_distillation",
    "ldam",
    "ldam_margins",
    "less_forget",
    "logit_adjusted",
    "margin_ranking",
    "mimic_scores",
    "momentum_contrast",
    "mutual_distillation",
    "online_distillation",
    "pairwise_divergence",
    "routing_loss",
    "routing_targets",
    "running_means",
    "sigmoid_distillation",
]
