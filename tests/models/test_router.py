"""What the router looks at, what it leaves alone, and how a budget becomes a threshold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from incrlt.errors import UserError
from incrlt.models.inference import early_exit
from incrlt.models.router import TABLE_SIZE, Router


def _router(num_experts=3, num_features=6, seed=0, **options):
    torch.manual_seed(seed)
    return Router(num_experts, num_features, **{"top": 5, "hidden": 4, **options}).double()


def _answers(num_experts=3, images=7, classes=9, features=6):
    torch.manual_seed(1)
    shape = (num_experts, images)
    return torch.randn(*shape, classes).double(), torch.randn(*shape, features).double()


def _loops(router, logits, features):
    """The same score image by image, from sorted lists."""
    out = torch.zeros(router.num_experts - 1, logits.shape[1], dtype=torch.float64)
    for k in range(router.num_experts - 1):
        for b in range(logits.shape[1]):
            mean = sum(logits[j, b] for j in range(k + 1)) / (k + 1)
            largest = sorted(mean.tolist(), reverse=True)[: router.top]
            largest += [min(mean.tolist())] * (router.top - len(largest))
            unit = features[k, b] / features[k, b].norm()
            hidden = (router.reduce[k].weight @ unit + router.reduce[k].bias).clamp(min=0)
            last = router.decide[0 if router.shared else k]
            out[k, b] = last.weight[0] @ torch.cat([torch.tensor(largest).double(), hidden]) + last.bias[0]
    return out.detach()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("classes", [1, 3, 5, 9])
def test_against_plain_loops_with_more_and_fewer_classes_than_it_looks_at(shared, classes):
    router = _router(shared=shared)
    logits, features = _answers(classes=classes)
    torch.testing.assert_close(router(logits, features).detach(), _loops(router, logits, features))


def test_classes_that_cannot_win_change_nothing_once_it_sees_enough():
    router = _router(top=3)
    logits, features = _answers(classes=4)
    grown = torch.cat([logits, torch.full((3, 7, 20), -50.0).double()], -1)
    assert torch.equal(router(logits, features), router(grown, features))


def test_the_order_of_classes_and_the_length_of_features_do_not_matter():
    router = _router()
    logits, features = _answers()
    expected = router(logits, features)
    torch.testing.assert_close(router(logits[..., torch.randperm(9)], 3.7 * features), expected)
    assert not torch.allclose(router(1.1 * logits, features), expected)


def test_one_decision_needs_no_later_expert():
    router = _router(num_experts=4)
    logits, features = _answers(num_experts=4)
    whole = router(logits, features)
    for k in range(3):
        assert torch.equal(router.score(k, logits[: k + 1].sum(0) / (k + 1), features[k]), whole[k])
    logits[-1], features[-1] = torch.nan, torch.nan
    assert torch.equal(router(logits, features), whole)


def test_separate_layers_differ_and_a_shared_one_is_shared():
    assert len(_router(num_experts=4).decide) == 1
    router = _router(num_experts=4, shared=False)
    logits, features = _answers(num_experts=4)
    router.reduce[1].load_state_dict(router.reduce[0].state_dict())
    same = router(logits[[0, 0, 0, 0]], features[[0, 0, 0, 0]])
    assert not torch.allclose(same[0], same[1])


def test_the_number_of_parameters_is_the_published_one():
    count = sum(p.numel() for p in Router(3, 48).parameters())
    assert count == 785_471 - 783_856  # RIDE-3 with router minus RIDE-3, C = 100


def test_a_feature_of_zeros_is_no_nan():
    router = _router()
    logits, features = _answers()
    features[0, 2] = 0
    scores = router(logits, features)
    scores.sum().backward()
    assert scores.isfinite().all()
    assert all(p.grad.isfinite().all() for p in router.parameters())


def test_experts_get_no_gradient():
    router = _router()
    logits, features = (value.requires_grad_() for value in _answers())
    router(logits, features).sum().backward()
    assert logits.grad is None
    assert features.grad is None
    assert all(p.grad.abs().sum() > 0 for p in router.parameters())


def test_parameter_gradients_numerically():
    router = _router(num_features=3, hidden=2, top=2)
    logits, features = _answers(images=2, classes=3, features=3)
    names, values = zip(*router.named_parameters(), strict=True)

    def scores(*tensors):
        return torch.func.functional_call(router, dict(zip(names, tensors, strict=True)), (logits, features))

    assert torch.autograd.gradcheck(scores, values)


@pytest.mark.parametrize("num_experts", [0, 1])
def test_one_expert_needs_no_router(num_experts):
    with pytest.raises(UserError, match="nothing to choose"):
        Router(num_experts, 4)


# ---------------------------------------------------------------------- budgets


def _spent(router, scores, budget):
    _, used = early_exit(
        torch.zeros(len(scores) + 1, scores.shape[1], 2), scores, router.threshold_for(budget)
    )
    return used.double().mean().item()


@pytest.mark.parametrize("way", ["calibrate", "record"])
@pytest.mark.parametrize("num_experts", [2, 3, 5])
@pytest.mark.parametrize("budget", [1.0, 1.1, 1.5, 1.99])
def test_a_budget_is_spent_on_the_recorded_images_and_no_more(way, num_experts, budget):
    torch.manual_seed(2)
    router = Router(num_experts, 4)
    scores = torch.randn(num_experts - 1, 200)
    scores = scores.cumsum(0) - torch.arange(num_experts - 1)[:, None]
    getattr(router, way)(scores)
    spent = _spent(router, scores, budget)
    assert budget - 0.01 <= spent <= budget + 1e-9


def test_all_of_the_budget_runs_all_experts_and_none_runs_one_whatever_comes():
    router = Router(3, 4)
    unseen = torch.tensor([[-1e30, 1e30], [-1e30, 1e30]])
    for _ in range(2):
        assert _spent(router, unseen, 3) == 3
        assert _spent(router, unseen, 1) == 1
        router.calibrate(torch.randn(2, 10))


def test_more_images_than_the_table_holds():
    torch.manual_seed(3)
    scores = torch.randn(2, 3 * TABLE_SIZE)
    router = Router(3, 4)
    router.calibrate(scores)
    assert _spent(router, scores, 1.7) == pytest.approx(1.7, abs=2e-3)
    router.record(scores.flip(1))  # the ring keeps the last images only
    kept = scores.flip(1)[:, -TABLE_SIZE // 2 :]
    assert _spent(router, kept, 1.7) == pytest.approx(1.7, abs=2e-3)


@pytest.mark.parametrize("images", [4097, 5000, 9001, 20000])
def test_of_more_images_than_the_table_holds_a_budget_is_never_overspent(images):
    """Quantiles rounded to the nearest spent up to a table's step too much."""
    torch.manual_seed(3)
    router = Router(2, 4)
    scores = torch.randn(1, images)
    router.calibrate(scores)
    for budget in torch.linspace(1.0001, 1.9999, 97, dtype=torch.float64).tolist():
        spent = _spent(router, scores, budget)
        assert budget - 2 / 4096 <= spent <= budget + 1e-9


