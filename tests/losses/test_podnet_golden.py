"""PODNet's losses and classifier against arrays computed by its official code and by that of Long-Tailed-CIL."""

from __future__ import annotations

import pytest
import torch
from arrays import close_as_computed as close

from incrlt.losses.distillation import less_forget
from incrlt.losses.pooled import class_growth, pooled, pooled_outputs_distillation
from incrlt.losses.proxies import local_similarity, nca, proxy_similarities

RUNS = [(torch.float64, "", 1e-9), (torch.float32, "_f32", 2e-5)]
NCA = [  # variants of the case: scale, exclude, hinge, class weights
    (1.0, True, False, False), (1.0, True, False, False), (3.7, True, False, False), (3.7, True, True, True),
    (3.7, False, False, False), (3.7, False, False, True), (25.0, True, False, False),
]  # fmt: skip
CLASSIFIER = [  # distance, merging, gamma, scaling of both vectors
    (True, "softmax", 1.0, 1.0), (True, "softmax", 2.5, 3.0), (False, "softmax", 1.0, 1.0),
    (False, "mean", 1.0, 1.0), (False, "max", 1.0, 1.0), (False, "min", 1.0, 1.0),
]  # fmt: skip


def leaf(array, dtype=torch.float64):
    return torch.as_tensor(array).to(dtype).requires_grad_()


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("pool", ["channels", "width", "height", "gap", "spatial"])
@pytest.mark.parametrize(("dtype", "suffix", "tolerance"), RUNS)
def test_pooled_outputs(golden, pool, normalise, dtype, suffix, tolerance):
    arrays = golden("podnet_spatial")
    case = f"{pool}_{'norm' if normalise else 'raw'}"
    new = [leaf(arrays[f"map_new_{i}"], dtype) for i in range(3)]
    old = [torch.as_tensor(arrays[f"map_old_{i}"]).to(dtype) for i in range(3)]
    loss = pooled_outputs_distillation(new, old, pool, normalise=normalise)
    close(loss.detach(), arrays[f"loss_{case}{suffix}"], tolerance)
    one_by_one = [
        pooled_outputs_distillation([a], [b], pool, normalise=normalise).detach()
        for a, b in zip(new, old, strict=True)
    ]
    close(torch.stack(one_by_one), arrays[f"per_map_{case}"], max(tolerance, 1e-9))
    for i, gradient in enumerate(torch.autograd.grad(loss, new)):
        if f"grad_map_new_{i}_{case}" in arrays:
            close(gradient, arrays[f"grad_map_new_{i}_{case}"], tolerance)


def test_pooled_outputs_of_exemplars_alone(golden):
    arrays = golden("podnet_spatial")
    new = [leaf(arrays[f"map_new_{i}"]) for i in range(3)]
    old = [torch.as_tensor(arrays[f"map_old_{i}"]) for i in range(3)]
    rows = torch.as_tensor(arrays["memory_flags"]).bool()
    loss = pooled_outputs_distillation(new, old, rows_B=rows)
    close(loss.detach(), arrays["loss_spatial_only_old"], 1e-9)
    for i, gradient in enumerate(torch.autograd.grad(loss, new)):
        close(gradient, arrays[f"grad_map_new_{i}_only_old"], 1e-9)
    assert pooled_outputs_distillation(new, old, rows_B=torch.zeros_like(rows)) == 0


@pytest.mark.parametrize("pool", ["spatial", "gap"])
def test_equal_dead_and_tiny_maps(golden, pool):
    """Row 0: both maps agree; row 1: a dead student; row 2: a student of size 1e-4, whose gradients are huge."""
    arrays = golden("podnet_spatial_edge")
    new = leaf(arrays["map_new"])
    loss = pooled_outputs_distillation([new], [torch.as_tensor(arrays["map_old"])], pool)
    close(loss.detach(), arrays[f"loss_{pool}"], 1e-9)
    (gradient,) = torch.autograd.grad(loss, new)
    close(gradient, arrays[f"grad_map_new_{pool}"], 1e-9)
    assert gradient[:2].abs().max() == 0


def test_experts_are_averaged():
    new = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    old = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    both = [pooled_outputs_distillation([new[k]], [old[k]]) for k in range(2)]
    torch.testing.assert_close(pooled_outputs_distillation([new], [old]), torch.stack(both).mean())


@pytest.mark.parametrize(("dtype", "suffix", "tolerance"), RUNS)
def test_flat_is_less_forget(golden, dtype, suffix, tolerance):
    arrays = golden("podnet_flat")
    features = leaf(arrays["features"], dtype)
    loss = less_forget(features, torch.as_tensor(arrays["ref_features"]).to(dtype))
    close(loss.detach(), arrays[f"loss{suffix}"], tolerance)
    if dtype == torch.float64:
        close(torch.autograd.grad(loss, features)[0], arrays["grad_features"], tolerance)


