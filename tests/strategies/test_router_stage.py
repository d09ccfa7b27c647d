"""The stage that trains the router: what it moves, what it learns, and what it leaves behind for inference."""

from __future__ import annotations

import math

import pytest
import torch

from incrlt.losses.routing import routing_targets
from incrlt.models import Layout, build
from incrlt.models.inference import predict
from incrlt.stages.expert_assignment import ExpertAssignment
from incrlt.training.optim import stage_optimizer
from incrlt.types import LossContext


def _network(num_experts=3, classes=4):
    torch.manual_seed(0)
    layout = Layout(num_experts=num_experts, width_factor=0.75, shortcut="padding", scale=10.0)
    network = build("resnet8", layout=layout, in_channels=1, width=8)
    network.grow(range(classes))
    return network


def _train(network, method, images, labels, epochs=None):
    """What a strategy does with a stage, on one batch per epoch."""
    stage = method.stage()
    main = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    optimizer = stage_optimizer(main, stage, network)
    scheduler = stage.schedule(optimizer, stage.epochs)
    stage.prepare(network, 0)
    network.train()
    network.freeze_backbone()
    losses, rates = [], []
    for epoch in range(stage.epochs if epochs is None else epochs):
        counts = torch.ones(network.num_classes, dtype=torch.long)
        context = LossContext(counts, 0, epoch, stage.epochs, network=network)
        output = network.forward_all(images, rebalanced=stage.rebalanced)
        (loss,) = stage.loss(context, output, labels).values()
        optimizer.zero_grad()
        loss.backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    network.eval()
    return losses, rates


