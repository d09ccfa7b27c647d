"""A stem, K branches and K growing heads: every network of the package, the plain one with K = 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from incrlt.models.heads import CosineHead, GrowingHead, Replaced
from incrlt.types import ModelOutput

UNSEEN_LOGIT = -1000.0
"""Logit of a class that has not arrived: finite, so that losses and metrics of users' plugins stay so."""


class ExpertNetwork(nn.Module):
    """Shared stem, one branch and one growing head per expert.

    Inside, classes stand in arrival order; :meth:`forward` answers in the label ids of the benchmark.

    Args:
        stem: Maps images ``[B, c, H, W]`` to what branches take.
        branches: K modules that map the stem's output to features ``[B, D]``.
        heads: K growing heads.

    Attributes:
        class_ids: Label id of each class, in arrival order.
    """

    def __init__(self, stem: nn.Module, branches: Sequence[nn.Module], heads: Sequence[GrowingHead]) -> None:
        super().__init__()
        self.stem = stem
        self.branches = nn.ModuleList(branches)
        self.heads = nn.ModuleList(heads)
        self.class_ids: list[int] = []

    @property
    def num_classes(self) -> int:
        """Number of classes that have arrived."""
        return len(self.class_ids)

    @property
    def num_experts(self) -> int:
        """Number K of experts."""
        return len(self.heads)

    @property
    def has_cosine_heads(self) -> bool:
        """True when every head is a cosine head."""
        return all(isinstance(head, CosineHead) for head in self.heads)

    def grow(self, new_class_ids: Sequence[int]) -> Replaced:
        """Append classes to every head.

        Args:
            new_class_ids: Label ids in the order in which they are to stand; none may be known already.

        Returns:
            Parameters that growth replaced.
        """
        known = set(self.class_ids) & set(new_class_ids)
        assert not known, f"classes {sorted(known)} have arrived already"
        self.class_ids = [*self.class_ids, *(int(label) for label in new_class_ids)]
        return [pair for head in self.heads for pair in head.grow(len(new_class_ids))]

    def extract(self, x: Tensor) -> Tensor:
        """Map images ``[B, c, H, W]`` to the features of each expert ``[K, B, D]``."""
        shared = self.stem(x)
        return torch.stack([branch(shared) for branch in self.branches])

    def classify(self, features: Tensor, rebalanced: bool) -> ModelOutput:
        """Map features ``[K, B, D]`` to the output of all experts; the combined logits are their mean."""
        outputs = [head(features[k]) for k, head in enumerate(self.heads)]
        if rebalanced:
            outputs = [(head.rebalance(z), c) for head, (z, c) in zip(self.heads, outputs, strict=True)]
        expert_logits = torch.stack([logits for logits, _ in outputs])
        cosines = torch.stack([c for _, c in outputs]) if self.has_cosine_heads else None
        return ModelOutput(expert_logits.mean(0), expert_logits, features, cosines)

    def forward_all(
        self,
        x: Tensor,
        *,
        rebalanced: bool | None = None,
        extract: Callable[[Tensor], Tensor] | None = None,
    ) -> ModelOutput:
        """Run the whole network, classes in arrival order.

        Args:
            x: Images ``[B, c, H, W]``.
            rebalanced: Apply the learnable class scales; by default in evaluation mode only.
            extract: Stands in for :meth:`extract`, e.g. compiled or under autocast.
        """
        features = (extract or self.extract)(x).float()
        return self.classify(features, not self.training if rebalanced is None else rebalanced)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[B, c, H, W]`` to logits ``[B, L]`` whose column is the label id."""
        return self.to_labels(self.forward_all(x).logits)

    def get_features(self, x: Tensor) -> Tensor:
        """Return the features of all experts side by side ``[B, K * D]`` (Avalanche's name for it)."""
        return self.extract(x).transpose(0, 1).flatten(1)

    def to_labels(self, logits: Tensor, width: int = 0) -> Tensor:
        """Move columns from arrival order to label ids.

        Args:
            logits: ``[B, C]``.
            width: Smallest number of columns wanted; those of unseen classes hold :data:`UNSEEN_LOGIT`.

        Returns:
            ``[B, max(largest label id + 1, width)]``.
        """
        width = max(width, max(self.class_ids, default=-1) + 1)
        if width == self.num_classes and self.class_ids == list(range(width)):
            return logits
        out = logits.new_full((len(logits), width), UNSEEN_LOGIT)
        out[:, self.class_ids] = logits
        return out

    def positions(self, labels: Tensor) -> Tensor:
        """Map label ids ``[B]`` to arrival positions ``[B]``; -1 for classes that have not arrived."""
        size = max([*self.class_ids, int(labels.max()) if labels.numel() else 0]) + 1
        table = torch.full((size,), -1, dtype=torch.long)
        table[self.class_ids] = torch.arange(self.num_classes)
        return table.to(labels.device)[labels]

    def freeze_old(self, num_rows: int) -> None:
        """Freeze the first ``num_rows`` rows of every head."""
        for head in self.heads:
            head.freeze(num_rows)

    def restore_frozen(self) -> None:
        """Put the frozen rows of every head back."""
        for head in self.heads:
            head.restore_frozen()

    def freeze_backbone(self) -> None:
        """Put stem and branches in evaluation mode: their batch-norm statistics stay."""
        self.stem.eval()
        self.branches.eval()

    def state(self) -> dict[str, Any]:
        """Return classes and tensors, plain data only."""
        return {"class_ids": list(self.class_ids), "tensors": self.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state`, growing or shrinking the heads to it."""
        self.class_ids = list(state["class_ids"])
        for head in self.heads:
            head.resize(self.num_classes)
            head.freeze(0)
        self.load_state_dict(state["tensors"])
