"""Stored arrays of official codes as tensors, and values held to them."""

from __future__ import annotations

import torch


def tensor(array):
    """As stored where it is floating-point, else int64."""
    array = torch.as_tensor(array)
    return array if array.is_floating_point() else array.long()


def close(value, wanted, rtol=1e-9):
    """Compare in the precision that is stored, relative to the largest value."""
    wanted = tensor(wanted)
    atol = rtol * float(wanted.abs().max()) + 1e-12
    torch.testing.assert_close(value.to(wanted), wanted, rtol=rtol, atol=atol)


def close_as_computed(value, wanted, tolerance):
    """Compare in the precision of the value, relative to the largest one."""
    wanted = torch.as_tensor(wanted).to(value)
    atol = tolerance * float(wanted.abs().max()) + 1e-12
    torch.testing.assert_close(value, wanted, rtol=tolerance, atol=atol)
