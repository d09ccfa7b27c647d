"""Loss functions: pure, readable, the published mathematics; the truth that faster backends are held to."""

from __future__ import annotations

from incrlt.losses.classification import balanced_softmax, cross_entropy
from incrlt.losses.distillation import (
    adaptive_weight,
    knowledge_distillation,
    less_forget,
    mimic_scores,
    sigmoid_distillation,
)
from incrlt.losses.ranking import margin_ranking

__all__ = [
    "adaptive_weight",
    "balanced_softmax",
    "cross_entropy",
    "knowledge_distillation",
    "less_forget",
    "margin_ranking",
    "mimic_scores",
    "sigmoid_distillation",
]