def test_growth(golden):
    arrays = golden("podnet_flat")
    for seen, new, factor in zip(arrays["factor_seen"], arrays["factor_task"], arrays["factor"], strict=True):
        assert class_growth(int(seen), int(new)) == pytest.approx(float(factor), rel=1e-12)


@pytest.mark.parametrize(("variant", "setting"), list(enumerate(NCA)))
@pytest.mark.parametrize(("dtype", "suffix", "tolerance"), RUNS)
def test_nca_of_the_official_code(golden, variant, setting, dtype, suffix, tolerance):
    arrays = golden("podnet_nca")
    factor, exclude, hinge, weighted = setting
    similarities, scale = (
        leaf(arrays["similarities"], dtype),
        torch.tensor(factor, dtype=dtype, requires_grad=True),
    )
    labels = torch.as_tensor(arrays["labels"]).long()
    weights = torch.as_tensor(arrays["class_weights"]).to(dtype) if weighted else None
    flavor = "published" if exclude else "ltcil"
    loss = nca(similarities, labels, scale, flavor=flavor, hinge=hinge, class_weights_C=weights)
    close(loss.detach(), arrays[f"v{variant}_loss{suffix}"], tolerance)
    gradients = torch.autograd.grad(loss, (similarities, scale))
    close(gradients[0], arrays[f"v{variant}_grad_similarities"], tolerance)
    close(gradients[1], arrays[f"v{variant}_grad_scale"], 10 * tolerance)


def test_nca_of_long_tailed_cil_is_cross_entropy(golden):
    arrays = golden("podnet_ltcil_nca")
    similarities, labels = leaf(arrays["similarities"]), torch.as_tensor(arrays["labels"]).long()
    for flavor, name in (("ltcil", "default"), ("published", "exclude")):
        loss = nca(similarities, labels, flavor=flavor, hinge=False)
        close(loss.detach(), arrays[f"loss_{name}"], 1e-9)
        close(torch.autograd.grad(loss, similarities)[0], arrays[f"grad_{name}"], 1e-9)
    close(nca(similarities, labels, flavor="ltcil").detach(), arrays["loss_ce"], 1e-9)


def test_nca_of_the_paper_by_a_plain_loop():
    """The margin counts, the target leaves the denominator, and a loss below 0 is cut."""
    y = torch.tensor([[0.2, 0.9, -0.5], [3.0, 0.1, 0.2]], dtype=torch.float64)
    labels, scale, margin = torch.tensor([1, 0]), 2.0, 0.6
    losses = []
    for row, label in zip(y, labels.tolist(), strict=True):
        others = sum((scale * row[i]).exp() for i in range(3) if i != label)
        losses.append(-((scale * (row[label] - margin)).exp() / others).log())
    assert losses[1] < 0
    free = nca(y, labels, scale, margin=margin, hinge=False)
    torch.testing.assert_close(free, torch.stack(losses).mean())
    torch.testing.assert_close(nca(y, labels, scale, margin=margin), losses[0] / 2)


@pytest.mark.parametrize(("variant", "setting"), list(enumerate(CLASSIFIER)))
def test_classifier(golden, variant, setting):
    arrays = golden("podnet_classifier")
    distance, merging, gamma, scaling = setting
    features, rows = leaf(arrays["features"]), leaf(arrays["weights"])
    raw = scaling**2 * proxy_similarities(features, rows, distance=distance)
    close(raw.detach(), arrays[f"v{variant}_raw"], 1e-9)
    logits = local_similarity(raw, 3, gamma, merging)
    close(logits.detach(), arrays[f"v{variant}_logits"], 1e-9)
    pulled = (torch.as_tensor(arrays["logit_cotangent"]) * logits).sum()
    for gradient, name in zip(
        torch.autograd.grad(pulled, (features, rows)), ("features", "weights"), strict=True
    ):
        close(gradient, arrays[f"v{variant}_grad_{name}"], 1e-9)


def test_gradcheck():
    maps = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    others = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: pooled_outputs_distillation([a], [others]), (maps,))
    assert torch.autograd.gradcheck(pooled, (maps,))
    y = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    eta, labels = torch.tensor(1.3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 2, 1, 0])
    for flavor in ("paper", "published", "ltcil"):
        assert torch.autograd.gradcheck(
            lambda y, eta, flavor=flavor: nca(
                local_similarity(y, 2), labels, eta, flavor=flavor, hinge=False
            ),
            (y, eta),
        )
