"""Early exit: the same answers as running everything and masking, from fewer runs of later experts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from incrlt.errors import UserError
from incrlt.models import Layout, build
from incrlt.models.inference import calibrate, predict
from incrlt.models.router import Router

LAYOUTS = {
    "stem": Layout(num_experts=3, width_factor=0.75, shortcut="padding", scale=30.0),
    "two_stages": Layout(
        num_experts=3, shared="two_stages", fusion=True, second_heads=True
    ),  # a tuple of maps
    "nothing": Layout(num_experts=2, shared="nothing"),
}
CLASSES = [7, 2, 9, 0, 4]


@pytest.fixture(params=LAYOUTS)
def network(request):
    return _network(LAYOUTS[request.param])


def _network(layout=LAYOUTS["stem"], head="cosine"):
    torch.manual_seed(0)
    network = build("resnet8", layout=layout, head=head, in_channels=1, width=8)
    network.grow(CLASSES)
    for one in network.all_heads:  # rebalanced logits differ from plain ones
        one.class_scale.data[: len(CLASSES)] = 1 + torch.rand(len(CLASSES))
    network.router = Router(layout.num_experts, network.heads[0].num_features, top=8)
    return network.eval()


def _images(number=40, seed=1):
    return torch.randn(number, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


class Runs:
    """Counts the images that each expert sees."""

    def __init__(self, network):
        self.images = [0] * network.num_experts
        for k, branch in enumerate(network.branches):
            branch.register_forward_hook(lambda _, __, features, k=k: self._count(k, len(features)))

    def _count(self, k, number):
        self.images[k] += number


@torch.no_grad()
def _masked(network, x, threshold):
    """Run everything, then leave the unwanted experts out, in plain loops."""
    output = network.forward_all(x, rebalanced=True)
    scores = network.router(output.expert_logits, output.features)
    used = []
    for b in range(len(x)):
        number = 1
        while number < network.num_experts and scores[number - 1, b] > threshold:
            number += 1
        used.append(number)
    logits = torch.stack([output.expert_logits[:n, b].mean(0) for b, n in enumerate(used)])
    return logits, torch.tensor(used), scores


@torch.no_grad()
def _between(network, x, share):
    """A threshold at which about this share of the images goes on after the first expert."""
    output = network.forward_all(x)
    return network.router(output.expert_logits, output.features)[0].quantile(1 - share).item()


@pytest.mark.parametrize("smallest_gather", [0, 8, 1000])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_equal_to_everything_run_and_masked(network, share, smallest_gather):
    x = _images()
    threshold = _between(network, x, share) - (1e-3 if share == 1 else 0)
    expected, used, _ = _masked(network, x, threshold)
    answer = predict(network, x, threshold=threshold, smallest_gather=smallest_gather)
    assert torch.equal(answer.experts_used, used)
    torch.testing.assert_close(answer.logits[:, CLASSES], expected, rtol=1e-4, atol=1e-5)
    if share in (0.3, 0.6):
        assert len(used.unique()) > 1, "a threshold that stops some and not others"
    assert answer.class_ids.tolist() == [CLASSES[c] for c in expected.argmax(1).tolist()]
    torch.testing.assert_close(answer.confidence, expected.softmax(1).amax(1), rtol=1e-4, atol=1e-5)


def test_later_experts_run_on_the_images_that_need_them_and_no_others(network):
    x = _images()
    threshold = _between(network, x, 0.4)
    _, used, _ = _masked(network, x, threshold)
    runs = Runs(network)
    predict(network, x, threshold=threshold, smallest_gather=0)
    assert runs.images == [int((used > k).sum()) for k in range(network.num_experts)]
    assert 0 < runs.images[1] < len(x)


def test_small_batches_stay_whole_and_stop_all_the_same():
    network, x = _network(), _images(6)
    threshold = _between(network, x, 0.5)
    runs = Runs(network)
    predict(network, x, threshold=threshold, smallest_gather=7)
    assert runs.images[:2] == [6, 6]
    predict(network, x, threshold=torch.inf, smallest_gather=7)
    assert runs.images[:2] == [12, 6], "no later expert where every image stops"


def test_a_batch_that_has_become_small_is_not_cut_down_again():
    network, x = _network(), _images(40)
    threshold = _between(network, x, 5 / 40)
    _, used, scores = _masked(network, x, threshold)
    second = scores[1, used > 1].sort().values
    network.router.score = _lowered(network.router.score, second[2].item() - threshold)
    for smallest_gather, last in ((8, 5), (5, 2), (0, 2)):
        runs = Runs(network)
        answer = predict(network, x, threshold=threshold, smallest_gather=smallest_gather)
        assert runs.images == [40, 5, last]
        assert answer.experts_used.bincount().tolist() == [0, 35, 3, 2]


def _lowered(score, by):
    """Scores of the second decision, lowered so that the middle one of five just does not pass."""
    return lambda k, logits, features: score(k, logits, features) - (k == 1) * (by + 1e-5)


def test_the_answer_to_an_image_does_not_depend_on_its_batch(network):
    x = _images(12)
    threshold = _between(network, x, 0.5)
    together = predict(network, x, threshold=threshold)
    alone = [predict(network, image[None], threshold=threshold) for image in x]
    assert together.experts_used.tolist() == [int(one.experts_used) for one in alone]
    torch.testing.assert_close(
        together.logits, torch.cat([one.logits for one in alone]), rtol=1e-4, atol=1e-5
    )


def test_all_experts_are_the_network_itself(network):
    x = _images(9)
    with torch.no_grad():
        expected = network(x)
    torch.testing.assert_close(predict(network, x, budget=network.num_experts).logits, expected)
    network.router = None
    answer = predict(network, x)
    torch.testing.assert_close(answer.logits, expected)
    assert answer.experts_used.tolist() == [network.num_experts] * 9


def test_the_network_delegates():
    network, x = _network(), _images(5)
    ours, theirs = predict(network, x, budget=1), network.predict(x, budget=1)
    assert all(torch.equal(getattr(ours, f.name), getattr(theirs, f.name)) for f in dataclasses.fields(ours))
    assert ours.experts_used.tolist() == [1] * 5


def test_the_routers_own_threshold_is_the_default():
    network, x = _network(), _images()
    threshold = _between(network, x, 0.5)
    network.router.threshold.fill_(threshold)
    assert torch.equal(
        predict(network, x).experts_used, predict(network, x, threshold=threshold).experts_used
    )
    assert len(predict(network, x).experts_used.unique()) > 1


def test_linear_heads_and_an_empty_batch():
    network = _network(head="linear")
    x = _images(20)
    expected, used, _ = _masked(network, x, threshold := _between(network, x, 0.5))
    answer = predict(network, x, threshold=threshold)
    torch.testing.assert_close(answer.logits[:, CLASSES], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(answer.experts_used, used)
    assert predict(network, x[:0]).class_ids.shape == (0,)


def test_nothing_of_the_network_changes():
    network = _network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.random.get_rng_state()
    predict(network, _images(), budget=1.5)
    assert all(
        torch.equal(value, before[key]) or value.isnan().any() for key, value in network.state_dict().items()
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("options", [{"threshold": float("nan")}, {"budget": float("nan")}, {"budget": True}])
def test_what_compares_like_a_number_but_is_none_is_refused(options):
    with pytest.raises(UserError, match="give a number, such as"):
        predict(_network(), _images(), **options)


# ---------------------------------------------------------------------- budgets


@pytest.mark.parametrize(
    "value", [torch.tensor(0.25), torch.tensor([0.25]), np.float32(0.25), torch.tensor(0)]
)
def test_a_threshold_may_be_a_number_of_any_kind(network, value):
    x = _images()
    found, expected = network.predict(x, threshold=value), network.predict(x, threshold=float(value))
    assert torch.equal(found.logits, expected.logits)
    calibrate(network, [x])
    budget = network.predict(x, budget=torch.tensor(1.5)).experts_used
    assert torch.equal(budget, network.predict(x, budget=1.5).experts_used)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.tensor([0.1, 0.2]), r"a tensor of shape \(2,\)"),
        (torch.tensor(True), "True"),
        (torch.tensor(float("nan")), "nan"),
        (np.array([0.1, 0.2]), "array"),
        (torch.tensor([]), r"a tensor of shape \(0,\)"),
    ],
)
def test_a_threshold_that_is_no_one_number_is_explained(value, said):
    with pytest.raises(UserError, match=f"threshold is {said}.*; give a number"):
        _network().predict(_images(2), threshold=value)


@pytest.mark.parametrize("budget", [1.0, 1.3, 2.0, 2.7, 3.0])
def test_a_calibrated_budget_holds_on_the_images_it_was_made_for(budget):
    network, x = _network(), _images(400)
    calibrate(network, x.split(150))
    mean = predict(network, x, budget=budget).experts_used.double().mean().item()
    assert budget - 0.03 <= mean <= budget + 0.005
    other = predict(network, _images(400, seed=5), budget=budget).experts_used.double().mean().item()
    assert other == pytest.approx(budget, abs=0.25), "and nearly on images like them"


@pytest.mark.parametrize("images", [1, 2, 7, 40])
@pytest.mark.parametrize("budget", [1.0, 1.3, 2.0, 2.7, 3.0])
def test_without_calibration_the_batch_is_shared_out(budget, images):
    network, x = _network(), _images(images)
    runs = Runs(network)
    answer = predict(network, x, budget=budget, smallest_gather=0)
    spent = answer.experts_used.sum().item()
    assert spent <= budget * images + 1e-9
    assert spent > budget * images - 2, "rounding leaves out less than two runs"
    assert sum(runs.images) == spent


@pytest.mark.parametrize("smallest_gather", [0, 1000])
def test_the_batchs_share_goes_to_the_highest_scores(smallest_gather):
    network, x = _network(), _images()
    _, _, scores = _masked(network, x, 0.0)
    answer = predict(network, x, budget=1.75, smallest_gather=smallest_gather)
    goes = answer.experts_used > 1
    assert 0 < goes.sum() < len(x)
    assert scores[0, goes].min() > scores[0, ~goes].max()
    both = answer.experts_used > 2
    assert 0 < both.sum() < goes.sum()
    assert scores[1, both].min() > scores[1, goes & ~both].max()


def test_two_experts_share_out_like_one_threshold():
    network, x = _network(LAYOUTS["nothing"]), _images()
    shared_out = predict(network, x, budget=1.5).experts_used
    calibrate(network, [x])
    assert torch.equal(predict(network, x, budget=1.5).experts_used, shared_out)


def test_calibration_forgets_what_was_recorded_before():
    network, x = _network(), _images()
    network.router.record(torch.full((2, 2048), 1e6))
    calibrate(network, [x])
    assert predict(network, x, budget=2.0).experts_used.double().mean() == pytest.approx(2.0, abs=0.03)


# ---------------------------------------------------------------------- refusals


def test_what_cannot_be_answered_is_refused():
    network, x = _network(), _images(2)
    with pytest.raises(UserError, match="give one of the two"):
        predict(network, x, budget=2, threshold=0.0)
    with pytest.raises(UserError, match="from 1 to 3"):
        predict(network, x, budget=4)
    with pytest.raises(UserError, match="needs images"):
        calibrate(network, [])
    with pytest.raises(UserError, match="evaluation mode"):
        predict(network.train(), x)
    network.eval().router = None
    with pytest.raises(UserError, match="no router"):
        predict(network, x, budget=2)
    with pytest.raises(UserError, match="no router"):
        calibrate(network, [x])
    with pytest.raises(UserError, match="no class"):
        predict(build("resnet8", in_channels=1).eval(), x)


def test_bytes_are_refused_and_prepared_images_are_not():
    network = build("resnet8", in_channels=1, width=4)
    network.grow(range(3))
    network.eval()
    images = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    with pytest.raises(UserError, match=r"network\.prepare"):
        network.predict(images)
    with pytest.raises(UserError, match="does not know how its images were normalised"):
        network.prepare(images)
    network.normalisation = {"mean": [0.25], "std": [0.5]}
    expected = (images.float() / 255 - 0.25) / 0.5
    torch.testing.assert_close(network.prepare(images), expected)
    torch.testing.assert_close(network.prepare(images.float() / 255), expected)
    assert torch.equal(network.predict(network.prepare(images)).logits, network.predict(expected).logits)


def test_the_normalisation_travels_with_the_state():
    first, second = (build("resnet8", in_channels=1, width=4) for _ in range(2))
    first.normalisation = {"mean": [0.25], "std": [0.5]}
    second.load_state(first.state())
    assert second.normalisation == first.normalisation