def test_records_add_up_and_the_oldest_give_way():
    router = Router(2, 4)
    router.record(torch.full((1, 10), -5.0))
    router.record(torch.full((1, 30), 5.0))
    assert router.calibration[:40].tolist() == [-5.0] * 10 + [5.0] * 30
    assert router.calibration[40:].isnan().all()
    router.record(torch.zeros(1, TABLE_SIZE - 35))
    assert router.calibration[:5].tolist() == [0.0] * 5, "over the oldest"
    assert router.calibration[5:12].tolist() == [-5.0] * 5 + [5.0] * 2
    router.forget()
    assert router.threshold_for(1.5) is None


def test_a_later_score_counts_only_as_far_as_earlier_ones_let_it():
    router = Router(3, 4)
    scores = torch.tensor([[-1.0, -1.0, 2.0, 2.0], [9.0, 9.0, 9.0, -9.0]])
    router.record(scores)
    assert _spent(router, scores, 1.75) == 1.75  # two run a second expert, one of them a third
    assert sorted(router.calibration[:8].tolist()) == [-9.0, -1.0, -1.0, -1.0, -1.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("budget", [0.9, 3.1, float("nan"), float("inf")])
def test_a_budget_out_of_range_is_refused(budget):
    with pytest.raises(UserError, match="from 1 to 3"):
        Router(3, 4).threshold_for(budget)


def test_everything_travels_in_the_state():
    router, other = Router(3, 4), Router(3, 4)
    router.record(torch.randn(2, 5))
    router.threshold.fill_(0.7)
    other.load_state_dict(router.state_dict())
    assert other.threshold_for(1.5) == router.threshold_for(1.5)
    logits, features = torch.randn(3, 2, 6), torch.randn(3, 2, 4)
    assert torch.equal(other(logits, features), router(logits, features))
    assert other.threshold == pytest.approx(0.7)
    assert isinstance(other.reduce, nn.ModuleList)


def test_normalised_logits_do_not_depend_on_their_scale():
    """After one batch, logits ten times larger are decided alike; published ones are not."""
    torch.manual_seed(0)
    logits, features = torch.randn(3, 64, 12), torch.randn(3, 64, 8)
    for normalise in (True, False):
        small, large = (Router(3, 8, top=5, hidden=4, normalise=normalise) for _ in range(2))
        large.load_state_dict(small.state_dict())
        scores = small(logits, features), large(10 * logits, features)
        assert torch.allclose(*scores, atol=1e-5) == normalise
        small.eval(), large.eval()
        scores = small(logits, features), large(10 * logits, features)
        assert torch.allclose(*scores, atol=1e-5) == normalise


def test_evaluation_measures_nothing():
    router = Router(2, 8, top=5, hidden=4, normalise=True)
    router(torch.randn(2, 16, 12), torch.randn(2, 16, 8))
    before = router.mean_square.clone()
    router.eval()(100 * torch.randn(2, 16, 12), torch.randn(2, 16, 8))
    assert torch.equal(before, router.mean_square)
