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
from incrlt.losses.gradients import distribution_aware_distillation, gradient_weights
from incrlt.losses.margins import class_balanced_weights, ldam, ldam_margins
from incrlt.losses.mutual import (
    hard_category_cross_entropy,
    hard_columns,
    online_distillation,
    pairwise_divergence,
)
from incrlt.losses.norms import tau_factors, tau_normalised
from incrlt.losses.per_head import gradient_noise_std, per_head_distillation
from incrlt.losses.pooled import pooled_outputs_distillation
from incrlt.losses.prior import (
    logit_adjustment,
    prior_adjusted,
    prior_cross_entropy,
    running_prior,
    static_prior,
)
from incrlt.losses.proxies import local_similarity, nca, proxy_similarities
from incrlt.losses.ranking import margin_ranking
from incrlt.losses.ridge import ridge_of_sums, ridge_solution, ridge_update
from incrlt.losses.routing import routing_loss, routing_targets, running_means
from incrlt.losses.transfer import dynamic_knowledge_transfer, mutual_distillation
from incrlt.losses.trust import consensus_calibration, trusted_distillation
from incrlt.losses.virtual import mixed_cross_entropy, virtual_features

__all__ = [
    "Flavor",
    "adaptive_weight",
    "balanced_softmax",
    "class_balanced_weights",
    "class_temperatures",
    "consensus_calibration",
    "cross_entropy",
    "distribution_aware_distillation",
    "distribution_aware_diversity",
    "dynamic_knowledge_transfer",
    "ensemble_distillation",
    "gradient_noise_std",
    "gradient_weights",
    "hard_category_cross_entropy",
    "hard_columns",
    "knowledge_distillation",
    "ldam",
    "ldam_margins",
    "less_forget",
    "local_similarity",
    "logit_adjusted",
    "logit_adjustment",
    "margin_ranking",
    "mimic_scores",
    "mixed_cross_entropy",
    "momentum_contrast",
    "mutual_distillation",
    "nca",
    "online_distillation",
    "pairwise_divergence",
    "per_head_distillation",
    "pooled_outputs_distillation",
    "prior_adjusted",
    "prior_cross_entropy",
    "proxy_similarities",
    "ridge_of_sums",
    "ridge_solution",
    "ridge_update",
    "routing_loss",
    "routing_targets",
    "running_means",
    "running_prior",
    "sigmoid_distillation",
    "static_prior",
    "tau_factors",
    "tau_normalised",
    "trusted_distillation",
    "virtual_features",
]
