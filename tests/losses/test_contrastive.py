"""The contrastive term: by a plain loop, by hand, by gradient."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from incrlt.losses import momentum_contrast


def _vectors(experts=2, batch=3, width=4, queue=5, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape, dim):
        return F.normalize(torch.randn(*shape, dtype=torch.float64, generator=generator), dim=dim)

    return (
        unit(experts, batch, width, dim=-1),
        unit(experts, batch, width, dim=-1),
        unit(2, width, queue, dim=1),
    )


def test_a_plain_loop():
    queries, keys, negatives = _vectors()
    valid = torch.tensor([True, True, False, True, False])
    expected = 0.0
    for k in range(2):
        for b in range(3):
            same = math.exp(float(queries[k, b] @ keys[k, b]) / 0.2)
            others = sum(
                math.exp(float(queries[k, b] @ negatives[k, :, q]) / 0.2) for q in range(5) if valid[q]
            )
            expected -= math.log(same / (same + others)) / 6
    assert momentum_contrast(queries, keys, negatives, valid).item() == pytest.approx(expected, rel=1e-12)


def test_by_hand():
    """The own key is as close as the only negative: one of two, whatever the temperature."""
    query = torch.tensor([[[1.0, 0.0]]])
    loss = momentum_contrast(query, query, query.transpose(1, 2), None, 0.07)
    assert loss.item() == pytest.approx(math.log(2))


def test_columns_that_hold_no_key_change_nothing_whatever_they_hold():
    queries, keys, negatives = _vectors()
    valid = torch.arange(5) < 3
    short = momentum_contrast(queries, keys, negatives[..., :3])
    torch.testing.assert_close(momentum_contrast(queries, keys, negatives, valid), short)
    for filler in (100.0, torch.nan, torch.inf):
        queries.requires_grad_()
        filled = negatives.clone()
        filled[..., 3:] = filler
        loss = momentum_contrast(queries, keys, filled, valid)
        torch.testing.assert_close(loss, short)
        (gradient,) = torch.autograd.grad(loss, queries)
        assert gradient.isfinite().all()


def test_no_valid_negative_gives_zero():
    queries, keys, negatives = _vectors()
    queries.requires_grad_()
    for loss in (
        momentum_contrast(queries, keys, negatives, torch.zeros(5, dtype=torch.bool)),
        momentum_contrast(queries, keys, negatives[..., :0]),
    ):
        (gradient,) = torch.autograd.grad(loss, queries)
        assert loss.item() == 0
        assert gradient.abs().max() == 0


def test_keys_and_queue_take_no_gradient():
    queries, keys, negatives = (tensor.requires_grad_() for tensor in _vectors())
    momentum_contrast(queries, keys, negatives).backward()
    assert keys.grad is None
    assert negatives.grad is None
    assert queries.grad.abs().max() > 0


def test_queries_move_to_their_own_keys():
    queries, keys, negatives = _vectors()
    loss = momentum_contrast(queries, keys, negatives)
    assert momentum_contrast(keys, keys, negatives) < loss
    queries.requires_grad_()
    (gradient,) = torch.autograd.grad(momentum_contrast(queries, keys, negatives), queries)
    stepped = F.normalize(queries.detach() - 0.1 * gradient, dim=-1)
    assert momentum_contrast(stepped, keys, negatives) < loss


def test_gradients_numerically():
    queries, keys, negatives = _vectors()
    valid = torch.tensor([True, False, True, True, True])
    assert torch.autograd.gradcheck(
        lambda q: momentum_contrast(q, keys, negatives, valid), (queries.requires_grad_(),)
    )