def _learnable(network, number=64):
    """Images, and labels that all experts together get right and the first one alone only in part."""
    images = torch.randn(number, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    network.eval()
    with torch.no_grad():
        output = network.forward_all(images)
    labels = output.logits.argmax(1)
    wanted = routing_targets(output.expert_logits, labels).float().mean()
    assert 0.1 < wanted < 0.9
    return images, labels


def test_only_the_router_moves():
    network, method = _network(), ExpertAssignment(epochs=3)
    method.attach(network)
    images, labels = _learnable(network)
    (group,) = method.stage().parameters(network)
    assert {id(p) for p in group["params"]} == {id(p) for p in network.router.parameters()}
    before = {key: value.clone() for key, value in network.state_dict().items()}
    _train(network, method, images, labels)
    moved = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    layers = {f"router.{name}" for name, _ in network.router.named_parameters()}
    assert moved == layers | {"router.calibration", "router.recorded", "router.mean_square"}
    assert all(p.grad is None for name, p in network.named_parameters() if not name.startswith("router"))


def test_it_learns_which_images_need_more_experts():
    network, method = _network(), ExpertAssignment(epochs=200, lr=0.05, pos_weight=2.0)
    method.attach(network)
    images, labels = _learnable(network)
    losses, _ = _train(network, method, images, labels)
    assert losses[-1] < 0.6 * losses[0]
    with torch.no_grad():
        output = network.forward_all(images)
        scores = network.router(output.expert_logits, output.features)
    targets = routing_targets(output.expert_logits, labels)
    assert scores[targets].mean() > scores[~targets].mean() + 1


def test_a_larger_weight_sends_more_images_on():
    used = []
    for weight in (0.1, 1.0, 100.0):
        network, method = _network(), ExpertAssignment(epochs=60, lr=0.05, pos_weight=weight)
        method.attach(network)
        images, labels = _learnable(network)
        _train(network, method, images, labels)
        used.append(predict(network, images).experts_used.double().mean().item())
    assert used[0] < used[1] < used[2]


def test_the_stage_is_the_published_recipe():
    stage = ExpertAssignment().stage()
    assert (stage.epochs, stage.lr, stage.batch_size) == (5, 0.01, 512)
    assert (stage.sampler, stage.data) == ("class_aware", "stream")
    assert stage.frozen_backbone
    assert stage.rebalanced
    network, method = _network(), ExpertAssignment()
    method.attach(network)
    images, labels = _learnable(network, 8)
    _, rates = _train(network, method, images, labels)
    assert rates == pytest.approx([0.005 * (1 + math.cos(math.pi * e / 5)) for e in range(5)])
    assert ExpertAssignment().pos_weight == 100


def test_scores_of_the_last_epoch_are_recorded_for_budgets():
    network, method = _network(), ExpertAssignment(epochs=4)
    method.attach(network)
    images, labels = _learnable(network)
    _train(network, method, images, labels, epochs=3)
    assert network.router.threshold_for(1.5) is None, "not before the last epoch"
    _train(network, method, images, labels)
    assert int(network.router.recorded) == 2 * len(images)
    mean = predict(network, images, budget=1.5).experts_used.double().mean()
    assert mean == pytest.approx(1.5, abs=0.1), "the router has moved one small step since"
    method.stage().prepare(network, 2)
    assert network.router.threshold_for(1.5) is None, "of no use once the experts have changed"


def test_reading_out_is_what_prediction_answers():
    network, method = _network(), ExpertAssignment(threshold=0.6)
    method.attach(network)
    images, _ = _learnable(network)
    network.eval()
    with torch.no_grad():
        output = network.forward_all(images)
        scores = network.router(output.expert_logits, output.features)
        network.router.decide[0].bias -= scores[0].median() - method.score_threshold
        logits, used = method.read_out(network.router, output)
    answer = predict(network, images)
    assert torch.equal(used, answer.experts_used)
    assert used.min() == 1
    assert used.max() > 1
    torch.testing.assert_close(network.to_labels(logits), answer.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("probability", "score"),
    [(0.5, 0.0), (0.0, -math.inf), (1.0, math.inf), (0.9, math.log(9)), (0.1, -math.log(9))],
)
def test_a_probability_becomes_a_score(probability, score):
    network, method = _network(), ExpertAssignment(threshold=probability)
    method.attach(network)
    assert network.router.threshold.item() == pytest.approx(score, abs=1e-7)
    used = predict(network.eval(), torch.randn(5, 1, 8, 8)).experts_used.tolist()
    if math.isinf(score):
        assert used == [3 if score < 0 else 1] * 5


def test_attaching_leaves_the_random_state_and_the_experts_alone():
    network = _network()
    plain = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.random.get_rng_state()
    ExpertAssignment().attach(network)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(network.state_dict()[key], value) for key, value in plain.items())
    assert network.router.decide[0].weight.abs().sum() > 0


def test_a_trained_router_of_the_same_shape_is_kept_and_another_replaced():
    network = _network()
    ExpertAssignment(threshold=0.5).attach(network)
    first = network.router
    ExpertAssignment(threshold=0.9).attach(network)
    assert network.router is first
    assert first.threshold.item() == pytest.approx(math.log(9))
    for other in (ExpertAssignment(top=10), ExpertAssignment(hidden=8), ExpertAssignment(shared=False)):
        kept = network.router
        other.attach(network)
        assert network.router is not kept
        assert (network.router.top, network.router.hidden) == (other.top, other.hidden)
        assert network.router.shared == other.shared


def test_the_router_stays_as_classes_arrive_and_travels_with_the_network():
    network, method = _network(classes=2), ExpertAssignment(epochs=1)
    method.attach(network)
    images = torch.randn(64, 1, 8, 8)
    before = [p.clone() for p in network.router.parameters()]
    network.grow(range(2, 40))
    assert all(torch.equal(a, b) for a, b in zip(before, network.router.parameters(), strict=True))
    _train(network, method, images, torch.randint(40, (64,)))
    other = _network(classes=1)
    other.load_state(network.state())
    ours, theirs = (n.eval().predict(images, budget=1.5) for n in (network, other))
    assert torch.equal(ours.experts_used, theirs.experts_used)
    assert torch.equal(ours.logits, theirs.logits)
