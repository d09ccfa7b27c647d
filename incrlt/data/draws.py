"""How often an epoch draws each class, and each image, on average: fractions, not whole images."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from incrlt.data.tensors import Sampler, num_batches
from incrlt.errors import UserError


def expected_draws(class_counts: Tensor, sampler: Sampler = "shuffle", *, passes: float = 1.0) -> Tensor:
    """Return how many images of each class an epoch draws on average.

    ``shuffle`` draws every image once. ``class_aware`` makes as many draws as there are images and gives each class
    that has any the same share, so that of 10 images in 4 classes each class is drawn 2.5 times.

    Args:
        class_counts: Images per class ``[C]``, >= 0; of several data sets, call it for each and add.
        sampler: ``shuffle`` or ``class_aware``, as :class:`~incrlt.data.tensors.TensorBatches` draws them.
        passes: Passes an epoch makes, see :func:`expected_passes`.

    Returns:
        float64 ``[C]``; 0 for a class without images.

    Raises:
        UserError: Unknown sampler.

    Example:
        >>> expected_draws(torch.tensor([7, 2, 1, 0, 0]), "class_aware").tolist()
        [3.3333333333333335, 3.3333333333333335, 3.3333333333333335, 0.0, 0.0]
    """
    if sampler not in get_args(Sampler):
        raise UserError(f"unknown sampler '{sampler}'; choose shuffle or class_aware")
    counts = class_counts.double()
    if sampler == "class_aware":
        there = counts > 0
        counts = there * (counts.sum() / there.sum().clamp(min=1))
    return counts * passes


def expected_passes(
    images: int, batch_size: int, steps: int, *, oversample: bool = False, drop_last: bool = False
) -> float:
    """Return how often each image of a group is shown on average in an epoch of a given number of batches.

    Args:
        images: Images of the group.
        batch_size: Images that the group gives to each batch; fewer in the last one of a pass.
        steps: Batches of the epoch.
        oversample: The group starts over when it ends before the epoch does; otherwise it runs out.
        drop_last: Batches that are not full are left out, other ones in every pass.
    """
    per_pass = num_batches(images, batch_size, drop_last) if images else 0
    if per_pass == 0:
        return 0.0
    in_pass = images - images % batch_size if drop_last else images
    full, rest = divmod(steps if oversample else min(steps, per_pass), per_pass)
    return (full * in_pass + rest * batch_size) / images
