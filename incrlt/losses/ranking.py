"""Inter-class separation between old and new classes."""

from __future__ import annotations

import torch
from torch import Tensor


def margin_ranking(
    cosines: Tensor,
    labels: Tensor,
    num_old: int,
    *,
    margin: float = 0.5,
    num_negatives: int = 2,
    negatives: str = "new",
) -> Tensor:
    r"""Push old samples away from the hardest negatives by a margin.

    .. math:: \frac{1}{|S_{old}| K'} \sum_{i \in S_{old}} \sum_{k=1}^{K'} \max(0, m - c_{i, y_i} + t_{i,k})

    with t the K' largest cosines among the negatives.

    Args:
        cosines: Before any scale, prior or margin ``[K, B, C]`` (or ``[B, C]``).
        labels: Class positions ``[B]``; old classes are 0 .. ``num_old`` - 1.
        num_old: Number O of old classes.
        margin: m.
        num_negatives: K; fewer are taken when there are fewer negatives.
        negatives: ``new`` ranks against the new classes (published), ``all`` against every other class.

    Returns:
        Scalar averaged over old samples, negatives and experts; 0 when the batch holds no old sample or there is
        no negative. No host sync.

    Reference: Hou et al., CVPR 2019, eq. 8; ``all`` is the official code's option AMR.

    Example:
        >>> margin_ranking(torch.tensor([[0.6, 0.4, 0.3]]), torch.tensor([0]), num_old=1)  # (0.3 + 0.2) / 2
        tensor(0.2500)
    """
    if cosines.dim() == 2:
        cosines = cosines[None]
    num_experts, _, num_classes = cosines.shape
    num_candidates = num_classes - num_old if negatives == "new" else num_classes - 1
    taken = min(num_negatives, num_candidates)
    if taken < 1 or num_old < 1:
        return cosines.sum() * 0.0
    index = labels.expand(num_experts, -1).unsqueeze(-1)
    target = cosines.gather(-1, index)
    candidates = cosines[..., num_old:] if negatives == "new" else cosines.scatter(-1, index, -torch.inf)
    hinge = torch.relu(margin - target + candidates.topk(taken, dim=-1).values)
    old = (labels < num_old).to(cosines)
    return (hinge.sum(-1) * old).sum() / (old.sum() * taken * num_experts).clamp(min=1)
