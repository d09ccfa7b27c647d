"""RIDE's losses, tables and gradients against arrays computed by its official code."""

from __future__ import annotations

import pytest
import torch

from incrlt.losses import (
    class_balanced_weights,
    class_temperatures,
    distribution_aware_diversity,
    ensemble_distillation,
    ldam,
    ldam_margins,
)

CASES = [  # name, variant, weight of the diversity term, re-weighted, rho
    ("ride_a_c100_if100", 0, -0.45, True, 0.05),
    ("ride_a_c100_if100", 1, -0.45, False, 0.05),
    ("ride_a_c100_if100", 2, -0.2, False, 0.05),
    ("ride_a_c100_if100", 3, -0.2, True, 0.02),
    ("ride_b_tiny_c7", 0, -0.45, True, 0.05),
    ("ride_b_tiny_c7", 1, -0.45, False, 0.05),
    ("ride_b_tiny_c7", 4, 0.3, True, 0.05),
    ("ride_c_c300", 0, -0.2, True, 0.02),
    ("ride_d_inc_50p10", 0, -0.45, True, 0.05),
    ("ride_d_inc_50p10", 1, -0.45, False, 0.05),
    ("ride_d_inc_50p10", 2, -0.2, True, 0.05),
    ("ride_e_extreme", 0, -0.45, True, 0.05),
    ("ride_e_extreme", 1, -0.45, False, 0.05),
]
PRECISIONS = [(torch.float64, 1e-9), (torch.float32, 1e-4)]
SCALE = 30.0


class Case:
    """One variant of a golden case in one precision."""

    def __init__(self, arrays, variant, dtype, tolerance):
        self.arrays, self.prefix, self.dtype, self.tolerance = arrays, f"v{variant}_", dtype, tolerance
        self.logits = torch.as_tensor(arrays["logits"]).to(dtype).requires_grad_()
        self.labels = torch.as_tensor(arrays["labels"]).long()
        self.counts = torch.as_tensor(arrays["class_counts"]).to(dtype)

    def array(self, name):
        suffix = "" if self.dtype == torch.float64 else "_f32"
        key = self.prefix + name
        return torch.as_tensor(self.arrays.get(key + suffix, self.arrays.get(key))).to(self.dtype)

    def check(self, name, value):
        wanted = self.array(f"loss_{name}").sum()
        torch.testing.assert_close(value, wanted, rtol=self.tolerance, atol=self.tolerance / 100)
        if f"{self.prefix}grad_{name}" in self.arrays:
            (gradient,) = torch.autograd.grad(value, self.logits, retain_graph=True)
            wanted = self.array(f"grad_{name}")
            largest = float(wanted.abs().max())
            torch.testing.assert_close(gradient, wanted, rtol=self.tolerance, atol=self.tolerance * largest)
            return
        assert name != "total", "every case stores the gradient of its total"

    def base(self, reweighted, logits=None):
        weights = class_balanced_weights(self.counts) if reweighted else None
        logits = self.logits if logits is None else logits
        return ldam(logits, self.labels, ldam_margins(self.counts), SCALE, weights)

    def divergence(self, reweighted, rho):
        temperatures = class_temperatures(self.counts, rho if reweighted else 0.0)
        return temperatures.mean() ** 2 * distribution_aware_diversity(self.logits, temperatures)


@pytest.mark.parametrize(("name", "variant", "weight", "reweighted", "rho"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_terms_and_gradients(golden, name, variant, weight, reweighted, rho, dtype, tolerance):
    case = Case(golden(name), variant, dtype, tolerance)
    experts = len(case.logits)
    base = experts * case.base(reweighted)
    divergence = experts * case.divergence(reweighted, rho)
    case.check("base", base)
    case.check("diversity", weight * divergence)
    case.check("total", base + weight * divergence)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("name", ["ride_a_c100_if100", "ride_e_extreme"])
def test_divergence_of_each_expert(golden, name, dtype, tolerance):
    case = Case(golden(name), 0, dtype, tolerance)
    temperatures = class_temperatures(case.counts, 0.05)
    logits = case.logits.detach()
    mean = (logits.mean(0) / temperatures).softmax(-1)
    for expert, wanted in zip(logits, case.array("kl"), strict=True):
        found = torch.nn.functional.kl_div(
            (expert / temperatures).log_softmax(-1), mean, reduction="batchmean"
        )
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance / 100)
    torch.testing.assert_close(
        distribution_aware_diversity(logits, temperatures), case.array("kl").mean(), rtol=tolerance, atol=0
    )


@pytest.mark.parametrize(("variant", "reweighted"), [(2, True), (3, False)])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_without_diversity_the_official_code_trains_the_mean(golden, variant, reweighted, dtype, tolerance):
    case = Case(golden("ride_b_tiny_c7"), variant, dtype, tolerance)
    loss = len(case.logits) * case.base(reweighted, case.logits.mean(0))
    case.check("base", loss)
    case.check("total", loss)


@pytest.mark.parametrize(("variant", "reweighted"), [(0, True), (1, False)])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_self_distillation(golden, variant, reweighted, dtype, tolerance):
    case = Case(golden("ride_f_distill"), variant, dtype, tolerance)
    experts = len(case.logits)
    teacher = torch.as_tensor(case.arrays["teacher_logits"]).to(dtype)
    distance = ensemble_distillation(case.logits, teacher, 1.5)
    case.check("distill", experts * distance)
    case.check("base", experts * case.base(reweighted))
    ride = experts * (case.base(reweighted) - 0.45 * case.divergence(reweighted, 0.05))
    case.check("total", experts * (ride + distance))


@pytest.mark.parametrize("name", sorted({case[0] for case in CASES if case[3]}))
def test_tables_in_use(golden, name):
    """The stored margins are in use for the last variant, weights and temperatures for the first."""
    arrays = {key: torch.as_tensor(value) for key, value in golden(name).items()}
    counts = arrays["class_counts"].double()
    rho = 0.02 if name == "ride_c_c300" else 0.05
    exact = {"rtol": 1e-12, "atol": 0}
    torch.testing.assert_close(ldam_margins(counts), arrays["margins"], **exact)
    torch.testing.assert_close(class_balanced_weights(counts), arrays["v0_drw_weights"], **exact)
    torch.testing.assert_close(class_temperatures(counts, rho), arrays["v0_tau"], **exact)


@pytest.mark.parametrize("ratio", [100, 50, 10])
@pytest.mark.parametrize(("convert", "tolerance"), [(torch.Tensor.double, 1e-12), (torch.Tensor.int, 1e-6)])
def test_tables_of_cifar(golden, ratio, convert, tolerance):
    """Integer counts give float32 tables that are as exact as float32 allows."""
    start = f"C100_IF{ratio}_"
    tables = {
        key.removeprefix(start): torch.as_tensor(value)
        for key, value in golden("ride_tables").items()
        if key.startswith(start)
    }
    counts = convert(tables["counts"])
    found = {
        "margins": ldam_margins(counts),
        "drw_weights": class_balanced_weights(counts),
        "tau_rho0.05": class_temperatures(counts, 0.05),
        "tau_rho0.02": class_temperatures(counts, 0.02),
    }
    assert set(found) == set(tables) - {"counts"}
    for key, value in found.items():
        torch.testing.assert_close(value.double(), tables[key], rtol=tolerance, atol=0)
