"""Multi-expert losses where they could break or mislead: few classes, one expert, no images; and what must hold."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from incrlt.losses import (
    balanced_softmax,
    class_balanced_weights,
    class_temperatures,
    cross_entropy,
    distribution_aware_diversity,
    dynamic_knowledge_transfer,
    ensemble_distillation,
    hard_category_cross_entropy,
    hard_columns,
    ldam,
    ldam_margins,
    less_forget,
    logit_adjusted,
    margin_ranking,
    momentum_contrast,
    mutual_distillation,
    online_distillation,
    pairwise_divergence,
)


def _diversity(z, labels, counts):
    return distribution_aware_diversity(z, class_temperatures(counts, 0.05))


def _ldam(z, labels, counts):
    return ldam(z, labels, ldam_margins(counts, smallest=5), 30.0, class_balanced_weights(counts))


def _published_ldam(z, labels, counts):
    return ldam(z, labels, ldam_margins(counts), 30.0, class_balanced_weights(counts))


def _hard(flavor, num_hard=3):
    def loss(z, labels, counts):
        columns = hard_columns(z.mean(0), labels, num_hard)
        return hard_category_cross_entropy(z, labels, counts, columns, flavor=flavor)

    return loss


def _hard_distillation(flavor, num_hard=3):
    def loss(z, labels, counts):
        columns = hard_columns(z.mean(0), labels, num_hard)
        return online_distillation(z, counts, columns, flavor=flavor)

    return loss


def _distillation(z, labels, counts):
    return online_distillation(z, counts)


def _distillation_with_floor(z, labels, counts):
    return online_distillation(z, counts, floor=1e-9)


def _transfer(z, labels, counts):
    return dynamic_knowledge_transfer(z, labels)


def _published_transfer(z, labels, counts):
    return dynamic_knowledge_transfer(z, labels, flavor="published")


def _mutual(z, labels, counts):
    return mutual_distillation(z)


CLASSIFY = {
    "balanced_softmax": balanced_softmax,
    "logit_adjusted": logit_adjusted,
    "ldam": _ldam,
    "published_ldam": _published_ldam,
    "hard": _hard("sane"),
    "published_hard": _hard("published"),
}
DISAGREE = {  # 0 of one expert, and of experts that agree
    "diversity": _diversity,
    "distillation": _distillation,
    "hard_distillation": _hard_distillation("sane"),
    "published_hard_distillation": _hard_distillation("published"),
    "mutual": _mutual,
    "transfer": _transfer,
}
REST = {"floor": _distillation_with_floor, "published_transfer": _published_transfer}
ALL = CLASSIFY | DISAGREE | REST


def _batch(experts=3, batch=6, classes=7, seed=0, spread=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z = spread * torch.randn(experts, batch, classes, dtype=torch.float64, generator=generator)
    counts = torch.randint(1, 200, (classes,), generator=generator)
    return z.to(dtype).requires_grad_(), torch.arange(batch) % classes, counts


def _loss_and_gradient(loss, z, labels, counts):
    value = loss(z, labels, counts)
    (gradient,) = torch.autograd.grad(value, z)
    assert value.isfinite()
    assert gradient.isfinite().all()
    return value, gradient


# ------------------------------------------------------------------------------------------ ill-defined cases


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("experts", [1, 2, 3])
@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("name", ALL)
def test_few_classes_and_few_experts_are_finite(name, classes, experts, dtype):
    z, labels, counts = _batch(experts, 4, classes, dtype=dtype)
    value, gradient = _loss_and_gradient(ALL[name], z, labels, counts)
    if classes == 1:
        assert value.abs() <= (2e-9 if name == "floor" else 0), "the floor is a bias even there"
        assert gradient.abs().max() == 0


@pytest.mark.parametrize("name", DISAGREE)
def test_one_expert_has_nobody_to_differ_from(name):
    value, gradient = _loss_and_gradient(DISAGREE[name], *_batch(experts=1))
    assert value.abs() < 1e-15
    assert gradient.abs().max() < 1e-15


@pytest.mark.parametrize("classes", [1, 2])
def test_transfer_needs_two_negatives(classes):
    value, gradient = _loss_and_gradient(_transfer, *_batch(classes=classes))
    assert value == 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("name", ALL)
def test_classes_without_images_count_as_one_image(name):
    z, labels, counts = _batch()
    counts[2:5] = 0
    value, gradient = _loss_and_gradient(ALL[name], z, labels, counts)
    same, same_gradient = _loss_and_gradient(ALL[name], z, labels, counts.clamp(min=1))
    torch.testing.assert_close(value, same, rtol=0, atol=0)
    torch.testing.assert_close(gradient, same_gradient, rtol=0, atol=0)
    _loss_and_gradient(ALL[name], z, labels, torch.zeros_like(counts))


@pytest.mark.parametrize(
    "table", [ldam_margins, class_balanced_weights, lambda n: class_temperatures(n, 1.0)]
)
def test_tables_of_no_images_are_uniform(table):
    values = table(torch.zeros(4, dtype=torch.long))
    assert values.isfinite().all()
    assert (values == values[0]).all()


def test_more_hard_categories_than_classes_are_all_classes():
    z, labels, counts = _batch()
    assert hard_columns(z[0], labels, 100).shape == (6, 7)
    for flavor in ("sane", "published"):
        everything = _hard(flavor, 100)(z, labels, counts)
        torch.testing.assert_close(everything, balanced_softmax(z, labels, counts))
        everything = _hard_distillation(flavor, 100)(z, labels, counts)
        torch.testing.assert_close(everything, _distillation(z, labels, counts))


@pytest.mark.parametrize("num_hard", [-1, 0, 1])
def test_the_label_alone_is_nothing_to_tell_apart(num_hard):
    z, labels, counts = _batch()
    assert torch.equal(hard_columns(z[0], labels, num_hard), labels.unsqueeze(-1))
    for loss in (_hard("sane", num_hard), _hard_distillation("sane", num_hard)):
        value, gradient = _loss_and_gradient(loss, z, labels, counts)
        assert value == 0
        assert gradient.abs().max() == 0
    assert _hard("published", num_hard)(z, labels, counts) > 0, "the others stay at logit 0"


@pytest.mark.parametrize("first", [6, 7])
def test_diversity_of_fewer_than_two_columns_is_zero(first):
    z, _, counts = _batch()
    loss = distribution_aware_diversity(z, class_temperatures(counts, 0.05), first_class=first)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss == 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ALL)
def test_extreme_logits_stay_finite(name, dtype):
    """Gaps of hundreds underflow a probability to exactly 0, where a careless KL is NaN."""
    _loss_and_gradient(ALL[name], *_batch(spread=300.0, dtype=dtype))


def test_older_terms_where_they_could_break():
    """A feature of zeros; fewer new classes than negatives; a batch without old images."""
    features = torch.zeros(2, 3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(less_forget(features, torch.ones(2, 3, 4)), features)
    assert gradient.isfinite().all()
    cosines = torch.rand(2, 3, 4, requires_grad=True)
    value, _ = _loss_and_gradient(
        lambda z, labels, _: margin_ranking(z, labels, 3, num_negatives=2),
        cosines,
        torch.tensor([0, 1, 2]),
        None,
    )
    assert value > 0
    value, gradient = _loss_and_gradient(
        lambda z, labels, _: margin_ranking(z, labels, 3), cosines, torch.tensor([3, 3, 3]), None
    )
    assert value == 0
    assert gradient.abs().max() == 0


# -------------------------------------------------------------------------------------------- what must hold


@pytest.mark.parametrize("name", ALL)
def test_gradients_numerically(name):
    z, labels, counts = _batch(batch=4, classes=5)
    if name == "diversity":  # its mean answer takes no gradient: hold it fixed, as autograd does
        temperatures = class_temperatures(counts, 0.05)
        mean = (z.detach().mean(0) / temperatures).softmax(-1)

        def fixed(z):
            return F.kl_div((z / temperatures).log_softmax(-1), mean.expand_as(z), reduction="sum") / 12

        assert torch.autograd.gradcheck(fixed, (z,))
        _, gradient = _loss_and_gradient(_diversity, z, labels, counts)
        torch.testing.assert_close(gradient, torch.autograd.grad(fixed(z), z)[0])
        return
    assert torch.autograd.gradcheck(lambda z: ALL[name](z, labels, counts), (z,))


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_experts_does_not_matter(name):
    z, labels, counts = _batch()
    value, gradient = _loss_and_gradient(ALL[name], z, labels, counts)
    other, flipped = _loss_and_gradient(ALL[name], z.flip(0).detach().requires_grad_(), labels, counts)
    torch.testing.assert_close(value, other)
    torch.testing.assert_close(gradient, flipped.flip(0))


@pytest.mark.parametrize("name", [name for name in CLASSIFY if "hard" not in name])  # chosen by all experts
def test_classification_is_the_mean_over_experts(name):
    z, labels, counts = _batch()
    alone = torch.stack([CLASSIFY[name](expert[None], labels, counts) for expert in z]).mean()
    torch.testing.assert_close(CLASSIFY[name](z, labels, counts), alone)


@pytest.mark.parametrize("name", DISAGREE)
def test_experts_that_agree_have_no_term_and_others_have(name):
    z, labels, counts = _batch()
    same = z[:1].detach().repeat(3, 1, 1).requires_grad_()
    value, gradient = _loss_and_gradient(DISAGREE[name], same, labels, counts)
    assert value.abs() < 1e-14
    if name != "transfer":  # whose maximum is split among equals
        assert gradient.abs().max() < 1e-14
    assert DISAGREE[name](z, labels, counts) > 1e-3


@pytest.mark.parametrize("experts", [2, 3, 4])
def test_closed_form_is_the_average_over_pairs(experts):
    z, _, _ = _batch(experts)
    log_p = z.log_softmax(-1)
    pairs = list(itertools.permutations(range(experts), 2))
    terms = [(log_p[j].exp() * (log_p[j] - log_p[i])).sum(-1).mean() for i, j in pairs]
    torch.testing.assert_close(pairwise_divergence(z), torch.stack(terms).mean())
    torch.testing.assert_close(mutual_distillation(z), torch.stack(terms).sum() / experts)


def test_closed_form_keeps_its_digits_in_float32_when_experts_almost_agree():
    z, _, _ = _batch(3, 8, 100)
    close = z[:1] + 1e-3 * z
    exact = pairwise_divergence(close)
    log_p = close.float().log_softmax(-1)
    p = log_p.exp()
    textbook = (3 * (p * log_p).sum((0, -1)) - (p.sum(0) * log_p.sum(0)).sum(-1)).mean() / 6
    error = (pairwise_divergence(close.float()).double() - exact).abs() / exact
    assert error < 0.03
    assert (textbook.double() - exact).abs() / exact > 3 * error, "differences first, then products"


def test_detached_partners_are_constants():
    z, labels, _ = _batch(2)
    (gradient,) = torch.autograd.grad(pairwise_divergence(z, detach=True), z)
    p = z.detach().softmax(-1)
    torch.testing.assert_close(
        gradient, (p - p.flip(0)) / (2 * 6)
    )  # each learns the other's answer, and no more
    (gradient,) = torch.autograd.grad(dynamic_knowledge_transfer(z, labels, detach=True), z)
    (through_both,) = torch.autograd.grad(dynamic_knowledge_transfer(z, labels), z)
    assert not torch.allclose(gradient, through_both)


def test_sane_hard_categories_by_a_plain_loop():
    z, labels, counts = _batch()
    columns = hard_columns(z.mean(0), labels, 3)
    shifted = (z + counts.log()).detach()
    entropy, divergence = 0.0, 0.0
    for b, label in enumerate(labels.tolist()):
        others = [c for c in z.mean(0)[b].argsort(descending=True).tolist() if c != label]
        chosen = [label, *others[:2]]
        assert columns[b].tolist() == chosen
        log_p = shifted[:, b, chosen].log_softmax(-1)
        entropy -= log_p[:, 0].mean() / 6
        for i, j in itertools.permutations(range(3), 2):
            divergence += (log_p[j].exp() * (log_p[j] - log_p[i])).sum() / 36
    torch.testing.assert_close(
        hard_category_cross_entropy(z, labels, counts, columns).detach(), entropy.to(z)
    )
    torch.testing.assert_close(online_distillation(z, counts, columns).detach(), divergence.to(z))


def test_easy_categories_get_no_gradient_and_the_published_ones_leak():
    z, labels, counts = _batch()
    columns = hard_columns(z.mean(0), labels, 3)
    for flavor in ("sane", "published"):
        _, gradient = _loss_and_gradient(_hard(flavor), z, labels, counts)
        easy = torch.ones(6, 7, dtype=torch.bool).scatter(-1, columns, False)
        assert gradient[:, easy].abs().max() == 0
        assert gradient[:, ~easy].abs().min() > 0
    leak = _hard("published")(z, labels, counts) - _hard("sane")(z, labels, counts)
    assert leak > 0, "four more columns with e^0 in the denominator"


def test_sane_transfer_by_a_plain_loop():
    z, labels, _ = _batch()
    expected = 0.0
    for b, label in enumerate(labels.tolist()):
        others = [c for c in range(7) if c != label]
        wrong = z.detach()[:, b, others]
        teacher = wrong.max(0).values
        hardest = wrong.mean(0).argmax()
        teacher[hardest] = wrong.mean(0)[hardest]
        log_t = teacher.log_softmax(-1)
        for expert in wrong:
            expected += (log_t.exp() * (log_t - expert.log_softmax(-1))).sum() / 18
    torch.testing.assert_close(dynamic_knowledge_transfer(z, labels).detach(), expected.to(z))


def test_sane_transfer_does_not_see_the_label_nor_a_common_shift():
    z, labels, _ = _batch()
    loss, gradient = _loss_and_gradient(_transfer, z, labels, None)
    index = labels.expand(3, -1).unsqueeze(-1)
    assert gradient.gather(-1, index).abs().max() == 0
    raised = z.detach().scatter(-1, index, 50.0) - 20.0
    torch.testing.assert_close(dynamic_knowledge_transfer(raised, labels), loss.detach())
    published = dynamic_knowledge_transfer(z, labels, flavor="published")
    assert not torch.allclose(dynamic_knowledge_transfer(z - 5, labels, flavor="published"), published)


def test_diversity_by_a_plain_loop_and_its_target_is_fixed():
    z, _, counts = _batch()
    temperatures = class_temperatures(counts, 0.3)
    mean = (z.detach().mean(0) / temperatures).softmax(-1)
    expected = torch.stack(
        [F.kl_div((expert / temperatures).log_softmax(-1), mean, reduction="batchmean") for expert in z]
    ).mean()
    loss = distribution_aware_diversity(z, temperatures)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, z), torch.autograd.grad(expected, z))


def test_diversity_of_new_classes_leaves_old_ones_alone():
    z, _, counts = _batch()
    temperatures = class_temperatures(counts, 0.05)
    loss = distribution_aware_diversity(z, temperatures, first_class=4)
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient[..., :4].abs().max() == 0
    assert gradient[..., 4:].abs().max() > 0
    torch.testing.assert_close(loss, distribution_aware_diversity(z[..., 4:], temperatures[4:]))


def test_capped_diversity_stops_pushing():
    """Linear heads could grow without end when the term is maximised."""
    z, _, _ = _batch(spread=20.0)
    temperatures = torch.ones(7)
    free = distribution_aware_diversity(z, temperatures)
    capped = distribution_aware_diversity(z, temperatures, cap=0.5)
    assert free > 0.5 >= capped
    (gradient,) = torch.autograd.grad(capped, z)
    log_mean = z.mean(0).log_softmax(-1)
    above = (log_mean.exp() * (log_mean - z.log_softmax(-1))).sum(-1) > 0.5
    assert above.any()
    assert gradient[above].abs().max() == 0
    torch.testing.assert_close(distribution_aware_diversity(z, temperatures, cap=1e6), free)


def test_ensemble_distillation_is_zero_on_the_teacher_and_moves_the_mean():
    z, _, _ = _batch()
    assert ensemble_distillation(z, z.mean(0)).abs() < 1e-15
    teacher = torch.randn(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss = ensemble_distillation(z, teacher.requires_grad_())
    loss.backward()
    assert teacher.grad is None
    assert ensemble_distillation(z.detach() - 5 * z.grad, teacher) < loss
    torch.testing.assert_close(z.grad[0], z.grad[2])


def test_gradcheck_of_ensemble_distillation():
    z, _, _ = _batch(2, 3, 4)
    teacher = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda z: ensemble_distillation(z, teacher), (z,))


# ------------------------------------------------------------------------------------------- no host sync


@pytest.mark.parametrize("name", ALL)
def test_no_value_is_read_on_the_host(name):
    """Meta tensors have no values: whatever asks for one (``item``, ``nonzero``, ``if tensor``) raises."""
    z = torch.empty(3, 6, 7, device="meta", requires_grad=True)
    labels = torch.empty(6, dtype=torch.long, device="meta")
    counts = torch.empty(7, dtype=torch.long, device="meta")
    loss = ALL[name](z, labels, counts)
    loss.backward()
    assert z.grad.shape == z.shape
    with pytest.raises(RuntimeError):
        bool(loss > 0)


def test_no_value_of_the_queue_is_read_on_the_host():
    queries = torch.empty(2, 3, 4, device="meta", requires_grad=True)
    queue = torch.empty(2, 4, 5, device="meta")
    valid = torch.empty(5, dtype=torch.bool, device="meta")
    momentum_contrast(queries, torch.empty_like(queries), queue, valid).backward()
    assert queries.grad.shape == queries.shape


def test_the_plain_cross_entropy_is_unmoved():
    z, labels, _ = _batch()
    torch.testing.assert_close(
        cross_entropy(z, labels), torch.stack([F.cross_entropy(expert, labels) for expert in z]).mean()
    )
