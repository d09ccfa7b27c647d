"""What the official-code tests of the three methods share."""

from __future__ import annotations

import pytest
import torch

from incrlt.types import LossContext, ModelOutput


class Case:
    """One golden case in one precision: logits that take gradients, labels, counts, and what is expected."""

    def __init__(self, arrays, dtype, prefix):
        self.arrays, self.prefix, self.dtype = arrays, prefix, dtype
        self.suffix = "" if dtype == torch.float64 else "_f32"
        self.logits = torch.as_tensor(arrays["logits"]).to(dtype).requires_grad_()
        self.labels = torch.as_tensor(arrays["labels"]).long()
        self.counts = torch.as_tensor(arrays["class_counts"]).to(dtype)

    def output(self, scale=30.0):
        return ModelOutput(
            self.logits.mean(0), self.logits, scales=torch.full((len(self.logits),), scale, dtype=self.dtype)
        )

    def context(self, epoch=1, **options):
        """Epochs are numbered from 0 here, from 1 in the official code; it trains for 200."""
        return LossContext(self.counts, 0, epoch - 1, 200, **options)

    def expected(self, name):
        """The array of a name; gradients that were stored in float64 alone serve both precisions."""
        key = self.prefix + name
        value = self.arrays[key + self.suffix] if key + self.suffix in self.arrays else self.arrays.get(key)
        return None if value is None else torch.as_tensor(value).double()

    def check(self, name, value, retain=True):
        """Compare a scalar with the sum of the array ``loss_<name>``, and its gradient with ``grad_<name>``."""
        tolerance = 1e-9 if self.dtype == torch.float64 else 1e-4
        wanted = self.expected(f"loss_{name}")
        assert wanted is not None, name
        found = float(value.detach().double())
        assert found == pytest.approx(float(wanted.sum()), rel=tolerance, abs=tolerance * 1e-2)
        gradient = self.expected(f"grad_{name}")
        if gradient is None:
            return
        (found,) = torch.autograd.grad(value, self.logits, retain_graph=retain)
        largest = float(gradient.abs().max())
        torch.testing.assert_close(found.double(), gradient, rtol=tolerance, atol=tolerance * largest)


@pytest.fixture
def case(golden):
    """``case(name, dtype, prefix)`` opens a golden case; priors and margins are computed in its precision too."""
    usual = torch.get_default_dtype()

    def opened(name, dtype, prefix):
        torch.set_default_dtype(dtype)
        return Case(golden(name), dtype, prefix)

    yield opened
    torch.set_default_dtype(usual)
