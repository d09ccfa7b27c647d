"""The analytic head against arrays of ACIL and AIR, and against the solution of all images at once."""

from __future__ import annotations

import pytest
import torch
from arrays import tensor

from incrlt.losses import ridge


def close(value, wanted, rtol=1e-7):
    wanted = tensor(wanted)
    torch.testing.assert_close(value, wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()))


def phases(arrays):
    count = sum(key.endswith("_X") for key in arrays)
    for p in range(count):
        yield f"p{p}_", tensor(arrays[f"p{p}_X"]), tensor(arrays[f"p{p}_y"])


@pytest.mark.parametrize(
    ("name", "gamma", "bias", "batches"),
    [("acil_b_bias", 0.5, True, 2), ("acil_c_general", 0.1, False, 2), ("acil_d_expansion", 0.1, False, 5)],
)
def test_recursive_head(golden, name, gamma, bias, batches):
    """Old classes come again in the second case; the third expands features."""
    arrays = golden(name)

    def prepared(x):
        if "buffer_W" in arrays:
            return ridge.expanded(x, tensor(arrays["buffer_W"]))
        return ridge.with_bias(x) if bias else x

    state = None
    for phase, x, y in phases(arrays):
        x, classes = prepared(x), arrays[f"{phase}W"].shape[1]
        state = state or ridge.ridge_start(x.shape[1], gamma)
        for part, labels in zip(x.tensor_split(batches), y.tensor_split(batches), strict=True):
            state = ridge.ridge_update(state, part, labels, classes)
        close(state.weights, arrays[f"{phase}W"])
        close(prepared(tensor(arrays["X_test"])) @ state.weights, arrays[f"{phase}scores"])
        if f"{phase}R" in arrays:
            close(state.inverse, arrays[f"{phase}R"])


@pytest.mark.parametrize(("name", "gamma"), [("air_a", 0.1), ("air_b_general", 0.5)])
def test_class_weighted_head(golden, name, gamma):
    arrays = golden(name)
    sums = None
    for phase, x, y in phases(arrays):
        x = ridge.expanded(x, tensor(arrays["buffer_W"]))
        classes = arrays[f"{phase}W"].shape[1]
        for part, labels in zip(x.tensor_split(3), y.tensor_split(3), strict=True):
            sums = ridge.class_sums(part, labels, classes, sums)
        assert sums.counts.tolist() == arrays[f"{phase}cnt"].tolist()
        close(ridge.balancing_weights(sums.counts), arrays[f"{phase}pi"])
        close(ridge.ridge_of_sums(sums, gamma), arrays[f"{phase}W"])


def long_tailed(seed=0):
    """300 images of 6 features, classes 0 .. 7 with 120 to 4 images, in a random order."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor([120, 80, 40, 25, 15, 10, 6, 4])
    labels = torch.repeat_interleave(torch.arange(8), counts)
    labels = labels[torch.randperm(300, generator=generator)]
    centres = torch.randn(8, 6, dtype=torch.float64, generator=generator)
    return centres[labels] + torch.randn(300, 6, dtype=torch.float64, generator=generator), labels, counts


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sizes", [[300], [1] * 300, [3, 97, 5, 195], [6] * 50])
def test_any_batches_give_the_batch_solution_to_1e_8(weighted, sizes):
    """Batches below, at and above the number of features; classes appear when they appear."""
    features, labels, counts = long_tailed()
    weights = ridge.balancing_weights(counts) if weighted else None
    state, seen = ridge.ridge_start(6), 0
    for x, y in zip(features.split(sizes), labels.split(sizes), strict=True):
        seen = max(seen, int(y.max()) + 1)
        state = ridge.ridge_update(state, x, y, seen, weights)
    batch = ridge.ridge_solution(features, labels, 8, class_weights_C=weights)
    torch.testing.assert_close(state.weights, batch, rtol=1e-8, atol=1e-10)
    summed = ridge.class_sums(features, labels, 8)
    chosen = torch.ones(8) if weights is None else weights
    torch.testing.assert_close(
        ridge.ridge_of_sums(summed, class_weights_C=chosen), batch, rtol=1e-8, atol=1e-10
    )


def test_the_solution_is_where_the_gradient_vanishes():
    features, labels, counts = long_tailed()
    weights = ridge.balancing_weights(counts)
    solution = ridge.ridge_solution(features, labels, 8, 0.3, weights).requires_grad_()
    targets = torch.nn.functional.one_hot(labels, 8).double()
    error = (weights[labels].unsqueeze(-1) * (features @ solution - targets).square()).sum()
    (gradient,) = torch.autograd.grad(error + 0.3 * solution.square().sum(), solution)
    assert gradient.abs().max() < 1e-10


def test_balancing_raises_the_rare_classes():
    features, labels, counts = long_tailed()
    plain = (features @ ridge.ridge_solution(features, labels, 8)).argmax(-1)
    weights = ridge.balancing_weights(counts)
    balanced = (features @ ridge.ridge_solution(features, labels, 8, class_weights_C=weights)).argmax(-1)
    rare = labels >= 4
    assert (balanced == labels)[rare].double().mean() > (plain == labels)[rare].double().mean() + 0.2


def test_gradcheck():
    """The solution is differentiable in the features."""
    features = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0, 1, 0, 0])
    assert torch.autograd.gradcheck(lambda x: ridge.ridge_solution(x, labels, 3), (features,))
