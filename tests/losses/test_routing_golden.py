"""Routing targets, loss and the router itself against arrays of RIDE's official code, and what must hold anyway."""

from __future__ import annotations

import pytest
import torch

from incrlt.losses.routing import routing_loss, routing_targets, running_means
from incrlt.models.inference import early_exit
from incrlt.models.router import Router

CASES = {  # name: (top, one last layer for all decisions, weight of positives)
    "ride_router_m3_c100": (30, True, 100.0),
    "ride_router_m2_c40_sep": (5, False, 20.0),
}
PRECISIONS = [(torch.float64, 1e-9), (torch.float32, 1e-4)]


def _case(golden, name, dtype):
    case = {key: torch.as_tensor(value) for key, value in golden(name).items()}
    logits, maps = case["logits"].to(dtype), case["feature_maps"].to(dtype)
    top, shared, _ = CASES[name]
    router = Router(len(logits), maps.shape[2], top=top, shared=shared).to(dtype)
    for k, layer in enumerate(router.reduce):
        layer.weight.data, layer.bias.data = (
            case["hidden_weight"][k].to(dtype),
            case["hidden_bias"][k].to(dtype),
        )
    for k, layer in enumerate(router.decide):
        layer.weight.data, layer.bias.data = case["fc_weight"][k].to(dtype), case["fc_bias"][k].to(dtype)
    return case, router, logits, maps.mean((-2, -1)), case["labels"].long()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_scores_loss_and_gradients(golden, name, dtype, tolerance):
    case, router, logits, features, labels = _case(golden, name, dtype)
    suffix = "" if dtype == torch.float64 else "_f32"
    scores = router(logits, features)
    targets = routing_targets(logits, labels)
    assert torch.equal(targets, case["targets"].bool())
    assert targets.any() and not targets.all(), "a case that tells right from wrong"
    loss = routing_loss(scores, targets, CASES[name][2])
    close = {"rtol": tolerance, "atol": tolerance / 10}
    torch.testing.assert_close(scores, case[f"route_logits{suffix}"], **close)
    torch.testing.assert_close(loss, case[f"loss{suffix}"].reshape(()), **close)
    loss.backward()
    stacked = {
        "grad_hidden_weight": torch.stack([layer.weight.grad for layer in router.reduce]),
        "grad_hidden_bias": torch.stack([layer.bias.grad for layer in router.reduce]),
        "grad_fc_weight": torch.stack([layer.weight.grad for layer in router.decide]),
        "grad_fc_bias": torch.stack([layer.bias.grad for layer in router.decide]),
    }
    for key, gradient in stacked.items():
        torch.testing.assert_close(gradient, case[key].to(dtype), **close)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_what_is_answered_and_with_how_many_experts(golden, name, dtype, tolerance):
    case, router, logits, features, _ = _case(golden, name, dtype)
    suffix = "" if dtype == torch.float64 else "_f32"
    answer, used = early_exit(logits, router(logits, features), router.threshold)
    assert used.tolist() == case["test_num_experts"].tolist()
    assert len(used.unique()) > 1
    close = {"rtol": tolerance, "atol": tolerance / 10}
    torch.testing.assert_close(answer, case[f"test_logits{suffix}"], **close)
    torch.testing.assert_close(running_means(logits)[-1], case[f"mean_logits{suffix}"], **close)


def test_running_means_one_by_one():
    logits = torch.randn(4, 3, 5, dtype=torch.float64)
    expected = torch.stack([logits[: k + 1].mean(0) for k in range(4)])
    torch.testing.assert_close(running_means(logits), expected)


def _says(*classes):
    """Logits of one image: expert k is sure of class ``classes[k]``, a little less so than the one after it."""
    logits = torch.zeros(len(classes), 1, 4)
    for k, chosen in enumerate(classes):
        logits[k, 0, chosen] = 10.0 ** (k + 1)
    return logits


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((0, 0, 0), (False, False)),  # right from the start: nothing to gain
        ((1, 0, 0), (True, False)),
        ((1, 1, 0), (True, True)),  # the third expert is worth running the second
        ((0, 1, 0), (False, True)),  # right, then wrong: stop while it is right
        ((1, 0, 1), (True, False)),
        ((1, 2, 3), (False, False)),  # wrong to the end: nothing to gain either
    ],
)
def test_targets_by_hand(answers, expected):
    assert routing_targets(_says(*answers), torch.tensor([0])).flatten().tolist() == list(expected)


def test_targets_by_loops():
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 40, 3), torch.randint(3, (40,))
    right = [[bool(logits[: k + 1, b].mean(0).argmax() == labels[b]) for k in range(5)] for b in range(40)]
    expected = [[not right[b][k] and any(right[b][k + 1 :]) for b in range(40)] for k in range(4)]
    assert routing_targets(logits, labels).tolist() == expected


def test_loss_by_hand_and_its_balance():
    scores = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    loss = routing_loss(scores, torch.tensor([[True, False]]), pos_weight=3.0)
    two = torch.tensor(2.0, dtype=torch.float64)
    expected = (3 * torch.log(two) + torch.log1p(two.exp())) / 2
    torch.testing.assert_close(loss, expected)
    sure = routing_loss(torch.tensor([[60.0, -60.0]]), torch.tensor([[True, False]]))
    assert sure.item() == pytest.approx(0, abs=1e-20)


def test_gradient_numerically():
    torch.manual_seed(0)
    scores = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(2, 6) > 0.6
    assert torch.autograd.gradcheck(lambda s: routing_loss(s, targets), (scores,))


def test_extreme_scores_stay_finite():
    scores = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = routing_loss(scores, torch.tensor([[False, True]]))
    loss.backward()
    assert loss.item() == pytest.approx((1e4 + 100 * 1e4) / 2)
    assert scores.grad.tolist() == [pytest.approx([0.5, -50.0])]


def test_one_expert_has_nothing_to_decide():
    targets = routing_targets(torch.randn(1, 3, 2), torch.tensor([0, 1, 0]))
    assert targets.shape == (0, 3)
    scores = torch.zeros(0, 3, requires_grad=True)
    loss = routing_loss(scores, targets)
    loss.backward()
    assert loss.item() == 0
    answer, used = early_exit(logits := torch.randn(1, 3, 2), torch.zeros(0, 3))
    assert used.tolist() == [1, 1, 1]
    assert torch.equal(answer, logits[0])


def test_one_class_is_always_right():
    assert not routing_targets(torch.randn(3, 4, 1), torch.zeros(4, dtype=torch.long)).any()
